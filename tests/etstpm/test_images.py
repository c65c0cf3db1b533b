import hashlib
import os
import pty
import signal
import struct
import subprocess
import sys
import threading
import time
import zlib
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image
from torchvision.transforms.v2 import functional as torchvision

from etstpm import images
from etstpm.errors import ConfigError, DatasetError
from etstpm.images import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    UNREADABLE,
    ImageFile,
    Pixels,
    cache_path,
    load_pixels,
    new_cache_file,
    normalise,
    read_image,
    read_mask,
    resize_mask,
)
from etstpm.progress import track

REPOSITORY = Path(__file__).parents[2]


def save(path: Path, values: npt.NDArray[np.generic], mode: str | None = None) -> Path:
    image = Image.fromarray(values)
    (image.convert(mode) if mode else image).save(path)
    return path


def ramp(height: int, width: int) -> npt.NDArray[np.uint8]:
    """An RGB picture in which every pixel differs from its neighbours."""
    y, x = np.mgrid[:height, :width]
    return np.stack([x * 5 % 256, y * 7 % 256, (x + y) * 11 % 256], axis=-1).astype(np.uint8)


def drawn_files(drawn: Path) -> list[ImageFile]:
    paths = sorted((drawn / "flange" / "train" / "good").iterdir())
    return [ImageFile(path, hashlib.sha256(path.read_bytes()).hexdigest()) for path in paths]


# Decoding


def test_facts_are_of_the_file(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", ramp(40, 60))
    facts, pixels = read_image(path, 32)
    assert (facts.width, facts.height, facts.mode) == (60, 40, "RGB")
    assert facts.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert facts.bytes == path.stat().st_size
    assert pixels.shape == (32, 32, 3)


def test_an_image_of_the_right_size_is_not_touched(tmp_path: Path) -> None:
    values = ramp(32, 32)
    assert np.array_equal(read_image(save(tmp_path / "a.png", values), 32)[1], values)


@pytest.mark.parametrize("side", [48, 300])
def test_resizing_is_that_of_the_papers(tmp_path: Path, side: int) -> None:
    """torchvision on tensors rounds once more than Pillow; both are antialiased."""
    values = np.random.default_rng(0).integers(0, 256, (side, side + 20, 3), dtype=np.uint8)
    ours = read_image(save(tmp_path / "a.png", values), 64)[1]
    tensor = torch.from_numpy(values).permute(2, 0, 1)
    theirs = torchvision.resize(tensor, [64, 64], antialias=True).permute(1, 2, 0).numpy()
    assert np.abs(ours.astype(int) - theirs).max() <= 1
    aliased = torchvision.resize(tensor, [64, 64], antialias=False).permute(1, 2, 0).numpy()
    assert side < 64 or np.abs(ours.astype(int) - aliased).max() > 30


@pytest.mark.parametrize("name", ["a.png", "a.bmp", "a.tiff"])
def test_grey_is_repeated_over_the_channels(tmp_path: Path, name: str) -> None:
    grey = ramp(32, 32)[:, :, 0]
    facts, pixels = read_image(save(tmp_path / name, grey), 32)
    assert facts.mode == "L"
    assert np.array_equal(pixels, np.repeat(grey[:, :, None], 3, axis=2))


def test_palette_and_alpha(tmp_path: Path) -> None:
    values = ramp(32, 32) // 128 * 255
    facts, pixels = read_image(save(tmp_path / "p.png", values, "P"), 32)
    assert facts.mode == "P"
    assert np.array_equal(pixels, values)
    opaque = np.dstack([values, np.full((32, 32), 255, np.uint8)])
    facts, pixels = read_image(save(tmp_path / "a.png", opaque), 32)
    assert facts.mode == "RGBA"
    assert np.array_equal(pixels, values)


@pytest.mark.parametrize("name", ["deep.png", "deep.tiff"])
def test_16_bits_are_scaled_not_clipped(tmp_path: Path, name: str) -> None:
    """Pillow's convert turns everything above 255 of 65,535 white."""
    grey = np.arange(1024).reshape(32, 32).astype(np.uint16) * 64
    facts, pixels = read_image(save(tmp_path / name, grey), 32)
    assert facts.mode == "I;16"
    assert np.array_equal(pixels[:, :, 0], np.rint(grey / 257))
    save(tmp_path / name, np.array([[0, 65535], [65535, 0]], np.uint16))
    assert read_image(tmp_path / name, 2)[1][:, :, 2].tolist() == [[0, 255], [255, 0]]


def test_32_bits_are_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "float.tiff", np.linspace(0, 1, 64).reshape(8, 8).astype(np.float32))
    with pytest.raises(ValueError, match="32-bit grey values"):
        read_image(path, 8)


def chunk(kind: bytes, content: bytes) -> bytes:
    checksum = struct.pack(">I", zlib.crc32(kind + content))
    return struct.pack(">I", len(content)) + kind + content + checksum


def test_a_file_that_claims_gigapixels_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    path = tmp_path / "bomb.png"
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(bytes(1000)))
        + chunk(b"IEND", b"")
    )
    with pytest.raises(Image.DecompressionBombError, match="3600000000 pixels"):
        read_image(path, 32)
    assert issubclass(Image.DecompressionBombError, UNREADABLE)


@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 0.98])
def test_a_truncated_file_is_refused(drawn: Path, tmp_path: Path, share: float) -> None:
    content = drawn_files(drawn)[0].path.read_bytes()
    (tmp_path / "a.png").write_bytes(content[: int(share * len(content))])
    with pytest.raises(UNREADABLE):
        read_image(tmp_path / "a.png", 32)


# Masks


def test_a_mask_is_what_is_brighter_than_half(tmp_path: Path) -> None:
    grey = np.array([[0, 127], [128, 255]], np.uint8)
    expected = [[False, False], [True, True]]
    assert read_mask(save(tmp_path / "a.png", grey)).tolist() == expected
    assert read_mask(save(tmp_path / "b.png", grey > 127)).tolist() == expected
    deep = grey.astype(np.uint16) * 257
    assert read_mask(save(tmp_path / "c.png", deep)).tolist() == expected


@given(arrays.arrays(np.bool_, (32, 32)), st.sampled_from([8, 16, 20, 27]))
def test_a_resized_mask_is_what_is_more_than_half_defective(
    mask: npt.NDArray[np.bool_], size: int
) -> None:
    fine = np.repeat(np.repeat(mask, size, axis=0), size, axis=1)
    share = fine.reshape(size, 32, size, 32).mean(axis=(1, 3))
    clear = np.abs(share - 0.5) > 1e-4
    resized = resize_mask(mask, size)
    assert np.array_equal(resized[clear], share[clear] > 0.5)


def test_a_resized_mask_never_grows() -> None:
    """Half-covered pixels are the every-day case: a defect's edge at an odd column, halved."""
    mask = np.zeros((64, 64), bool)
    mask[11:31, 21:41] = True
    resized = resize_mask(mask, 32)
    back = np.repeat(np.repeat(resized, 2, axis=0), 2, axis=1)
    assert not (back & ~mask).any()
    assert resized.sum() == 9 * 9


def test_a_resized_mask_keeps_its_area() -> None:
    y, x = np.mgrid[:900, :900]
    disc = np.hypot(y - 430.3, x - 501.7) < 150
    assert abs(resize_mask(disc, 256).mean() / disc.mean() - 1) < 0.01
    assert np.array_equal(resize_mask(disc, 900), disc)
    assert abs(resize_mask(disc[::9, ::9], 256).mean() / disc.mean() - 1) < 0.05


# Normalising


def test_normalising_is_torchvisions() -> None:
    pixels = np.stack([ramp(16, 16), ramp(16, 16)[::-1]])
    ours = normalise(pixels, torch.device("cpu"))
    tensor = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
    theirs = torchvision.normalize(tensor, list(IMAGENET_MEAN), list(IMAGENET_STD))
    torch.testing.assert_close(ours, theirs)
    assert ours.dtype is torch.float32
    assert ours.is_contiguous(memory_format=torch.channels_last)


def test_pixels_of_the_cache_are_normalised_and_left_as_they_are(drawn: Path, cache: Path) -> None:
    pixels = load_pixels("flange/train", drawn_files(drawn), 32, cache)
    before = pixels.copy()
    normalise(pixels[1:3], torch.device("cpu"))
    assert np.array_equal(pixels, before)


# The decoded cache


def load(files: list[ImageFile], cache: Path, size: int = 32) -> Pixels:
    return load_pixels("flange/train", files, size, cache)


def cached_files(cache: Path) -> list[str]:
    return [path.name for path in cache.rglob("*") if path.is_file()]


def test_a_split_is_decoded_once(drawn: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = drawn_files(drawn)
    first = load(files, cache)
    for file, pixels in zip(files, first, strict=True):
        assert np.array_equal(pixels, read_image(file.path, 32)[1])
    monkeypatch.setattr(images, "read_image", lambda *_: pytest.fail("decoded again"))
    assert np.array_equal(load(files, cache), first)
    with pytest.raises(ValueError, match="read-only"):
        first[0] = 0


def test_another_size_or_other_images_are_another_file(drawn: Path, cache: Path) -> None:
    files = drawn_files(drawn)
    assert load(files, cache).shape == (4, 32, 32, 3)
    assert load(files, cache, size=48).shape == (4, 48, 48, 3)
    assert np.array_equal(load(files[::-1], cache), load(files, cache)[::-1])
    assert len(cached_files(cache)) == 3


def test_an_image_that_changed_is_refused(drawn: Path, cache: Path, tmp_path: Path) -> None:
    files = drawn_files(drawn)
    other = tmp_path / "other.png"
    other.write_bytes(files[1].path.read_bytes())
    changed = [files[0], ImageFile(other, files[0].sha256)]
    with pytest.raises(DatasetError) as caught:
        load(changed, cache)
    assert str(caught.value).startswith(f"{other}: changed since it was validated")
    assert f"{files[0].sha256[:12]} expected, {files[1].sha256[:12]} found" in str(caught.value)
    assert cached_files(cache) == []


def test_a_run_killed_half_way_leaves_nothing_that_counts(drawn: Path, cache: Path) -> None:
    files = drawn_files(drawn)
    path = cache_path("flange/train", 32, [file.sha256 for file in files], cache)
    code = (
        "import sys, time, pathlib; from etstpm.images import new_cache_file\n"
        "with new_cache_file(pathlib.Path(sys.argv[1]), 4, 32) as pixels:\n"
        "    pixels[:2] = 7; print('half', flush=True); time.sleep(60)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    with subprocess.Popen(
        [sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, env=environment
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"half\n"
        process.send_signal(signal.SIGKILL)
    assert not path.exists()
    assert np.array_equal(load(files, cache)[3], read_image(files[3].path, 32)[1])


def test_two_at_once_end_in_one_whole_file(drawn: Path, cache: Path) -> None:
    files = drawn_files(drawn)
    together = threading.Barrier(2)
    results: list[Pixels] = []

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
    assert len(cached_files(cache)) == 1


def test_a_cache_that_cannot_be_written_is_named(drawn: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"cache .*file/decoded cannot be written \(Not a dir.*"):
        load(drawn_files(drawn), tmp_path / "file")


def test_a_fault_inside_the_block_is_not_swallowed(tmp_path: Path) -> None:
    with pytest.raises(KeyError), new_cache_file(tmp_path / "x.npy", 1, 8):
        raise KeyError
    assert cached_files(tmp_path) == []


# Progress


def run_behind_a_bar(stderr: int) -> None:
    code = (
        "from etstpm.progress import Bar, track\n"
        "assert list(track(range(7), 'bottle: decode', 7)) == list(range(7))\n"
        "with Bar('bottle: epoch 1/30', 3) as bar:\n"
        "    bar.advance(3); bar.show(loss=0.12345)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "TERM": "xterm", "COLUMNS": "140"}
    subprocess.run([sys.executable, "-c", code], check=True, stderr=stderr, env=environment)


def test_a_terminal_sees_what_is_done_and_how_fast() -> None:
    controller, terminal = pty.openpty()
    run_behind_a_bar(terminal)
    os.close(terminal)
    shown = b""
    try:
        while block := os.read(controller, 65536):
            shown += block
    except OSError:  # Linux says EIO, not end of file, when the other end is closed
        pass
    os.close(controller)
    text = shown.decode()
    assert all(part in text for part in ("bottle: decode", "7/7", "/s", "3/3", "loss 0.1235"))


def test_elsewhere_there_is_silence(tmp_path: Path) -> None:
    with (tmp_path / "log").open("wb") as log:
        run_behind_a_bar(log.fileno())
    assert (tmp_path / "log").read_bytes() == b""


def test_a_bar_passes_on_items_as_they_come() -> None:
    seen = []
    for item in track((seen.append(i) or i for i in range(3)), "", 3):  # type: ignore[func-returns-value]
        assert seen[-1] == item
        time.sleep(0)
    assert seen == [0, 1, 2]
