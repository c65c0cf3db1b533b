"""A run's tables: each one file, put whole, and `run.json` last; then the gate's verdict counts."""

import hashlib
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from etstpm import __version__
from etstpm.catalog import ET_STPM_MEAN, STPM_PUBLISHED, Published
from etstpm.config import Config
from etstpm.errors import StorageError
from etstpm.gate import Verdict, judge
from etstpm.history import fold_past_months
from etstpm.metric_rows import MEAN, category_rows, mean_of, mean_rows, sum_replicates, value_of
from etstpm.parquet import write_parquet
from etstpm.runs import (
    LATEST_KEY,
    Record,
    decisions,
    latest_run,
    read_run,
    read_runs,
    run_key,
    table_key,
)
from etstpm.storage import Artifact, Store, file_sha256
from etstpm.tables import ALL, IMAGE_SCORES, METRICS, OFFICIAL, PAPER, SCHEMA_VERSION


@dataclass(frozen=True)
class Outcome:
    """What became of a category: the key of its scores, or why it failed."""

    category: str
    scores_key: str | None = None
    failure: str | None = None


@dataclass(frozen=True)
class SummaryRow:
    """One line of the table that a person sees."""

    category: str
    image_auroc: float | None
    pixel_auroc: float | None
    aupro: float | None
    published: Published | None
    seconds: float | None
    """Time that training and scoring took, in this run or in the one that is reused."""
    is_reused: bool = False
    failure: str | None = None
    retried: str | None = None
    """Why its student's first training was thrown away, if one was."""

    def display(self) -> dict[str, str]:
        """The row's cells as text, by column."""
        published = self.published
        return {
            "category": self.category,
            "image AUROC": _number(self.image_auroc, self.failure),
            "pixel AUROC": _number(self.pixel_auroc, self.failure),
            "AUPRO": _number(self.aupro, self.failure),
            "published image": _number(published.image_auroc) if published else "-",
            "published pixel": _number(published.pixel_auroc) if published else "-",
            "seconds": self._seconds(),
        }

    def _seconds(self) -> str:
        if self.seconds is None:
            return "-"
        return f"{self.seconds:.0f}{' reused' if self.is_reused else ''}"


@dataclass(frozen=True)
class Run:
    """A published run."""

    run_id: str
    is_complete: bool
    dataset_key: str
    teacher_key: str
    summary: list[SummaryRow]
    files: dict[str, str]
    """Name of each table to its address."""
    verdict: Verdict | None
    """The gate's; None of runs that are older than the gate."""


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
    artifacts = {
        outcome.category: store.get(outcome.scores_key)
        for outcome in outcomes
        if outcome.scores_key is not None
    }
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
    before = read_runs(store, [run_id]).get(run_id)
    latest = latest_run(store)
    if before is not None and _is_whole(store, before, record):
        # Killed between run.json and latest.json? Nothing else has become the latest since, and
        # nobody has rolled back.
        verdict = Verdict.from_record(before["verdict"])
        was_passed_over = verdict.has_passed and latest == verdict.baseline
        if was_passed_over and not _is_decided_since(store, before["created_at"]):
            store.write_json(LATEST_KEY, {"run_id": run_id})
        return load_run(store, run_id)

    if before is not None:
        if latest == run_id:  # first: at no moment does the latest name a run that is not there
            latest = _step_back(store, before)
        store.remove_file(run_key(run_id))
    baseline = read_runs(store, [latest]).get(latest) if latest is not None else None
    verdict = judge(store, config.gate, record, baseline)
    files = _write_tables(store, record, outcomes, artifacts)
    store.write_json(run_key(run_id), record | {"files": files, "verdict": verdict.to_record()})
    if verdict.has_passed:
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


def _is_whole(store: Store, before: Record, record: Record) -> bool:
    """Whether a run is published of the same, by this version, and its tables are undamaged."""
    same = record.keys() - {"created_at", "started_at"}
    if "verdict" not in before or any(before.get(key) != record[key] for key in same):
        return False
    hashes = {file["key"]: file["sha256"] for file in before["files"].values()}
    found = store.read_files(hashes)
    return all(
        key in found and hashlib.sha256(found[key]).hexdigest() == sha256
        for key, sha256 in hashes.items()
    )


def _is_decided_since(store: Store, created_at: str) -> bool:
    """Whether a person has moved the latest run since then."""
    since = datetime.fromisoformat(created_at)
    return any(datetime.fromisoformat(decision.at) >= since for decision in decisions(store))


def _step_back(store: Store, record: Record) -> str | None:
    """Make the run that this one was judged against the latest again; None if there is none."""
    baseline: str | None = record.get("verdict", {}).get("baseline")
    if baseline is not None and read_runs(store, [baseline]):
        store.write_json(LATEST_KEY, {"run_id": baseline})
        return baseline
    store.remove_file(LATEST_KEY)
    return None


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


def load_run(store: Store, run_id: str) -> Run:
    """A published run, from its `run.json`. Raises `ResultsError` if there is none."""
    record = read_run(store, run_id)
    outcomes = [Outcome(**outcome) for outcome in record["outcomes"]]
    artifacts = {
        outcome.category: store.get(outcome.scores_key)
        for outcome in outcomes
        if outcome.scores_key is not None
    }
    started_at = datetime.fromisoformat(record["started_at"])
    return Run(
        run_id,
        record["status"] == "complete",
        record["dataset"],
        record["teacher"],
        _summarise(store, outcomes, artifacts, started_at),
        {name: store.display(file["key"]) for name, file in record["files"].items()},
        Verdict.from_record(record["verdict"]) if "verdict" in record else None,
    )


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


def _number(value: float | None, failure: str | None = None) -> str:
    return "failed" if failure else "n/a" if value is None else f"{value:.3f}"


def _summarise(
    store: Store,
    outcomes: list[Outcome],
    artifacts: Mapping[str, Artifact],
    started_at: datetime,
) -> list[SummaryRow]:
    rows = []
    for outcome in outcomes:
        artifact = artifacts.get(outcome.category)
        metrics = artifact.card["metrics"] if artifact else {}
        cards = [artifact.card, store.get(artifact.card["student"]).card] if artifact else []
        made_at = [datetime.fromisoformat(card["created_at"]) for card in cards]
        rows.append(
            SummaryRow(
                outcome.category,
                value_of(metrics, PAPER, "image", "auroc"),
                value_of(metrics, PAPER, "pixel", "auroc"),
                value_of(metrics, OFFICIAL, "pixel", "aupro"),
                STPM_PUBLISHED.get(outcome.category),
                seconds=sum(card["seconds"] for card in cards) if cards else None,
                is_reused=bool(cards) and max(made_at) < started_at,
                failure=outcome.failure,
                retried=cards[1].get("retried") if cards else None,
            )
        )
    if len(rows) > 1:
        spent = [row.seconds for row in rows if row.seconds is not None]
        rows.append(
            SummaryRow(
                MEAN,
                mean_of([row.image_auroc for row in rows]),
                mean_of([row.pixel_auroc for row in rows]),
                mean_of([row.aupro for row in rows]),
                _published_mean(rows),
                seconds=sum(spent) / len(spent) if spent else None,
            )
        )
    return rows


def _published_mean(rows: list[SummaryRow]) -> Published | None:
    """ET-STPM's means where all fifteen categories are there: it published no others."""
    return ET_STPM_MEAN if {row.category for row in rows} == set(STPM_PUBLISHED) else None
