"""Pixel metrics of data larger than memory: one histogram, and for each metric its two bounds.

`etstpm/metrics.py` is exact and keeps every defective pixel. Here a pixel is counted in a bin and
forgotten: memory is that of the bins, whatever the number of images, a map is asked for once, and
histograms of shards add up. Bins are the leading bits of a float32, which order as the numbers do:
at the default 20 bits neighbours differ by 0.05 %, whether they are distances of 1e-12 or of 1.
A bin hides the order inside it alone. So each metric's best and worst case is known, and the exact
value lies between them: `low` and `high`.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from etstpm.intervals import AUPRO_LIMITS
from etstpm.ranking import EIGHT_NEIGHBOURS, Images, Labels, Scores, check

Counts = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

BITS = 20
"""Leading bits of a float32 that make a bin: sign, 8 of the exponent, 11 of the mantissa."""
ROUNDING = 1e-11
"""What sums in float64, here and in the exact metrics, may add: both bounds are this much wider."""


@dataclass(frozen=True)
class Bounds:
    """The exact value of a metric lies between these two."""

    low: float
    high: float

    @property
    def value(self) -> float:
        """Halfway."""
        return (self.low + self.high) / 2

    @property
    def error(self) -> float:
        """The most that `value` can be wrong by."""
        return (self.high - self.low) / 2


@dataclass(frozen=True)
class PixelHistogram:
    """Pixels by the bin of their score, bins ascending; (2**bits,) each.

    overlap: what the bin's defective pixels add to the sum, over all regions, of the share of a
    region that is covered.
    """

    good: Counts
    defective: Counts
    overlap: Floats
    regions: int = 0

    @classmethod
    def empty(cls, bits: int = BITS) -> Self:
        """Of no pixels. bits: 2 to 24; each one more doubles memory."""
        if not 2 <= bits <= 24:
            raise ValueError(f"bits = {bits}: give 2 to 24; 24 need 400 MB")
        return cls(np.zeros(2**bits, int), np.zeros(2**bits, int), np.zeros(2**bits))

    @classmethod
    def of(cls, masks: Images, maps: Images, bits: int = BITS) -> Self:
        """Of N images; each map is asked for once. masks, maps: as `ranking.rank_pixels` takes."""
        if len(masks) != len(maps):
            raise ValueError(f"{len(masks)} masks and {len(maps)} maps differ in number")
        histogram = cls.empty(bits)
        for image in range(len(masks)):
            histogram = histogram.add(masks[image], maps[image])
        return histogram

    def add(self, mask: Labels, scores: Scores) -> Self:
        """Count an image's pixels, in place, and return the histogram that holds them.

        mask: (H, W), true where defective. scores: (H, W), finite.
        Raises ValueError for unequal shapes or scores that are not finite.
        """
        check(mask, scores)
        bins = bins_of(scores, self.bits)
        numbers, count = ndimage.label(mask, EIGHT_NEIGHBOURS)
        inside, region = bins[mask], numbers[mask]
        shares = 1 / np.bincount(region, minlength=count + 1).clip(1)
        _count(self.good, bins[~mask])
        _count(self.defective, inside)
        _count(self.overlap, inside, shares[region])
        return type(self)(self.good, self.defective, self.overlap, self.regions + count)

    @classmethod
    def merge(cls, parts: Iterable["PixelHistogram"]) -> Self:
        """That of all shards' images. Raises ValueError for none, or shards of unequal bins."""
        first, *others = parts
        total = cls.empty(first.bits)
        regions = 0
        for part in (first, *others):
            if part.bits != total.bits:
                raise ValueError(f"histograms of {total.bits} and {part.bits} bits do not add up")
            for name in ("good", "defective", "overlap"):
                getattr(total, name)[:] += getattr(part, name)
            regions += part.regions
        return cls(total.good, total.defective, total.overlap, regions)

    @property
    def bits(self) -> int:
        """Leading bits of a score that make its bin."""
        return self.good.size.bit_length() - 1

    def save(self, path: Path) -> None:
        """Write an .npz for another process to merge."""
        np.savez_compressed(
            path,
            good=self.good,
            defective=self.defective,
            overlap=self.overlap,
            regions=self.regions,
        )

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what `save` has written."""
        with np.load(path, allow_pickle=False) as file:
            return cls(file["good"], file["defective"], file["overlap"], int(file["regions"]))

    def metrics(self) -> dict[str, Bounds | None]:
        """`auroc`, `ap`, `f1_max`, `aupro` and `aupro_0.05`, as `metrics.pixel_metrics` has them.

        None where only one class is there.
        """
        bounds = _Corners(self)
        if not (bounds.good_total and bounds.defective_total):
            return dict.fromkeys(("auroc", "ap", "f1_max", *AUPRO_LIMITS))
        found = {"auroc": bounds.auroc(), "ap": bounds.ap(), "f1_max": bounds.f1_max()}
        found |= {name: bounds.aupro(limit) for name, limit in AUPRO_LIMITS.items()}
        return {
            name: Bounds(max(0.0, low - ROUNDING), min(1.0, high + ROUNDING))
            for name, (low, high) in found.items()
        }


class _Corners:
    """The bins that hold defective pixels, and the curves' corners at their edges."""

    def __init__(self, histogram: PixelHistogram) -> None:
        has_any = np.flatnonzero(histogram.defective)
        self.good_total = int(histogram.good.sum())
        self.defective_total = int(histogram.defective.sum())
        self.good = histogram.good[has_any]
        self.defective = histogram.defective[has_any]
        self.overlap = histogram.overlap[has_any] / max(1, histogram.regions)
        good_up_to = histogram.good.cumsum()[has_any]
        self.good_above = self.good_total - good_up_to
        self.good_with = self.good_above + self.good
        self.hits_above = self.defective_total - self.defective.cumsum()
        self.hits_with = self.hits_above + self.defective

    def auroc(self) -> tuple[float, float]:
        """Pairs of different bins are ranked; those of one bin all right or all wrong."""
        pairs = self.good_total * self.defective_total
        wrong = [
            # Python's integers: ten thousand images have more pairs than 64 bits can count.
            sum(map(int.__mul__, self.defective.tolist(), good.tolist()))
            for good in (self.good_with, self.good_above)
        ]
        return (pairs - wrong[0]) / pairs, (pairs - wrong[1]) / pairs

    def ap(self) -> tuple[float, float]:
        """A bin's defective pixels above all of its good ones; or below, and none of them tied.

        Below, the k-th has precision (hits + k) / (hits + k + good), which grows with k: its sum is
        no less than the integral from 0, which has a closed form.
        """
        high = self.defective * (self.hits_with / (self.hits_with + self.good_above))
        lost = np.log1p(self.defective / np.maximum(self.hits_above + self.good_with, 1))
        low = np.where(self.good_with > 0, self.defective - self.good_with * lost, self.defective)
        return float(low.sum()) / self.defective_total, float(high.sum()) / self.defective_total

    def f1_max(self) -> tuple[float, float]:
        """The bins' own edges are thresholds; inside a bin no more than all of it is found."""
        hits = 2 * self.hits_with
        low = hits / (self.hits_with + self.good_with + self.defective_total)
        high = hits / (self.hits_with + self.good_above + self.defective_total)
        return float(low.max()), float(high.max())

    def aupro(self, limit: float) -> tuple[float, float]:
        """Each defective pixel lifts the curve at its bin's lower or upper edge."""
        areas = [
            float((self.overlap * np.maximum(limit - good / self.good_total, 0)).sum()) / limit
            for good in (self.good_with, self.good_above)
        ]
        return areas[0], areas[1]


def bins_of(scores: Scores, bits: int = BITS) -> npt.NDArray[np.uint32]:
    """The number of each score's bin, of the same shape: never smaller for a larger score.

    A float32's bits, read as an integer, ascend with positive numbers and descend with negative
    ones. float64 is rounded first, which keeps the order as well.
    """
    limit = np.finfo(np.float32).max
    single = np.clip(scores, -limit, limit).astype(np.float32)
    single += np.float32(0)  # the negative zero equals the positive one
    pattern = single.view(np.uint32)
    sign = np.uint32(2**31)
    ascending = np.where(pattern & sign, ~pattern, pattern | sign)
    return ascending >> np.uint32(32 - bits)


def _count(
    histogram: Counts | Floats, bins: npt.NDArray[np.uint32], weights: Floats | None = None
) -> None:
    """Add to a histogram, in place; an image's scores lie in few of the bins."""
    if bins.size:
        lowest, highest = int(bins.min()), int(bins.max())
        histogram[lowest : highest + 1] += np.bincount(bins - np.uint32(lowest), weights)
