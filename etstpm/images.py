"""Decode, resize, normalise; and the decoded cache, one memory-mapped file a split."""

import hashlib
import io
import uuid
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from etstpm.errors import ConfigError, DatasetError
from etstpm.progress import track
from etstpm.settings import settings

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

Pixels = npt.NDArray[np.uint8]
"""Images (N, H, W, 3), uint8, RGB."""

# A PNG of a few kilobytes can claim gigapixels: refuse what no camera on a line delivers.
# Pillow warns from this many pixels and refuses twice as many.
Image.MAX_IMAGE_PIXELS = 200_000_000

UNREADABLE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)
"""What Pillow raises for a file that is not a whole image."""


@dataclass(frozen=True)
class ImageFacts:
    """What decoding an image file has shown."""

    sha256: str
    bytes: int
    width: int
    height: int
    mode: str


def read_image(path: Path, size: int) -> tuple[ImageFacts, Pixels]:
    """Decode a whole image file and resize it to (size, size, 3), uint8, RGB.

    Bilinear with antialias on the 8-bit image (Pillow), as the papers' code does through
    torchvision. Grey images are repeated over the three channels. Raises one of `UNREADABLE` for
    a file that is not a whole image.
    """
    return decode_image(path.read_bytes(), size)


def decode_image(content: bytes, size: int) -> tuple[ImageFacts, Pixels]:
    """The same of a file's content, wherever that was read."""
    with Image.open(io.BytesIO(content)) as image:
        image.load()
        facts = ImageFacts(
            hashlib.sha256(content).hexdigest(), len(content), image.width, image.height, image.mode
        )
        resized = _to_8_bit(image).convert("RGB").resize((size, size), Image.Resampling.BILINEAR)
    return facts, np.asarray(resized, dtype=np.uint8)


def _to_8_bit(image: Image.Image) -> Image.Image:
    """16-bit grey scaled to 8 bits: Pillow's own conversion clips it, almost all to white."""
    if image.mode.startswith("I;16"):
        values = np.asarray(image).astype(np.uint32)
        return Image.fromarray(((values + 128) // 257).astype(np.uint8))
    if image.mode in {"I", "F"}:
        raise ValueError(
            "32-bit grey values, of which none is known to be white: save 8 or 16 bits"
        )
    return image


def read_grey(path: Path) -> npt.NDArray[np.uint8]:
    """A mask file's grey values (H, W) at its own size. Raises one of `UNREADABLE`."""
    with Image.open(path) as image:
        return np.asarray(_to_8_bit(image).convert("L"))


def read_mask(path: Path) -> npt.NDArray[np.bool_]:
    """A ground-truth mask (H, W) at its own size, true where defective (grey value above 127)."""
    return read_grey(path) > 127


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


@dataclass(frozen=True)
class ImageFile:
    """An image of the manifest: where it lies and the hash it had when it was validated."""

    path: Path
    sha256: str


def cache_path(name: str, size: int, sha256s: Sequence[str], cache: Path) -> Path:
    """Where the decoded images of a split lie: their contents and the size make the name."""
    digest = hashlib.sha256("\n".join([str(size), *sha256s]).encode()).hexdigest()
    return cache / "decoded" / f"{name.replace('/', '-')}-{size}-{digest[:24]}.npy"


def load_pixels(name: str, files: Sequence[ImageFile], size: int, cache: Path) -> Pixels:
    """The decoded images of `files`, memory-mapped read-only; decoded now if not in the cache.

    `name` is for people ("bottle/train"). Raises `DatasetError` if a file is no longer the one
    that was validated.
    """
    path = cache_path(name, size, [file.sha256 for file in files], cache)
    if not path.exists():
        with new_cache_file(path, len(files), size) as pixels:

            def decode(index: int) -> None:
                facts, pixels[index] = read_image(files[index].path, size)
                if facts.sha256 != files[index].sha256:
                    raise DatasetError(
                        f"{files[index].path}: changed since it was validated (SHA-256 "
                        f"{files[index].sha256[:12]} expected, {facts.sha256[:12]} found); "
                        "run again"
                    )

            with ThreadPoolExecutor(settings().threads) as pool:
                for _ in track(pool.map(decode, range(len(files))), f"{name}: decode", len(files)):
                    pass
    array: Pixels = np.load(path, mmap_mode="r")
    return array


class new_cache_file:  # noqa: N801 - reads as the verb it is in a with statement
    """Fill a cache file under a temporary name; it gets its own name when the block has ended.

    Two processes may do so at once, and either may be killed: whoever is last replaces the file
    by one of equal content.
    """

    def __init__(self, path: Path, count: int, size: int) -> None:
        self.path = path
        self.partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
        self.shape = (count, size, size, 3)

    def __enter__(self) -> Pixels:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.pixels = np.lib.format.open_memmap(
                self.partial, mode="w+", dtype=np.uint8, shape=self.shape
            )
        except OSError as error:
            raise ConfigError(
                f"cache {self.path.parent} cannot be written ({error.strerror}); set ETSTPM_CACHE "
                "to a folder that can, with room for the decoded images"
            ) from None
        return self.pixels

    def __exit__(self, fault: type[BaseException] | None, *_: object) -> None:
        if fault is None:
            self.pixels.flush()
            self.partial.replace(self.path)
        else:
            self.partial.unlink(missing_ok=True)
        del self.pixels
