"""The `etstpm` command, called as its entry point is."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Literal, get_args, get_origin, get_type_hints

import pytest
import typer

from etstpm import __version__
from etstpm.cli import app, main
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


def test_a_terminal_that_lacks_a_letter_shows_its_number(dataset: Path) -> None:
    (dataset / "fabric").rename(dataset / "tissé")
    done = subprocess.run(
        [str(Path(sys.executable).with_name("etstpm")), "data", "validate", str(dataset)],
        env=os.environ | {"PYTHONIOENCODING": "ascii", "COLUMNS": "120"},
        capture_output=True,
        text=True,
        check=False,
    )

    assert (done.returncode, done.stderr) == (0, "")
    assert "tiss\\xe9" in done.stdout
    assert "1 finding, fingerprint " in done.stdout


@pytest.mark.parametrize("group", [[], ["results"], ["store"]])
def test_without_arguments_the_help_is_printed_line_by_line(
    group: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, output, errors = run(group, monkeypatch, capsys)
    first, *others = (output + errors).splitlines()
    assert (code, first) == (
        2,
        f"Usage: {' '.join(['etstpm', *group])} [OPTIONS] COMMAND [ARGS]...",
    )
    assert "Commands:" in others


def enumerations(group: typer.Typer, path: str) -> list[tuple[str, str, tuple[str, ...]]]:
    """Of every command below: its options whose values are listed, and these."""
    found = []
    for command in group.registered_commands:
        assert command.callback is not None
        name = command.name or command.callback.__name__
        for option, hint in get_type_hints(command.callback, include_extras=True).items():
            if get_origin(hint) is not Annotated:
                continue
            kind, info = get_args(hint)
            values = [
                v for k in (kind, *get_args(kind)) if get_origin(k) is Literal for v in get_args(k)
            ]
            if values:
                # In `Annotated`, what is given first is the flag.
                flag = info.default if info.default is not ... else f"--{option.replace('_', '-')}"
                found.append((f"{path} {name}", flag, tuple(values)))
    for below in group.registered_groups:
        assert below.typer_instance is not None
        found += enumerations(below.typer_instance, f"{path} {below.name}")
    return found


ENUMERATIONS = enumerations(app, "etstpm")


def test_there_are_enumerations() -> None:
    assert ("etstpm score", "--heatmaps", ("none", "defective", "all")) in ENUMERATIONS
    policies = ("fail", "quarantine", "warn")
    assert ("etstpm data validate", "--on-finding", policies) in ENUMERATIONS
    assert len(ENUMERATIONS) >= 8


@pytest.mark.parametrize(("command", "option", "values"), ENUMERATIONS)
def test_what_is_no_choice_is_one_line(
    command: str,
    option: str,
    values: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    code, output, errors = run([*command.split()[1:], option, "WRO\nNG"], monkeypatch, capsys)
    allowed = ", ".join(map(repr, values))
    assert (code, output) == (2, "")
    assert errors == (
        f"{command}: invalid value for '{option}': 'WRO\\nNG' is not one of {allowed}; "
        f"see '{command} --help'\n"
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nonsense"], "etstpm: no such command 'nonsense'; see 'etstpm --help'"),
        (["config", "--nonsense"], "etstpm config: no such option: --nonsense; see"),
        (["data", "validate"], "etstpm data validate: missing argument 'root'; see"),
        (["results", "worst", "--limit", "0"], "greater than or equal to 1; see"),
        (["config", "no-such-preset"], "config 'no-such-preset' cannot be read"),
        (["data", "validate", "/no/such/root"], "dataset /no/such/root: no such folder"),
        (["data", "validate", "~nobody-here/x"], "dataset ~nobody-here/x: no such folder"),
        (["data", "validate", 300 * "x"], "cannot be read (File name too long); check"),
        (["store", "gc", "--min-age-days", "inf"], "inf is no finite number of days; see"),
        (["store", "gc", "--scored-days", "1e10"], "is no finite number of days; see"),
        (["data", "validate", "s3://bucket/x"], "dataset s3://bucket/x: images are read from a"),
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


def test_a_fault_of_the_system_is_one_line_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device", "/full/disk")

    monkeypatch.setattr(Config, "load", full)

    assert run(["config"], monkeypatch, capsys) == (
        2,
        "",
        "etstpm: /full/disk: No space left on device; check the path, its permissions and the room "
        "on its disk\n",
    )


def test_help_imports_nothing_that_is_slow() -> None:
    """No time is measured: what takes it is not there."""
    program = (
        "import sys; from etstpm.cli import main; sys.argv = ['etstpm', '--help']\n"
        "try: main()\n"
        "finally: print(*sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )

    *said, modules = done.stdout.splitlines()
    assert said[0] == "Usage: etstpm [OPTIONS] COMMAND [ARGS]..."
    assert any(line.split()[:2] == ["store", "The"] for line in said)
    slow = {
        "torch",
        "pandas",
        "pyarrow",
        "duckdb",
        "pydantic",
        "fsspec",
        "prefect",
        "rich.markdown",
    }
    assert not slow & set(modules.split())
