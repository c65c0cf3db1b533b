"""A small drawn dataset in MVTec layout, so that the pipeline runs with no data and no network.

Three products, three defect types each, from plain to subtle. These are drawings: scores on them
say that the pipeline works, not how well it finds real defects.
"""

from __future__ import annotations

import json
import secrets
import shutil
import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from etstpm.errors import DatasetError
from etstpm.sample import biscuit, fabric, flange
from etstpm.sample.drawing import Colour, Picture, photograph, plane

SAMPLE_VERSION = 1  # raise it whenever a picture changes; a sample of another version is not reused

Draw = Callable[[np.random.Generator, np.random.Generator, str, int], Colour]
_DRAW: dict[str, tuple[Draw, tuple[str, ...]]] = {
    "biscuit": (biscuit.draw, biscuit.DEFECTS),
    "fabric": (fabric.draw, fabric.DEFECTS),
    "flange": (flange.draw, flange.DEFECTS),
}
CATEGORIES = tuple(_DRAW)

MARKER = "sample.json"
SMALLEST_IMAGE = 64  # pixels; below it the fabric's threads and a scratch are thinner than a pixel
STALE_SECONDS = (
    3600  # a drawing takes seconds: an unfinished folder this old belongs to a killed run
)

README = """\
These pictures were drawn by etstpm (etstpm.sample). They show no real product.

Layout, as in MVTec AD:
  CATEGORY/train/good/000.png                 good, for training
  CATEGORY/test/good/000.png                  good, for testing
  CATEGORY/test/DEFECT/000.png                defective
  CATEGORY/ground_truth/DEFECT/000_mask.png   255 where the defect changed the picture, else 0

Licence: CC0 1.0, https://creativecommons.org/publicdomain/zero/1.0/
"""


@dataclass(frozen=True)
class Shot:
    """One picture's name; with a seed it is all that decides how the picture looks."""

    category: str
    split: str  # train or test
    defect: str  # good, or one of defect_types(category)
    index: int

    @property
    def image_path(self) -> Path:
        return Path(self.category, self.split, self.defect, f"{self.index:03d}.png")

    @property
    def mask_path(self) -> Path:
        return Path(self.category, "ground_truth", self.defect, f"{self.index:03d}_mask.png")


def defect_types(category: str) -> tuple[str, ...]:
    """The category's defect types, from plain to subtle."""
    return _DRAW[category][1]


def draw_sample(
    root: Path,
    *,
    seed: int = 0,
    image_size: int = 256,
    train: int = 40,
    test_good: int = 12,
    per_defect: int = 6,
) -> None:
    """Draw the sample into `root`, whole or not at all; return at once if exactly it stands there.

    image_size is in pixels; train and test_good count per category, per_defect per defect type.
    Raises DatasetError if `root` holds anything else or cannot be written, or a parameter is out of
    range.
    """
    root = root.absolute()
    card = _card(seed, image_size, train, test_good, per_defect)
    if is_drawn(root, card):
        return
    shots = _shots(train, test_good, per_defect)
    try:
        _draw(root, card, shots, seed, image_size)
    except OSError as error:
        raise DatasetError(
            f"sample: {error.filename or root} cannot be written ({error.strerror}); choose "
            "another folder, or make room"
        ) from None


def _draw(
    root: Path, card: dict[str, int], shots: Iterable[Shot], seed: int, image_size: int
) -> None:
    if root.exists() and not (root.is_dir() and not any(root.iterdir())):
        raise DatasetError(_foreign(root, card))
    _remove_stale(root)
    unfinished = root.with_name(f".{root.name}.partial-{secrets.token_hex(4)}")
    try:
        for shot in shots:
            _write_shot(unfinished, shot, seed, image_size)
        (unfinished / "readme.txt").write_text(README, encoding="utf-8")
        (unfinished / MARKER).write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")
        _put_in_place(unfinished, root, card)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def is_drawn(root: Path, card: dict[str, int]) -> bool:
    """Whether `root` is a whole sample of just these parameters; its marker is written last."""
    try:
        return bool(json.loads((root / MARKER).read_text(encoding="utf-8")) == card)
    except (OSError, ValueError):
        return False


def draw_shot(
    shot: Shot, *, seed: int = 0, image_size: int = 256
) -> tuple[Picture, npt.NDArray[np.uint8]]:
    """One picture, (size, size, 3) uint8 RGB, and its mask, (size, size) uint8 of 0 and 255.

    The mask is the difference to the same scene drawn without the defect, so it is exact. A good
    picture's mask is all 0.
    """
    picture = render(shot, seed=seed, image_size=image_size, defect=shot.defect)
    if shot.defect == "good":
        return picture, np.zeros(picture.shape[:2], np.uint8)
    twin = render(shot, seed=seed, image_size=image_size, defect="good")
    return picture, np.where((picture != twin).any(axis=-1), 255, 0).astype(np.uint8)


def render(shot: Shot, *, seed: int, image_size: int, defect: str) -> Picture:
    """The scene of `shot` with the given defect, or with "good" for its flawless twin."""
    # Seeded by names, not by order: one picture can be drawn again alone. crc32, because hash() of
    # a str differs from process to process.
    names = [zlib.crc32(name.encode()) for name in (shot.category, shot.split, shot.defect)]
    scene, flaw, camera = np.random.default_rng([seed, *names, shot.index]).spawn(3)
    draw = _DRAW[shot.category][0]
    return photograph(draw(scene, flaw, defect, image_size), camera, plane(image_size))


def _card(
    seed: int, image_size: int, train: int, test_good: int, per_defect: int
) -> dict[str, int]:
    """What the marker file says; two samples with the same card are the same, byte for byte."""
    if seed < 0 or image_size < SMALLEST_IMAGE or min(train, test_good, per_defect) < 1:
        raise DatasetError(
            f"sample: cannot draw with seed={seed}, image_size={image_size}, train={train}, "
            f"test_good={test_good}, per_defect={per_defect}; expected seed >= 0, "
            f"image_size >= {SMALLEST_IMAGE} and at least one image of each kind; correct them"
        )
    return {
        "version": SAMPLE_VERSION,
        "seed": seed,
        "image_size": image_size,
        "train": train,
        "test_good": test_good,
        "per_defect": per_defect,
    }


def _shots(train: int, test_good: int, per_defect: int) -> Iterator[Shot]:
    for category in CATEGORIES:
        yield from (Shot(category, "train", "good", index) for index in range(train))
        yield from (Shot(category, "test", "good", index) for index in range(test_good))
        for defect in defect_types(category):
            yield from (Shot(category, "test", defect, index) for index in range(per_defect))


def _write_shot(root: Path, shot: Shot, seed: int, image_size: int) -> None:
    picture, mask = draw_shot(shot, seed=seed, image_size=image_size)
    pairs = [(picture, shot.image_path)]
    if shot.defect != "good":
        pairs.append((mask, shot.mask_path))
    for pixels, path in pairs:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        # Grain hardly compresses: harder tries take as long as the drawing and save a tenth.
        Image.fromarray(pixels).save(root / path, compress_level=1, compress_type=zlib.Z_RLE)


def _put_in_place(unfinished: Path, root: Path, card: dict[str, int]) -> None:
    """Rename, unless another process has just put the same sample there."""
    try:
        unfinished.rename(root)
    except OSError as error:
        if not is_drawn(root, card):
            raise DatasetError(_foreign(root, card)) from error


def _remove_stale(root: Path) -> None:
    """Delete what killed runs left beside `root`; younger folders may belong to a run at work."""
    for folder in root.parent.glob(f".{root.name}.partial-*"):
        if time.time() - folder.stat().st_mtime > STALE_SECONDS:
            shutil.rmtree(folder, ignore_errors=True)


def _foreign(root: Path, card: dict[str, int]) -> str:
    try:
        found = f"its {MARKER} says {json.dumps(json.loads((root / MARKER).read_text('utf-8')))}"
    except (OSError, ValueError):
        found = f"no readable {MARKER}, so it was not drawn by etstpm"
    return (
        f"sample: will not draw into {root}; expected no such folder, an empty one, or "
        f"a {MARKER} of {json.dumps(card)}; found {found}; move it away or choose another folder"
    )
