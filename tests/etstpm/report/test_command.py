"""`etstpm report`, called as its entry point is."""

import shutil
from pathlib import Path

import pytest

from etstpm.report import report_key
from etstpm.storage import Store
from tests.etstpm.report.conftest import run_id
from tests.etstpm.test_cli import run


def test_the_latest_run_goes_into_the_store(
    store: Store,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    shutil.copytree(store.uri, tmp_path / "store")
    uri = str(tmp_path / "store")
    code, output, errors = run(["report", "--store", uri], monkeypatch, capsys)
    assert (code, errors) == (0, "")
    assert output.strip().startswith(f"{uri}/reports/")
    assert Path(output.strip()).read_text("utf-8").startswith("<!doctype html>")


def test_a_reader_who_may_not_write_gets_a_file(
    store: Store,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = sorted(Path(store.uri).rglob("*"))
    file = tmp_path / "night.html"
    options = ["report", run_id(0), "--store", store.uri, "--to", str(file)]
    assert run(options, monkeypatch, capsys) == (0, f"{file}\n", "")
    assert run_id(0) in file.read_text("utf-8")
    assert sorted(Path(store.uri).rglob("*")) == before
    assert not (Path(store.uri) / report_key(run_id(0))).exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["no-such-run"], "no run 'no-such-run'"),
        (["../../etc"], "cannot be a run's id"),
        (["--store", "{empty}"], "holds no published run"),
        (["--to", "/no/such/folder/x.html"], "cannot be written"),
    ],
)
def test_a_fault_is_one_line_and_exit_code_2(
    store: Store,
    tmp_path: Path,
    options: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    given = [word.format(empty=tmp_path) for word in options]
    place = [] if "--store" in given else ["--store", store.uri]
    code, output, errors = run(["report", *given, *place], monkeypatch, capsys)
    assert (code, output) == (2, "")
    assert message in errors
    assert errors.count("\n") == 1
