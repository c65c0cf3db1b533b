"""Ranks of groups against ranks of their images alone; blocks and lazy maps change nothing."""

import weakref

import numpy as np
import numpy.typing as npt
import pytest

from etstpm import ranking
from etstpm.metrics import metrics_of_pixels, pixel_metrics
from etstpm.ranking import rank_pixels

Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.floating]
GROUPS = [0, 2, 1, 0, 2, 1, 2]


def draw_images(seed: int, *, levels: int = 12) -> tuple[list[Bools], list[Floats]]:
    """An image a group number, of unequal sizes; scores with ties."""
    rng = np.random.default_rng(seed)
    masks, maps = [], []
    for group in GROUPS:
        size = tuple(rng.integers(4, 12, 2))
        mask = rng.random(size) < 0.2 * (group > 0)
        mask[0, 0] = group > 0
        masks.append(mask)
        maps.append((rng.integers(0, levels, size) + 2 * mask).astype(np.float32))
    return masks, maps


@pytest.mark.parametrize("seed", range(5))
def test_a_group_is_ranked_among_its_own_and_the_good_images(seed: int) -> None:
    masks, maps = draw_images(seed)
    ranks = rank_pixels(masks, maps, GROUPS)
    assert metrics_of_pixels(ranks.of()) == pixel_metrics(masks, maps)
    for group in (1, 2):
        chosen = [image for image, name in enumerate(GROUPS) if name in (0, group)]
        alone = pixel_metrics([masks[i] for i in chosen], [maps[i] for i in chosen])
        assert metrics_of_pixels(ranks.of(group)) == pytest.approx(alone, abs=1e-12)


def test_without_good_images_a_group_is_ranked_among_its_own() -> None:
    masks, maps = draw_images(0)
    masks, maps = masks[1:3], maps[1:3]
    ranks = rank_pixels(masks, maps, [2, 1])
    assert metrics_of_pixels(ranks.of(2)) == pixel_metrics(masks[:1], maps[:1])
    assert ranks.of(1).good_count == int((~masks[1]).sum())


def test_blocks_and_parts_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    masks, maps = draw_images(1)
    whole = rank_pixels(masks, maps, GROUPS)
    figures = [metrics_of_pixels(whole.of(group)) for group in (None, 1, 2)]
    monkeypatch.setattr(ranking, "BLOCK", 1)  # the largest image, then
    monkeypatch.setattr(ranking, "PART", 7)
    parted = rank_pixels(masks, maps, GROUPS)
    assert np.array_equal(parted.above, whole.above)
    assert np.array_equal(parted.above_or_equal, whole.above_or_equal)
    assert parted.good_counts == whole.good_counts
    for group, expected in zip((None, 1, 2), figures, strict=True):
        found = metrics_of_pixels(parted.of(group))
        assert found == pytest.approx(expected, abs=1e-12)


class MapsOnDemand:
    """Makes a map when it is asked for, and refuses while an earlier one is still held."""

    def __init__(self, maps: list[Floats]) -> None:
        self.maps = maps
        self.last: list[weakref.ref[Floats]] = []
        self.asked = 0

    def __len__(self) -> int:
        return len(self.maps)

    def __getitem__(self, index: int) -> Floats:
        # The one of the turn before may live until its name is bound anew.
        assert sum(reference() is not None for reference in self.last) <= 1
        made = self.maps[index].copy()
        self.last.append(weakref.ref(made))
        self.asked += 1
        return made


def test_maps_are_asked_for_twice_and_not_kept() -> None:
    masks, maps = draw_images(2)
    on_demand = MapsOnDemand(maps)
    assert pixel_metrics(masks, on_demand) == pixel_metrics(masks, maps)
    assert on_demand.asked == 2 * len(maps)
    assert all(reference() is None for reference in on_demand.last)


@pytest.mark.parametrize("seed", range(3))
def test_images_are_counted_against_the_edges(seed: int) -> None:
    masks, maps = draw_images(seed)
    counts = rank_pixels(masks, maps, GROUPS).counts
    thresholds = [-np.inf, *np.unique(np.concatenate([scores.ravel() for scores in maps]))]
    for image, (mask, scores) in enumerate(zip(masks, maps, strict=True)):
        for column, threshold in enumerate(thresholds):
            is_at_least = scores >= threshold
            assert counts.good[image, column] == (is_at_least & ~mask).sum()
            assert counts.defective[image, column] == (is_at_least & mask).sum()
