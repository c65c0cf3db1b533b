"""Where defective scores stand among the good ones: exact counts, no threshold is sampled.

The raw values are compared, since products of distances are too skewed for any histogram. Pixels
are ranked in two passes over the maps, which may be made when they are asked for: the first gathers
the defective pixels, the second counts among the good ones, a block at a time. Memory holds the
defective pixels and one block, however many images there are.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from etstpm.intervals import ImageCounts, choose_edges

Scores = npt.NDArray[np.floating]
Labels = npt.NDArray[np.bool_]
Integers = npt.NDArray[np.signedinteger]


class Images(Protocol):
    """An array of each image, by its index: a list, an array, or what makes it when asked."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> npt.NDArray[Any]: ...


EIGHT_NEIGHBOURS = np.ones((3, 3), bool)
BLOCK = 2**25
"""Good pixels sorted together: 128 MiB in float32."""
PART = 2**20
"""Defective scores that are worked on at a time: what NumPy returns is 64 bits wide."""
SAMPLE = 2**20
"""Good pixels from which the intervals' edges are chosen."""


@dataclass(frozen=True)
class Ranked:
    """Defective scores, ascending, and for each how many good scores lie above or are equal."""

    defective: Scores
    above: Integers
    above_or_equal: Integers
    good_count: int

    @property
    def has_both_classes(self) -> bool:
        """Whether anything is defined at all."""
        return self.good_count > 0 and self.defective.size > 0


@dataclass(frozen=True)
class RankedPixels(Ranked):
    """Ranked pixels, and what each adds to the mean overlap of all regions: share[region]."""

    region: Integers
    share: npt.NDArray[np.float64]


def rank(labels: Labels, scores: Scores) -> Ranked:
    """Rank scores of any shape; `labels` is true where defective.

    Raises ValueError for unequal shapes or scores that are not finite.
    """
    check(labels, scores)
    good, defective = scores[~labels], scores[labels]
    good.sort()
    defective.sort()
    return Ranked(defective, *_count(good, defective), good.size)


def check(labels: Labels, scores: Scores) -> None:
    """Raise ValueError for unequal shapes or scores that are not finite."""
    if labels.shape != scores.shape:
        raise ValueError(f"labels {labels.shape} and scores {scores.shape} differ in shape")
    # The ends tell: both are NaN where any score is. A mask of all scores is written more slowly.
    if scores.size and not np.isfinite([scores.min(), scores.max()]).all():
        raise ValueError("scores hold NaN or infinity")


@dataclass(frozen=True)
class PixelRanks:
    """Every defective pixel by ascending score (D of them), its region, and its counts.

    above, above_or_equal: (2, D); row 0 counts all good pixels, row 1 those of good images and of
    the pixel's own group.
    """

    scores: Scores
    region: Integers
    region_sizes: Integers
    region_groups: Integers
    above: Integers
    above_or_equal: Integers
    good_counts: dict[int, int]
    """Good pixels of each group's images."""
    counts: ImageCounts

    def of(self, group: int | None = None) -> RankedPixels:
        """All pixels; or a group's defective ones among its and the good images' good ones."""
        if group is None:
            chosen: slice | Labels = slice(None)
            row, regions = 0, self.region_sizes.size
            good_count = sum(self.good_counts.values())
        else:
            is_own = self.region_groups == group
            chosen = is_own[self.region]
            row, regions = 1, int(is_own.sum())
            good_count = sum(self.good_counts.get(name, 0) for name in {0, group})
        return RankedPixels(
            self.scores[chosen],
            self.above[row, chosen],
            self.above_or_equal[row, chosen],
            good_count,
            self.region[chosen],
            1 / (max(1, regions) * self.region_sizes),
        )


def rank_pixels(masks: Images, maps: Images, groups: Sequence[int] | None = None) -> PixelRanks:
    """Rank the pixels of N images; their sizes may differ.

    masks: per image (H, W), true where defective. maps: per image (H, W), finite; each is asked for
    twice. groups: per image 0 if it is good, else a number for its defect type.
    Raises ValueError for unequal shapes or maps that are not finite.
    """
    if len(masks) != len(maps):
        raise ValueError(f"{len(masks)} masks and {len(maps)} maps differ in number")
    groups = groups or [0] * len(masks)
    pixels = [masks[image].size for image in range(len(masks))]
    stride = 1 + sum(pixels) // SAMPLE
    scores, regions, sample = [], [], []
    sizes: list[int] = []
    images: list[int] = []
    for image in range(len(masks)):
        mask, values = masks[image], maps[image]
        check(mask, values)
        numbers, count = ndimage.label(mask, EIGHT_NEIGHBOURS)
        inside = numbers[mask]
        scores.append(values[mask])
        regions.append(inside + np.int32(len(images) - 1))
        sizes += np.bincount(inside, minlength=count + 1)[1:].tolist()
        images += [image] * count
        sample.append(values.ravel()[::stride][~mask.ravel()[::stride]])
    defective = np.concatenate(scores)
    order = np.argsort(defective)
    defective, region = defective[order], np.concatenate(regions)[order]
    del scores, regions, order
    region_sizes, region_images = np.array(sizes, int), np.array(images, int)
    edges = choose_edges(np.sort(np.concatenate(sample)), defective)

    region_groups = np.asarray(groups)[region_images]
    # 32 bits, half the memory, while the counts fit.
    kind = np.min_scalar_type(-1 - sum(pixels))
    above, above_or_equal = (np.zeros((2, defective.size), kind) for _ in range(2))
    good_counts: dict[int, int] = {}
    good_at_least = np.zeros((len(masks), edges.size))
    buffer = np.empty(min(sum(pixels), max(BLOCK, *pixels)), edges.dtype)
    for group, block in _sorted_blocks(masks, maps, groups, buffer, edges, good_at_least):
        good_counts[group] = good_counts.get(group, 0) + block.size
        for part in parts(defective.size):
            counts = _count(block, defective[part])
            is_concerned = (group == 0) | (region_groups[region[part]] == group)
            for total, count in zip((above, above_or_equal), counts, strict=True):
                total[0, part] += count
                total[1, part] += count * is_concerned
    return PixelRanks(
        defective,
        region,
        region_sizes,
        region_groups,
        above,
        above_or_equal,
        good_counts,
        ImageCounts.of_regions(
            good_at_least, edges, defective, region, sizes=region_sizes, images=region_images
        ),
    )


def parts(count: int) -> Iterator[slice]:
    """Slices that cover so many elements, `PART` at a time."""
    return (slice(first, first + PART) for first in range(0, count, PART))


def _count(good: Scores, needles: Scores) -> tuple[Integers, Integers]:
    """How many of the ascending good scores lie above each ascending needle; above or equal."""
    # Sorted needles walk through the haystack in order: three times faster than at random.
    end = np.searchsorted(good, needles, side="right")
    start = end.copy()
    if good.size:
        # Few needles have their equal among the good ones: only they are looked up again.
        tied = good[end - 1] == needles
        start[tied] = np.searchsorted(good, needles[tied], side="left")
    return good.size - end, good.size - start


def _sorted_blocks(
    masks: Images,
    maps: Images,
    groups: Sequence[int],
    buffer: Scores,
    edges: Scores,
    good_at_least: npt.NDArray[np.float64],
) -> Iterator[tuple[int, Scores]]:
    """Good scores, sorted, of one group at a time, in `buffer`; fills rows of `good_at_least`."""
    for group in sorted(set(groups)):
        filled = 0
        for image in (i for i, name in enumerate(groups) if name == group):
            good = maps[image][~masks[image]]
            good.sort()
            good_at_least[image] = good.size - np.searchsorted(good, edges)
            if filled + good.size > buffer.size:
                buffer[:filled].sort()
                yield group, buffer[:filled]
                filled = 0
            buffer[filled : filled + good.size] = good
            filled += good.size
        buffer[:filled].sort()
        yield group, buffer[:filled]
