"""Detection metrics: exact, NumPy only."""

import numpy as np
import numpy.typing as npt

Scores = npt.NDArray[np.floating]
Labels = npt.NDArray[np.bool_]


def auroc(labels: Labels, scores: Scores) -> float | None:
    """Area under the ROC curve; None where only one class is there and it is not defined.

    labels: any shape, true where defective. scores: same shape, finite. Exact, ties counted half:
    the share of (defective, good) pairs that are ranked right (Mann and Whitney 1947), counted in
    integers. One sort of the good scores and one of the defective: the raw values, since products
    of distances are too skewed for any histogram.
    Raises ValueError for unequal shapes or scores that are not finite.
    """
    if labels.shape != scores.shape:
        raise ValueError(f"labels {labels.shape} and scores {scores.shape} differ in shape")
    if not np.isfinite(scores).all():
        raise ValueError("scores hold NaN or infinity")
    good = np.sort(scores[~labels], axis=None)
    # Sorted needles walk through the haystack in order: three times faster than at random.
    defective = np.sort(scores[labels], axis=None)
    if good.size == 0 or defective.size == 0:
        return None
    below = int(np.searchsorted(good, defective, side="left").sum())
    below_or_equal = int(np.searchsorted(good, defective, side="right").sum())
    return (below + below_or_equal) / (2 * good.size * defective.size)
