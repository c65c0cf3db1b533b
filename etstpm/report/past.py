"""The runs before a run: their AUROCs, and which of them was the last good one."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from etstpm.errors import EtstpmError, StorageError
from etstpm.report.content import Night, Value
from etstpm.storage import Store
from etstpm.tables import ALL, PAPER

NIGHTS = 60
"""Runs that a report shows; each costs a small file to read."""


def read_nights(store: Store, record: Mapping[str, Any]) -> list[Night]:
    """The last runs up to this one, oldest first; one that cannot be read is left out."""
    ids = [run for run in published_runs(store) if run <= record["run_id"]][-NIGHTS:]
    found = []
    for run_id in ids:
        try:
            other = record if run_id == record["run_id"] else read_run(store, run_id)
            found.append(_night(store, other))
        except (EtstpmError, pa.ArrowException, OSError, KeyError, ValueError):
            continue
    return sorted(found, key=lambda night: (night.started_at, night.run_id))


def baseline_of(nights: list[Night], record: Mapping[str, Any]) -> Night | None:
    """The run that the gate compared this one with, else the last good one before it."""
    verdict = record.get("verdict") or {}
    earlier = [night for night in nights if night.run_id != record["run_id"]]
    for night in reversed(earlier):
        if night.run_id == verdict.get("baseline") or (not verdict and night.is_good):
            return night
    return None


def _night(store: Store, record: Mapping[str, Any]) -> Night:
    content = store.fs.cat_file(store.path(record["files"]["metrics"]["key"]))
    table = pq.read_table(pa.BufferReader(content))
    chosen = (pc.field("protocol") == PAPER) & (pc.field("metric") == "auroc")
    if "defect_type" in table.column_names:
        chosen &= pc.field("defect_type") == ALL
    names = ["category", "level", "value", "ci_low", "ci_high"]
    figures = {
        (row["category"], row["level"]): Value(row["value"], row["ci_low"], row["ci_high"])
        for row in table.filter(chosen).select(names).to_pylist()
    }
    verdict = record.get("verdict") or {}
    started_at = datetime.fromisoformat(record["started_at"])
    return Night(record["run_id"], started_at, verdict.get("status", record["status"]), figures)


def published_runs(store: Store) -> list[str]:
    """The id of every published run, in ascending order."""
    found = store.fs.glob(store.path("runs/*/run.json"))
    return sorted(str(path).rsplit("/", 2)[-2] for path in found)


def read_run(store: Store, run_id: str) -> Mapping[str, Any]:
    """The record of a run."""
    if run_id == "latest":
        run_id = store.read_json("runs/latest.json")["run_id"]
    record = store.read_json(f"runs/{run_id}/run.json")
    if not isinstance(record, dict):
        raise StorageError(f"store {store.uri}: runs/{run_id}/run.json is damaged")
    return record
