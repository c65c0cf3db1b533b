"""How far tonight's scores lie from those of the good images that the threshold was taken from."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

FEWEST = 8
"""Scores on either side below which nothing is said."""

UNLIKELY = 0.01
"""A chance, were the two alike, below which a difference is called one."""

WORTH_NAMING = 1.0
"""Shift, in robust standard deviations, from which it is called strong."""

TO_SIGMA = 1.4826
"""Times the median absolute deviation: the standard deviation where scores are normal."""


@dataclass(frozen=True)
class Drift:
    """Two samples of scores compared: the held-out good images' and tonight's.

    Tonight's hold defects too. The median hardly moves while these are few; the distance does, by
    their share.
    """

    held_out: int
    new: int
    shift: float | None = None
    """Of the median, in robust standard deviations of the held-out scores; positive is higher."""
    distance: float | None = None
    """Kolmogorov-Smirnov: the largest difference of the two shares below a score, 0 to 1."""
    chance: float | None = None
    """Of a distance as large, were the two alike."""

    @property
    def verdict(self) -> str:
        """'too few', 'none', 'slight' or 'strong'."""
        if self.shift is None or self.chance is None:
            return "too few"
        if self.chance >= UNLIKELY:
            return "none"
        return "strong" if abs(self.shift) >= WORTH_NAMING else "slight"

    def __str__(self) -> str:
        if self.shift is None:
            return (
                f"not judged: {self.new} scores beside {self.held_out} of held-out good images, "
                f"and at least {FEWEST} of each, not all alike, are needed"
            )
        where = "above" if self.shift >= 0 else "below"
        says = {
            "none": "no drift seen",
            "slight": "a slight drift: look at the images before trusting the threshold for long",
            "strong": "a strong drift: look at the images, and retrain if they are what comes now",
        }[self.verdict]
        return (
            f"median score {abs(self.shift):.1f} robust standard deviations {where} that of "
            f"{self.held_out} held-out good images (Kolmogorov-Smirnov distance "
            f"{self.distance:.2f}, p = {self.chance:.2g}): {says}"
        )


def measure_drift(held_out: npt.NDArray[np.float64], new: npt.NDArray[np.float64]) -> Drift:
    """Compare two samples of scores, (N,) and (M,)."""
    median = np.median(held_out) if held_out.size else 0.0
    spread = TO_SIGMA * np.median(np.abs(held_out - median)) if held_out.size else 0.0
    if min(held_out.size, new.size) < FEWEST or spread == 0:
        return Drift(held_out.size, new.size)
    from scipy import stats  # a second of import, of every process that only might need it

    test = stats.ks_2samp(held_out, new)
    return Drift(
        held_out.size,
        new.size,
        shift=float((np.median(new) - median) / spread),
        distance=float(test.statistic),
        chance=float(test.pvalue),
    )
