"""The `etstpm` command, called as its entry point is."""

import json
import sys
from pathlib import Path

import pytest

from etstpm import __version__
from etstpm.cli import main
from etstpm.config import Config


def run(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> tuple[int, str, str]:
    """Exit code, output and errors of `etstpm ARGUMENTS`."""
    monkeypatch.setattr(sys, "argv", ["etstpm", *arguments])
    monkeypatch.setenv("COLUMNS", "120")
    with pytest.raises(SystemExit) as ended:
        main()
    captured = capsys.readouterr()
    return int(ended.value.code or 0), captured.out, captured.err


def test_version(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["version"], monkeypatch, capsys) == (0, f"{__version__}\n", "")


def test_config_prints_every_value_and_the_digest(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, output, _ = run(["config", "stpm", "--set", "seed=3"], monkeypatch, capsys)

    text, digest = output.rsplit("digest ", 1)
    config = Config.load("stpm", ["seed=3"])
    assert code == 0
    assert json.loads(text) == config.model_dump(mode="json")
    assert digest.strip() == config.digest()


def test_sample_draws_then_validate_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "drawn"
    code, _, errors = run(["data", "sample", str(root)], monkeypatch, capsys)
    assert (code, errors) == (0, "")

    (root / "fabric" / "train" / "good" / "Thumbs.db").write_bytes(b"x")
    options = ["data", "validate", str(root), "--categories", "fabric"]
    code, output, errors = run(options, monkeypatch, capsys)

    assert (code, errors) == (0, "")
    row = next(line for line in output.splitlines() if "│ fabric" in line)
    assert [cell.strip() for cell in row.strip("│").split("│")] == ["fabric", "40", "12", "18"]
    assert "biscuit" not in output
    assert "warning: fabric/train/good/Thumbs.db: expected images only" in output


def test_names_of_folders_are_no_markup(
    dataset: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (dataset / "fabric").rename(dataset / "[red]:+1:[")
    (dataset / "[red]:+1:[" / "train" / "good" / "].db").write_bytes(b"x")

    code, output, errors = run(["data", "validate", str(dataset)], monkeypatch, capsys)

    assert (code, errors) == (0, "")
    assert "│ [red]:+1:[ " in output
    assert "[red]:+1:[/train/good/].db: expected images only" in output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["config", "no-such-preset"], "config 'no-such-preset' cannot be read"),
        (["data", "validate", "/no/such/root"], "dataset /no/such/root: no such folder"),
    ],
)
def test_fault_is_one_line_and_exit_code_2(
    arguments: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    code, output, errors = run(arguments, monkeypatch, capsys)

    assert (code, output) == (2, "")
    assert message in errors
    assert errors.count("\n") == 1
