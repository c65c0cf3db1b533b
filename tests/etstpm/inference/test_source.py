"""New images: which are found, in which order, how far ahead; and no file that ends the rest."""

import os
import time
from collections.abc import Iterator
from pathlib import Path

import fsspec
import numpy as np
import pytest
from PIL import Image

from etstpm.errors import DatasetError
from etstpm.inference.source import ImageSource, NewImage


def save(path: Path, grey: int = 100, side: int = 20) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((side, side), grey, np.uint8)).save(path)
    return path


def decode(place: str | Path, size: int = 16) -> list[NewImage]:
    return list(ImageSource(str(place)).decoded(size, threads=2, ahead=4))


def test_images_come_folder_by_folder_and_what_is_none_is_left_out(tmp_path: Path) -> None:
    for name in ("b.png", "a.JPG", "a-b/1.png", "a/2.bmp", "a/10.tiff", ".hidden/1.png", "._a.png"):
        save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "a" / "again").symlink_to(tmp_path, target_is_directory=True)

    images = decode(tmp_path)

    names = ["a.JPG", "b.png", "a/10.tiff", "a/2.bmp", "a-b/1.png"]
    assert [image.path for image in images] == names
    assert all(image.fault is None for image in images)
    assert {image.pixels.shape for image in images if image.pixels is not None} == {(16, 16, 3)}


def test_one_file_and_a_link_to_a_folder_are_places_too(tmp_path: Path) -> None:
    path = save(tmp_path / "folder" / "one.png")
    (tmp_path / "link").symlink_to(tmp_path / "folder", target_is_directory=True)

    for place, local in ((path, path.parent), (tmp_path / "link", tmp_path / "link")):
        assert [image.path for image in decode(place)] == ["one.png"]
        assert ImageSource(str(place)).local_root == local


def test_every_kind_of_bad_file_is_a_fault_of_its_own(tmp_path: Path) -> None:
    whole = save(tmp_path / "good.png", side=200).read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "text.png").write_text("<script>alert(1)</script>")
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere")
    (tmp_path / "circle.png").symlink_to("circle.png")
    Image.fromarray(np.ones((4, 4), np.int32)).save(tmp_path / "deep.tiff")
    (tmp_path / os.fsdecode(b"latin-\xe9.png")).write_bytes(whole)

    faults = {image.path: image.fault or "" for image in decode(tmp_path)}

    assert faults.pop("good.png") == ""
    assert faults.pop("latin-\\udce9.png") == ""
    expected = {
        "circle.png": "cannot be read: Too many levels of symbolic links",
        "cut.png": "not a whole image: ",
        "deep.tiff": "not a whole image: 32-bit grey values",
        "empty.png": "cannot be read: the file is empty",
        "gone.png": "cannot be read: No such file or directory",
        "pipe.png": "cannot be read: not a regular file",
        "text.png": "not a whole image: ",
    }
    assert set(faults) == set(expected)
    for name, fault in expected.items():
        assert faults[name].startswith(fault), name
        assert "\n" not in faults[name]


def test_an_image_of_any_size_and_mode_is_resized(tmp_path: Path) -> None:
    Image.new("RGBA", (5, 90)).save(tmp_path / "a.png")
    Image.new("P", (300, 2)).save(tmp_path / "b.png")
    Image.fromarray(np.full((8, 8), 65535, np.uint16)).save(tmp_path / "c.png")

    first, second, third = decode(tmp_path)

    assert [(i.facts.width, i.facts.height) for i in (first, second) if i.facts] == [
        (5, 90),
        (300, 2),
    ]
    assert third.pixels is not None
    assert (third.pixels == 255).all()


def test_no_more_is_decoded_than_is_asked_for(tmp_path: Path) -> None:
    for number in range(40):
        save(tmp_path / f"{number:02}.png")

    class Counting(ImageSource):
        read_so_far = 0

        def read(self, path: str, size: int) -> NewImage:
            self.read_so_far += 1
            return super().read(path, size)

    source = Counting(str(tmp_path))
    images = source.decoded(16, threads=2, ahead=5)
    for taken in range(1, 4):
        next(images)
        time.sleep(0.1)
        assert taken <= source.read_so_far <= taken + 5
    images.close()  # type: ignore[attr-defined]
    assert source.read_so_far <= 8


@pytest.fixture
def bucket() -> Iterator[str]:
    """A prefix in fsspec's memory: what is no folder of this machine."""
    fs = fsspec.filesystem("memory")
    yield "memory://bucket/line-1"
    fs.rm("/bucket", recursive=True)


def test_a_prefix_is_read_as_a_folder_is(bucket: str, tmp_path: Path) -> None:
    content = save(tmp_path / "x.png").read_bytes()
    for name in ("b/1.png", "a.png", ".trash/2.png"):
        with fsspec.open(f"{bucket}/{name}", "wb") as file:
            file.write(content)

    assert [image.path for image in decode(bucket)] == ["a.png", "b/1.png"]
    assert [image.path for image in decode(f"{bucket}/b/1.png")] == ["1.png"]
    assert ImageSource(bucket).local_root is None


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("no-such-folder", "no such file or folder"),
        ("nosuch://bucket/x", "is not a place that fsspec knows"),
        ("https://***@example.org/x", "carries credentials"),
        ("memory://bucket/nothing", "no such file or folder"),
        ("pipe", "neither a file nor a folder"),
    ],
)
def test_a_place_that_is_none_is_one_line(
    place: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe")

    with pytest.raises(DatasetError) as raised:
        decode(place.replace("***", "ann:s3cret"))

    assert str(raised.value).replace("'", "").startswith(f"images {place}")
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)
