"""Detection metrics: exact, from where the defective scores stand among the sorted good ones.

Every metric here asks of each defective image or pixel how many good ones score higher: so no
threshold is ever sampled (`etstpm/ranking.py` counts). NumPy, and SciPy to find regions.
"""

import numpy as np

from etstpm.intervals import AUPRO_LIMITS
from etstpm.ranking import Images, Labels, Ranked, RankedPixels, Scores, parts, rank, rank_pixels

Metrics = dict[str, float | None]


def auroc(labels: Labels, scores: Scores) -> float | None:
    """Area under the ROC curve; None where only one class is there and it is not defined.

    labels: any shape, true where defective. scores: same shape, finite.
    Raises ValueError for unequal shapes or scores that are not finite.
    """
    return _auroc(rank(labels, scores))


def image_metrics(labels: Labels, scores: Scores) -> Metrics:
    """`auroc`, `ap`, `f1_max` and `f1_max_threshold` of images; None where one class is missing.

    labels: (N,), true where defective. scores: (N,), finite.
    `ap` is the average precision, the sum of precisions weighted by the steps in recall;
    `f1_max` the highest F1 over all thresholds, reached by calling scores of at least
    `f1_max_threshold` defective. It is the best that hindsight could do: not a threshold to use.
    Raises ValueError for unequal shapes or scores that are not finite.
    """
    return _curve_metrics(rank(labels, scores))


def pixel_metrics(masks: Images, maps: Images) -> Metrics:
    """As `image_metrics`, over all pixels of all images, with `aupro` and `aupro_0.05`.

    masks, maps: as `ranking.rank_pixels` takes them, each map twice.
    AUPRO is MVTec's: the overlap of each 8-connected defective region with what lies above a
    threshold, averaged over all regions of all images, against the share of all good pixels above
    it; integrated over every threshold up to the limit, interpolated there, divided by the limit.
    Source: Bergmann et al., The MVTec Anomaly Detection Dataset, IJCV 2021, section 4.2.
    Raises ValueError for unequal shapes or maps that are not finite.
    """
    return metrics_of_pixels(rank_pixels(masks, maps).of())


def metrics_of_pixels(ranked: RankedPixels) -> Metrics:
    """What `pixel_metrics` says, of pixels that are ranked already."""
    return _curve_metrics(ranked) | {
        name: _aupro(ranked, limit) for name, limit in AUPRO_LIMITS.items()
    }


def _auroc(ranked: Ranked) -> float | None:
    """The share of (defective, good) pairs that are ranked right, ties counted half.

    Counted in integers: exact. Source: Mann and Whitney 1947.
    """
    if not ranked.has_both_classes:
        return None
    pairs = ranked.good_count * ranked.defective.size
    wrong = sum(int(n.sum(dtype=np.int64)) for n in (ranked.above, ranked.above_or_equal))
    return (2 * pairs - wrong) / (2 * pairs)


def _curve_metrics(ranked: Ranked) -> Metrics:
    if not ranked.has_both_classes:
        return dict.fromkeys(("auroc", "ap", "f1_max", "f1_max_threshold"))
    count = ranked.defective.size
    precisions, f1_max, threshold = 0.0, 0.0, 0.0
    for part in parts(count):
        # Each defective score is a threshold; those that are equal are the same one.
        hits = count - np.searchsorted(ranked.defective, ranked.defective[part])
        called = hits + ranked.above_or_equal[part]
        precisions += float((hits / called).sum())
        f1 = 2 * hits / (called + count)
        best = int(f1.argmax())
        if f1[best] > f1_max:
            f1_max, threshold = float(f1[best]), float(ranked.defective[part][best])
    return {
        "auroc": _auroc(ranked),
        "ap": precisions / count,
        "f1_max": f1_max,
        "f1_max_threshold": threshold,
    }


def _aupro(ranked: RankedPixels, limit: float) -> float | None:
    """The PRO curve's area up to a false positive rate, divided by it.

    A defective pixel lifts the curve by its share of its region from where the threshold passes its
    score: it adds a rectangle from its false positive rate to the limit, and over scores that good
    pixels share with it, where the curve rises in a straight line, a triangle.
    """
    if not ranked.has_both_classes:
        return None
    total = 0.0
    for part in parts(ranked.defective.size):
        start = ranked.above[part] / ranked.good_count
        end = ranked.above_or_equal[part] / ranked.good_count
        inside = np.clip(limit, start, end) - start
        rise = np.maximum(end - start, np.finfo(float).tiny)
        area = inside**2 / (2 * rise) + np.maximum(limit - end, 0)
        total += float((ranked.share[ranked.region[part]] * area).sum())
    return total / limit
