"""`etstpm export`, called as its entry point is."""

import importlib.util
from pathlib import Path

import pytest

from tests.etstpm.test_cli import run
from tests.trained import CATEGORY, Published


def test_it_writes_the_file_and_says_where(
    published: Published,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    to = tmp_path / "models" / "biscuit.pt2"
    options = ["--category", CATEGORY, "--store", str(published.store), "--to", str(to)]

    code, output, errors = run(
        ["export", *options, "--format", "torch-export"], monkeypatch, capsys
    )

    assert (code, errors) == (0, "")
    assert {path.name for path in to.parent.iterdir()} == {"biscuit.pt2", "biscuit.pt2.md"}
    assert f"card       {to}.md" in output
    assert "threshold" in output


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "ONNX"}, "format 'ONNX' is unknown; choose one of onnx, torch-export"),
        ({"category": "screw"}, "has no category 'screw'"),
        ({"run": "nonsense"}, "no run 'nonsense'"),
        ({"store": "/no/such/store"}, "holds no published run"),
        ({"to": "models/"}, "does not name a file that ends in .onnx"),
    ],
)
def test_a_fault_is_one_line_and_exit_code_2(
    changes: dict[str, str],
    message: str,
    published: Published,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    values = {
        "category": CATEGORY,
        "store": str(published.store),
        "to": str(tmp_path / "x.onnx"),
    } | changes
    options = [word for name, value in values.items() for word in (f"--{name}", value)]

    code, output, errors = run(["export", *options], monkeypatch, capsys)

    assert (code, output) == (2, "")
    assert message in errors
    assert errors.count("\n") == 1
    assert list(tmp_path.glob("x.onnx*")) == []


def test_a_missing_package_is_named_with_the_way_to_get_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name: None if name == "onnxscript" else find(name)
    )

    code, _, errors = run(["export", "--category", "x", "--to", "x"], monkeypatch, capsys)

    assert code == 2
    assert "onnxscript is not installed; pip install 'etstpm[export]'" in errors
