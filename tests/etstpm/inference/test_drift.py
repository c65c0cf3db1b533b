"""Two samples of scores compared: what is called a drift, and what is not."""

import numpy as np
import pytest
from scipy import stats

from etstpm.inference.drift import measure_drift

HELD_OUT = np.random.default_rng(0).lognormal(size=40)


def test_the_same_distribution_is_no_drift_and_a_few_defects_make_none() -> None:
    rng = np.random.default_rng(1)
    good = rng.lognormal(size=300)
    for new in (good, np.concatenate([good, 50 + rng.lognormal(size=15)])):
        drift = measure_drift(HELD_OUT, new)
        assert drift.verdict == "none"
        assert str(drift).endswith("no drift seen")


def test_figures_are_scipys_and_the_textbooks() -> None:
    new = np.random.default_rng(2).lognormal(0.5, size=200)
    drift = measure_drift(HELD_OUT, new)
    median = np.median(HELD_OUT)
    spread = stats.median_abs_deviation(HELD_OUT, scale="normal")
    assert drift.shift == pytest.approx((np.median(new) - median) / spread, rel=1e-4)
    expected = stats.ks_2samp(HELD_OUT, new)
    assert (drift.distance, drift.chance) == (expected.statistic, expected.pvalue)


@pytest.mark.parametrize(("factor", "word"), [(6.0, "above"), (1 / 3, "below")])
def test_a_shift_is_named_with_its_direction(factor: float, word: str) -> None:
    drift = measure_drift(HELD_OUT, factor * np.random.default_rng(3).lognormal(size=100))
    assert drift.verdict == ("strong" if factor > 1 else "slight")
    assert f"deviations {word} that of 40 held-out good images" in str(drift)


@pytest.mark.parametrize(
    ("held_out", "new"),
    [(HELD_OUT[:3], HELD_OUT), (HELD_OUT, HELD_OUT[:3]), (np.ones(9), HELD_OUT)],
)
def test_too_few_are_not_judged(held_out: np.ndarray, new: np.ndarray) -> None:
    drift = measure_drift(held_out, new)
    assert drift.verdict == "too few"
    assert "not judged" in str(drift)
