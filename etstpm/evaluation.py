"""What a category's scores are worth: every metric, its interval, over all and by defect type."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from etstpm.curves import Curve, pro_curve, roc_curve
from etstpm.intervals import ImageCounts, draw_weights, interval, replicate
from etstpm.metrics import Metrics, image_metrics, metrics_of_pixels
from etstpm.ranking import Images, Labels, rank, rank_pixels
from etstpm.tables import CURVES, REPLICATES

CURVE = ("auroc", "ap", "f1_max", "f1_max_threshold")
REGIONS = ("aupro", "aupro_0.05")
METRICS_OF_LEVEL = {"image": CURVE, "pixel": CURVE + REGIONS}
METRICS_OF_TYPE = {"image": ("auroc", "ap", "f1_max"), "pixel": ("auroc", "ap", "aupro")}
"""Of each defect type: threshold-free, but for F1-max where images are judged."""

Replicates = dict[tuple[str, str, str], npt.NDArray[np.float64]]
"""By protocol, level and metric: (REPLICATES,)."""
Curves = dict[tuple[str, str, str], Curve]
"""By protocol, level and kind ("roc" or "pro"); without those that one class leaves undefined."""


@dataclass(frozen=True)
class Evaluation:
    """The figures of a category's card, its curves, and the replicates of its means' intervals.

    figures: `values` and `intervals` by protocol, level and metric, `n_good`, `n_defective`; and
    the same of each type in `defect_types`.
    """

    figures: dict[str, Any]
    replicates: Replicates
    curves: Curves = field(default_factory=dict)

    def replicate_table(self) -> pa.Table:
        """The replicates as `tables.REPLICATES`."""
        parts = [
            {"protocol": protocol, "level": level, "metric": metric, "replicate": n, "value": value}
            for (protocol, level, metric), values in self.replicates.items()
            for n, value in enumerate(values.tolist())
        ]
        return pa.Table.from_pylist(parts, schema=REPLICATES)

    def curve_table(self) -> pa.Table:
        """The curves over all test images as `tables.CURVES`."""
        rows = [
            {"protocol": protocol, "level": level, "curve": kind} | row
            for (protocol, level, kind), curve in self.curves.items()
            for row in curve.rows()
        ]
        return pa.Table.from_pylist(rows, schema=CURVES)


@dataclass(frozen=True)
class Subset:
    """All images, or the good ones with those of one defect type; weights (R, n) of its images."""

    group: int | None
    chosen: Labels
    weights: npt.NDArray[np.float64]
    can_be_resampled: bool
    """Whether no class is a single image, of which every draw is the same."""
    figures: dict[str, Any]
    replicates: Replicates

    def add_undefined(self, protocol: str, level: str) -> None:
        """Metrics of which nothing is known: null, without intervals."""
        names = (METRICS_OF_LEVEL if self.group is None else METRICS_OF_TYPE)[level]
        self.figures["values"].setdefault(protocol, {})[level] = dict.fromkeys(names)
        self.figures["intervals"].setdefault(protocol, {})[level] = {}

    def add(self, protocol: str, level: str, values: Metrics, counts: ImageCounts) -> None:
        """Keep the metrics of this subset and work out their intervals."""
        names = (METRICS_OF_LEVEL if self.group is None else METRICS_OF_TYPE)[level]
        kept = {name: values[name] for name in names}
        self.figures["values"].setdefault(protocol, {})[level] = kept
        found = replicate(counts, self.weights) if self.can_be_resampled else {}
        intervals = {
            name: interval(found[name])
            for name in names
            if name in found and values[name] is not None
        }
        self.figures["intervals"].setdefault(protocol, {})[level] = intervals
        for name, ends in intervals.items():
            if ends is not None:
                self.replicates[protocol, level, name] = found[name]


def evaluate(
    category: str,
    groups: Sequence[str | None],
    scores: Mapping[str, npt.NDArray[np.float64]],
    pixels: Mapping[str, tuple[Images, Images]],
    has_mask: Sequence[bool] | None = None,
) -> Evaluation:
    """Judge N scored images.

    groups: the defect type of each, None where it is good. scores: (N,), by protocol.
    pixels: masks and maps, by protocol; see `ranking.rank_pixels`.
    has_mask: whether it is known where an image is defective (of all, if None). The pixels of the
    others count for nothing.
    """
    types = sorted({name for name in groups if name is not None})
    numbers = [0 if name is None else 1 + types.index(name) for name in groups]
    subsets = {None: _subset(category, numbers, None)} | {
        name: _subset(f"{category}/{name}", numbers, 1 + number)
        for number, name in enumerate(types)
    }
    is_defective = np.array(numbers) > 0
    curves: dict[tuple[str, str, str], Curve | None] = {}
    for protocol, found in scores.items():
        curves[protocol, "image", "roc"] = roc_curve(rank(is_defective, found))
        for subset in subsets.values():
            labels, own = is_defective[subset.chosen], found[subset.chosen]
            values = image_metrics(labels, own)
            subset.add(protocol, "image", values, ImageCounts.of_images(labels, own))
    known = [i for i in range(len(groups)) if has_mask is None or has_mask[i]]
    if len(known) < len(groups):
        pixels = {name: (_Chosen(a, known), _Chosen(b, known)) for name, (a, b) in pixels.items()}
        numbers = [numbers[i] for i in known]
        subsets = {
            name: replace(own, figures=subset.figures, replicates=subset.replicates)
            for name, subset in subsets.items()
            for own in [_subset(f"{category}/{name or ''}", numbers, subset.group)]
        }
    for protocol, (masks, maps) in pixels.items():
        if not known:
            for subset in subsets.values():
                subset.add_undefined(protocol, "pixel")
            continue
        ranks = rank_pixels(masks, maps, numbers)
        every = ranks.of()
        curves[protocol, "pixel", "roc"] = roc_curve(every)
        curves[protocol, "pixel", "pro"] = pro_curve(every)
        for subset in subsets.values():
            values = metrics_of_pixels(ranks.of(subset.group))
            subset.add(protocol, "pixel", values, ranks.counts.rows(subset.chosen))
    whole = subsets.pop(None)
    by_type = {str(name): subset.figures for name, subset in subsets.items()}
    return Evaluation(
        whole.figures | {"defect_types": by_type},
        whole.replicates,
        {name: curve for name, curve in curves.items() if curve is not None},
    )


@dataclass(frozen=True)
class _Chosen:
    """Some of the images, none of which is made before it is asked for."""

    images: Images
    chosen: Sequence[int]

    def __len__(self) -> int:
        return len(self.chosen)

    def __getitem__(self, index: int) -> npt.NDArray[Any]:
        return self.images[self.chosen[index]]


def _subset(name: str, numbers: Sequence[int], group: int | None) -> Subset:
    every = np.array(numbers)
    chosen = (every == 0) | (every == group) if group is not None else every >= 0
    is_defective = every[chosen] > 0
    figures = {
        "n_good": int((~is_defective).sum()),
        "n_defective": int(is_defective.sum()),
        "values": {},
        "intervals": {},
    }
    can_be_resampled = 1 not in (figures["n_good"], figures["n_defective"])
    return Subset(group, chosen, draw_weights(is_defective, name), can_be_resampled, figures, {})
