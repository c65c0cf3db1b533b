"""The teacher's features: what is kept is what was computed, and where it is kept."""

import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from etstpm.compute import Compute
from etstpm.errors import ConfigError
from etstpm.features import InMemory, OnDisk, TeacherFeatures, forget_pages
from etstpm.images import Pixels
from etstpm.networks import FeaturePyramid, freeze, random_pyramid
from etstpm.settings import settings

CPU = Compute(torch.device("cpu"), torch.float32)
CHOSEN = np.array([18, 3, 16, 0])


@pytest.fixture(scope="module")
def teacher() -> FeaturePyramid:
    return freeze(random_pyramid(100))


@pytest.fixture(scope="module")
def images() -> Pixels:
    """More than one batch of them, the last one not full."""
    return np.random.default_rng(0).integers(0, 256, (19, 64, 64, 3), dtype=np.uint8)


@pytest.fixture
def on_disk(teacher: FeaturePyramid, images: Pixels, cache: Path) -> TeacherFeatures:
    """Features that are kept in `cache`."""
    features = TeacherFeatures(teacher, images, CPU)
    assert cache.is_dir()
    return features


def test_kept_features_are_the_computed_ones_to_float16(
    on_disk: TeacherFeatures, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ETSTPM_FEATURE_CACHE_GIB", "0")
    settings.cache_clear()
    computed = TeacherFeatures(on_disk.teacher, on_disk.pixels, CPU)
    assert isinstance(on_disk.kept, OnDisk)
    assert computed.kept is None
    for found, expected in zip(on_disk.batch(CHOSEN), computed.batch(CHOSEN), strict=True):
        assert found.shape == expected.shape
        assert found.dtype is expected.dtype is torch.float32
        assert found.is_contiguous(memory_format=torch.channels_last)
        # Unit vectors: half a step of float16 below 1 is 2.4e-4.
        assert torch.allclose(found, expected, atol=2.5e-4)
        assert not torch.allclose(found, expected.flip(0), atol=1e-2)


@pytest.mark.parametrize("fault", ["no folder", "little room", "full", "full half way"])
def test_where_the_disk_takes_nothing_they_are_kept_in_memory(
    on_disk: TeacherFeatures, cache: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    match fault:
        case "no folder":
            cache.rmdir()
            cache.touch()
        case "little room":
            size = 19 * 2 * (64 * 16**2 + 128 * 8**2 + 256 * 4**2)
            room = SimpleNamespace(free=2 * size - 1)
            monkeypatch.setattr(shutil, "disk_usage", lambda _: room)
        case "full":
            monkeypatch.setattr(os, "posix_fallocate", _full)
        case "full half way":
            monkeypatch.setattr(OnDisk, "write", _full)
    in_memory = TeacherFeatures(on_disk.teacher, on_disk.pixels, CPU)
    assert isinstance(in_memory.kept, InMemory)
    for found, expected in zip(in_memory.batch(CHOSEN), on_disk.batch(CHOSEN), strict=True):
        assert torch.equal(found, expected)


def _full(*_: object) -> None:
    raise OSError(28, "No space left on device")


def test_no_file_is_left_and_none_has_a_name(on_disk: TeacherFeatures, cache: Path) -> None:
    assert isinstance(on_disk.kept, OnDisk)
    assert list(cache.iterdir()) == []


def test_a_file_that_is_cut_off_is_one_line(on_disk: TeacherFeatures) -> None:
    assert isinstance(on_disk.kept, OnDisk)
    os.ftruncate(on_disk.kept.file.fileno(), 100)
    with pytest.raises(ConfigError, match=r"cache .* cannot be read back .*set ETSTPM_CACHE"):
        on_disk.batch(CHOSEN)


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="needs Linux's /proc")
def test_pages_of_a_map_are_let_go_and_come_again(tmp_path: Path) -> None:
    path = tmp_path / "pixels.npy"
    np.save(path, np.full((64, 64, 64, 3), 7, np.uint8))
    pixels: Pixels = np.load(path, mmap_mode="r")
    assert pixels.sum() == 7 * pixels.size
    assert _resident(path) > 700  # of 768 KiB
    forget_pages(pixels)
    assert _resident(path) == 0
    assert pixels.sum() == 7 * pixels.size


def _resident(path: Path) -> int:
    """KiB of a mapped file that are in this process."""
    lines = iter(Path("/proc/self/smaps").read_text().splitlines())
    for line in lines:
        if line.endswith(str(path)):
            return next(int(line.split()[1]) for line in lines if line.startswith("Rss:"))
    raise AssertionError(f"{path} is not mapped")
