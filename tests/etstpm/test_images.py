import hashlib
import os
import pty
import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image
from torchvision.transforms.v2 import functional as torchvision

from etstpm.decoded import ImageFile, load_pixels
from etstpm.images import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    UNREADABLE,
    ImageError,
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
    """torchvision's on tensors, and within a rounding Pillow's; all are antialiased."""
    values = np.random.default_rng(0).integers(0, 256, (side, side + 20, 3), dtype=np.uint8)
    ours = read_image(save(tmp_path / "a.png", values), 64)[1]
    tensor = torch.from_numpy(values).permute(2, 0, 1)
    theirs = torchvision.resize(tensor, [64, 64], antialias=True).permute(1, 2, 0).numpy()
    assert np.array_equal(ours, theirs)
    pillows = np.asarray(Image.fromarray(values).resize((64, 64), Image.Resampling.BILINEAR))
    assert np.abs(ours.astype(int) - pillows).max() <= 1
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
    with pytest.raises(ImageError, match="32-bit grey values"):
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
    with pytest.raises(ImageError, match="3600000000 pixels") as caught:
        read_image(path, 32)
    assert caught.value.code == "too-many-pixels"


@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 0.98, 0.9999])
def test_a_truncated_file_is_refused(drawn: Path, tmp_path: Path, share: float) -> None:
    content = drawn_files(drawn)[0].path.read_bytes()
    (tmp_path / "a.png").write_bytes(content[: int(share * len(content))])
    with pytest.raises(UNREADABLE):
        read_image(tmp_path / "a.png", 32)


def test_one_flipped_bit_is_refused(drawn: Path, tmp_path: Path) -> None:
    """Pillow leaves off where the picture is full, and reads no checksum that comes after."""
    content = drawn_files(drawn)[0].path.read_bytes()
    for place in [20, 40, len(content) // 2, len(content) - 18, len(content) - 6, len(content) - 2]:
        damaged = bytearray(content)
        damaged[place] ^= 1
        (tmp_path / "a.png").write_bytes(damaged)
        with pytest.raises(ImageError):
            read_image(tmp_path / "a.png", 32)


def test_mean_and_contrast_are_of_the_grey_values(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", ramp(40, 60))
    grey = np.asarray(Image.open(path).convert("L"), np.float64)
    facts, _ = read_image(path, 16)
    assert facts.mean == pytest.approx(grey.mean(), abs=1e-9)
    assert facts.contrast == pytest.approx(grey.std(), abs=1e-9)


def test_of_a_large_image_a_sample_tells_mean_and_contrast(tmp_path: Path) -> None:
    """At most 128 rows and columns: here, of a ramp, nearly the same as all."""
    path = save(tmp_path / "a.png", ramp(300, 700))
    grey = np.asarray(Image.open(path).convert("L"), np.float64)
    facts, _ = read_image(path, 16)
    assert facts.mean == pytest.approx(grey.mean(), abs=1)
    assert facts.contrast == pytest.approx(grey.std(), rel=0.02)
    assert facts.contrast != pytest.approx(grey.std(), abs=1e-9)


def test_only_an_image_of_one_value_has_no_contrast(tmp_path: Path) -> None:
    """The sample has missed the one pixel that is another."""
    values = np.full((300, 300, 3), 7, np.uint8)
    assert read_image(save(tmp_path / "a.png", values), 16)[0].contrast == 0
    values[0, 0] = 8
    facts, _ = read_image(save(tmp_path / "b.png", values), 16)
    assert facts.contrast == pytest.approx(np.sqrt(1 / 90_000), rel=1e-3)
    assert facts.mean == pytest.approx(7 + 1 / 90_000, rel=1e-9)


def test_an_image_too_large_for_one_block_is_resized_alike(tmp_path: Path) -> None:
    """Pillow keeps it in several, whose memory cannot be shared as one array."""
    values = np.random.default_rng(0).integers(0, 256, (2300, 2000, 3), dtype=np.uint8)
    with pytest.raises(ValueError, match="not contiguous"):
        pa.array(Image.fromarray(values))
    ours = read_image(save(tmp_path / "a.png", values), 64)[1]
    tensor = torch.from_numpy(values).permute(2, 0, 1)
    theirs = torchvision.resize(tensor, [64, 64], antialias=True).permute(1, 2, 0).numpy()
    assert np.array_equal(ours, theirs)


MODES_OF = {
    "a.png": ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"],
    "a.jpg": ["1", "L", "RGB", "CMYK"],
    "a.bmp": ["1", "L", "P", "RGB", "RGBA"],
    "a.tiff": ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16"],
}


@pytest.mark.parametrize(
    ("name", "mode"), [(name, mode) for name, modes in MODES_OF.items() for mode in modes]
)
def test_every_format_and_mode(tmp_path: Path, name: str, mode: str) -> None:
    """Whatever a ramp is saved as, it looks alike to eight grey values."""
    grey = np.repeat(np.arange(32, dtype=np.uint8)[:, None] * 8, 32, axis=1)
    image = Image.fromarray(grey.astype(np.uint16) * 257 if mode == "I;16" else grey)
    (image if mode == "I;16" else image.convert(mode)).save(tmp_path / name)
    facts, pixels = read_image(tmp_path / name, 32)
    assert facts.format in {"PNG", "JPEG", "BMP", "TIFF"}
    limit = 255 if mode == "1" else 8
    assert np.abs(pixels[:, :, 0].astype(int) - grey).max() <= limit


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
