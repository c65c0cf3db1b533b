"""What the finished trials have given: read from the store, kept as one long table.

The table outlives the store: docs/quality.parquet is in the repository, students are not.
"""

import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from bench.experiments import Ablation, Trial
from bench.records import Record, read_record
from etstpm.config import Config
from etstpm.errors import StorageError, reason_of
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
    "trial": (_NAME, "digest of its config: its record in the store is named by it"),
    "weights_sha256": (_NAME, "of the file that the teacher began with"),
    "train_images_digest": (_NAME, "of the category's training images"),
    "test_images_digest": (_NAME, "of its test images"),
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
    images: tuple[str, str]
    """Digests of the category's training and test images."""
    weights: str
    """SHA-256."""
    dataset: str
    """Digest, as of the teacher, the student and the scores."""
    teacher: str
    student: str
    scores: str

    @property
    def scores_key(self) -> str:
        """In a store that has them."""
        return f"scores/{self.trial.category}/{self.scores}"


@dataclass(frozen=True)
class Failure:
    """A trial that failed, and why."""

    trial: Trial
    reason: str


def read_results(store: Store, trials: Iterable[Trial]) -> tuple[list[Result], list[Failure]]:
    """What became of the trials that have run in this store, in their order."""
    results, failures = list[Result](), list[Failure]()
    for trial in trials:
        record = read_record(store, trial)
        if record is not None and record["failure"] is not None:
            failures.append(Failure(trial, record["failure"]))
        elif record is not None:
            results.append(_result(store, trial, record))
    return results, failures


def read_table(path: Path, trials: Iterable[Trial]) -> list[Result]:
    """What an earlier `long_table` kept of these trials, in their order; nothing without a file.

    Rows of other trials, whose row or preset has changed since, are left out. Raises
    `StorageError` for a file that is no such table.
    """
    if not path.exists():
        return []
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowException) as error:
        raise StorageError(f"{path} cannot be read: {reason_of(error)}; delete it") from None
    if table.schema.names != ABLATION.names:
        raise StorageError(f"{path} has other columns than the table `ablation`; delete it")
    kept: dict[str, list[dict[str, Any]]] = {}
    for row in table.to_pylist():
        kept.setdefault(row["trial"], []).append(row)
    return [_kept(trial, kept[trial.digest]) for trial in trials if trial.digest in kept]


def merged(kept: Iterable[Result], made: Iterable[Result], trials: Iterable[Trial]) -> list[Result]:
    """One result a trial, in their order; what was made last counts.

    Raises `StorageError` if a category's figures come from different images: they would not
    compare.
    """
    by_trial = {_name(result.trial): result for result in [*kept, *made]}
    results = [by_trial[_name(trial)] for trial in trials if _name(trial) in by_trial]
    first: dict[str, Result] = {}
    for result in results:
        other = first.setdefault(result.trial.category, result)
        if other.images != result.images:
            raise StorageError(
                f"{other.trial} and {result.trial} were made from different images; run them "
                "again on one dataset, or keep a store and a page (--out) for each"
            )
    return results


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
    """Copy `EXPERIMENT-CATEGORY.png`, the hardest test images of each pair's first seed that the
    store has; how many.

    MVTec AD's licence (CC BY-NC-SA 4.0) keeps them out of the repository.
    """
    folder.mkdir(parents=True, exist_ok=True)
    first: dict[str, Result] = {}
    for result in results:
        if store.find(result.scores_key) is not None:
            first.setdefault(f"{result.trial.experiment}-{result.trial.category}.png", result)
    for name, result in first.items():
        with store.open(store.get(result.scores_key), "hardest.png") as artifact:
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
        "trial": result.trial.digest,
        "weights_sha256": result.weights,
        "train_images_digest": result.images[0],
        "test_images_digest": result.images[1],
        "dataset_digest": result.dataset,
        "teacher_digest": result.teacher,
        "student_digest": result.student,
        "scores_digest": result.scores,
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
    of_student = trial.config.student
    passes = epochs * of_student.shown(_trained_on(images, of_student.validation_fraction))
    tuning = _epochs(store, teacher) * _trained_on(images, trial.config.teacher.validation_fraction)
    recipe = Config.load(RECIPE).student
    return Result(
        trial=trial,
        values=scores.card["metrics"]["values"],
        epochs=epochs,
        cost=passes + tuning,
        recipe_cost=recipe.epochs * _trained_on(images, recipe.validation_fraction),
        train_seconds=student.card["seconds"],
        images=(_images(student.card), _images(scores.card)),
        weights=record["origin"]["weights"],
        dataset=_digest(record["origin"]["dataset"]),
        teacher=_digest(teacher.key),
        student=_digest(student.key),
        scores=_digest(scores.key),
    )


def _kept(trial: Trial, rows: Sequence[Mapping[str, Any]]) -> Result:
    """`_rows` read back."""
    values: dict[str, dict[str, dict[str, float | None]]] = {}
    for row in rows:
        level = values.setdefault(row["protocol"], {}).setdefault(row["level"], {})
        level[row["metric"]] = row["value"]
    first = rows[0]
    return Result(
        trial=trial,
        values=values,
        epochs=first["epochs"],
        cost=first["cost"],
        recipe_cost=first["recipe_cost"],
        train_seconds=first["train_seconds"],
        images=(first["train_images_digest"], first["test_images_digest"]),
        weights=first["weights_sha256"],
        dataset=first["dataset_digest"],
        teacher=first["teacher_digest"],
        student=first["student_digest"],
        scores=first["scores_digest"],
    )


def _name(trial: Trial) -> tuple[str, str]:
    """Two rows may ask for one and the same config."""
    return trial.experiment, trial.digest


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
