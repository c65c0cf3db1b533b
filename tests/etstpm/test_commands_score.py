"""`etstpm score`, called as its entry point is."""

import shutil
from pathlib import Path

import pytest

from etstpm.commands.score import printable
from tests.etstpm.test_cli import run
from tests.trained import CATEGORY, Published


def test_it_prints_decisions_and_a_fault_costs_exit_code_1(
    published: Published,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    images = tmp_path / "images"
    shutil.copytree(published.root / CATEGORY / "test" / "good", images)
    whole = sorted(images.iterdir())[0]
    hostile = "[red]\x1b]0;owned\x07.png"
    shutil.copy(whole, images / hostile)
    options = ["score", str(images), "--category", CATEGORY, "--store", str(published.store)]

    code, output, errors = run([*options, "--to", str(tmp_path / "a")], monkeypatch, capsys)

    assert (code, errors) == (0, "")
    assert "[red]\\x1b]0;owned\\x07.png" in output
    assert "\x1b" not in output
    assert "3 images of biscuit" in output
    assert str(tmp_path / "a" / "image_scores.parquet") in output

    (images / "cut\x1b.png").write_bytes(b"x")
    code, _, errors = run([*options, "--to", str(tmp_path / "b")], monkeypatch, capsys)

    assert code == 1
    assert errors.startswith("note: cut\\x1b.png: not a whole image")
    assert errors.count("\n") == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"category": "screw"}, "has no category 'screw'"),
        ({"run": "nonsense"}, "no run 'nonsense'"),
        ({"images": "/no/such/folder"}, "images /no/such/folder: no such file or folder"),
        ({"store": "nosuch://x"}, "is not a place that fsspec knows"),
        ({"store": ""}, "store '' is no place"),
        ({"store": "{empty}"}, "holds no published run"),
        ({"images": "{empty}"}, "no image in it"),
        ({"to": "{store}"}, "holds scores already"),
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
    places = {"empty": tmp_path / "empty", "store": tmp_path / "full"}
    for place in places.values():
        place.mkdir()
    (places["store"] / "score.json").write_text("{}")
    values = {
        "images": str(published.root / CATEGORY / "test"),
        "category": CATEGORY,
        "store": str(published.store),
        "to": str(tmp_path / "out"),
    }
    values |= {name: value.format(**places) for name, value in changes.items()}
    images = values.pop("images")
    options = [word for name, value in values.items() for word in (f"--{name}", value)]

    code, output, errors = run(["score", images, *options], monkeypatch, capsys)

    assert (code, output) == (2, "")
    assert message in errors
    assert errors.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_control_characters_are_shown_not_obeyed() -> None:
    assert printable("a\x1b[2J\nü𝄞.png") == "a\\x1b[2J\\nü𝄞.png"
