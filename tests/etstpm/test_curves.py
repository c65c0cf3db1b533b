"""Curves against scikit-learn's and against an exact area, and how far thinning may move them."""

import itertools

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.metrics import roc_curve as oracle

from etstpm.curves import STEPS, TOLERANCE, Curve, pro_curve, roc_curve, thin
from etstpm.metrics import image_metrics, pixel_metrics
from etstpm.ranking import rank, rank_pixels

Floats = npt.NDArray[np.float64]


def area(curve: Curve, limit: float = 1.0) -> float:
    """The area under the curve up to a false positive rate, divided by it."""
    inside = np.unique(np.append(curve.false_positive_rate, limit))
    inside = inside[inside <= limit]
    # Where the curve rises straight up, its upper end counts from there on, its lower end before.
    x, y = np.append(curve.false_positive_rate, 2.0), np.append(curve.rate, 1.0)
    total = 0.0
    for left, right in itertools.pairwise(inside):
        index = np.searchsorted(x, left, side="right") - 1
        slope = (y[index + 1] - y[index]) / (x[index + 1] - x[index])
        first = y[index] + slope * (left - x[index])
        total += (right - left) * (first + slope * (right - left) / 2)
    return total / limit


def distance(x: Floats, y: Floats, curve: Curve) -> float:
    """How far the points (x, y) lie from the curve at the most."""
    start = np.stack([curve.false_positive_rate[:-1], curve.rate[:-1]], 1)
    along = np.stack([np.diff(curve.false_positive_rate), np.diff(curve.rate)], 1)
    length = np.maximum((along**2).sum(1), 1e-300)
    furthest = 0.0
    for point in np.stack([x, y], 1):
        place = np.clip(((point - start) * along).sum(1) / length, 0, 1)[:, None]
        furthest = max(furthest, np.sqrt(((start + place * along - point) ** 2).sum(1).min()))
    return float(furthest)


@pytest.mark.parametrize(("count", "levels"), [(40, 7), (3000, 10**6), (20_000, 200)])
def test_roc_lies_within_the_tolerance_of_scikit_learns(count: int, levels: int) -> None:
    rng = np.random.default_rng(count)
    labels = rng.random(count) < 0.3
    scores = np.round((rng.normal(size=count) + labels) * levels / 8) / levels
    curve = roc_curve(rank(labels, scores))
    assert curve is not None
    x, y, _ = oracle(labels, scores, drop_intermediate=False)
    some = np.unique(np.linspace(0, x.size - 1, 1500).astype(int))
    assert distance(x[some], y[some], curve) <= TOLERANCE
    assert curve.false_positive_rate.size <= 400
    auroc = image_metrics(labels, scores)["auroc"]
    assert auroc is not None
    assert abs(area(curve) - auroc) <= 2 * TOLERANCE
    # Every corner is a point that its threshold makes.
    for rates in zip(curve.false_positive_rate, curve.rate, curve.threshold, strict=True):
        called = scores >= rates[2]
        assert rates[:2] == pytest.approx((called[~labels].mean(), called[labels].mean()))


def test_pro_encloses_the_area_that_the_metric_gives() -> None:
    rng = np.random.default_rng(1)
    masks = [np.zeros((96, 80), bool) for _ in range(12)]
    for number, mask in enumerate(masks[4:]):
        mask[10 : 14 + 3 * number, 20:50] = True
        mask[60:63, 60 : 64 + number] = True
    maps = [rng.gamma(1.0, 1e-9, mask.shape) * (1 + 3 * mask) for mask in masks]
    metrics = pixel_metrics(masks, maps)
    ranked = rank_pixels(masks, maps).of()
    pro, roc = pro_curve(ranked), roc_curve(ranked)
    for curve, name, limit in ((pro, "aupro", 0.3), (pro, "aupro_0.05", 0.05), (roc, "auroc", 1)):
        value = metrics[name]
        assert curve is not None
        assert value is not None
        assert curve.false_positive_rate.size <= 400
        assert abs(area(curve, limit) - value) * limit <= 2 * TOLERANCE


@given(
    arrays(np.int8, st.integers(2, 60), elements=st.integers(0, 5)),
    st.integers(0, 2**60 - 1),
)
def test_curves_only_rise_and_end_in_the_corners(scores: npt.NDArray[np.int8], bits: int) -> None:
    labels = np.array([bits >> place & 1 == 1 for place in range(scores.size)])
    values = scores.astype(np.float32)
    masks, maps = labels[None, None], values[None, None]
    curves = [
        roc_curve(rank(labels, values)),
        roc_curve(rank_pixels(masks, maps).of()),
        pro_curve(rank_pixels(masks, maps).of()),
    ]
    if labels.all() or not labels.any():
        assert curves == [None, None, None]
        return
    for curve in curves:
        assert curve is not None
        assert (np.diff(curve.false_positive_rate) >= 0).all()
        assert (np.diff(curve.rate) >= 0).all()
        assert (np.diff(curve.threshold) <= 0).all()
        assert [curve.false_positive_rate[0], curve.rate[0]] == [0, 0]
        assert [curve.false_positive_rate[-1], curve.rate[-1]] == [1, 1]
    exact = image_metrics(labels, values)["auroc"]
    assert curves[0] is not None
    assert area(curves[0]) == pytest.approx(exact, abs=2 * TOLERANCE)


def test_a_perfect_ranking_is_three_corners() -> None:
    labels = np.arange(100) >= 60
    curve = roc_curve(rank(labels, np.arange(100.0)))
    assert curve is not None
    assert curve.false_positive_rate.tolist() == [0, 0, 1]
    assert curve.rate.tolist() == [0, 1, 1]
    assert curve.threshold[1] == 60


def test_thinning_keeps_what_bends_and_is_bounded() -> None:
    x = np.linspace(0, 1, 2 * STEPS)
    assert thin(x, x, 1e-6).sum() == 2
    kept = thin(x, x**0.2, TOLERANCE / 2)
    assert 10 < kept.sum() < 100
    assert np.abs(np.interp(x, x[kept], x[kept] ** 0.2) - x**0.2)[400:].max() <= TOLERANCE
