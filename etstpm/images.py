"""Decode, resize, normalise: from an image file to what a network takes."""

import hashlib
import io
import stat
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
import torch.nn.functional as F
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from etstpm.errors import reason_of

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

Pixels = npt.NDArray[np.uint8]
"""Images (N, H, W, 3), uint8, RGB."""

FORMATS = ("PNG", "JPEG", "BMP", "TIFF")
"""What is decoded, whatever a file is called: no other of Pillow's many parsers sees a byte."""

# A PNG of a few kilobytes can claim gigapixels: refuse what no camera on a line delivers.
# Pillow warns from this many pixels and refuses twice as many.
Image.MAX_IMAGE_PIXELS = 200_000_000
PNG = b"\x89PNG\r\n\x1a\n"
ORIENTATION = 274  # EXIF's tag; 1: as stored
LEVELS = np.arange(256)
SAMPLED = 128
"""Rows and columns of an image that its mean and contrast are taken of, at even distances."""
LARGEST_FILE = 2**30  # bytes; decoding reads a file whole

# What Pillow warns of (odd metadata, palettes) is no news for whoever runs this; what matters is
# found by `_notes`.
warnings.filterwarnings("ignore", module="PIL")


class ImageError(Exception):
    """A file that can be read and is no image to train on; `code` is that of its finding."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


UNREADABLE = (OSError, ImageError)
"""What `read_image` and `read_grey` raise for a file that is not a whole image."""


@dataclass(frozen=True)
class ImageFacts:
    """What decoding an image file has shown."""

    sha256: str
    bytes: int
    width: int
    height: int
    mode: str
    format: str
    mean: float
    """Mean of the grey values of up to `SAMPLED` rows and columns, 0 to 255."""
    contrast: float
    """Their standard deviation; 0 where all values of the image are one, and only there."""
    notes: tuple[str, ...]
    """Codes of findings that the file itself gives rise to."""


def read_image(path: Path, size: int) -> tuple[ImageFacts, Pixels]:
    """Decode a whole image file and resize it to (size, size, 3), uint8, RGB.

    Bilinear with antialias on the 8-bit image, as the papers' code does; see `resize_image`. Grey
    images are repeated over the three channels, alpha is dropped. Raises one of `UNREADABLE` for a
    file that is not a whole image.
    """
    return decode_image(read_file(path), size)


def decode_image(content: bytes, size: int) -> tuple[ImageFacts, Pixels]:
    """The same of a file's content, wherever that was read."""
    with _pillows_faults():
        image = _decode(content)
        values = _to_8_bit(image)
        # Of an RGB image `convert` would make a copy.
        rgb = values if values.mode == "RGB" else values.convert("RGB")
        mean, contrast = _mean_and_contrast(rgb)
        facts = ImageFacts(
            hashlib.sha256(content).hexdigest(),
            len(content),
            image.width,
            image.height,
            image.mode,
            image.format or "",
            mean,
            contrast,
            _notes(image),
        )
        return facts, resize_image(rgb, size)


def resize_image(image: Image.Image, size: int) -> Pixels:
    """An RGB image at (size, size, 3), uint8: torch's bilinear resize with antialias.

    Its arithmetic is Pillow's with shorter weights, in a fifth of the time: values differ by one at
    most.
    """
    values = _shared(image)[None].permute(0, 3, 1, 2)
    resized = F.interpolate(values, (size, size), mode="bilinear", antialias=True)
    pixels: Pixels = resized[0, :3].permute(1, 2, 0).numpy()
    return pixels


def _shared(image: Image.Image) -> Tensor:
    """An RGB image's own memory (H, W, 4), the fourth unused; (H, W, 3) copied from a large one's.

    Pillow keeps more than 16 MB in several blocks.
    """
    try:
        flat = torch.utils.dlpack.from_dlpack(pa.array(image).flatten())
    except ValueError:
        return torch.from_numpy(np.array(image))
    return flat.view(image.height, image.width, 4)


def _mean_and_contrast(rgb: Image.Image) -> tuple[float, float]:
    """Mean and standard deviation of the grey values: of a sample, unless that is of one value."""
    sampled = (min(rgb.width, SAMPLED), min(rgb.height, SAMPLED))
    mean, contrast = _moments(rgb.resize(sampled, Image.Resampling.NEAREST))
    return (mean, contrast) if contrast else _moments(rgb)


def _moments(rgb: Image.Image) -> tuple[float, float]:
    histogram = np.array(rgb.convert("L").histogram(), np.float64)
    mean = histogram @ LEVELS / histogram.sum()
    return float(mean), float(np.sqrt(histogram @ (LEVELS - mean) ** 2 / histogram.sum()))


def read_file(path: Path) -> bytes:
    """A regular file's contents. A pipe would wait for its writer for ever, a device never end."""
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        raise ImageError("not-a-file", "something else (folder, pipe or device)")
    if found.st_size > LARGEST_FILE:
        raise ImageError("too-large", f"{found.st_size} bytes, allowed are {LARGEST_FILE}")
    return path.read_bytes()


@contextmanager
def _pillows_faults() -> Iterator[None]:
    """An `ImageError` for whatever Pillow's parsers stumble over in damaged bytes."""
    try:
        yield
    except ImageError:
        raise
    except UnidentifiedImageError:  # its text ends in the address of a buffer
        raise ImageError("unknown-format", "neither PNG, JPEG, BMP nor TIFF") from None
    except Image.DecompressionBombError as error:
        raise ImageError("too-many-pixels", reason_of(error)) from None
    except Exception as error:
        raise ImageError("damaged-image", reason_of(error)) from None


def _decode(content: bytes) -> Image.Image:
    """The whole first picture of a file's contents."""
    if not content:
        raise ImageError("empty-file", "an empty file")
    if content.startswith(PNG):
        _check_png(content)
    image = Image.open(io.BytesIO(content), formats=FORMATS)
    image.load()
    return image


def _check_png(content: bytes) -> None:
    """Every chunk to the last with its checksum: Pillow stops reading where the picture is full."""
    place, kind = len(PNG), b""
    while kind != b"IEND":
        if place + 12 > len(content):
            raise ImageError("damaged-image", "a PNG that is cut off")
        (length,) = struct.unpack_from(">I", content, place)
        end = place + 8 + length
        kind = content[place + 4 : place + 8]
        if end + 4 > len(content):
            raise ImageError("damaged-image", "a PNG that is cut off")
        checksum = zlib.crc32(memoryview(content)[place + 4 : end])
        if content[end : end + 4] != checksum.to_bytes(4, "big"):
            raise ImageError("damaged-image", f"a PNG whose checksum at byte {place} is wrong")
        place = end + 4


def _notes(image: Image.Image) -> tuple[str, ...]:
    """Codes of what a file holds beside one opaque upright picture, all of which is left unused."""
    notes = []
    # A camera's JPEG may carry a preview as its second picture (MPO).
    if getattr(image, "n_frames", 1) > 1 and image.format != "MPO":
        notes.append("several-pictures")
    if image.getexif().get(ORIENTATION, 1) not in {0, 1}:
        notes.append("turned-by-exif")
    if image.mode in {"LA", "RGBA"} and image.getchannel("A").histogram()[:255] != [0] * 255:
        notes.append("transparent")
    return tuple(notes)


def _to_8_bit(image: Image.Image) -> Image.Image:
    """16-bit grey scaled to 8 bits: Pillow's own conversion clips it, almost all to white."""
    if image.mode.startswith("I;16"):
        values = np.asarray(image).astype(np.uint32)
        return Image.fromarray(((values + 128) // 257).astype(np.uint8))
    if image.mode in {"I", "F"}:
        raise ImageError("too-many-bits", "32-bit grey values, of which none is known to be white")
    return image


def read_grey(path: Path) -> npt.NDArray[np.uint8]:
    """A mask file's grey values (H, W) at its own size. Raises one of `UNREADABLE`."""
    return np.asarray(decode_grey(read_file(path)))


def decode_grey(content: bytes) -> Image.Image:
    """A mask file's grey values, of its content; mode L."""
    with _pillows_faults():
        image = _to_8_bit(_decode(content))
        return image if image.mode == "L" else image.convert("L")


def read_mask(path: Path, above: int = 127) -> npt.NDArray[np.bool_]:
    """A ground-truth mask (H, W) at its own size, true where its grey value is above `above`."""
    return read_grey(path) > above


def resize_mask(mask: npt.NDArray[np.bool_], size: int) -> npt.NDArray[np.bool_]:
    """A mask at (size, size): true where more than half of a pixel's area is defective.

    Bilinear resizing with every non-zero value kept would grow each defect by a pixel all round.
    """
    area = _sum_intervals(_sum_intervals(mask, size).T, size).T
    return area > 0.5 * mask.size / size**2


def _sum_intervals(values: npt.NDArray[np.generic], count: int) -> npt.NDArray[np.float64]:
    """Sums over `count` equal parts of the first axis, parts of pixels included.

    Pillow's box filter takes whole pixels only: at 384 to 256 it weighs every other one double.
    """
    total = np.zeros((len(values) + 1, *values.shape[1:]))
    np.cumsum(values, axis=0, out=total[1:])
    edges = np.arange(count + 1) * len(values) / count
    before = np.minimum(edges.astype(int), len(values) - 1)
    share = (edges - before)[:, None]
    sums: npt.NDArray[np.float64] = np.diff(
        total[before] * (1 - share) + total[before + 1] * share, axis=0
    )
    return sums


def normalise(pixels: Pixels, device: torch.device) -> Tensor:
    """Images (N, H, W, 3) uint8 to (N, 3, H, W) float32, channels last, ImageNet mean and std."""
    # torch warns of an array that it may not write to, as a memory-mapped one is.
    writable = np.require(pixels, requirements=["C", "W"])
    return normalise_tensor(torch.from_numpy(writable).to(device))


def normalise_tensor(pixels: Tensor) -> Tensor:
    """The same of a tensor (N, H, W, 3) uint8."""
    images = pixels.permute(0, 3, 1, 2).float()
    mean = torch.tensor(IMAGENET_MEAN, device=pixels.device).view(1, 3, 1, 1) * 255
    std = torch.tensor(IMAGENET_STD, device=pixels.device).view(1, 3, 1, 1) * 255
    return images.sub_(mean).div_(std)
