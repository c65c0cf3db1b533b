"""Thumbnails: which images they show, that they fit, and that their layers make the picture."""

import io
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from etstpm import gallery
from etstpm.gallery import BYTES, SHOWN, SHOWN_OF_TYPE, thumbnail_table
from etstpm.pictures import TRUTH, HeatScale, hardest, overlay, tint
from etstpm.scoring import ScoredImages

SIDE = 64


def picture(content: bytes) -> npt.NDArray[np.uint8]:
    with Image.open(io.BytesIO(content)) as image:
        assert image.format == "WEBP"
        return np.asarray(image.convert("RGBA"))


def draw(types: list[str], *, noise: bool = False, shape: tuple[int, int] = (90, 60)) -> Any:
    """Images of these defect types, (height, width) `shape`, as rows of dictionaries."""
    rng = np.random.default_rng(0)
    count = len(types)
    labels = np.array([name != "good" for name in types])
    maps = np.full((count, SIDE, SIDE), 1e-9, np.float32)
    maps[labels, 8:24, 8:24] = 1e-7
    masks = maps > 1e-8
    pixels = np.full((count, SIDE, SIDE, 3), 120, np.uint8)
    if noise:
        pixels = rng.integers(0, 256, pixels.shape, dtype=np.uint8)
    rows = [
        {
            "image_path": f"cup/test/{name}/{number:03d}.png",
            "defect_type": name,
            "label": int(name != "good"),
            "height": shape[0],
            "width": shape[1],
        }
        for number, name in enumerate(types)
    ]
    scored = ScoredImages(maps, labels + rng.random(count))
    table = thumbnail_table(pixels, masks, scored, rows=rows, scale=HeatScale(1e-9, 1e-8))
    return table.to_pylist(), labels, scored, rows


def test_the_worst_judged_come_first_and_all_are_there() -> None:
    found, labels, scored, rows = draw(["good"] * 5 + ["crack"] * 6)
    order = hardest(labels, scored.scores, len(rows))
    assert [row["image_path"] for row in found] == [rows[index]["image_path"] for index in order]
    assert [row["rank"] for row in found] == list(range(11))


def test_layers_lie_over_each_other() -> None:
    found, *_ = draw(["good", "crack"])
    by_type = {row["image_path"].split("/")[2]: row for row in found}
    assert by_type["good"]["outline"] is None
    crack = by_type["crack"]
    image, heat, outline = (picture(crack[name]) for name in ("image", "heat", "outline"))
    assert image.shape == outline.shape == (192, 128, 4)
    assert heat.shape[:2] == (80, 53)
    assert np.abs(image[..., :3].astype(int) - 120).max() <= 3
    is_drawn = outline[..., 3] > 0
    assert (outline[is_drawn][:, :3] == TRUTH).all()
    # The mask is a square from 8 to 24 of 64: its border runs there, and not inside or outside it.
    assert is_drawn[24, 32]
    assert not is_drawn[48, 32]
    assert not is_drawn[120, 90]
    assert heat[20, 13, 3] > 200
    assert heat[60, 40, 3] < 20


def test_tint_over_an_image_is_the_overlay() -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
    heat = rng.random((16, 16)).astype(np.float32)
    below, above = Image.fromarray(image).convert("RGBA"), Image.fromarray(tint(heat))
    composed = np.asarray(Image.alpha_composite(below, above).convert("RGB")).astype(int)
    assert np.abs(composed - overlay(image, heat)).max() <= 2


def test_every_defect_type_is_shown_however_easy() -> None:
    types = ["good"] * 200 + ["crack"] * 100 + ["dent"] * 10
    found, *_ = draw(types)
    assert len(found) == SHOWN
    assert [row["rank"] for row in found] == sorted(row["rank"] for row in found)
    for name in ("good", "crack", "dent"):
        assert sum(f"/{name}/" in row["image_path"] for row in found) >= SHOWN_OF_TYPE


@pytest.mark.parametrize("limit", [BYTES, 40_000, 8_000])
def test_pictures_fit_even_where_nothing_compresses(
    limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gallery, "BYTES", limit)
    found, *_ = draw(["good"] * 12 + ["crack"] * 12, noise=True)
    size = sum(len(row[name] or b"") for row in found for name in ("image", "heat", "outline"))
    assert size <= limit
    assert found
    assert found[0]["rank"] == 0
