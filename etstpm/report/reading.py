"""A run's content from the store: tables, cards, curves and thumbnails, each proven by its hash."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from etstpm.catalog import STPM_PUBLISHED
from etstpm.errors import StorageError
from etstpm.metric_rows import MEAN
from etstpm.report.content import (
    CategoryContent,
    CurvePoints,
    Epoch,
    Picture,
    RunContent,
    ScoredImage,
    Value,
)
from etstpm.report.past import Baseline, read_nights
from etstpm.runs import read_run
from etstpm.storage import Store
from etstpm.tables import ALL

FILES = "image_scores.parquet", "curves.parquet", "thumbnails.parquet"


def read_content(store: Store, run: str) -> RunContent:
    """Everything that a report says of a published run, given by its id or as 'latest'.

    Raises `ResultsError` for an unknown run, `StorageError` for an artifact that is missing or
    damaged.
    """
    record = read_run(store, run)
    nights, last_good = read_nights(store, record)
    baseline = Baseline(store, record, last_good)
    dataset, teacher = store.get(record["dataset"]), store.get(record["teacher"])
    with store.open(dataset, "findings.parquet") as folder:
        findings = _rows(folder / "findings.parquet")
    return RunContent(
        run_id=record["run_id"],
        started_at=datetime.fromisoformat(record["started_at"]),
        created_at=datetime.fromisoformat(record["created_at"]),
        is_complete=record["status"] == "complete",
        config=record["config"],
        verdict=record.get("verdict"),
        means=_means(store, record),
        categories=[
            replace(
                _category(store, outcome, baseline),
                quarantined=(dataset.card.get("quarantined") or {}).get(outcome["category"], 0),
            )
            for outcome in record["outcomes"]
        ],
        baseline=last_good,
        nights=nights,
        findings=findings,
        dataset=dataset.card,
        teacher=teacher.card,
        keys={
            "dataset": record["dataset"],
            "teacher": record["teacher"],
            **{name: file["key"] for name, file in record["files"].items()},
        },
    )


def _category(store: Store, outcome: Mapping[str, Any], baseline: Baseline) -> CategoryContent:
    name, key = outcome["category"], outcome["scores_key"]
    if key is None:
        return CategoryContent(name, outcome["failure"], published=STPM_PUBLISHED.get(name))
    scores = store.get(key)
    student = store.get(scores.card["student"])
    lacking = [file for file in FILES if file not in scores.card["files"]]
    if lacking:
        raise StorageError(
            f"store {store.uri}: {key} has no {lacking[0]}, an older etstpm made it; run again "
            "with the same config: students are kept, scores are made anew"
        )
    with store.open(scores, *FILES) as folder:
        images, curves, pictures = (_rows(folder / file) for file in FILES)
    with store.open(student, "history.parquet") as folder:
        history = _rows(folder / "history.parquet")
    return CategoryContent(
        name,
        metrics=scores.card["metrics"],
        published=STPM_PUBLISHED.get(name),
        differences=baseline.differences(name),
        images=[
            ScoredImage(
                row["image_path"],
                row["defect_type"],
                row["label"] == 1,
                row["predicted"] == 1,
                row["score"],
            )
            for row in images
        ],
        pictures={
            row["image_path"]: Picture(row["image"], row["heat"], row["outline"])
            for row in pictures
        },
        curves=_curves(curves),
        history=[Epoch(**{n: row[n] for n in Epoch.__dataclass_fields__}) for row in history],
        best_epoch=student.card["metrics"]["epoch"],
        train_images=student.card["train_images"],
        retried=student.card.get("retried"),
        seconds=student.card["seconds"] + scores.card["seconds"],
        cards={"student": student.card, "scores": scores.card},
    )


def _curves(rows: Sequence[Mapping[str, Any]]) -> dict[tuple[str, str, str], CurvePoints]:
    found: dict[tuple[str, str, str], tuple[list[float], list[float]]] = {}
    for row in rows:
        name = row["protocol"], row["level"], row["curve"]
        x, y = found.setdefault(name, ([], []))
        x.append(row["false_positive_rate"])
        y.append(row["rate"])
    return {name: CurvePoints(*points) for name, points in found.items()}


def _means(store: Store, record: Mapping[str, Any]) -> dict[tuple[str, str, str], Value]:
    key, sha256 = (record["files"]["metrics"][name] for name in ("key", "sha256"))
    content = store.read_files([key]).get(key)
    if content is None or hashlib.sha256(content).hexdigest() != sha256:
        fault = "not there" if content is None else "damaged: its SHA-256 is another"
        raise StorageError(
            f"store {store.uri}: {key} is {fault}; restore it, or choose another run"
        )
    rows = pq.read_table(pa.BufferReader(content)).to_pylist()
    chosen = [row for row in rows if row["category"] == MEAN and row["defect_type"] == ALL]
    return {
        (row["protocol"], row["level"], row["metric"]): Value(
            row["value"], row["ci_low"], row["ci_high"]
        )
        for row in chosen
    }


def _rows(path: Path) -> list[dict[str, Any]]:
    # `partitioning=None`: the folders' names are addresses here, not columns.
    rows: list[dict[str, Any]] = pq.read_table(path, partitioning=None).to_pylist()
    return rows
