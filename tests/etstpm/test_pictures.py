"""Pictures: their sizes, their scale of heat, and which images they show."""

import numpy as np
import numpy.typing as npt
import pytest

from etstpm.config import ScoringConfig
from etstpm.pictures import TRUTH, HeatScale, colour, draw_hardest, hardest, heat, outline, overlay
from etstpm.scoring import ScoredImages


def luminance(rgb: npt.NDArray[np.floating]) -> npt.NDArray[np.floating]:
    """Relative luminance of sRGB (IEC 61966-2-1), linear light."""
    linear = np.where(rgb / 255 > 0.04045, ((rgb / 255 + 0.055) / 1.055) ** 2.4, rgb / 255 / 12.92)
    weighted: npt.NDArray[np.floating] = linear @ np.array([0.2126, 0.7152, 0.0722])
    return weighted


def test_colours_get_lighter_with_every_step() -> None:
    shades = colour(np.linspace(0, 1, 64))
    assert shades.shape == (64, 3)
    assert (np.diff(luminance(shades)) > 0).all()
    assert np.array_equal(colour(np.array([-1.0, 2.0])), colour(np.array([0.0, 1.0])))


@pytest.mark.parametrize("share", [0.01, 0.4], ids=["a product's", "a sum's"])
def test_heat_is_nought_where_it_is_cold_half_at_the_threshold_and_one_as_far_beyond(
    share: float,
) -> None:
    threshold = 2e-9
    ratios = np.array([[0, 1e-3, share, share**0.5, 1, share**-0.5, 1 / share, 1e6]])
    scale = HeatScale(share * threshold, threshold)
    found = heat((ratios * threshold).astype(np.float32), scale)
    assert found.dtype == np.float32
    assert np.allclose(found, [[0, 0, 0, 0.25, 0.5, 0.75, 1, 1]], atol=1e-6)


def test_good_images_near_the_threshold_leave_room_for_twice_of_it() -> None:
    found = heat(np.array([[0.7, 0.8, 1, 2**0.5, 2, 3]], np.float32), HeatScale(0.8, 1))
    assert np.allclose(found, [[0, 0, 0.5, 0.75, 1, 1]], atol=1e-6)


@pytest.mark.parametrize("cold", [0.0, 1.0, 7.0])
@pytest.mark.parametrize("threshold", [0.0, 1.0])
def test_good_images_without_spread_still_have_a_scale(cold: float, threshold: float) -> None:
    found = heat(np.array([[0.0, threshold, 10]], np.float32), HeatScale(cold, threshold))
    assert np.isfinite(found).all()
    assert (np.diff(found) >= 0).all()


def test_nine_of_ten_pixels_of_good_images_are_cold() -> None:
    maps = np.geomspace(1, 1000, 100, dtype=np.float32).reshape(1, 10, 10)
    config = ScoringConfig(top_share=0, image_layers=(1, 2, 3))
    scale = HeatScale.of(maps, config)
    assert scale.threshold == 1000
    assert (heat(maps, scale) > 0).mean() == pytest.approx(0.1)


def test_overlay_leaves_what_is_cold_and_covers_what_is_hot() -> None:
    image = np.full((1, 2, 3), 200, np.uint8)
    blended = overlay(image, np.array([[0, 1]], np.float32))
    assert blended.dtype == np.uint8
    assert np.array_equal(blended[0, 0], image[0, 0])
    hottest = colour(np.array(1.0))
    assert np.allclose(blended[0, 1], 0.15 * 200 + 0.85 * hottest, atol=0.5)


def test_outline_is_two_pixels_wide_and_leaves_the_inside() -> None:
    image, mask = np.zeros((9, 9, 3), np.uint8), np.zeros((9, 9), bool)
    mask[2:7, 2:7] = True
    is_drawn = (outline(image, mask) == TRUTH).all(-1)
    expected = np.array(
        [
            "000000000",
            "001111100",
            "011111110",
            "011000110",
            "011000110",
            "011000110",
            "011111110",
            "001111100",
            "000000000",
        ]
    )
    assert ["".join(map(str, row)) for row in is_drawn.astype(int)] == expected.tolist()
    assert not image.any()
    assert not outline(image, np.zeros((9, 9), bool)).any()


LABELS = np.array([False, False, False, True, True, True])
SCORES = np.array([1.0, 2.0, 9.0, 1.5, 8.0, 10.0])


def test_the_hardest_are_those_furthest_on_the_wrong_side() -> None:
    # Two of three: good 9 above 1.5 and 8, defective 1.5 below 2 and 9. One of three: good 2, a
    # third above 1.5; defective 8, an eighth below 9. None: defective 10 is nearer to 9 than good
    # 1 is to 1.5.
    assert hardest(LABELS, SCORES, 6) == [2, 3, 1, 4, 5, 0]
    assert hardest(LABELS, SCORES * 1e-12, 6) == [2, 3, 1, 4, 5, 0]
    assert hardest(LABELS, SCORES, 2) == [2, 3]


def test_where_all_is_right_the_nearest_of_both_classes_come_first() -> None:
    labels = np.array([False, False, True, True])
    assert hardest(labels, np.array([1.0, 3.0, 7.0, 5.0]), 4) == [1, 3, 2, 0]
    assert hardest(labels, np.array([0.0, 3.0, 7.0, 5.0]), 4) == [1, 3, 2, 0]


def test_with_one_class_the_least_typical_come_first() -> None:
    scores = np.array([3.0, 1.0, 2.0])
    assert hardest(np.array([True, True, True]), scores, 2) == [1, 2]
    assert hardest(np.array([False, False, False]), scores, 2) == [0, 2]


@pytest.mark.parametrize(
    ("size", "count", "label"), [(64, 7, None), (256, 2, True), (300, 6, False)], ids=str
)
def test_a_sheet_shows_at_most_five_of_two_rows(size: int, count: int, label: bool | None) -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(count) % 2 == 1 if label is None else np.full(count, label)
    maps = rng.random((count, size, size)).astype(np.float32) * np.float32(1e-9)
    scored = ScoredImages(maps, maps.max((1, 2)).astype(np.float64))
    pixels = rng.integers(0, 256, (count, size, size, 3), dtype=np.uint8)
    masks = np.zeros((count, size, size), bool)
    masks[labels, 10:20, 10:20] = True
    names = [f"good/{number:03d}.png" for number in range(count)]
    sheet = draw_hardest(
        pixels,
        masks,
        scored,
        labels=labels,
        names=names,
        threshold=5e-10,
        scale=HeatScale(5e-11, 5e-10),
    )
    side = max(1, 256 // size) * size
    assert sheet.mode == "RGB"
    assert sheet.width == min(count, 5) * (side + 12) + 12
    assert sheet.height > 2 * side
    # The image stands in the first column as it is, where no outline runs over it.
    first = hardest(labels, scored.scores, 1)[0]
    corner = np.asarray(sheet)[30 + side - 1, 12 + side - 1]
    assert np.array_equal(corner, pixels[first, -1, -1])
