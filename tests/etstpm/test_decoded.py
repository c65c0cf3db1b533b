"""The decoded cache: one decode, whole files only, bounded, whoever is killed."""

import hashlib
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from etstpm import decoded
from etstpm.decoded import ImageFile, cache_path, load_pixels, make_room, new_decoded_file
from etstpm.errors import ConfigError, DatasetError
from etstpm.images import Pixels, read_image
from etstpm.settings import settings
from tests.killing import survive_kills

NAME = "flange/train"


@pytest.fixture
def files(drawn: Path) -> list[ImageFile]:
    paths = sorted((drawn / "flange" / "train" / "good").iterdir())
    return [ImageFile(path, hashlib.sha256(path.read_bytes()).hexdigest()) for path in paths]


@pytest.fixture(autouse=True)
def forget_what_is_proven() -> Iterator[None]:
    """As a new process would."""
    decoded._proven.clear()
    yield
    decoded._proven.clear()


def load(files: list[ImageFile], cache: Path, size: int = 32) -> Pixels:
    return load_pixels(NAME, files, size, cache)


def cached_files(cache: Path) -> list[Path]:
    return sorted(cache.rglob("*.npy"))


def left_behind(cache: Path) -> list[Path]:
    return [path for path in cache.rglob(".*") if path.is_file()]


def decoded_paths(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The images that are decoded from now on."""
    seen: list[Path] = []

    def read(path: Path, size: int) -> object:
        seen.append(path)
        return read_image(path, size)

    monkeypatch.setattr(decoded, "read_image", read)
    return seen


def test_a_split_is_decoded_once(
    files: list[ImageFile], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = load(files, cache)
    for file, pixels in zip(files, first, strict=True):
        assert np.array_equal(pixels, read_image(file.path, 32)[1])
    monkeypatch.setattr(decoded, "read_image", lambda *_: pytest.fail("decoded again"))
    assert np.array_equal(load(files, cache), first)
    with pytest.raises(ValueError, match="read-only"):
        first[0] = 0


def test_the_file_is_one_that_numpy_reads(files: list[ImageFile], cache: Path) -> None:
    pixels = load(files, cache)
    (path,) = cached_files(cache)
    assert np.array_equal(np.load(path), pixels)


def test_another_size_is_another_file(files: list[ImageFile], cache: Path) -> None:
    assert load(files, cache).shape == (4, 32, 32, 3)
    assert load(files, cache, size=48).shape == (4, 48, 48, 3)
    assert len(cached_files(cache)) == 2


@pytest.mark.parametrize("order", [(3, 2, 1, 0), (0, 2), (1, 1, 0)])
def test_other_images_are_taken_from_the_files_that_hold_them(
    files: list[ImageFile], cache: Path, order: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = load(files, cache)
    monkeypatch.setattr(decoded, "read_image", lambda *_: pytest.fail("decoded again"))
    chosen = load([files[row] for row in order], cache)
    assert np.array_equal(chosen, first[list(order)])
    assert len(cached_files(cache)) == 2


def test_new_images_alone_are_decoded(
    files: list[ImageFile], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load(files[:3], cache)
    seen = decoded_paths(monkeypatch)
    load(files, cache)
    assert seen == [files[3].path]


def test_an_image_that_changed_is_refused(
    files: list[ImageFile], cache: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other.png"
    shutil.copyfile(files[1].path, other)
    changed = [files[0], ImageFile(other, files[0].sha256[::-1])]
    with pytest.raises(DatasetError, match=rf"{other}: changed since it was validated"):
        load(changed, cache)
    other.write_bytes(b"x")
    with pytest.raises(DatasetError, match=r"was a whole image .* neither PNG, .*; run again"):
        load(changed, cache)
    assert cached_files(cache) == left_behind(cache) == []


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "trailer", "foreign"])
def test_a_damaged_file_is_made_anew(files: list[ImageFile], cache: Path, damage: str) -> None:
    whole = load(files, cache).copy()
    (path,) = cached_files(cache)
    content = bytearray(path.read_bytes())
    if damage == "flip":
        content[5000] ^= 1
    elif damage == "cut":
        del content[7000:]
    elif damage == "empty":
        content.clear()
    elif damage == "trailer":
        content[-60] ^= 1
    else:
        content[:] = b"not of this cache"
    path.unlink()  # another inode: what is mapped stays as it is
    path.write_bytes(content)
    assert np.array_equal(load(files, cache), whole)
    assert np.array_equal(np.load(path), whole)


def test_names_of_folders_are_hostile(files: list[ImageFile], cache: Path) -> None:
    for name in ("../../x/train", "a" * 300 + "/train", "\udce4/train", "a\nb/train", "%s*[/train"):
        assert load_pixels(name, files, 32, cache).shape[0] == 4
    assert {path.parent for path in cached_files(cache)} == {cache / "decoded"}
    assert len(cached_files(cache)) == 5


# Its bound


def bound(monkeypatch: pytest.MonkeyPatch, gib: float) -> None:
    monkeypatch.setenv("ETSTPM_CACHE_GIB", str(gib))
    settings.cache_clear()


def test_what_was_used_least_recently_goes(
    files: list[ImageFile], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bound(monkeypatch, 3.5 * 4 * 64 * 64 * 3 / 2**30)
    for category in "abc":
        load_pixels(category, files, 64, cache)
        time.sleep(0.01)
    held = load_pixels("a", files, 64, cache)
    kept = held.copy()
    load_pixels("d", files, 64, cache)
    assert [path.name[0] for path in cached_files(cache)] == ["a", "c", "d"]
    load_pixels("e", files, 64, cache)
    load_pixels("f", files, 64, cache)
    assert [path.name[0] for path in cached_files(cache)] == ["d", "e", "f"]
    assert np.array_equal(held, kept)  # whoever has it mapped keeps it


def test_a_split_beyond_the_bound_is_still_served(
    files: list[ImageFile], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bound(monkeypatch, 0)
    load(files, cache)
    assert load(files, cache).shape[0] == 4
    load_pixels("other", files, 32, cache)
    assert [path.name[:5] for path in cached_files(cache)] == ["other"]


def test_partial_files_of_the_dead_are_swept_and_those_of_the_living_are_not(cache: Path) -> None:
    code = (
        "import sys, time, pathlib, numpy; from etstpm.decoded import new_decoded_file\n"
        "with new_decoded_file('x', 4, 32, pathlib.Path(sys.argv[1])) as draft:\n"
        "    draft.write(0, numpy.full((32, 32, 3), 7, numpy.uint8))\n"
        "    print('half', flush=True); time.sleep(60)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(cache)], stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"half\n"
        make_room(cache / "decoded", 0)
        assert len(left_behind(cache)) == 1
        process.kill()
        process.wait()
        make_room(cache / "decoded", 0)
    assert left_behind(cache) == []


# Faults


def test_a_cache_that_cannot_be_written_is_named(files: list[ImageFile], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"cache .*file cannot be written \(Not a dir.*"):
        load(files, tmp_path / "file")


def test_a_full_disk_is_named(
    files: list[ImageFile], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its room is taken before an image is decoded."""

    def full(*_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(ConfigError, match=r"No space left on device\); set ETSTPM_CACHE .* room"):
        load(files, cache)
    assert cached_files(cache) == left_behind(cache) == []


def test_a_fault_inside_the_block_is_not_swallowed(cache: Path) -> None:
    with pytest.raises(KeyError), new_decoded_file("x", 1, 8, cache):
        raise KeyError
    assert cached_files(cache) == left_behind(cache) == []


def test_nothing_to_decode_is_no_fault(cache: Path) -> None:
    assert load([], cache).shape == (0, 32, 32, 3)


# Several at once, and kill -9


def test_two_at_once_decode_once(
    files: list[ImageFile], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    together = threading.Barrier(2)
    results: list[Pixels] = []
    seen = decoded_paths(monkeypatch)

    def work() -> None:
        together.wait()
        results.append(load(files, cache))

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 2
    assert np.array_equal(results[0], results[1])
    assert sorted(seen) == [file.path for file in files]
    assert len(cached_files(cache)) == 1


def test_killed_at_any_moment_it_is_built_by_the_next(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for number in range(24):
        values = rng.integers(0, 256, (256, 256, 3), np.uint8)
        Image.fromarray(values).save(tmp_path / f"{number:02}.png", compress_level=1)
    survive_kills(
        """
import hashlib, pathlib, shutil, sys
import numpy as np
from etstpm.decoded import ImageFile, load_pixels, make_room
from etstpm.images import read_image

folder, cache = map(pathlib.Path, sys.argv[2:])
files = [ImageFile(path, hashlib.sha256(path.read_bytes()).hexdigest())
         for path in sorted(folder.glob("*.png"))]
expected = np.stack([read_image(file.path, 256)[1] for file in files])

def reset():
    shutil.rmtree(cache, ignore_errors=True)

def work():
    assert np.array_equal(load_pixels("x", files, 256, cache), expected)

def check():
    make_room(cache / "decoded", 0)
    names = [path.name for path in (cache / "decoded").iterdir()]
    assert len(names) == 2 and not any(name.endswith(".partial") for name in names), names
""",
        tmp_path,
        tmp_path / "cache",
    )


def test_the_name_says_what_is_in_it(files: list[ImageFile], cache: Path) -> None:
    path = cache_path("bottle/train", 256, [file.sha256 for file in files], cache)
    assert path.name.startswith("bottle-train-")
    assert path != cache_path("bottle/train", 257, [file.sha256 for file in files], cache)
    assert path != cache_path("bottle/train", 256, [file.sha256 for file in files[1:]], cache)
