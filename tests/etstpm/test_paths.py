"""Paths of this machine."""

import os
from pathlib import Path

import pytest

from etstpm.paths import written_whole


def test_a_file_that_is_not_written_to_its_end_leaves_the_old_one(tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    page.write_text("old")

    def fill() -> None:
        with written_whole(page) as partial:
            partial.write_text("half")
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        fill()
    assert page.read_text() == "old"
    with written_whole(page) as partial:
        partial.write_text("new")
    assert page.read_text() == "new"
    assert os.listdir(tmp_path) == ["report.html"]  # noqa: PTH208


def test_a_device_is_written_itself() -> None:
    with written_whole(Path("/dev/null")) as partial:
        assert partial == Path("/dev/null")
