"""AUROC against scikit-learn's, against counting pairs, and against what must change nothing."""

from fractions import Fraction

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from etstpm.metrics import auroc

Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.floating]


@st.composite
def labelled_scores(draw: st.DrawFn) -> tuple[Bools, Floats]:
    """Both classes; many ties, or none, or skewed products of distances around 1e-12."""
    count = draw(st.integers(2, 120))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    labels = rng.random(count) < draw(st.floats(0.05, 0.95))
    labels[:2] = False, True
    kind = draw(st.sampled_from(["ties", "smooth", "skewed"]))
    scores: Floats
    if kind == "ties":
        scores = rng.integers(0, draw(st.integers(1, 6)), count).astype(np.float64)
    elif kind == "smooth":
        scores = rng.normal(size=count) + labels
    else:
        scores = 1e-12 * np.exp(3 * rng.normal(size=count) + labels)
    return labels, scores.astype(draw(st.sampled_from([np.float32, np.float64])))


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
@given(labelled_scores(), st.integers(0, 2**32))
def test_order_and_shape_change_nothing(sample: tuple[Bools, Floats], seed: int) -> None:
    labels, scores = sample
    order = np.random.default_rng(seed).permutation(labels.size)
    assert auroc(labels[order], scores[order]) == auroc(labels, scores)
    assert auroc(labels[:, None], scores[:, None]) == auroc(labels, scores)


@hypothesis_settings(deadline=None)
@given(labelled_scores())
def test_a_strictly_monotone_map_changes_nothing(sample: tuple[Bools, Floats]) -> None:
    labels, scores = sample
    # Exact in floating point, so that neighbours stay apart: a power of two; the rank.
    assert auroc(labels, scores * 2.0**20) == auroc(labels, scores)
    ranks = np.unique(scores, return_inverse=True)[1].astype(np.float64)
    assert auroc(labels, ranks**3) == auroc(labels, scores)


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
    assert auroc(labels, scores) == 1.0
    assert auroc(labels, -scores) == 0.0
    assert auroc(labels, np.full(5, 1e-12, np.float32)) == 0.5


def test_five_million_pixels_with_ties_are_counted_exactly() -> None:
    rng = np.random.default_rng(0)
    labels = rng.random((50, 250, 400), np.float32) < 0.03
    raw = 1e-9 * np.exp(2 * rng.normal(size=labels.shape) + 1.5 * labels)
    scores = np.float32(1e-10) * np.round(raw / 1e-10).astype(np.float32)
    assert np.unique(scores).size < labels.size / 10
    value = auroc(labels, scores)
    assert value == pytest.approx(roc_auc_score(labels.ravel(), scores.ravel()), abs=1e-12)


@pytest.mark.parametrize("label", [False, True])
def test_one_class_has_no_auroc(label: bool) -> None:
    assert auroc(np.full(4, label), np.arange(4.0)) is None


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_scores_that_are_not_finite_are_refused(bad: float) -> None:
    with pytest.raises(ValueError, match="NaN or infinity"):
        auroc(np.array([False, True, True]), np.array([0.0, bad, 1.0]))


def test_unequal_shapes_are_refused() -> None:
    # They would broadcast: the fault must be named, not hidden.
    with pytest.raises(ValueError, match=r"\(2, 1\).*\(2, 2\)"):
        auroc(np.array([[False], [True]]), np.zeros((2, 2)))
