"""Detection metrics: exact, from one sort of the good scores. NumPy, and SciPy to find regions.

Every metric here asks of each defective image or pixel how many good ones score higher: so the good
scores are sorted once, the defective ones looked up among them, and no threshold is ever sampled.
The raw values are compared, since products of distances are too skewed for any histogram.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage

Scores = npt.NDArray[np.floating]
Labels = npt.NDArray[np.bool_]
Metrics = dict[str, float | None]

AUPRO_LIMITS = {"aupro": 0.3, "aupro_0.05": 0.05}
"""False positive rates up to which the PRO curve is integrated (Bergmann et al. 2021: 0.3)."""

EIGHT_NEIGHBOURS = np.ones((3, 3), bool)


@dataclass(frozen=True)
class Ranked:
    """Defective scores, ascending, and for each how many good scores lie above or are equal."""

    defective: Scores
    above: npt.NDArray[np.int64]
    above_or_equal: npt.NDArray[np.int64]
    good_count: int

    @property
    def has_both_classes(self) -> bool:
        """Whether anything is defined at all."""
        return self.good_count > 0 and self.defective.size > 0


def rank(good: Scores, defective: Scores) -> Ranked:
    """Look the ascending defective scores up among the good ones, which are sorted in place."""
    good.sort()
    # Sorted needles walk through the haystack in order: three times faster than at random.
    above = good.size - np.searchsorted(good, defective, side="right")
    above_or_equal = good.size - np.searchsorted(good, defective, side="left")
    return Ranked(defective, above, above_or_equal, good.size)


def auroc(labels: Labels, scores: Scores) -> float | None:
    """Area under the ROC curve; None where only one class is there and it is not defined.

    labels: any shape, true where defective. scores: same shape, finite.
    Raises ValueError for unequal shapes or scores that are not finite.
    """
    return _auroc(_rank_labelled(labels, scores))


def image_metrics(labels: Labels, scores: Scores) -> Metrics:
    """`auroc`, `ap`, `f1_max` and `f1_max_threshold` of images; None where one class is missing.

    labels: (N,), true where defective. scores: (N,), finite.
    `ap` is the average precision, the sum of precisions weighted by the steps in recall;
    `f1_max` the highest F1 over all thresholds, reached by calling scores of at least
    `f1_max_threshold` defective. It is the best that hindsight could do: not a threshold to use.
    """
    return _curve_metrics(_rank_labelled(labels, scores))


def pixel_metrics(masks: Iterable[Labels], maps: Iterable[Scores]) -> Metrics:
    """As `image_metrics`, over all pixels of all images, with `aupro` and `aupro_0.05`.

    masks: per image (H, W), true where defective. maps: per image (H, W), finite; the sizes may
    differ from image to image.
    AUPRO is MVTec's: the overlap of each 8-connected defective region with what lies above a
    threshold, averaged over all regions of all images, against the share of all good pixels above
    it; integrated over every threshold up to the limit, interpolated there, divided by the limit.
    Source: Bergmann et al., The MVTec Anomaly Detection Dataset, IJCV 2021, section 4.2.
    Raises ValueError for unequal shapes or maps that are not finite.
    """
    good, defective, weights = [], [], []
    region_count = 0
    for mask, scores in zip(masks, maps, strict=True):
        _check(mask, scores)
        good.append(scores[~mask])
        defective.append(scores[mask])
        regions, count = ndimage.label(mask, EIGHT_NEIGHBOURS)
        weights.append(1 / np.bincount(regions.ravel())[regions[mask]])
        region_count += count
    scores_of_regions = np.concatenate(defective)
    order = np.argsort(scores_of_regions)
    ranked = rank(np.concatenate(good), scores_of_regions[order])
    del good
    overlap = np.concatenate(weights)[order] / max(1, region_count)
    return _curve_metrics(ranked) | {
        name: _aupro(ranked, overlap, limit) for name, limit in AUPRO_LIMITS.items()
    }


def _rank_labelled(labels: Labels, scores: Scores) -> Ranked:
    _check(labels, scores)
    return rank(scores[~labels], np.sort(scores[labels]))


def _check(labels: Labels, scores: Scores) -> None:
    if labels.shape != scores.shape:
        raise ValueError(f"labels {labels.shape} and scores {scores.shape} differ in shape")
    if not np.isfinite(scores).all():
        raise ValueError("scores hold NaN or infinity")


def _auroc(ranked: Ranked) -> float | None:
    """The share of (defective, good) pairs that are ranked right, ties counted half.

    Counted in integers: exact. Source: Mann and Whitney 1947.
    """
    if not ranked.has_both_classes:
        return None
    pairs = ranked.good_count * ranked.defective.size
    wrong = int(ranked.above.sum()) + int(ranked.above_or_equal.sum())
    return (2 * pairs - wrong) / (2 * pairs)


def _curve_metrics(ranked: Ranked) -> Metrics:
    if not ranked.has_both_classes:
        return dict.fromkeys(("auroc", "ap", "f1_max", "f1_max_threshold"))
    count = ranked.defective.size
    # One threshold for each distinct defective score: only there does recall change.
    first = np.flatnonzero(np.diff(ranked.defective, prepend=-np.inf) > 0)
    hits = count - first
    precision = hits / (hits + ranked.above_or_equal[first])
    recall_steps = -np.diff(hits, append=0) / count
    f1 = 2 * hits / (hits + ranked.above_or_equal[first] + count)
    best = int(f1.argmax())
    return {
        "auroc": _auroc(ranked),
        "ap": float((precision * recall_steps).sum()),
        "f1_max": float(f1[best]),
        "f1_max_threshold": float(ranked.defective[first[best]]),
    }


def _aupro(ranked: Ranked, overlap: npt.NDArray[np.float64], limit: float) -> float | None:
    """The PRO curve's area up to a false positive rate, divided by it.

    A defective pixel lifts the curve by its `overlap` from where the threshold passes its score: it
    adds a rectangle from its false positive rate to the limit, and over scores that good pixels
    share with it, where the curve rises in a straight line, a triangle.
    """
    if not ranked.has_both_classes:
        return None
    start, end = ranked.above / ranked.good_count, ranked.above_or_equal / ranked.good_count
    inside = np.clip(limit, start, end) - start
    rise = np.maximum(end - start, np.finfo(float).tiny)
    area = inside**2 / (2 * rise) + np.maximum(limit - end, 0)
    return float((overlap * area).sum() / limit)
