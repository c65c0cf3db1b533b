"""ROC and PRO curves from the exact ranks, thinned to what an eye or a spreadsheet can take.

A category's pixels make curves of millions of points. What is kept lies nowhere further from them
than `TOLERANCE`, so that no area between 0 and a limit moves by more than twice that.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from etstpm.ranking import Ranked, RankedPixels

Floats = npt.NDArray[np.float64]
Places = npt.NDArray[np.intp]

STEPS = 1000
"""Steps in the rate from one candidate to the next, before thinning."""
TOLERANCE = 2e-3
"""How far the thinned curve may lie from the exact one: half of it by the steps, half by what
thinning then drops. Both axes run from 0 to 1."""


@dataclass(frozen=True)
class Curve:
    """A curve's corners, (K,), from the strictest threshold to none; straight lines in between.

    Scores of at least `threshold` are called defective: infinite at both ends, where nothing and
    everything is. `rate` is the share of defective images or pixels that is found (ROC), or of each
    region, averaged over the regions (PRO).
    """

    false_positive_rate: Floats
    rate: Floats
    threshold: Floats

    def rows(self) -> list[dict[str, Any]]:
        """A row a corner."""
        columns = self.false_positive_rate, self.rate, self.threshold
        names = "false_positive_rate", "rate", "threshold"
        return [
            dict(zip(names, row, strict=True))
            for row in zip(*(column.tolist() for column in columns), strict=True)
        ]


def roc_curve(ranked: Ranked) -> Curve | None:
    """The ROC curve; None where only one class is there."""
    if not ranked.has_both_classes:
        return None
    count = ranked.defective.size
    first, last = _ties(ranked, np.linspace(0, count - 1, STEPS + 1).astype(int))
    return _curve(ranked, first, (1 - last / count, 1 - first / count))


def pro_curve(ranked: RankedPixels) -> Curve | None:
    """The per-region overlap curve after MVTec's definition; None where only one class is there.

    Source: Bergmann et al., The MVTec Anomaly Detection Dataset, IJCV 2021, section 4.2.
    """
    if not ranked.has_both_classes:
        return None
    below = ranked.share[ranked.region]
    np.cumsum(below, out=below)
    steps = np.searchsorted(below, np.linspace(0, 1, STEPS + 1))
    first, last = _ties(ranked, np.minimum(steps, below.size - 1))
    at_least = 1 - np.where(first > 0, below[np.maximum(first, 1) - 1], 0)
    above = np.where(last < below.size, 1 - below[last - 1], 0)
    return _curve(ranked, first, (above, at_least))


def _ties(ranked: Ranked, chosen: Places) -> tuple[Places, Places]:
    """Where the scores that equal a chosen one begin and end; each such score once."""
    needles = np.unique(ranked.defective[chosen])
    return np.searchsorted(ranked.defective, needles), np.searchsorted(
        ranked.defective, needles, side="right"
    )


def _curve(ranked: Ranked, chosen: Places, rates: tuple[Floats, Floats]) -> Curve:
    """Both corners of each chosen score, above it and with it, between the ends."""
    scores = ranked.defective[chosen].astype(np.float64)
    # Scores above this one are those of at least the next number.
    thresholds = np.stack([np.nextafter(scores, np.inf), scores])
    false_positives = np.stack([ranked.above[chosen], ranked.above_or_equal[chosen]])
    x, y, t = (
        np.concatenate([[start], columns[:, ::-1].T.ravel(), [end]])
        for start, columns, end in (
            (0.0, false_positives / ranked.good_count, 1.0),
            (0.0, np.clip(np.stack(rates), 0, 1), 1.0),
            (np.inf, thresholds, -np.inf),
        )
    )
    kept = thin(x, y, TOLERANCE / 2)
    return Curve(x[kept], y[kept], t[kept])


def thin(x: Floats, y: Floats, tolerance: float) -> npt.NDArray[np.bool_]:
    """Which of a line's corners to keep so that none of the others lies further off than this.

    Source: Douglas and Peucker 1973.
    """
    kept = np.zeros(x.size, bool)
    kept[[0, -1]] = True
    spans = [(0, x.size - 1)]
    while spans:
        first, last = spans.pop()
        along = np.array([x[last] - x[first], y[last] - y[first]])
        inner = slice(first + 1, last)
        across = np.abs(along[0] * (y[inner] - y[first]) - along[1] * (x[inner] - x[first]))
        length = np.hypot(*along)
        # The curve never falls, so that no corner lies beyond the ends of its span.
        if across.size and across.max() > tolerance * length:
            furthest = first + 1 + int(across.argmax())
            kept[furthest] = True
            spans += [(first, furthest), (furthest, last)]
    return kept
