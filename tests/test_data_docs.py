"""docs/data.md: its example works, and its table of findings is the program's."""

import hashlib
import re
import subprocess
import sys
import tarfile
from pathlib import Path

from etstpm.catalog import dataset_names
from etstpm.findings import KINDS
from tests.archive_server import archive_server
from tests.prefect_server import REPOSITORY

PAGE = (REPOSITORY / "docs" / "data.md").read_text("utf-8")


def etstpm(folder: Path, *arguments: str) -> str:
    command = [sys.executable, "-c", "from etstpm.cli import main; main()", *arguments]
    ended = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (0, "")
    return ended.stdout


def test_adding_a_dataset_is_one_declaration(drawn: Path, tmp_path: Path) -> None:
    """The page's own declaration and commands; its address and hash are those of this test."""
    archive = tmp_path / "buttons.tar.xz"
    with tarfile.open(archive, "w:xz", preset=0) as tar:
        tar.add(drawn / "flange", "button")
    content = archive.read_bytes()
    (declaration,) = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)
    with archive_server(content) as site:
        address = site.url("buttons.tar.xz")
        declaration = declaration.replace("https://files.example.com/buttons.tar.xz", address)
        declaration = declaration.replace("0" * 64, hashlib.sha256(content).hexdigest())
        (tmp_path / "buttons.toml").write_text(declaration)
        example = PAGE[PAGE.index("```toml") :]
        commands = re.findall(
            r"^    etstpm (data (?:fetch|validate) [^#\n]*buttons)$", example, re.M
        )
        assert len(commands) == 2
        output = [etstpm(tmp_path, *command.split()) for command in commands]
    assert "Cite: Line 4, week 30." in output[0]
    assert "next: etstpm data validate buttons" in output[0]
    assert "Buttons of line 4 in buttons" in output[1]
    assert "0 findings, fingerprint " in output[1]


def test_every_finding_and_dataset_is_listed() -> None:
    rows = re.findall(r"^\| `([\w-]+)` \| (error|warning) \| (.*) \|$", PAGE, re.MULTILINE)
    assert rows == [(code, kind.severity, kind.meaning) for code, kind in KINDS.items()]
    for name in dataset_names():
        assert f"| `{name}` |" in PAGE
