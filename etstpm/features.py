"""The teacher's features of a category's good images: computed once, kept out of memory."""

import errno
import mmap
import os
import shutil
import tempfile
import weakref
from collections.abc import Sequence
from contextlib import suppress
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from etstpm.compute import Compute
from etstpm.decoded import reserve, write_at
from etstpm.errors import ConfigError
from etstpm.images import Pixels, normalise
from etstpm.networks import FeaturePyramid, Pyramid, normalise_features
from etstpm.settings import settings
from etstpm.splits import Indices, batches

EVALUATION_BATCH = 4
"""Images that are looked at together: 16 would be no faster, and take 90 MB more at 256x256."""
LAYERS = ((64, 4), (128, 8), (256, 16))
"""Channels and stride of each layer."""

Shape = tuple[int, int, int]
Kept = TypeVar("Kept", "InMemory", "OnDisk")


class TeacherFeatures:
    """The teacher's normalised features of a category: they never change.

    Kept as float16 (0.9 MB an image at 256x256; unit vectors lose 5e-4 of a component): a GPU's in
    its memory, a CPU's in a file without a name in `settings().cache`, which the kernel keeps in
    memory as long as nothing needs the room. Computed batch by batch where they would exceed
    `settings().feature_cache_gib`.
    """

    def __init__(self, teacher: FeaturePyramid, pixels: Pixels, compute: Compute) -> None:
        self.teacher, self.pixels, self.compute = teacher, pixels, compute
        side = pixels.shape[1]
        shapes = [(side // stride, side // stride, channels) for channels, stride in LAYERS]
        self.kept: InMemory | OnDisk | None = None
        if len(pixels) * image_bytes(shapes) <= settings().feature_cache_gib * 2**30:
            self.kept = self._keep(shapes)

    def batch(self, indices: Indices) -> Pyramid:
        """Normalised features of these images: three (N, C, H, W), float32, channels last."""
        if self.kept is None:
            return self._compute(indices)
        layer1, layer2, layer3 = (
            layer.permute(0, 3, 1, 2).float() for layer in self.kept.read(indices)
        )
        return layer1, layer2, layer3

    def _compute(self, indices: Indices) -> Pyramid:
        with torch.no_grad(), self.compute.autocast():
            images = normalise(self.pixels[indices], self.compute.device)
            return normalise_features(self.teacher(images))

    def _keep(self, shapes: Sequence[Shape]) -> "InMemory | OnDisk":
        if self.compute.device.type == "cpu":
            with suppress(OSError):  # a disk that is full, or read only: then as on a GPU
                return self._fill(OnDisk(shapes, len(self.pixels)))
        return self._fill(InMemory(shapes, len(self.pixels), self.compute.device))

    def _fill(self, kept: Kept) -> Kept:
        for rows in batches(np.arange(len(self.pixels)), EVALUATION_BATCH):
            layers = [layer.permute(0, 2, 3, 1).half() for layer in self._compute(rows)]
            kept.write(rows, layers)
        forget_pages(self.pixels)
        return kept


class InMemory:
    """Three layers of each image on a device: (N, H, W, C), float16."""

    def __init__(self, shapes: Sequence[Shape], count: int, device: torch.device) -> None:
        self._layers = [
            torch.empty((count, *shape), dtype=torch.float16, device=device) for shape in shapes
        ]

    def write(self, rows: Indices, layers: Sequence[Tensor]) -> None:
        """Keep the layers of these images, which follow each other."""
        for kept, layer in zip(self._layers, layers, strict=True):
            kept[rows[0] : rows[-1] + 1] = layer

    def read(self, rows: Indices) -> list[Tensor]:
        """The layers of these images."""
        chosen = torch.from_numpy(rows).to(self._layers[0].device)
        return [layer[chosen] for layer in self._layers]


class OnDisk:
    """The same in a file without a name: image after image, and of each its layers.

    It is gone with this object, or with the process, however that ends. A map of it would count as
    the process's memory.
    """

    def __init__(self, shapes: Sequence[Shape], count: int) -> None:
        """Raises OSError if the cache's disk has not twice the room for it.

        The rest is for whatever else lies there: a store, Prefect's database.
        """
        self._shapes = shapes
        self._image_bytes = image_bytes(shapes)
        cache, size = settings().cache, count * self._image_bytes
        cache.mkdir(parents=True, exist_ok=True)
        if shutil.disk_usage(cache).free < 2 * size:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.file = tempfile.TemporaryFile(dir=cache, buffering=0)  # noqa: SIM115
        weakref.finalize(self, self.file.close)
        reserve(self.file.fileno(), 0, size)

    def write(self, rows: Indices, layers: Sequence[Tensor]) -> None:
        """Keep the layers of these images, which follow each other."""
        offset = int(rows[0]) * self._image_bytes
        for image in zip(*(layer.contiguous().numpy() for layer in layers), strict=True):
            for layer in image:
                write_at(self.file.fileno(), layer.data, offset)
                offset += layer.nbytes

    def read(self, rows: Indices) -> list[Tensor]:
        """The layers of these images. Raises `ConfigError` if the disk does not give them back."""
        layers = [np.empty((len(rows), *shape), np.float16) for shape in self._shapes]
        try:
            for number, row in enumerate(rows):
                self.file.seek(int(row) * self._image_bytes)
                for layer in layers:
                    if self.file.readinto(layer[number].data) != layer[number].nbytes:
                        raise OSError(errno.EIO, os.strerror(errno.EIO))
        except OSError as error:
            raise ConfigError(
                f"cache {settings().cache}: the teacher's features cannot be read back "
                f"({error.strerror}); check that disk, or set ETSTPM_CACHE to a folder on another"
            ) from None
        return [torch.from_numpy(layer) for layer in layers]


def image_bytes(shapes: Sequence[Shape]) -> int:
    """Of an image's features in float16."""
    return 2 * sum(height * width * channels for height, width, channels in shapes)


def forget_pages(pixels: Pixels) -> None:
    """Take the pages of a mapped file out of this process; read again, they come again."""
    base: object = pixels.base
    if isinstance(base, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
        base.madvise(mmap.MADV_DONTNEED)
