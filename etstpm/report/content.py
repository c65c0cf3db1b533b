"""What a report says of a run, as plain values: `reading.py` fills them, the page shows them."""

import bisect
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from etstpm.catalog import Published
from etstpm.metric_rows import value_of

GOOD_STATES = "complete", "passed"
"""Of a night that others may be compared with."""


@dataclass(frozen=True)
class Value:
    """A figure and its 95 % interval."""

    value: float | None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class CurvePoints:
    """A curve's corners, ascending."""

    x: Sequence[float]
    y: Sequence[float]

    def at(self, x: float) -> float:
        """Its height at a place: the upper end where it rises straight up."""
        after = bisect.bisect_right(self.x, x)
        if after == 0 or after == len(self.x):
            return self.y[max(0, after - 1)]
        left, right = self.x[after - 1], self.x[after]
        share = (x - left) / (right - left)
        return self.y[after - 1] + share * (self.y[after] - self.y[after - 1])


@dataclass(frozen=True)
class ScoredImage:
    """A test image and what was said of it."""

    path: str
    defect_type: str
    is_defective: bool
    is_called_defective: bool
    score: float

    @property
    def is_right(self) -> bool:
        """Whether the decision is."""
        return self.is_defective == self.is_called_defective


@dataclass(frozen=True)
class Picture:
    """An image's thumbnails, WebP."""

    image: bytes
    heat: bytes
    outline: bytes | None


@dataclass(frozen=True)
class Epoch:
    """One epoch of a student's training; see `tables.STUDENT_HISTORY`."""

    epoch: int
    loss: float
    validation_map: float
    learning_rate: float
    seconds: float


@dataclass(frozen=True)
class DefectType:
    """What was found of a defect type."""

    name: str
    count: int
    missed: int
    image_auroc: Value
    aupro: Value


@dataclass(frozen=True)
class Night:
    """A run's AUROCs, by category and level ('image', 'pixel')."""

    run_id: str
    started_at: datetime
    state: str
    figures: Mapping[tuple[str, str], Value]

    @property
    def is_good(self) -> bool:
        """Whether every category was published, and the gate (if there was one) let it pass."""
        return self.state in GOOD_STATES


@dataclass(frozen=True)
class Difference:
    """By how much an AUROC moved since the last good run; negative where it fell."""

    value: float
    low: float | None = None
    high: float | None = None

    @property
    def is_sure(self) -> bool:
        """Whether the 95 % interval excludes zero."""
        return self.low is not None and self.high is not None and self.low * self.high > 0


@dataclass(frozen=True)
class CategoryContent:
    """All that is said of a category."""

    name: str
    failure: str | None = None
    metrics: Mapping[str, Any] = field(default_factory=dict)
    """Of its scores' card."""
    published: Published | None = None
    differences: Mapping[str, Difference] = field(default_factory=dict)
    """By level ('image', 'pixel')."""
    images: Sequence[ScoredImage] = ()
    pictures: Mapping[str, Picture] = field(default_factory=dict)
    """By the image's path."""
    curves: Mapping[tuple[str, str, str], CurvePoints] = field(default_factory=dict)
    """By protocol, level and kind."""
    history: Sequence[Epoch] = ()
    best_epoch: int | None = None
    train_images: int | None = None
    quarantined: int = 0
    """Images that were left out because of findings."""
    retried: str | None = None
    seconds: float | None = None
    cards: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Of its artifacts, by their keys: student, scores."""

    @property
    def threshold(self) -> float:
        """The decision threshold, above 0 so that scores can be said as multiples of it."""
        return max(float(self.metrics.get("threshold") or 0.0), 1e-300)

    @property
    def held_out_scores(self) -> Sequence[float]:
        """Of the good training images that no step was taken on."""
        scores: Sequence[float] = self.metrics.get("held_out_scores", ())
        return scores

    @property
    def n_good(self) -> int:
        """Good test images."""
        return sum(not image.is_defective for image in self.images)

    @property
    def n_defective(self) -> int:
        """Defective test images."""
        return sum(image.is_defective for image in self.images)

    @property
    def missed(self) -> int:
        """Defective images that were called good."""
        return sum(image.is_defective and not image.is_right for image in self.images)

    @property
    def false_alarms(self) -> int:
        """Good images that were called defective."""
        return sum(not image.is_defective and not image.is_right for image in self.images)

    def value(self, protocol: str, level: str, metric: str) -> float | None:
        """A figure; None where it is not defined or the category has failed."""
        return value_of(self.metrics, protocol, level, metric)

    def figure(self, protocol: str, level: str, metric: str) -> Value:
        """A figure with its interval."""
        return figure_of(self.metrics, protocol, level, metric)

    @property
    def defect_types(self) -> list[DefectType]:
        """The defect types, the one with the lowest AUROC first."""
        found = [
            DefectType(
                name,
                int(part["n_defective"]),
                sum(i.defect_type == name and not i.is_right for i in self.images),
                figure_of(part, "paper-256", "image", "auroc"),
                figure_of(part, "mvtec-official", "pixel", "aupro"),
            )
            for name, part in self.metrics.get("defect_types", {}).items()
        ]
        return sorted(found, key=lambda kind: (kind.image_auroc.value or 0, kind.name))

    def by_error(self) -> list[ScoredImage]:
        """Images in the order in which a person wants to see them.

        Wrong decisions first, those furthest from the threshold before others; then right ones,
        those nearest to it first. How far is a ratio: scores span decades.
        """

        def key(image: ScoredImage) -> tuple[bool, float, str]:
            distance = abs(math.log(max(image.score, 1e-300) / self.threshold))
            return image.is_right, distance if image.is_right else -distance, image.path

        return sorted(self.images, key=key)


def figure_of(metrics: Mapping[str, Any], protocol: str, level: str, metric: str) -> Value:
    """A figure of a score artifact's card with its interval."""
    value = value_of(metrics, protocol, level, metric)
    ends = metrics["intervals"][protocol][level].get(metric) if value is not None else None
    return Value(value, *(ends or (None, None)))


@dataclass(frozen=True)
class RunContent:
    """All that is said of a run."""

    run_id: str
    started_at: datetime
    created_at: datetime
    is_complete: bool
    config: Mapping[str, Any]
    verdict: Mapping[str, Any] | None
    """The gate's, as `run.json` holds it; None of a run that is older than the gate."""
    means: Mapping[tuple[str, str, str], Value]
    """By protocol, level and metric: over the categories where it is defined."""
    categories: Sequence[CategoryContent]
    baseline: Night | None
    """The last good run before this one."""
    nights: Sequence[Night]
    """The last runs, oldest first; this one is the last."""
    findings: Sequence[Mapping[str, Any]]
    dataset: Mapping[str, Any]
    """The dataset's card."""
    teacher: Mapping[str, Any]
    """The teacher's card."""
    keys: Mapping[str, str]
    """Where its parts lie in the store."""
