"""The rows of `tables.METRICS`: what the cards of a run's scores say, and means over categories."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from etstpm.evaluation import METRICS_OF_LEVEL, METRICS_OF_TYPE
from etstpm.intervals import interval
from etstpm.storage import Artifact, Store
from etstpm.tables import ALL, OFFICIAL, PAPER

MEAN = "mean"
Name = tuple[str, str, str]
LEVELS = (PAPER, "image"), (PAPER, "pixel"), (OFFICIAL, "pixel")


def _names(metrics: Mapping[str, tuple[str, ...]]) -> tuple[Name, ...]:
    return tuple(
        (protocol, level, metric) for protocol, level in LEVELS for metric in metrics[level]
    )


ROWS = _names(METRICS_OF_LEVEL)
"""Protocol, level and metric of each category's rows."""
ROWS_OF_TYPE = _names(METRICS_OF_TYPE)
"""Those of each of its defect types."""
WITHOUT_MEAN = "f1_max_threshold"
"""Scores of different students have no common scale."""
WHY_UNDEFINED = "only one class among the test images: not defined"
WITHOUT_MASKS = "no masks of the defective images: not defined"

Sums = dict[Name, tuple[npt.NDArray[np.float64], int]]
"""Sum of the categories' replicates, and over how many."""


def category_rows(
    category: str, artifact: Artifact | None, failure: str | None
) -> list[dict[str, Any]]:
    """A category's rows, over all images and then by defect type; a failed one's are null."""
    found = artifact.card["metrics"] if artifact else {}
    parts = [(ALL, found, ROWS)]
    parts += [
        (name, part, ROWS_OF_TYPE) for name, part in sorted(found.get("defect_types", {}).items())
    ]
    rows = []
    for defect_type, part, names in parts:
        for protocol, level, metric in names:
            value = value_of(part, protocol, level, metric)
            ends = part["intervals"][protocol][level].get(metric) if part else None
            low, high = ends or (None, None)
            rows.append(
                {
                    "category": category,
                    "protocol": protocol,
                    "level": level,
                    "metric": metric,
                    "value": value,
                    "ci_low": low,
                    "ci_high": high,
                    "n_good": part.get("n_good"),
                    "n_defective": part.get("n_defective"),
                    "student_digest": student_digest_of(artifact),
                    "reason": failure or (_why_undefined(part, level) if value is None else None),
                    "defect_type": defect_type,
                }
            )
    return rows


def _why_undefined(part: Mapping[str, Any], level: str) -> str:
    has_both_classes = part["n_good"] > 0 and part["n_defective"] > 0
    return WITHOUT_MASKS if level == "pixel" and has_both_classes else WHY_UNDEFINED


def mean_rows(rows: Iterable[Mapping[str, Any]], replicates: Sums) -> list[dict[str, Any]]:
    """The means of the categories' rows over all images.

    Their intervals are those of the mean over the same categories, each drawn anew by itself: null
    if one of them has none.
    """
    values: dict[Name, list[float | None]] = {name: [] for name in ROWS}
    for row in rows:
        if row["defect_type"] == ALL:
            values[row["protocol"], row["level"], row["metric"]].append(row["value"])
    means = []
    for name in ROWS:
        if name[-1] == WITHOUT_MEAN:
            continue
        value = mean_of(values[name])
        total, count = replicates.get(name, (np.empty(0), 0))
        is_same = count > 0 and count == sum(v is not None for v in values[name])
        low, high = (interval(total / count) if is_same else None) or (None, None)
        means.append(
            dict(zip(("protocol", "level", "metric"), name, strict=True))
            | {"category": MEAN, "value": value, "ci_low": low, "ci_high": high}
            | {"reason": None if value is not None else "no category has a value"}
            | {"defect_type": ALL}
        )
    return means


def sum_replicates(store: Store, artifacts: Iterable[Artifact]) -> Sums:
    """Add the categories' replicates up, one category in memory at a time."""
    sums: Sums = {}
    for artifact in artifacts:
        with store.open(artifact, "replicates.parquet") as folder:
            # `partitioning=None`: the folders' names are addresses here, not columns.
            table: pa.Table = pq.read_table(folder / "replicates.parquet", partitioning=None)
        keys = ["protocol", "level", "metric"]
        for name, values in table.to_pandas().groupby(keys, observed=True)["value"]:
            total, count = sums.get(name, (np.zeros(len(values)), 0))
            sums[name] = total + values.to_numpy(), count + 1
    return sums


def value_of(metrics: Mapping[str, Any], protocol: str, level: str, metric: str) -> float | None:
    """A figure of a score artifact's card; None where it is not defined or there is no card."""
    value: float | None = metrics["values"][protocol][level][metric] if metrics else None
    return value


def student_digest_of(artifact: Artifact | None) -> str | None:
    """Content address of the student that was scored."""
    return artifact.card["student"].rsplit("/", 1)[-1] if artifact else None


def mean_of(values: list[float | None]) -> float | None:
    """Mean of the values that are defined; None if none is."""
    defined = [value for value in values if value is not None]
    return sum(defined) / len(defined) if defined else None
