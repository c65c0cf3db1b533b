"""A run's tables: each one file, put whole, and `run.json` last."""

import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from etstpm.catalog import ET_STPM_MEAN, STPM_PUBLISHED, Published
from etstpm.config import Config
from etstpm.storage import Artifact, Store, file_sha256
from etstpm.tables import IMAGE_SCORES, METRICS, OFFICIAL, PAPER, SCHEMA_VERSION, write_parquet

MEAN = "mean"
CURVE = ("auroc", "ap", "f1_max", "f1_max_threshold")
REGIONS = ("aupro", "aupro_0.05")
ROWS = (
    *((PAPER, "image", metric) for metric in CURVE),
    *((PAPER, "pixel", metric) for metric in CURVE + REGIONS),
    *((OFFICIAL, "pixel", metric) for metric in CURVE + REGIONS),
)
"""Protocol, level and metric of each category's rows."""
WITHOUT_MEAN = "f1_max_threshold"
"""Scores of different students have no common scale."""
WHY_UNDEFINED = "only one class among the test images: not defined"


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
    """Write both tables and then `runs/<id>/run.json`; equal inputs write equal tables.

    A table is one file with a row group a category, put in one piece: a reader who globs sees all
    of a run's table or nothing of it, on a file system as on S3. Published again under the same
    run id, the same files are replaced.
    """
    artifacts = {
        outcome.category: store.get(outcome.scores_key)
        for outcome in outcomes
        if outcome.scores_key is not None
    }
    keys = {
        name: f"tables/{name}/run_id={run_id}/{name}.parquet"
        for name in ("image_scores", "metrics")
    }
    files = {}
    created_at = datetime.now(UTC)
    metrics = _metric_rows(
        config,
        run_id=run_id,
        created_at=created_at,
        dataset_key=dataset_key,
        teacher_key=teacher_key,
        outcomes=outcomes,
        artifacts=artifacts,
    )
    with tempfile.TemporaryDirectory(prefix="etstpm-") as folder:
        paths = {name: Path(folder) / f"{name}.parquet" for name in keys}
        rows = {
            "image_scores": write_parquet(
                paths["image_scores"], IMAGE_SCORES, _score_groups(store, run_id, artifacts)
            ),
            "metrics": write_parquet(
                paths["metrics"], METRICS, [pa.Table.from_pylist(metrics, schema=METRICS)]
            ),
        }
        for name, key in keys.items():
            store.put_file(paths[name], key)
            files[name] = {"key": key, "sha256": file_sha256(paths[name]), "rows": rows[name]}
    is_complete = all(outcome.failure is None for outcome in outcomes)
    store.write_json(
        f"runs/{run_id}/run.json",
        {
            "run_id": run_id,
            "schema_version": SCHEMA_VERSION,
            "status": "complete" if is_complete else "incomplete",
            "started_at": started_at.isoformat(),
            "created_at": created_at.isoformat(),
            "config": config.model_dump(mode="json", exclude={"store"}),
            "dataset": dataset_key,
            "teacher": teacher_key,
            "outcomes": [asdict(outcome) for outcome in outcomes],
            "files": files,
        },
    )
    if is_complete:
        store.write_json("runs/latest.json", {"run_id": run_id})
    return load_run(store, run_id)


def load_run(store: Store, run_id: str) -> Run:
    """A published run, from its `run.json`. Raises `StorageError` if there is none."""
    record = store.read_json(f"runs/{run_id}/run.json")
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
    )


def _score_groups(
    store: Store, run_id: str, artifacts: Mapping[str, Artifact]
) -> Iterator[pa.Table]:
    for artifact in artifacts.values():
        with store.open(artifact, "image_scores.parquet") as folder:
            # `partitioning=None`: the folders' names are addresses here, not columns.
            table = pq.read_table(folder / "image_scores.parquet", partitioning=None)
        yield table.append_column("run_id", pa.array([run_id] * table.num_rows))


def _metric_rows(
    config: Config,
    *,
    run_id: str,
    created_at: datetime,
    dataset_key: str,
    teacher_key: str,
    outcomes: list[Outcome],
    artifacts: Mapping[str, Artifact],
) -> list[dict[str, Any]]:
    common = {
        "run_id": run_id,
        "seed": config.seed,
        "teacher_digest": teacher_key.rsplit("/", 1)[-1],
        "dataset_digest": dataset_key.rsplit("/", 1)[-1],
        "created_at": created_at,
    }
    rows: list[dict[str, Any]] = []
    for outcome in outcomes:
        artifact = artifacts.get(outcome.category)
        found = artifact.card["metrics"] if artifact else {}
        for protocol, level, metric in ROWS:
            value = _value(found, protocol, level, metric)
            rows.append(
                common
                | {
                    "category": outcome.category,
                    "protocol": protocol,
                    "level": level,
                    "metric": metric,
                    "value": value,
                    "n_good": found.get("n_good"),
                    "n_defective": found.get("n_defective"),
                    "student_digest": _student_digest(artifact),
                    "reason": outcome.failure or (WHY_UNDEFINED if value is None else None),
                }
            )
    for name in ROWS:
        if name[-1] == WITHOUT_MEAN:
            continue
        names = dict(zip(("protocol", "level", "metric"), name, strict=True))
        value = mean_of([row["value"] for row in rows if names.items() <= row.items()])
        reason = None if value is not None else "no category has a value"
        rows.append(common | names | {"category": MEAN, "value": value, "reason": reason})
    return rows


def _value(metrics: Mapping[str, Any], protocol: str, level: str, metric: str) -> float | None:
    """A figure of a score artifact's card; None where it is not defined or there is no card."""
    value: float | None = metrics["values"][protocol][level][metric] if metrics else None
    return value


def _number(value: float | None, failure: str | None = None) -> str:
    return "failed" if failure else "n/a" if value is None else f"{value:.3f}"


def _student_digest(artifact: Artifact | None) -> str | None:
    return artifact.card["student"].rsplit("/", 1)[-1] if artifact else None


def mean_of(values: list[float | None]) -> float | None:
    """Mean of the values that are defined; None if none is."""
    defined = [value for value in values if value is not None]
    return sum(defined) / len(defined) if defined else None


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
                _value(metrics, PAPER, "image", "auroc"),
                _value(metrics, PAPER, "pixel", "auroc"),
                _value(metrics, OFFICIAL, "pixel", "aupro"),
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
