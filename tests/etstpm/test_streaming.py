"""The exact metrics lie between the streamed bounds, whatever the scores; shards add up."""

import itertools

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from etstpm.metrics import pixel_metrics
from etstpm.streaming import Bounds, PixelHistogram, bins_of

Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.floating]
NAMES = ["auroc", "ap", "f1_max", "aupro", "aupro_0.05"]

finite = st.floats(allow_nan=False, allow_infinity=False)


@st.composite
def masked_maps(draw: st.DrawFn) -> tuple[list[Bools], list[Floats]]:
    """Up to four images of both classes: ties, skew, signs, neighbours that share a bin."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    kind = draw(st.sampled_from(["ties", "signed", "skewed", "neighbours"]))
    dtype = draw(st.sampled_from([np.float32, np.float64]))
    masks, maps = [], []
    for _ in range(draw(st.integers(1, 4))):
        size = tuple(rng.integers(2, 12, 2))
        mask = rng.random(size) < draw(st.floats(0.02, 0.7))
        mask[0, :2] = False, True
        if kind == "ties":
            scores = rng.integers(0, 5, size).astype(float)
        elif kind == "signed":
            scores = rng.normal(size=size) + mask
        elif kind == "skewed":
            scores = 1e-12 * np.exp(3 * rng.normal(size=size) + mask)
        else:
            scores = 1 + 1e-4 * (rng.normal(size=size) + mask)
        masks.append(mask)
        maps.append(scores.astype(dtype))
    return masks, maps


def bounds_of(histogram: PixelHistogram) -> dict[str, Bounds]:
    return {name: found for name, found in histogram.metrics().items() if found is not None}


@hypothesis_settings(deadline=None)
@given(masked_maps(), st.sampled_from([2, 8, 12, 16, 20]))
def test_the_exact_metrics_lie_between_the_bounds(
    images: tuple[list[Bools], list[Floats]], bits: int
) -> None:
    exact, found = pixel_metrics(*images), bounds_of(PixelHistogram.of(*images, bits))
    assert list(found) == NAMES
    for name, bounds in found.items():
        value = exact[name]
        assert value is not None
        assert 0 <= bounds.low <= value <= bounds.high <= 1, name
        assert abs(value - bounds.value) <= bounds.error + 1e-15


def test_the_bounds_are_reached_by_the_best_and_the_worst_order_inside_a_bin() -> None:
    mask = np.array([[True, False, True, False, False, False]])
    high = np.array([[1.2, 1.1, 1.2, 1.1, 0.1, 0.2]])
    low = np.array([[1.1, 1.2, 1.1, 1.2, 0.1, 0.2]])
    found = bounds_of(PixelHistogram.of([mask], [high], bits=9))
    assert found == bounds_of(PixelHistogram.of([mask], [low], bits=9))
    best, worst = pixel_metrics([mask], [high]), pixel_metrics([mask], [low])
    for name in ("auroc", "aupro", "aupro_0.05"):
        assert found[name].high == pytest.approx(best[name], abs=1e-10)
        assert found[name].low == pytest.approx(worst[name], abs=1e-10)


@hypothesis_settings(deadline=None, max_examples=40)
@given(masked_maps())
def test_more_bits_never_widen_the_bounds(images: tuple[list[Bools], list[Floats]]) -> None:
    found = [bounds_of(PixelHistogram.of(*images, bits)) for bits in (6, 10, 14, 18)]
    for coarse, fine in itertools.pairwise(found):
        for name in NAMES:
            assert fine[name].low >= coarse[name].low - 1e-12, name
            assert fine[name].high <= coarse[name].high + 1e-12, name


@hypothesis_settings(deadline=None, max_examples=40)
@given(images=masked_maps(), seed=st.integers(0, 2**32))
def test_shards_add_up_in_any_order(
    images: tuple[list[Bools], list[Floats]], seed: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    masks, maps = images
    whole = PixelHistogram.of(masks, maps, 12)
    order = np.random.default_rng(seed).permutation(len(masks))
    shards = [PixelHistogram.of([masks[i]], [maps[i]], 12) for i in order]
    path = tmp_path_factory.mktemp("shard") / "histogram.npz"
    shards[0].save(path)
    merged = PixelHistogram.merge([PixelHistogram.load(path), *shards[1:]])
    assert np.array_equal(merged.good, whole.good)
    assert np.array_equal(merged.defective, whole.defective)
    assert np.allclose(merged.overlap, whole.overlap, rtol=1e-12)
    assert merged.regions == whole.regions
    assert int(whole.good.sum() + whole.defective.sum()) == sum(mask.size for mask in masks)


@hypothesis_settings(deadline=None)
@given(arrays(np.float64, 40, elements=finite), st.integers(2, 32))
def test_bins_ascend_with_the_scores(scores: npt.NDArray[np.float64], bits: int) -> None:
    ordered = np.sort(scores)
    bins = bins_of(ordered, bits).astype(np.int64)
    assert (np.diff(bins) >= 0).all()
    assert bins.min() >= 0
    assert bins.max() < 2**bits


def test_both_zeros_share_a_bin_and_neighbouring_bins_differ_by_a_two_thousandth() -> None:
    zeros = bins_of(np.array([-0.0, 0.0]), 32)
    assert zeros[0] == zeros[1]
    assert len(set(bins_of(np.array([1e-12, 1e-12 * 1.0006, 1.0, 1.0006])).tolist())) == 4


def test_skewed_maps_are_bounded_within_a_ten_thousandth() -> None:
    rng = np.random.default_rng(0)
    masks = [np.zeros((256, 256), bool) for _ in range(8)]
    for mask in masks[2:]:
        mask[40:90, 60:140] = True
    maps = [(1e-9 * np.exp(2 * rng.normal(size=m.shape) + 3 * m)).astype(np.float32) for m in masks]
    exact, found = pixel_metrics(masks, maps), bounds_of(PixelHistogram.of(masks, maps))
    for name, bounds in found.items():
        value = exact[name]
        assert value is not None
        assert bounds.low <= value <= bounds.high
        assert bounds.error < (1e-4 if name != "f1_max" else 1e-3), name


def test_one_class_alone_has_no_metrics() -> None:
    for mask in (np.zeros((3, 3), bool), np.ones((3, 3), bool)):
        found = PixelHistogram.of([mask], [np.ones((3, 3))]).metrics()
        assert found == dict.fromkeys(NAMES)


def test_what_cannot_be_counted_is_refused() -> None:
    histogram = PixelHistogram.empty(8)
    with pytest.raises(ValueError, match="differ in shape"):
        histogram.add(np.zeros((2, 2), bool), np.zeros((2, 3)))
    with pytest.raises(ValueError, match="NaN"):
        histogram.add(np.zeros((1, 2), bool), np.array([[0, np.inf]]))
    with pytest.raises(ValueError, match="differ in number"):
        PixelHistogram.of([np.zeros((1, 1), bool)], [])
    with pytest.raises(ValueError, match="8 and 9 bits"):
        PixelHistogram.merge([histogram, PixelHistogram.empty(9)])
    with pytest.raises(ValueError, match="give 2 to 24"):
        PixelHistogram.empty(40)
