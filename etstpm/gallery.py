"""Small pictures of scored images, so that a report needs neither the dataset nor a GPU.

Image, heat and outline are layers of their own: a page lays them over each other, and shows or
hides them. Heat is smooth and an outline is two colours, so that both cost little.
"""

import io
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from PIL import Image

from etstpm.images import Pixels
from etstpm.pictures import TRUTH, HeatScale, border, hardest, heat, tint
from etstpm.scoring import ScoredImages
from etstpm.tables import THUMBNAILS

SHOWN = 120
"""Images of a category."""
SHOWN_OF_TYPE = 4
"""The hardest of each defect type, and of the good images, come before all others."""
BYTES = 640 * 1024
"""Of a category's pictures: fifteen categories, as text in a page, are less than 13 MB."""
HEAT_SIDE = 80
"""Longer side of the heat: its detail is that of layer 1, a quarter of the input's side."""


@dataclass(frozen=True)
class Size:
    """Longer side in pixels, and WebP's quality."""

    side: int
    quality: int


SIZES = Size(192, 75), Size(192, 50), Size(144, 45), Size(112, 35)
"""Tried in turn until all pictures fit: textures cost ten times what smooth products do."""


def thumbnail_table(
    pixels: Pixels,
    masks: npt.NDArray[np.bool_],
    scored: ScoredImages,
    *,
    rows: Sequence[Mapping[str, Any]],
    scale: HeatScale,
) -> pa.Table:
    """Pictures of N test images as `tables.THUMBNAILS`, the image that was judged worst first.

    pixels (N, H, H, 3) and masks (N, H, H) at the input's size; rows: the manifest's. At most
    `SHOWN` images and `BYTES` bytes, whatever the category.
    """
    labels = np.array([row["label"] == 1 for row in rows])
    order = hardest(labels, scored.scores, len(rows))
    types = [rows[index]["defect_type"] for index in order]
    shown = _choose(types)
    for size in SIZES:
        pictures = [
            {"image_path": rows[order[rank]]["image_path"], "rank": rank}
            | _draw(
                np.asarray(pixels[order[rank]]),
                masks[order[rank]] if labels[order[rank]] else None,
                heat(scored.maps[order[rank]], scale),
                _proportions(rows[order[rank]], size.side),
                size.quality,
            )
            for rank in shown
        ]
        if sum(map(_bytes, pictures)) <= BYTES:
            break
    return pa.Table.from_pylist(list(_affordable(pictures)), schema=THUMBNAILS)


def _choose(types: Sequence[str]) -> list[int]:
    """Ranks of the images to show, ascending, given the defect type of each rank."""
    seen: Counter[str] = Counter()
    is_extra = []
    for name in types:
        is_extra.append(seen[name] >= SHOWN_OF_TYPE)
        seen[name] += 1
    return sorted(sorted(range(len(types)), key=lambda rank: (is_extra[rank], rank))[:SHOWN])


def _proportions(row: Mapping[str, Any], side: int) -> tuple[int, int]:
    """Width and height with the image's own proportions, the longer one `side`."""
    scale = side / max(row["width"], row["height"])
    return max(1, round(row["width"] * scale)), max(1, round(row["height"] * scale))


def _draw(
    image: npt.NDArray[np.uint8],
    mask: npt.NDArray[np.bool_] | None,
    heat_map: npt.NDArray[np.float32],
    size: tuple[int, int],
    quality: int,
) -> dict[str, bytes | None]:
    outline = None
    if mask is not None:
        drawn = Image.fromarray(mask).convert("L").resize(size, Image.Resampling.BOX)
        edge = border(np.asarray(drawn) >= 64)  # a quarter of a pixel: thin scratches stay
        layer = np.zeros((*edge.shape, 4), np.uint8)
        layer[edge] = [*TRUTH.astype(np.uint8), 255]
        outline = _webp(Image.fromarray(layer), lossless=True)
    width, height = (max(1, round(length * HEAT_SIDE / max(size))) for length in size)
    small = Image.fromarray(heat_map).resize((width, height), Image.Resampling.BILINEAR)
    return {
        "image": _webp(Image.fromarray(image).resize(size, Image.Resampling.LANCZOS), quality),
        "heat": _webp(Image.fromarray(tint(np.asarray(small))), 60),
        "outline": outline,
    }


def _webp(image: Image.Image, quality: int = 100, *, lossless: bool = False) -> bytes:
    file = io.BytesIO()
    image.save(file, "WEBP", quality=quality, lossless=lossless, alpha_quality=60)
    return file.getvalue()


def _bytes(picture: Mapping[str, Any]) -> int:
    return sum(len(part) for part in picture.values() if isinstance(part, bytes))


def _affordable(pictures: Sequence[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    """Those that fit, the worst judged first."""
    spent = 0
    for picture in pictures:
        spent += _bytes(picture)
        if spent > BYTES:
            return
        yield picture
