"""Past months in one file each, so that a year of nights is read in two dozen requests.

    history/runs/<month>.parquet      one row a run (`tables.RUNS`)
    history/metrics/<month>.parquet   their rows of `tables.METRICS`

They are copies that anyone may delete. A row of `runs` holds the stamp of the `run.json` that it
was made from; a reader takes a run from its month only while that stamp is still the listed one,
and reads it directly otherwise (this month's runs, a run published again, one that came late). So
a lost race, a killed fold or a copied store make reading slower, never wrong.
"""

import hashlib
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from etstpm.config import digest_of
from etstpm.errors import EtstpmError, ResultsError, StorageError, reason_of
from etstpm.parquet import write_parquet
from etstpm.runs import Record, published_runs, read_runs
from etstpm.storage import Store
from etstpm.tables import METRICS, RUNS, SCHEMA_VERSION

FOLDER = "history/runs"


@dataclass(frozen=True)
class History:
    """Every published run of a store, and from where its metrics are to be read.

    runs: rows of `tables.RUNS`, oldest first. months: the month file that holds a run's metrics;
    a run that is not in it is read from its own.
    """

    runs: list[dict[str, Any]]
    months: dict[str, str]


def metrics_key(month: str) -> str:
    """Where a month's metrics lie."""
    return f"history/metrics/{month}.parquet"


def read_history(store: Store) -> History:
    """Every published run: one listing, a file a past month, and this month's `run.json`s."""
    stamps = published_runs(store)
    folded = {
        row["run_id"]: (row, month)
        for month, rows in _read_months(store).items()
        for row in rows
        if stamps.get(row["run_id"]) == row["stamp"]
    }
    fresh = read_runs(store, stamps.keys() - folded.keys())
    runs = [row for row, _ in folded.values()]
    runs += [run_row(record, stamps[run_id]) for run_id, record in fresh.items()]
    runs.sort(key=lambda row: (row["started_at"], row["run_id"]))
    return History(runs, {run_id: month for run_id, (_, month) in folded.items()})


def fold_history(store: Store, before: str | None = None) -> tuple[list[str], list[str]]:
    """Write the files of months, those earlier than `before` ('2026-11'), that are not up to date.

    Returns the months that were written, and a line for each run that was left out since its
    table cannot be read.
    """
    stamps = published_runs(store)
    old = _read_months(store)
    known = {row["run_id"]: (row["stamp"], month) for month, rows in old.items() for row in rows}
    fresh = read_runs(store, (r for r in stamps if known.get(r, ("", ""))[0] != stamps[r]))
    rows = {run_id: run_row(record, stamps[run_id]) for run_id, record in fresh.items()}
    # A run that is gone or was published again is stale where it was kept.
    stale = {month_of(row["started_at"]) for row in rows.values()}
    stale |= {month for run_id, (stamp, month) in known.items() if stamps.get(run_id) != stamp}
    written, left_out = [], []
    for month in sorted(stale):
        if before is not None and month >= before:
            continue
        kept = [row for row in old.get(month, []) if stamps.get(row["run_id"]) == row["stamp"]]
        kept += [row for row in rows.values() if month_of(row["started_at"]) == month]
        left_out += _write_month(store, month, sorted(kept, key=lambda row: str(row["run_id"])))
        written.append(month)
    return written, left_out


def rebuild_history(store: Store) -> tuple[list[str], list[str]]:
    """Make every past month's files anew; as `fold_history`. Readers go on meanwhile, slower."""
    for key in store.list_files("history"):
        store.remove_file(key)
    return fold_history(store, before=month_of(datetime.now(UTC)))


def fold_past_months(store: Store, started_at: datetime) -> None:
    """What a publication does last: once a month it lists the runs and folds the months before.

    A fault here concerns no run, and waits for the next night.
    """
    last_month = month_of(started_at.replace(day=1) - timedelta(days=1))
    try:
        if store.read_if_there(f"{FOLDER}/{last_month}.parquet") is None:
            fold_history(store, before=month_of(started_at))
            # Where it has no run, too: the next night need not list them again.
            if store.read_if_there(f"{FOLDER}/{last_month}.parquet") is None:
                _write_month(store, last_month, [])
    except EtstpmError:
        return


def month_of(time: datetime) -> str:
    """The month that a run belongs to: of its start, UTC."""
    return f"{time:%Y-%m}"


def run_row(record: Record, stamp: str = "") -> dict[str, Any]:
    """A run as a row of `tables.RUNS`."""
    verdict = record.get("verdict") or {}
    failed = sum(outcome["failure"] is not None for outcome in record["outcomes"])
    return {
        "run_id": record["run_id"],
        "status": record["status"],
        "verdict": verdict.get("status"),
        "reason": verdict.get("reason"),
        "baseline": verdict.get("baseline"),
        "started_at": datetime.fromisoformat(record["started_at"]),
        "created_at": datetime.fromisoformat(record["created_at"]),
        "seed": record["config"]["seed"],
        "categories": len(record["outcomes"]) - failed,
        "failed": failed,
        "dataset_digest": record["dataset"].rsplit("/", 1)[-1],
        "teacher_digest": record["teacher"].rsplit("/", 1)[-1],
        "config_digest": digest_of(record["config"]),
        "etstpm_version": record.get("versions", {}).get("etstpm"),
        "schema_version": record["schema_version"],
        "stamp": stamp,
    }


def _read_months(store: Store) -> dict[str, list[dict[str, Any]]]:
    contents = store.read_files(sorted(store.list_files(FOLDER)))
    months = {}
    for key, content in contents.items():
        try:
            table = pq.read_table(pa.BufferReader(content), page_checksum_verification=True)
        except (pa.ArrowException, OSError) as error:
            raise StorageError(
                f"store {store.uri}: {key} is damaged ({reason_of(error)}); it is a copy, remove it"
            ) from None
        version = int((table.schema.metadata or {}).get(b"etstpm.schema_version", b"0"))
        if version > SCHEMA_VERSION:
            raise ResultsError(
                f"store {store.uri}: {key} has schema version {version}, this etstpm reads up to "
                f"{SCHEMA_VERSION}; upgrade etstpm"
            )
        months[Path(key).stem] = table.to_pylist()
    return months


def _write_month(store: Store, month: str, rows: list[dict[str, Any]]) -> list[str]:
    """Metrics first, then the runs that say so: what a reader is told is there, is."""
    left_out: dict[str, str] = {}
    with tempfile.TemporaryDirectory(prefix="etstpm-") as folder:
        metrics, runs = Path(folder) / "metrics.parquet", Path(folder) / "runs.parquet"
        write_parquet(metrics, METRICS, _metrics_of(store, rows, left_out))
        kept = [row for row in rows if row["run_id"] not in left_out]
        write_parquet(runs, RUNS, [pa.Table.from_pylist(kept, schema=RUNS)])
        store.put_file(metrics, metrics_key(month))
        store.put_file(runs, f"{FOLDER}/{month}.parquet")
    return list(left_out.values())


def _metrics_of(
    store: Store, rows: Iterable[Mapping[str, Any]], left_out: dict[str, str]
) -> Iterator[pa.Table]:
    """One run in memory at a time; its file must be the one that its `run.json` has the hash of."""
    for row in rows:
        run_id = row["run_id"]
        record = read_runs(store, [run_id]).get(run_id, {"files": {}})
        file = record["files"].get("metrics", {"key": "", "sha256": ""})
        content = store.read_files([file["key"]]).get(file["key"]) if file["key"] else None
        if content is None or hashlib.sha256(content).hexdigest() != file["sha256"]:
            left_out[run_id] = f"run {run_id}: its metrics are missing or damaged; run it again"
            continue
        if record["schema_version"] > SCHEMA_VERSION:
            left_out[run_id] = f"run {run_id}: schema version {record['schema_version']} is newer"
            continue
        yield _fill(pq.read_table(pa.BufferReader(content)))


def _fill(table: pa.Table) -> pa.Table:
    """Columns that older versions had not yet, as nulls."""
    for field in METRICS:
        if field.name not in table.schema.names:
            table = table.append_column(field, pa.nulls(table.num_rows, field.type))
    return table
