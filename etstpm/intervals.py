"""Bootstrap confidence intervals of detection metrics: what another draw of test images might give.

Images are drawn with replacement, good and defective ones apart, so that a replicate has as many of
each as the test set. A region of defective pixels comes and goes with its image: pixels of one
image are no independent observations, and intervals that resample pixels are far too narrow.

Each image is counted once against the same edges; a replicate's curves are then weights @ counts,
and all replicates one matrix product. A class of at most `EDGES` distinct scores has each as an
edge; where both are such, a replicate's metrics are exact. Otherwise scores between two edges count
as ties; the edges of good scores lie closest at the top, where precision and AUPRO are decided.
What that costs is bounded in tests/etstpm/test_intervals.py: less than a tenth of the replicates'
standard deviation. A metric's own value never comes from here.
Source: Efron, Tibshirani, An Introduction to the Bootstrap, 1993, chapters 8 and 13 (percentile).
It cannot see what no test image shows: where all are ranked right it is a single point.
"""

from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt

Scores = npt.NDArray[np.floating]
Labels = npt.NDArray[np.bool_]
Integers = npt.NDArray[np.signedinteger]
Floats = npt.NDArray[np.float64]

AUPRO_LIMITS = {"aupro": 0.3, "aupro_0.05": 0.05}
"""False positive rates up to which the PRO curve is integrated (Bergmann et al. 2021: 0.3)."""
EDGES = 500
"""Of each class."""
REPLICATES = 1000
BLOCK = 2**16
"""Values of each kind, replicates times edges, that are worked on together: a processor's cache."""
PERCENTILES = 2.5, 97.5


@dataclass(frozen=True)
class ImageCounts:
    """Per image (row), how much scores at least each edge (column).

    Edges ascend from minus infinity: the first column holds the totals. All (N, K) float64:
    `good` and `defective` count images or pixels, `overlap` sums the covered shares of regions.
    """

    good: Floats
    defective: Floats
    overlap: Floats | None = None

    def rows(self, chosen: Labels) -> "ImageCounts":
        """Those of some of the images."""
        overlap = None if self.overlap is None else self.overlap[chosen]
        return ImageCounts(self.good[chosen], self.defective[chosen], overlap)

    @classmethod
    def of_images(cls, labels: Labels, scores: Scores) -> Self:
        """Counts of images that have one score each."""
        edges = choose_edges(np.sort(scores[~labels]), np.sort(scores[labels]))
        is_at_least = scores[:, None] >= edges
        return cls(
            (is_at_least & ~labels[:, None]).astype(float),
            (is_at_least & labels[:, None]).astype(float),
        )

    @classmethod
    def of_regions(
        cls,
        good: Floats,
        edges: Scores,
        defective: Scores,
        region: Integers,
        *,
        sizes: Integers,
        images: Integers,
    ) -> Self:
        """Counts of pixels: `defective` ascends, `region` numbers each one's region."""
        counts, overlap = np.zeros_like(good), np.zeros_like(good)
        starts = [*np.searchsorted(defective, edges).tolist(), defective.size]
        for column in range(edges.size):
            regions = region[starts[column] : starts[column + 1]]
            image = images[regions]
            counts[:, column] = np.bincount(image, minlength=len(good))
            overlap[:, column] = np.bincount(image, 1 / sizes[regions], minlength=len(good))
        return cls(good, _from_the_top(counts), _from_the_top(overlap))


def choose_edges(good: Scores, defective: Scores) -> Scores:
    """Ascending thresholds: all distinct scores, or quantiles of each class where they are many.

    good, defective: ascending; quantiles of the good ones grow denser towards their top.
    """
    levels = np.linspace(0, 1, EDGES)
    chosen = []
    for scores, places in ((good, 1 - levels[::-1] ** 2), (defective, levels)):
        is_first = np.ones(scores.size, bool)
        np.greater(scores[1:], scores[:-1], out=is_first[1:])
        has_few = np.count_nonzero(is_first) <= EDGES
        chosen.append(scores[is_first if has_few else (places * (scores.size - 1)).astype(int)])
    lowest = np.array([-np.inf], good.dtype)
    edges: Scores = np.unique(np.concatenate([lowest, *chosen]))
    return edges


def draw_weights(is_defective: Labels, name: str) -> Floats:
    """How often each replicate draws each image: (REPLICATES, N).

    Seeded by `name` alone: two students of a category are judged on the same draws, so that the
    difference of their replicates is that of paired samples; categories are independent.
    """
    rng = np.random.default_rng(list(name.encode()))
    weights = np.zeros((REPLICATES, is_defective.size))
    for stratum in (~is_defective, is_defective):
        count = int(stratum.sum())
        if count:
            weights[:, stratum] = rng.multinomial(count, np.full(count, 1 / count), REPLICATES)
    return weights


def replicate(counts: ImageCounts, weights: Floats) -> dict[str, Floats]:
    """Each metric's value in each replicate, (R,); NaN where a replicate has one class only.

    counts: of N images. weights: (R, N).
    """
    sums = [weights @ counts.good, weights @ counts.defective]
    if counts.overlap is not None:
        sums.append(weights @ counts.overlap)
    rows = max(1, BLOCK // counts.good.shape[1])
    blocks = [
        _metrics_of(*(part[first : first + rows] for part in sums))
        for first in range(0, len(weights), rows)
    ]
    return {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}


def _metrics_of(
    good: Floats, defective: Floats, overlap: Floats | None = None
) -> dict[str, Floats]:
    """The metrics of replicates (rows), of what scores at least each edge (K columns)."""
    precision = defective / np.maximum(good + defective, 1)
    with np.errstate(invalid="ignore"):
        false_positives, recall = good / good[:, :1], defective / defective[:, :1]
        values = {
            "auroc": _area(false_positives, recall, 1),
            "ap": (-np.diff(recall, append=0) * precision).sum(1),
            "f1_max": (2 * defective / (good + defective + defective[:, :1])).max(1),
        }
        if overlap is not None:
            covered = overlap / overlap[:, :1]
            values |= {
                name: _area(false_positives, covered, limit) for name, limit in AUPRO_LIMITS.items()
            }
    has_both_classes = (good[:, 0] > 0) & (defective[:, 0] > 0)
    return {
        # What is rounded must not pass 1.
        name: np.where(has_both_classes, np.minimum(value, 1), np.nan)
        for name, value in values.items()
    }


def interval(replicates: Floats) -> list[float] | None:
    """Both ends of the 95 % percentile interval; None where a replicate is not defined."""
    if np.isnan(replicates).any():
        return None
    low, high = np.percentile(replicates, PERCENTILES)
    return [float(low), float(high)]


def _area(false_positives: Floats, curve: Floats, limit: float) -> Floats:
    """The area below a curve up to a false positive rate, divided by it; (R, K), x descending."""
    x, y = (np.pad(part, ((0, 0), (0, 1))) for part in (false_positives, curve))
    inside = np.clip(limit - x[:, 1:], 0, x[:, :-1] - x[:, 1:])
    slope = (y[:, :-1] - y[:, 1:]) / np.maximum(x[:, :-1] - x[:, 1:], np.finfo(float).tiny)
    area: Floats = (inside * (y[:, 1:] + slope * inside / 2)).sum(1) / limit
    return area


def _from_the_top(counts: Floats) -> Floats:
    """What lies between edges to what scores at least each."""
    return counts[:, ::-1].cumsum(1)[:, ::-1]
