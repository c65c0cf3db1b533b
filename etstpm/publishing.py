"""A run's tables: each one file, put whole, and `run.json` last."""

import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from etstpm.catalog import ET_STPM_MEAN, STPM_PUBLISHED, Published
from etstpm.config import Config
from etstpm.metric_rows import MEAN, category_rows, mean_of, mean_rows, sum_replicates, value_of
from etstpm.storage import Artifact, Store, file_sha256
from etstpm.tables import IMAGE_SCORES, METRICS, OFFICIAL, PAPER, SCHEMA_VERSION, write_parquet


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
    common = {
        "run_id": run_id,
        "seed": config.seed,
        "teacher_digest": teacher_key.rsplit("/", 1)[-1],
        "dataset_digest": dataset_key.rsplit("/", 1)[-1],
        "created_at": created_at,
    }
    found = [
        row
        for outcome in outcomes
        for row in category_rows(outcome.category, artifacts.get(outcome.category), outcome.failure)
    ]
    found += mean_rows(found, sum_replicates(store, artifacts.values()))
    metrics = [common | row for row in found]
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
