"""The runs before a run: their AUROCs, and how far a category has moved since the last good one."""

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from etstpm.comparison import ScoresOfRun, compare_category
from etstpm.errors import EtstpmError
from etstpm.history import read_history
from etstpm.report.content import Difference, Night, Value
from etstpm.runs import Record, read_runs, table_key
from etstpm.storage import Store
from etstpm.tables import ALL, PAPER

NIGHTS = 60
"""Runs that a report shows; each costs a small file to read."""
LEVELS = "image", "pixel"


def read_nights(store: Store, record: Record) -> tuple[list[Night], Night | None]:
    """The last runs up to this one, oldest first, and the last good one before it.

    The last good one is that which the gate compared this run with; of a run that is older than the
    gate, the newest one before it that is complete. A run whose table cannot be read is left out.
    """
    rows = {row["run_id"]: row for row in read_history(store).runs}
    ids = list(rows)
    earlier = ids[: ids.index(record["run_id"]) + 1]
    verdict = record.get("verdict")
    if verdict is not None:
        baseline = verdict["baseline"]
    else:
        complete = [i for i in earlier[:-1] if rows[i]["status"] == "complete"]
        baseline = complete[-1] if complete else None
    shown = earlier[-NIGHTS:]
    wanted = [*shown, *([baseline] if baseline in rows and baseline not in shown else [])]
    files = store.read_files([table_key("metrics", run_id) for run_id in wanted])
    nights = {
        run_id: night
        for run_id in wanted
        if (night := _night(rows[run_id], files.get(table_key("metrics", run_id)))) is not None
    }
    return [nights[run_id] for run_id in shown if run_id in nights], nights.get(baseline)


class Baseline:
    """The run that this one is compared with, if there is one."""

    def __init__(self, store: Store, record: Record, night: Night | None) -> None:
        self._store = store
        found = read_runs(store, [night.run_id]) if night is not None else {}
        self._before = next((ScoresOfRun(store, other) for other in found.values()), None)
        self._after = ScoresOfRun(store, record)

    def differences(self, category: str) -> dict[str, Difference]:
        """By how much a category's AUROC moved at each level; nothing where it has no two values.

        Scores that are no longer in the store compare with nothing: a report of what is there is
        better than none.
        """
        if self._before is None:
            return {}
        try:
            changes = compare_category(
                self._store,
                self._before.artifact(category),
                self._after.artifact(category),
                category,
                levels=LEVELS,
            )
            return {
                change.level: Difference(change.difference, change.low, change.high)
                for change in changes
                if change.difference is not None
            }
        except EtstpmError:
            return {}


def _night(row: Mapping[str, Any], content: bytes | None) -> Night | None:
    try:
        table = pq.read_table(pa.BufferReader(content or b""))
        chosen = (pc.field("protocol") == PAPER) & (pc.field("metric") == "auroc")
        if "defect_type" in table.column_names:  # not before schema version 2
            chosen &= pc.field("defect_type") == ALL
        names: Sequence[str] = ["category", "level", "value", "ci_low", "ci_high"]
        figures = {
            (found["category"], found["level"]): Value(
                found["value"], found["ci_low"], found["ci_high"]
            )
            for found in table.filter(chosen).select(names).to_pylist()
        }
    except (pa.ArrowException, OSError, KeyError):
        return None
    state = row["verdict"] or row["status"]
    return Night(row["run_id"], row["started_at"], state, figures)
