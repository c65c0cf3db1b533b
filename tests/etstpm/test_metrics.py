"""Metrics against scikit-learn's, against plain slow ones, and against what must change nothing."""

from collections.abc import Sequence
from fractions import Fraction
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from sklearn.metrics import (
    average_precision_score,
    f1_score,
    precision_recall_curve,
    roc_auc_score,
)

from etstpm.intervals import AUPRO_LIMITS
from etstpm.metrics import Metrics, auroc, image_metrics, pixel_metrics

Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.floating]
Images = tuple[list[Bools], list[Floats]]

IMAGE_NAMES = ["auroc", "ap", "f1_max", "f1_max_threshold"]


def draw_scores(draw: st.DrawFn, rng: np.random.Generator, labels: Bools) -> Floats:
    """Many ties, or none, or skewed products of distances around 1e-12, or neighbours there."""
    kind = draw(st.sampled_from(["ties", "smooth", "skewed", "neighbours"]))
    dtype = draw(st.sampled_from([np.float32, np.float64]))
    scores: Floats
    if kind == "ties":
        scores = rng.integers(0, draw(st.integers(1, 6)), labels.shape).astype(np.float64)
    elif kind == "smooth":
        scores = rng.normal(size=labels.shape) + labels
    elif kind == "skewed":
        scores = 1e-12 * np.exp(3 * rng.normal(size=labels.shape) + labels)
    else:
        lowest = np.full(labels.shape, 2.0**-40, dtype)
        scores = lowest + rng.integers(0, 6, labels.shape) * np.spacing(lowest)
    return scores.astype(dtype)


@st.composite
def labelled_scores(draw: st.DrawFn) -> tuple[Bools, Floats]:
    """Up to 120 scores of both classes."""
    count = draw(st.integers(2, 120))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    labels = rng.random(count) < draw(st.floats(0.05, 0.95))
    labels[:2] = False, True
    return labels, draw_scores(draw, rng, labels)


@st.composite
def masked_maps(draw: st.DrawFn) -> Images:
    """Up to four images of unequal sizes with pixels of both classes; some have no defect."""
    sizes = draw(st.lists(st.tuples(st.integers(1, 8), st.integers(2, 8)), min_size=1, max_size=4))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    density = draw(st.floats(0, 0.6))
    masks = [rng.random(size) < density * rng.integers(0, 2) for size in sizes]
    masks[-1][0, :2] = False, True
    pooled = np.concatenate([mask.ravel() for mask in masks])
    scores = draw_scores(draw, rng, pooled)
    ends = np.cumsum([mask.size for mask in masks])[:-1]
    parts = np.split(scores, ends)
    return masks, [part.reshape(size) for part, size in zip(parts, sizes, strict=True)]


def without_threshold(metrics: Metrics) -> Metrics:
    return {name: value for name, value in metrics.items() if name != "f1_max_threshold"}


@hypothesis_settings(deadline=None)
@given(labelled_scores())
def test_auroc_is_scikit_learns(sample: tuple[Bools, Floats]) -> None:
    labels, scores = sample
    assert auroc(labels, scores) == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)


@hypothesis_settings(deadline=None, max_examples=50)
@given(labelled_scores())
def test_auroc_is_the_share_of_pairs_ranked_right(sample: tuple[Bools, Floats]) -> None:
    labels, scores = sample
    pairs = [(bad, good) for bad in scores[labels] for good in scores[~labels]]
    right = sum(Fraction(int(bad > good)) + Fraction(int(bad == good), 2) for bad, good in pairs)
    assert auroc(labels, scores) == float(right / len(pairs))


@hypothesis_settings(deadline=None)
@given(labelled_scores())
def test_average_precision_and_best_f1_are_scikit_learns(sample: tuple[Bools, Floats]) -> None:
    labels, scores = sample
    found = image_metrics(labels, scores)
    precision, recall, _ = precision_recall_curve(labels, scores)
    hit = recall > 0
    f1 = 2 * precision[hit] * recall[hit] / (precision[hit] + recall[hit])
    assert list(found) == IMAGE_NAMES
    assert found["auroc"] == auroc(labels, scores)
    assert found["ap"] == pytest.approx(average_precision_score(labels, scores), abs=1e-12)
    assert found["f1_max"] == pytest.approx(f1.max(), abs=1e-12)


@hypothesis_settings(deadline=None)
@given(labelled_scores())
def test_best_f1_is_reached_at_its_threshold(sample: tuple[Bools, Floats]) -> None:
    labels, scores = sample
    found = image_metrics(labels, scores)
    threshold = found["f1_max_threshold"]
    assert threshold is not None
    assert f1_score(labels, scores >= threshold) == pytest.approx(found["f1_max"], abs=1e-12)


@hypothesis_settings(deadline=None)
@given(labelled_scores(), st.integers(0, 2**32))
def test_order_and_shape_change_nothing(sample: tuple[Bools, Floats], seed: int) -> None:
    labels, scores = sample
    order = np.random.default_rng(seed).permutation(labels.size)
    assert image_metrics(labels[order], scores[order]) == image_metrics(labels, scores)
    assert auroc(labels[:, None], scores[:, None]) == auroc(labels, scores)


@hypothesis_settings(deadline=None)
@given(labelled_scores())
def test_a_strictly_monotone_map_changes_nothing(sample: tuple[Bools, Floats]) -> None:
    labels, scores = sample
    found = image_metrics(labels, scores)
    # Exact in floating point, so that neighbours stay apart: a power of two; the rank.
    scaled = image_metrics(labels, scores * 2.0**20)
    threshold = found["f1_max_threshold"]
    assert threshold is not None
    assert scaled == found | {"f1_max_threshold": threshold * 2.0**20}
    ranks = np.unique(scores, return_inverse=True)[1].astype(np.float64)
    assert without_threshold(image_metrics(labels, ranks**3)) == without_threshold(found)


@hypothesis_settings(deadline=None)
@given(labelled_scores())
def test_inverted_scores_mirror_it(sample: tuple[Bools, Floats]) -> None:
    labels, scores = sample
    value, inverted = auroc(labels, scores), auroc(labels, -scores)
    assert value is not None
    assert inverted == pytest.approx(1 - value, abs=1e-15)


def test_perfect_inverted_and_constant_scores() -> None:
    labels = np.array([False, False, False, True, True])
    scores = np.array([1, 2, 3, 4, 5], np.float32) * np.float32(1e-12)
    perfect = {"auroc": 1.0, "ap": 1.0, "f1_max": 1.0, "f1_max_threshold": float(scores[3])}
    assert image_metrics(labels, scores) == perfect
    assert auroc(labels, -scores) == 0.0
    constant = image_metrics(labels, np.full(5, 0.25))
    assert constant == pytest.approx(
        {"auroc": 0.5, "ap": 0.4, "f1_max": 4 / 7, "f1_max_threshold": 0.25}
    )


def test_five_million_pixels_with_ties_are_counted_exactly() -> None:
    rng = np.random.default_rng(0)
    labels = rng.random((50, 250, 400), np.float32) < 0.03
    raw = 1e-9 * np.exp(2 * rng.normal(size=labels.shape) + 1.5 * labels)
    scores = np.float32(1e-10) * np.round(raw / 1e-10).astype(np.float32)
    assert np.unique(scores).size < labels.size / 10
    value = auroc(labels, scores)
    assert value == pytest.approx(roc_auc_score(labels.ravel(), scores.ravel()), abs=1e-12)


def flood(mask: Bools) -> list[list[tuple[int, int]]]:
    """The 8-connected regions of a mask, as lists of (row, column)."""
    left = {(int(row), int(column)) for row, column in np.argwhere(mask)}
    regions = []
    while left:
        waiting, region = [left.pop()], []
        while waiting:
            row, column = waiting.pop()
            region.append((row, column))
            around = {(row + i, column + j) for i in (-1, 0, 1) for j in (-1, 0, 1)} & left
            left -= around
            waiting += around
        regions.append(region)
    return regions


def plain_aupro(masks: Sequence[Bools], maps: Sequence[Floats], limit: float) -> float:
    """Bergmann et al. 2021, section 4.2, threshold by threshold."""
    good = [score for mask, scores in zip(masks, maps, strict=True) for score in scores[~mask]]
    regions = [
        [scores[place] for place in region]
        for mask, scores in zip(masks, maps, strict=True)
        for region in flood(mask)
    ]
    curve = [(0.0, 0.0)]
    for threshold in sorted({score for scores in maps for score in scores.flat}, reverse=True):
        overlaps = [np.mean([score >= threshold for score in region]) for region in regions]
        curve.append((float(np.mean(np.array(good) >= threshold)), float(np.mean(overlaps))))
    area = 0.0
    for (start, low), (end, high) in pairwise(curve):
        if start < end and start < limit:
            inside = min(end, limit) - start
            area += inside * (low + (high - low) * inside / (end - start) / 2)
    return area / limit


@hypothesis_settings(deadline=None)
@given(masked_maps())
def test_aupro_is_mvtecs(images: Images) -> None:
    found = pixel_metrics(*images)
    for name, limit in {"aupro": 0.3, "aupro_0.05": 0.05}.items():
        assert found[name] == pytest.approx(plain_aupro(*images, limit), abs=1e-12)


@hypothesis_settings(deadline=None)
@given(masked_maps())
def test_pixels_of_all_images_are_pooled(images: Images) -> None:
    labels, scores = (np.concatenate([image.ravel() for image in part]) for part in images)
    found = pixel_metrics(*images)
    assert list(found) == [*IMAGE_NAMES, *AUPRO_LIMITS]
    assert {name: found[name] for name in IMAGE_NAMES} == image_metrics(labels, scores)


@hypothesis_settings(deadline=None)
@given(masked_maps(), st.integers(0, 2**32))
def test_order_of_images_and_monotone_maps_change_no_aupro(images: Images, seed: int) -> None:
    masks, maps = images
    found = without_threshold(pixel_metrics(masks, maps))
    order = np.random.default_rng(seed).permutation(len(masks))
    permuted = pixel_metrics([masks[i] for i in order], [maps[i] for i in order])
    assert without_threshold(permuted) == pytest.approx(found, abs=1e-12)
    turned = pixel_metrics([mask.T[::-1] for mask in masks], [scores.T[::-1] for scores in maps])
    assert without_threshold(turned) == pytest.approx(found, abs=1e-12)
    scaled = pixel_metrics(masks, [scores * 2.0**20 for scores in maps])
    assert without_threshold(scaled) == pytest.approx(found, abs=1e-12)


def test_perfect_and_constant_maps() -> None:
    mask = np.zeros((4, 5), bool)
    mask[1:3, 1:3] = True
    perfect = pixel_metrics([mask], [np.where(mask, np.float32(2e-12), np.float32(1e-12))])
    assert set(without_threshold(perfect).values()) == {1.0}
    assert perfect["f1_max_threshold"] == float(np.float32(2e-12))
    inverted = pixel_metrics([mask], [1.0 - mask])
    assert [inverted[name] for name in ("auroc", "aupro", "aupro_0.05")] == [0, 0, 0]
    constant = pixel_metrics([mask], [np.ones(mask.shape)])
    # The curve is the diagonal: half the limit.
    assert constant["aupro"] == pytest.approx(0.15, abs=1e-15)
    assert constant["aupro_0.05"] == pytest.approx(0.025, abs=1e-15)


def test_ties_of_good_and_defective_pixels_at_the_limit_rise_in_a_straight_line() -> None:
    mask = np.array([[True, True, *[False] * 10]])
    scores = np.array([[9.0, 5.0, *[5.0] * 4, *[0.0] * 6]])
    # (0, 0), (0, 0.5), (0.4, 1), (1, 1): at 0.3 it stands at 0.875, at 0.05 at 0.5625.
    found = pixel_metrics([mask], [scores])
    assert found["aupro"] == pytest.approx((0.5 + 0.875) / 2, abs=1e-15)
    assert found["aupro_0.05"] == pytest.approx((0.5 + 0.5625) / 2, abs=1e-15)


def test_regions_touch_at_corners_and_weigh_alike_whatever_their_size() -> None:
    first, second = np.zeros((5, 5), bool), np.zeros((3, 4), bool)
    first[0, 0] = first[1, 1] = True  # one region
    first[3:, 3:] = True
    second[:, 2:] = True
    maps = [np.full(first.shape, 0.5), np.full(second.shape, 0.5)]
    maps[0][1, 1] = 1  # half of the first region; nothing of the second
    maps[0][3:, 3:] = 0
    maps[1][:, 2:] = 1  # all of the third
    found = pixel_metrics([first, second], maps)
    # Where no good pixel lies above; then the good ones and half a region tie.
    curve = (0.5 + 0 + 1) / 3, (1 + 0 + 1) / 3
    for name, limit in AUPRO_LIMITS.items():
        assert found[name] == pytest.approx(curve[0] + (curve[1] - curve[0]) * limit / 2, abs=1e-15)


@pytest.mark.parametrize("label", [False, True])
def test_one_class_defines_nothing(label: bool) -> None:
    assert auroc(np.full(4, label), np.arange(4.0)) is None
    assert image_metrics(np.full(4, label), np.arange(4.0)) == dict.fromkeys(IMAGE_NAMES)
    sizes = [(2, 3), (4, 1)]
    found = pixel_metrics(
        [np.full(size, label) for size in sizes], [np.ones(size) for size in sizes]
    )
    assert found == dict.fromkeys([*IMAGE_NAMES, "aupro", "aupro_0.05"])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_scores_that_are_not_finite_are_refused(bad: float) -> None:
    labels, scores = np.array([False, True, True]), np.array([0.0, bad, 1.0])
    for metric in (auroc, image_metrics):
        with pytest.raises(ValueError, match="NaN or infinity"):
            metric(labels, scores)
    with pytest.raises(ValueError, match="NaN or infinity"):
        pixel_metrics([labels[None], labels[None]], [np.zeros((1, 3)), scores[None]])


def test_unequal_shapes_are_refused() -> None:
    # They would broadcast: the fault must be named, not hidden.
    labels, scores = np.array([[False], [True]]), np.zeros((2, 2))
    for metric in (auroc, image_metrics):
        with pytest.raises(ValueError, match=r"\(2, 1\).*\(2, 2\)"):
            metric(labels, scores)
    with pytest.raises(ValueError, match=r"\(2, 1\).*\(2, 2\)"):
        pixel_metrics([labels], [scores])
    with pytest.raises(ValueError, match="2 masks and 1 maps"):
        pixel_metrics([labels, labels], [np.zeros((2, 1))])


@pytest.mark.parametrize("density", [0.0, 0.5, 1.0])
def test_inputs_are_left_as_they_are(density: float) -> None:
    rng = np.random.default_rng(0)
    masks, maps = rng.random((3, 4, 5)) < density, rng.random((3, 4, 5))
    before = masks.copy(), maps.copy()
    for metric in (auroc, image_metrics):
        metric(masks.ravel(), maps.ravel())
    pixel_metrics(masks, maps)
    pixel_metrics(list(masks), list(maps))
    assert np.array_equal(masks, before[0])
    assert np.array_equal(maps, before[1])
