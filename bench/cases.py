"""The rows of `make bench`: where each figure stands in the results, and what is asked of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

Where = tuple[str, ...]
"""A system, then the keys down to a number in its JSON."""
Runs = Mapping[str, Sequence[Mapping[str, Any]]]
"""System to the results of its runs."""


@dataclass(frozen=True)
class Case:
    """A figure of ours beside a peer's: `ratio` above 1 is always in our favour."""

    name: str
    unit: str
    own: Where
    peer: Where
    peer_name: str
    must: float
    """The ratio that was asked for."""
    limit: Where | None = None
    """What this machine can do at the best, in the same unit."""

    @property
    def is_rate(self) -> bool:
        """Whether more is better."""
        return self.unit.endswith("/s")

    def ratio(self, runs: Runs) -> float:
        """Times faster, or times less."""
        own, peer = median_of(runs, self.own), median_of(runs, self.peer)
        return own / peer if self.is_rate else peer / own


CASES = (
    Case(
        "student training",
        "images/s",
        ("etstpm", "training", "images_per_second"),
        ("anomalib", "training", "images_per_second"),
        "anomalib STFPM",
        must=2.7,
        limit=("etstpm", "training", "limit_images_per_second"),
    ),
    Case(
        "scoring from PNG",
        "images/s",
        ("etstpm", "scoring", "images_per_second"),
        ("anomalib", "evaluation", "predict_images_per_second"),
        "anomalib STFPM",
        must=2.4,
        limit=("etstpm", "scoring", "limit_images_per_second"),
    ),
    Case(
        "scoring from the cache",
        "images/s",
        ("etstpm", "scoring", "cached_images_per_second"),
        ("anomalib", "evaluation", "predict_images_per_second"),
        "anomalib STFPM, from PNG",
        must=2.4,
        limit=("etstpm", "scoring", "limit_images_per_second"),
    ),
    Case(
        "pixel AUROC, 42 M pixels",
        "s",
        ("metrics", "auroc", "seconds"),
        ("metrics", "scikit_learn_auroc", "seconds"),
        "scikit-learn",
        must=10,
    ),
    Case(
        "AUPRO, AUROC, AP and F1-max, same",
        "s",
        ("metrics", "pixel_metrics", "seconds"),
        ("anomalib AUPRO", "aupro", "seconds"),
        "anomalib's AUPRO alone",
        must=4,
    ),
    Case(
        "peak memory of bottle",
        "MB",
        ("etstpm", "peak_rss_mb"),
        ("anomalib", "evaluation", "peak_rss_mb", "main"),
        "anomalib STFPM",
        must=2,
    ),
)


def median_of(runs: Runs, where: Where) -> float:
    """The median over a system's runs of the figure that stands there."""
    system, *keys = where
    values = []
    for result in runs[system]:
        value: Any = result
        for key in keys:
            value = value[key]
        values.append(float(value))
    return median(values)
