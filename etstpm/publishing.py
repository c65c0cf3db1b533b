"""A run's tables: each one file, put whole, and `run.json` last; then the gate's verdict counts."""

import hashlib
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from etstpm import __version__
from etstpm.config import Config
from etstpm.errors import StorageError
from etstpm.gate import Verdict, judge
from etstpm.history import fold_past_months
from etstpm.metric_rows import category_rows, mean_rows, sum_replicates
from etstpm.parquet import write_parquet
from etstpm.runs import (
    LATEST_KEY,
    Outcome,
    Record,
    decisions,
    latest_run,
    read_runs,
    run_key,
    scores_of,
    table_key,
)
from etstpm.storage import Artifact, Store, file_sha256
from etstpm.summary import Run, load_run
from etstpm.tables import ALL, IMAGE_SCORES, METRICS, SCHEMA_VERSION


def publish_run(
    store: Store,
    config: Config,
    *,
    run_id: str,
    started_at: datetime,
    dataset_key: str,
    teacher_key: str,
    outcomes: list[Outcome],
) -> Run:
    """Write both tables, then `runs/<id>/run.json`; equal inputs write equal tables.

    A table is one file, put in one piece: a reader who globs sees all of a run's table or nothing
    of it, on a file system as on S3. The run is published when its `run.json` is there. Published
    again under the same id, a run that is whole and made of the same is left as it is; another
    loses its `run.json` first, so that no record ever stands beside tables it does not describe.
    """
    dataset = store.find(dataset_key)
    card = dataset.card if dataset is not None else {}
    outcomes = outcomes + [
        Outcome(category, failure=f"left out of the dataset: {reason}")
        for category, reason in card.get("left_out", {}).items()
    ]
    artifacts = scores_of(store, outcomes)
    record = run_record(
        config,
        run_id=run_id,
        started_at=started_at,
        created_at=datetime.now(UTC),
        dataset_key=dataset_key,
        teacher_key=teacher_key,
        outcomes=outcomes,
        quarantined=card.get("quarantined"),
    )
    before, latest = read_runs(store, [run_id]).get(run_id), latest_run(store)
    is_chosen = False
    if before is not None:
        is_same = _is_same(before, record)
        if is_same and _is_undamaged(store, before):
            _finish(store, before, latest)
            return load_run(store, run_id)
        is_chosen = is_same and latest == run_id and _is_choice(store, run_id)
        latest = _take_back(store, before, latest)
    baseline = read_runs(store, [latest]).get(latest) if latest is not None else None
    verdict = judge(store, config.gate, record, baseline)
    files = _write_tables(store, record, outcomes, artifacts)
    store.write_json(run_key(run_id), record | {"files": files, "verdict": verdict.to_record()})
    if verdict.has_passed or is_chosen:
        store.write_json(LATEST_KEY, {"run_id": run_id})
    fold_past_months(store, started_at)
    return load_run(store, run_id)


def run_record(
    config: Config,
    *,
    run_id: str,
    started_at: datetime,
    created_at: datetime,
    dataset_key: str,
    teacher_key: str,
    outcomes: list[Outcome],
    quarantined: Mapping[str, int] | None = None,
) -> Record:
    """What `run.json` says of a run, but for its files and the gate's verdict.

    quarantined: images that were left out of the dataset, by category.
    """
    is_complete = all(outcome.failure is None for outcome in outcomes)
    return {
        "run_id": run_id,
        "schema_version": SCHEMA_VERSION,
        "status": "complete" if is_complete else "incomplete",
        "started_at": started_at.isoformat(),
        "created_at": created_at.isoformat(),
        "config": config.model_dump(mode="json", exclude={"store"}),
        "versions": {"etstpm": __version__},
        "dataset": dataset_key,
        "teacher": teacher_key,
        "quarantined": dict(quarantined or {}),
        "outcomes": [asdict(outcome) for outcome in outcomes],
    }


def _is_same(before: Record, record: Record) -> bool:
    """Whether a run was published whole, of the same and by this version."""
    same = record.keys() - {"created_at", "started_at"}
    return "verdict" in before and all(before.get(key) == record[key] for key in same)


def _is_undamaged(store: Store, before: Record) -> bool:
    """Whether a run's tables are those that its record describes."""
    hashes = {file["key"]: file["sha256"] for file in before["files"].values()}
    found = store.read_files(hashes)
    return all(
        key in found and hashlib.sha256(found[key]).hexdigest() == sha256
        for key, sha256 in hashes.items()
    )


def _is_choice(store: Store, run_id: str) -> bool:
    """Whether a person's last decision made this run the latest, whatever the gate says of it."""
    made = decisions(store)
    return bool(made) and made[-1].run_id == run_id


def _is_decided_since(store: Store, created_at: str) -> bool:
    """Whether a person has moved the latest run since then."""
    since = datetime.fromisoformat(created_at)
    return any(datetime.fromisoformat(decision.at) >= since for decision in decisions(store))


def _finish(store: Store, before: Record, latest: str | None) -> None:
    """Make a whole run the latest, if it was killed between its run.json and latest.json.

    Then nothing else has become the latest since, and nobody has rolled back.
    """
    verdict = Verdict.from_record(before["verdict"])
    was_passed_over = verdict.has_passed and latest == verdict.baseline
    if was_passed_over and not _is_decided_since(store, before["created_at"]):
        store.write_json(LATEST_KEY, {"run_id": before["run_id"]})


def _take_back(store: Store, before: Record, latest: str | None) -> str | None:
    """Remove a run's record. If it was the latest, the one that it was judged against is again.

    Returns the latest run then. At no moment does `latest.json` name a run that is not there.
    """
    if latest == before["run_id"]:
        latest = before.get("verdict", {}).get("baseline")
        if latest is not None and read_runs(store, [latest]):
            store.write_json(LATEST_KEY, {"run_id": latest})
        else:
            latest = None
            store.remove_file(LATEST_KEY)
    store.remove_file(run_key(before["run_id"]))
    return latest


def _write_tables(
    store: Store, record: Record, outcomes: list[Outcome], artifacts: Mapping[str, Artifact]
) -> dict[str, dict[str, Any]]:
    """Both tables are made before either is put; if one cannot be put, none is left."""
    run_id = record["run_id"]
    groups = {
        "image_scores": (IMAGE_SCORES, _score_groups(store, run_id, artifacts)),
        "metrics": (METRICS, _metric_groups(store, record, outcomes, artifacts)),
    }
    keys = {name: table_key(name, run_id) for name in groups}
    files = {}
    with tempfile.TemporaryDirectory(prefix="etstpm-") as folder:
        paths = {name: Path(folder) / f"{name}.parquet" for name in groups}
        for name, (schema, tables) in groups.items():
            rows = write_parquet(paths[name], schema, tables)
            files[name] = {"key": keys[name], "sha256": file_sha256(paths[name]), "rows": rows}
        try:
            for name, key in keys.items():
                store.put_file(paths[name], key)
        except BaseException:
            for key in keys.values():
                with suppress(StorageError):
                    store.remove_file(key)
            raise
    return files


def _metric_groups(
    store: Store, record: Record, outcomes: list[Outcome], artifacts: Mapping[str, Artifact]
) -> Iterator[pa.Table]:
    """A table a category, and last their means."""
    common = {
        "run_id": record["run_id"],
        "seed": record["config"]["seed"],
        "teacher_digest": record["teacher"].rsplit("/", 1)[-1],
        "dataset_digest": record["dataset"].rsplit("/", 1)[-1],
        "created_at": datetime.fromisoformat(record["created_at"]),
    }
    left_out: dict[str, int] = record["quarantined"]
    of_all = []
    for outcome in outcomes:
        common["n_quarantined"] = left_out.get(outcome.category, 0)
        rows = category_rows(outcome.category, artifacts.get(outcome.category), outcome.failure)
        of_all += [row for row in rows if row["defect_type"] == ALL]
        yield pa.Table.from_pylist([common | row for row in rows], schema=METRICS)
    common["n_quarantined"] = sum(left_out.values())
    means = mean_rows(of_all, sum_replicates(store, artifacts.values()))
    yield pa.Table.from_pylist([common | row for row in means], schema=METRICS)


def _score_groups(
    store: Store, run_id: str, artifacts: Mapping[str, Artifact]
) -> Iterator[pa.Table]:
    for artifact in artifacts.values():
        with store.open(artifact, "image_scores.parquet") as folder:
            # `partitioning=None`: the folders' names are addresses here, not columns.
            table = pq.read_table(folder / "image_scores.parquet", partitioning=None)
        if "fault" not in table.column_names:  # scored before there was one
            table = table.append_column("fault", pa.nulls(table.num_rows, pa.string()))
        yield table.append_column("run_id", pa.array([run_id] * table.num_rows))
