"""The bootstrap against a naive one that recomputes every replicate, and against SciPy's."""

import numpy as np
import numpy.typing as npt
import pytest
from scipy import ndimage, stats
from sklearn.metrics import average_precision_score, roc_auc_score

from etstpm.intervals import (
    EDGES,
    REPLICATES,
    ImageCounts,
    choose_edges,
    draw_weights,
    interval,
    replicate,
)
from etstpm.metrics import image_metrics, pixel_metrics
from etstpm.ranking import rank_pixels

Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]
Images = tuple[list[Bools], list[npt.NDArray[np.float32]]]
WITH_INTERVAL = ["auroc", "ap", "f1_max", "aupro", "aupro_0.05"]


def draw_images(count: int, size: int, levels: int | None, seed: int = 0) -> Images:
    """Every third image good; maps with few distinct values, or with hardly two alike."""
    rng = np.random.default_rng(seed)
    masks, maps = [], []
    for number in range(count):
        mask = np.zeros((size, size), bool)
        for _ in range(0 if number % 3 == 0 else rng.integers(1, 4)):
            row, column = rng.integers(0, size - 4, 2)
            mask[row : row + rng.integers(2, size // 3), column : column + 4] = True
        scores = ndimage.gaussian_filter(rng.normal(size=mask.shape), 1) + 0.4 * mask
        scores += 0.2 * rng.normal()  # images differ, as real ones do
        masks.append(mask)
        maps.append((np.round(scores * levels) if levels else scores).astype(np.float32))
    return masks, maps


def recomputed(images: Images, weights: Floats) -> dict[str, Floats]:
    """Each replicate's metrics from its images, repeated as often as they were drawn."""
    found = []
    for row in weights.astype(int):
        drawn = np.repeat(np.arange(row.size), row)
        found.append(pixel_metrics(*([part[i] for i in drawn] for part in images)))
    return {name: np.array([f[name] for f in found], float) for name in WITH_INTERVAL}


def is_defective(images: Images) -> Bools:
    return np.array([mask.any() for mask in images[0]])


@pytest.mark.parametrize("seed", range(3))
def test_with_few_distinct_scores_every_replicate_is_exact(seed: int) -> None:
    images = draw_images(9, 16, levels=8, seed=seed)
    weights = draw_weights(is_defective(images), "bottle")[:20]
    found = replicate(rank_pixels(*images).counts, weights)
    for name, expected in recomputed(images, weights).items():
        assert found[name] == pytest.approx(expected, abs=1e-12), name


# Three times what was seen.
BOUNDS = {"auroc": 4e-4, "ap": 1.2e-3, "f1_max": 2.2e-3, "aupro": 7e-4, "aupro_0.05": 1.2e-3}


def test_with_many_distinct_scores_a_replicate_is_bounded() -> None:
    images = draw_images(12, 96, levels=None)
    assert np.unique(images[1]).size > 50 * EDGES
    weights = draw_weights(is_defective(images), "bottle")[:25]
    found = replicate(rank_pixels(*images).counts, weights)
    for name, expected in recomputed(images, weights).items():
        error = np.abs(found[name] - expected).max()
        assert error < BOUNDS[name], name
        # It is small beside what the interval measures.
        assert error < 0.1 * expected.std(), name


def test_images_that_are_drawn_once_each_give_the_metrics_themselves() -> None:
    rng = np.random.default_rng(3)
    labels = rng.random(200) < 0.6
    scores = rng.normal(size=200) + labels
    found = replicate(ImageCounts.of_images(labels, scores), np.ones((1, 200)))
    expected = image_metrics(labels, scores)
    assert {name: value[0] for name, value in found.items()} == pytest.approx(
        {name: expected[name] for name in ("auroc", "ap", "f1_max")}, abs=1e-12
    )


@pytest.mark.parametrize(
    ("name", "oracle"), [("auroc", roc_auc_score), ("ap", average_precision_score)]
)
def test_the_interval_is_scipys(name: str, oracle: object) -> None:
    rng = np.random.default_rng(4)
    labels = np.arange(90) >= 35
    scores = np.round(rng.normal(size=90) + 1.2 * labels, 1)

    def statistic(good: Floats, defective: Floats) -> float:
        together = np.concatenate([good, defective])
        return float(oracle(np.arange(90) >= good.size, together))  # type: ignore[operator]

    expected = stats.bootstrap(
        (scores[~labels], scores[labels]),
        statistic,
        n_resamples=1000,
        vectorized=False,
        method="percentile",
        random_state=np.random.default_rng(5),
    ).confidence_interval
    found = replicate(ImageCounts.of_images(labels, scores), draw_weights(labels, "x"))
    # The ends of 1,000 replicates scatter by about a tenth of the interval's length.
    length = expected.high - expected.low
    assert interval(found[name]) == pytest.approx([*expected], abs=0.15 * length)


def test_each_replicate_draws_as_many_good_and_defective_images() -> None:
    labels = np.array([False, True, True, False, True, True])
    weights = draw_weights(labels, "bottle")
    assert weights.shape == (REPLICATES, 6)
    assert set(weights[:, labels].sum(1)) == {4}
    assert set(weights[:, ~labels].sum(1)) == {2}
    assert weights.mean(0) == pytest.approx(np.ones(6), abs=0.1)
    assert np.array_equal(weights, draw_weights(labels, "bottle"))
    assert not np.array_equal(weights, draw_weights(labels, "screw"))


def test_images_of_one_class_are_drawn_too_and_define_nothing() -> None:
    labels = np.ones(4, bool)
    weights = draw_weights(labels, "toothbrush")
    assert set(weights.sum(1)) == {4}
    found = replicate(ImageCounts.of_images(labels, np.arange(4.0)), weights)
    assert all(np.isnan(values).all() for values in found.values())


def test_an_interval_holds_95_percent_of_the_replicates() -> None:
    assert interval(np.arange(1001.0)) == [25, 975]
    assert interval(np.array([0.5, np.nan])) is None
    labels = np.arange(20) >= 10
    perfect = replicate(ImageCounts.of_images(labels, np.arange(20.0)), draw_weights(labels, "x"))
    for values in perfect.values():
        assert interval(values) == pytest.approx([1, 1], abs=1e-12)
        assert values.max() <= 1


def test_edges_are_all_scores_or_quantiles_of_both_classes() -> None:
    few, many = np.array([1.0, 1.0, 2.0]), np.linspace(0, 1, 10_000)
    assert choose_edges(few, np.array([2.0, 3.0])).tolist() == [-np.inf, 1, 2, 3]
    edges = choose_edges(many, many + 5)
    assert edges[0] == -np.inf
    good, defective = (edges[(edges >= low) & (edges <= low + 1)] for low in (0, 5))
    # Every bin of defective scores is alike; those of good ones are finest at the top.
    assert np.diff(defective).max() < 1.1 / EDGES
    assert np.diff(good).max() < 2.1 / EDGES
    assert np.diff(good[good > 0.95]).max() < 0.5 / EDGES
