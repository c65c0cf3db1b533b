"""What the finished trials have given: read from the store, written as one long table."""

import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from bench.experiments import Ablation, Trial
from bench.records import Record, read_record
from etstpm.config import Config
from etstpm.errors import StorageError
from etstpm.splits import split_train_validation
from etstpm.storage import Artifact, Card, Store

RECIPE = "stpm"
"""The preset whose training is what costs are measured by."""

_NAME = pa.dictionary(pa.int32(), pa.string())
_COLUMNS: dict[str, tuple[pa.DataType, str]] = {
    "experiment": (_NAME, "row of bench/ablation.toml"),
    "group": (_NAME, "its group"),
    "category": (_NAME, "product category"),
    "seed": (pa.int64(), "seed of the trial"),
    "protocol": (_NAME, "'paper-256' or 'mvtec-official', as in the table `metrics`"),
    "level": (_NAME, "'image' or 'pixel'"),
    "metric": (_NAME, "as in the table `metrics`"),
    "value": (pa.float64(), "null where it is not defined: one class only"),
    "epochs_share": (pa.float64(), "of the row's epochs that its students were given"),
    "epochs": (pa.int64(), "of the student"),
    "cost": (
        pa.int64(),
        "images x epochs x passes: trained on by the student, and by the tuned teacher in this "
        "category",
    ),
    "recipe_cost": (pa.int64(), "the same of the preset `stpm` on this category, 100 epochs"),
    "train_seconds": (pa.float64(), "of the student's training, as it was first made"),
    "dataset_digest": (_NAME, "content address of the validated dataset"),
    "teacher_digest": (_NAME, "content address of the teacher"),
    "student_digest": (_NAME, "content address of the student"),
    "scores_digest": (_NAME, "content address of the scores, whose card has all the values"),
}
ABLATION = pa.schema(
    [pa.field(name, kind, metadata={"meaning": text}) for name, (kind, text) in _COLUMNS.items()],
    metadata={"etstpm.table": "ablation"},
)


@dataclass(frozen=True)
class Result:
    """A finished trial."""

    trial: Trial
    values: Mapping[str, Mapping[str, Mapping[str, float | None]]]
    """Protocol to level to metric, as the card of the scores has them."""
    epochs: int
    cost: int
    recipe_cost: int
    train_seconds: float
    origin: Mapping[str, str]
    images: tuple[str, str]
    """Digests of the category's training and test images."""
    teacher: str
    student: str
    scores: str


@dataclass(frozen=True)
class Failure:
    """A trial that failed, and why."""

    trial: Trial
    reason: str


def read_results(store: Store, trials: Iterable[Trial]) -> tuple[list[Result], list[Failure]]:
    """What became of the trials that have run, in their order.

    Raises `StorageError` if a category's figures come from different images: they would not
    compare.
    """
    results, failures = list[Result](), list[Failure]()
    for trial in trials:
        record = read_record(store, trial)
        if record is not None and record["failure"] is not None:
            failures.append(Failure(trial, record["failure"]))
        elif record is not None:
            results.append(_result(store, trial, record))
    first: dict[str, Result] = {}
    for result in results:
        other = first.setdefault(result.trial.category, result)
        if other.images != result.images:
            raise StorageError(
                f"store {store.uri}: {other.trial} and {result.trial} were made from different "
                "images; run them again on one dataset, or keep a store for each"
            )
    return results, failures


def long_table(ablation: Ablation, results: Iterable[Result], epochs_share: float) -> pa.Table:
    """The results as rows of `ABLATION`, one a metric."""
    groups = {row.name: row.group for row in ablation.experiment}
    rows = [
        row | {"group": groups[row["experiment"]], "epochs_share": epochs_share}
        for result in results
        for row in _rows(result)
    ]
    return pa.Table.from_pylist(rows, schema=ABLATION)


def write_pictures(store: Store, results: Iterable[Result], folder: Path) -> int:
    """Copy `EXPERIMENT-CATEGORY.png`, the hardest test images of each pair's first seed; how many.

    MVTec AD's licence (CC BY-NC-SA 4.0) keeps them out of the repository.
    """
    folder.mkdir(parents=True, exist_ok=True)
    first: dict[str, Result] = {}
    for result in results:
        first.setdefault(f"{result.trial.experiment}-{result.trial.category}.png", result)
    for name, result in first.items():
        with store.open(store.get(result.scores), "hardest.png") as artifact:
            shutil.copyfile(artifact / "hardest.png", folder / name)
    return len(first)


def _rows(result: Result) -> Iterator[dict[str, Any]]:
    common = {
        "experiment": result.trial.experiment,
        "category": result.trial.category,
        "seed": result.trial.seed,
        "epochs": result.epochs,
        "cost": result.cost,
        "recipe_cost": result.recipe_cost,
        "train_seconds": result.train_seconds,
        "dataset_digest": _digest(result.origin["dataset"]),
        "teacher_digest": _digest(result.teacher),
        "student_digest": _digest(result.student),
        "scores_digest": _digest(result.scores),
    }
    for protocol, levels in result.values.items():
        for level, metrics in levels.items():
            for metric, value in metrics.items():
                names = {"protocol": protocol, "level": level, "metric": metric}
                yield common | names | {"value": value}


def _result(store: Store, trial: Trial, record: Record) -> Result:
    scores = store.get(record["scores"])
    student = store.get(scores.card["student"])
    teacher = store.get(scores.card["teacher"])
    images: int = student.card["train_images"]
    epochs = _epochs(store, student)
    passes = epochs * _trained_on(images, trial.config.student.validation_fraction)
    tuning = _epochs(store, teacher) * _trained_on(images, trial.config.teacher.validation_fraction)
    recipe = Config.load(RECIPE).student
    return Result(
        trial=trial,
        values=scores.card["metrics"]["values"],
        epochs=epochs,
        cost=passes + tuning,
        recipe_cost=recipe.epochs * _trained_on(images, recipe.validation_fraction),
        train_seconds=student.card["seconds"],
        origin=record["origin"],
        images=(_images(student.card), _images(scores.card)),
        teacher=teacher.key,
        student=student.key,
        scores=scores.key,
    )


def _trained_on(images: int, fraction: float) -> int:
    training, _ = split_train_validation(images, fraction, seed=0)
    return len(training)


def _epochs(store: Store, network: Artifact) -> int:
    """How many epochs its training had: the rows of its history."""
    with store.open(network, "history.parquet") as folder:
        epochs: int = pq.read_metadata(folder / "history.parquet").num_rows
    return epochs


def _images(card: Card) -> str:
    digest: str = card["inputs"]["images"]
    return digest


def _digest(key: str) -> str:
    return key.rsplit("/", 1)[-1]
