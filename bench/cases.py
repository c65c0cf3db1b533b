"""The rows of `make bench`: where each figure stands in the results, and what is asked of it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

Runs = Mapping[str, Sequence[Mapping[str, Any]]]
"""System to the results of its runs."""
Figure = Callable[[Runs], float]
"""A number of the results; raises KeyError where it was not measured."""

PEER_EPOCHS = 100
"""After which the peer's AUROC is the one to reach."""


def median_of(system: str, *keys: str) -> Figure:
    """The median over a system's runs of the figure that stands below these keys."""

    def figure(runs: Runs) -> float:
        values = []
        for result in runs[system]:
            value: Any = result
            for key in keys:
                value = value[key]
            values.append(float(value))
        if not values:
            raise KeyError(system)
        return median(values)

    return figure


def share_of(part: Figure, whole: Figure, scale: float = 1.0) -> Figure:
    """One figure by another, times a scale."""
    return lambda runs: scale * part(runs) / whole(runs)


@dataclass(frozen=True)
class Case:
    """A figure of ours beside a peer's, a limit, or both, and what is asked of it."""

    name: str
    unit: str
    own: Figure
    peer: Figure | None = None
    peer_name: str = ""
    times: float | None = None
    """How many times as good as the peer it must be."""
    limit: Figure | None = None
    limit_name: str = ""
    """What this machine can do at the best, in the same unit."""
    of_limit: float | None = None
    """Share of the limit that must be reached."""
    most: float | None = None
    """What it must not exceed."""
    differs: Figure | None = None
    """By how much the value that was computed differs from the peer's."""
    tolerance: float = 0.0

    @property
    def is_rate(self) -> bool:
        """Whether more is better."""
        return self.unit.endswith("/s")

    def ratio(self, runs: Runs, other: Figure) -> float:
        """How many times as good as another figure; above 1 is always in our favour."""
        own = self.own(runs)
        return own / other(runs) if self.is_rate else other(runs) / own

    def asked(self) -> str:
        """What must hold, in words."""
        parts = []
        if self.times is not None:
            parts.append(f"{self.times:g}x")
        if self.of_limit is not None:
            parts.append(f"{self.of_limit:.0%} of limit")
        if self.most is not None:
            parts.append(f"at most {self.most:g}")
        if self.differs is not None:
            parts.append(f"equal to {self.tolerance:g}")
        return ", ".join(parts) or "-"

    def is_reached(self, runs: Runs) -> bool | None:
        """Whether all that is asked holds; None where nothing is."""
        holds = []
        if self.times is not None and self.peer is not None:
            holds.append(self.ratio(runs, self.peer) >= self.times)
        if self.of_limit is not None and self.limit is not None:
            holds.append(self.ratio(runs, self.limit) >= self.of_limit)
        if self.most is not None:
            holds.append(self.own(runs) <= self.most)
        if self.differs is not None:
            holds.append(self.differs(runs) <= self.tolerance)
        return all(holds) if holds else None


def peer_seconds(category: str) -> Figure:
    """The peer's 100 epochs at the rate measured here."""
    images = median_of(f"quality-{category}", "train_images")
    rate = median_of("anomalib", "training", "images_per_second")
    return lambda runs: PEER_EPOCHS * images(runs) / rate(runs)


def least_seconds(category: str) -> Figure:
    """Our epochs at the rate of the bare network."""
    images = median_of(f"quality-{category}", "images_seen")
    rate = median_of("etstpm", "training", "limit_images_per_second")
    return lambda runs: images(runs) / rate(runs)


def prefects_seconds(runs: Runs) -> float:
    """What the command adds to its stages; both read the same artifacts."""
    return median_of("fixed", "seconds", "overhead")(runs)


def difference(one: Figure, other: Figure) -> Figure:
    """Between two values that should be the same."""
    return lambda runs: abs(one(runs) - other(runs))


RUN_SECONDS = median_of("run", "seconds")
PIXEL_AUROC = median_of("metrics", "auroc", "seconds")
ALL_METRICS = median_of("metrics", "pixel_metrics", "seconds")
ONE_SORT = median_of("metrics", "sort", "seconds")
SORT_AND_LABEL = median_of("metrics", "sort_and_label", "seconds")

CASES = (
    Case(
        "student training",
        "images/s",
        median_of("etstpm", "training", "images_per_second"),
        median_of("anomalib", "training", "images_per_second"),
        "anomalib STFPM",
        times=2.7,
        limit=median_of("etstpm", "training", "limit_images_per_second"),
        limit_name="bare forward and backward",
        of_limit=0.9,
    ),
    Case(
        "the same, forward student",
        "images/s",
        median_of("etstpm", "training_forward", "images_per_second"),
        median_of("anomalib", "training", "images_per_second"),
        "anomalib STFPM",
        limit=median_of("etstpm", "training_forward", "limit_images_per_second"),
        limit_name="bare forward and backward",
    ),
    *(
        Case(
            f"time to the peer's AUROC, {category}",
            "s",
            median_of(f"quality-{category}", "seconds"),
            peer_seconds(category),
            f"anomalib STFPM, {PEER_EPOCHS} epochs",
            times=8,
            limit=least_seconds(category),
            limit_name="its epochs, bare",
        )
        for category in ("bottle", "screw")
    ),
    Case(
        "scoring from PNG",
        "images/s",
        median_of("etstpm", "scoring", "images_per_second"),
        median_of("anomalib", "evaluation", "test_images_per_second"),
        "anomalib test",
        times=2.4,
        limit=median_of("etstpm", "scoring", "limit_images_per_second_from_png"),
        limit_name="decode, then two forwards",
    ),
    Case(
        "scoring from PNG",
        "images/s",
        median_of("etstpm", "scoring", "images_per_second"),
        median_of("anomalib", "evaluation", "predict_images_per_second"),
        "anomalib predict",
        limit=median_of("etstpm", "scoring", "limit_images_per_second_from_png"),
        limit_name="decode, then two forwards",
    ),
    Case(
        "scoring from the cache",
        "images/s",
        median_of("etstpm", "scoring", "cached_images_per_second"),
        median_of("anomalib", "evaluation", "predict_images_per_second"),
        "anomalib predict, from PNG",
        limit=median_of("etstpm", "scoring", "limit_images_per_second"),
        limit_name="two forwards",
    ),
    Case(
        "decode, resize, hash, cache",
        "images/s",
        median_of("etstpm", "decoding", "images_per_second"),
        limit=median_of("etstpm", "decoding", "limit_images_per_second"),
        limit_name="Pillow's decode alone",
    ),
    Case(
        "pixel AUROC, 42 M pixels",
        "s",
        PIXEL_AUROC,
        median_of("metrics", "scikit_learn_auroc", "seconds"),
        "scikit-learn",
        times=10,
        limit=ONE_SORT,
        limit_name="one sort of the scores",
        differs=difference(
            median_of("metrics", "auroc", "value"),
            median_of("metrics", "scikit_learn_auroc", "value"),
        ),
        tolerance=1e-12,
    ),
    Case(
        "pixel AUROC, same",
        "s",
        PIXEL_AUROC,
        median_of("peer metrics", "torchmetrics_auroc", "seconds"),
        "torchmetrics",
        limit=ONE_SORT,
        limit_name="one sort of the scores",
    ),
    Case(
        "AUPRO, with AUROC, AP and F1-max, same",
        "s",
        ALL_METRICS,
        median_of("peer metrics", "aupro", "seconds"),
        "anomalib's AUPRO alone",
        times=4,
        limit=SORT_AND_LABEL,
        limit_name="one sort, regions found",
        differs=difference(
            median_of("metrics", "pixel_metrics", "value"),
            median_of("peer metrics", "aupro", "value"),
        ),
        tolerance=1e-6,
    ),
    Case(
        "the same, streamed",
        "s",
        median_of("metrics", "streamed", "seconds"),
        median_of("peer metrics", "aupro", "seconds"),
        "anomalib's AUPRO alone",
        limit=SORT_AND_LABEL,
        limit_name="one sort, regions found",
    ),
    Case(
        "metrics' peak memory, 160 at 1024x1024",
        "of the scores",
        median_of("memory", "etstpm", "times_the_scores"),
        median_of("memory", "scikit-learn", "times_the_scores"),
        "scikit-learn's AUROC",
        most=2.5,
    ),
    Case(
        "peak memory of a bottle run",
        "MB",
        median_of("run", "peak_rss_mb"),
        median_of("anomalib", "evaluation", "peak_rss_mb", "main"),
        "anomalib STFPM",
        times=2,
        limit=median_of("etstpm", "limit_rss_mb"),
        limit_name="torch, one bare step",
    ),
    Case(
        "import etstpm",
        "s",
        median_of("fixed", "seconds", "import"),
        limit=median_of("fixed", "seconds", "python"),
        limit_name="python alone",
        most=0.3,
    ),
    Case(
        "etstpm --help",
        "s",
        median_of("fixed", "seconds", "help"),
        limit=median_of("fixed", "seconds", "typer"),
        limit_name="import typer",
        most=0.4,
    ),
    Case("embedded server's start", "s", median_of("fixed", "seconds", "server")),
    Case("a task that does nothing", "s", median_of("fixed", "seconds", "task")),
    Case(
        "Prefect's share of a bottle run",
        "%",
        share_of(prefects_seconds, RUN_SECONDS, 100),
        most=3,
    ),
)
