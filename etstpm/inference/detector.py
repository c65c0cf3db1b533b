"""A category's detector, as a published run has left it in the store: all that scores an image."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import ValidationError

from etstpm.calibration import Calibration
from etstpm.cards import load_student, load_teacher
from etstpm.compute import Compute, choose_compute
from etstpm.config import Config
from etstpm.errors import ConfigError, StorageError
from etstpm.images import Pixels
from etstpm.networks import FeaturePyramid
from etstpm.pictures import HeatScale
from etstpm.runs import read_run
from etstpm.scorer import Scorer
from etstpm.scoring import ScoredImages
from etstpm.storage import Artifact, Store
from etstpm.students import Student

CALIBRATION = "calibration.safetensors"


@dataclass(frozen=True)
class Detector:
    """Teacher, student, calibration and threshold of one category, and where they come from."""

    category: str
    run_id: str
    config: Config
    """Of the run; its store is left at the default."""
    teacher: FeaturePyramid
    student: Student
    calibration: Calibration
    compute: Compute
    scores: Artifact
    """The category's scores of that run: threshold, held-out good scores, metrics."""
    keys: tuple[str, str]
    """Of the teacher and the student."""
    dataset_key: str

    @property
    def size(self) -> int:
        """Side in pixels that images are resized to."""
        return self.config.dataset.image_size

    @property
    def threshold(self) -> float:
        """An image that scores above it is called defective."""
        return float(self.scores.card["metrics"]["threshold"])

    @property
    def heat_scale(self) -> HeatScale:
        """Which values of its maps are cold and which are hot, for pictures."""
        metrics = self.scores.card["metrics"]
        threshold = metrics["map_threshold"]
        return HeatScale(metrics.get("map_cold", threshold / 10), threshold)  # older runs have none

    @property
    def held_out_scores(self) -> npt.NDArray[np.float64]:
        """Scores of the good images that the threshold was taken from."""
        return np.array(self.scores.card["metrics"]["held_out_scores"], np.float64)

    @property
    def precision_of_threshold(self) -> str:
        """Precision of the convolutions that the threshold was set with: 'bfloat16', 'float32'."""
        return str(self.scores.card["compute"]["precision"])

    def score(self, pixels: Pixels) -> ScoredImages:
        """Score one batch of images (N, size, size, 3) uint8, as the pipeline does.

        The same batch gives the pipeline's scores to the bit, on the same kind of machine.
        """
        scorer = Scorer(self.teacher, self.student, self.config.scoring, self.compute)
        return scorer.score_batch(pixels, self.calibration)


def load_detector(
    store: Store, run: str, category: str, compute: Compute | None = None
) -> Detector:
    """The detector of a category as a run (its id, or `latest`) has published it.

    compute: what the run's config says, or `auto` where this machine lacks its device, if None.
    Raises `ResultsError` for a run that is not there, and `StorageError` for a category that is
    not in it, has failed or was scored by too old a version.
    """
    record = read_run(store, run)
    run_id = record["run_id"]
    artifact = store.get(_scores_key(store, record, category))
    if CALIBRATION not in artifact.card["files"]:
        raise StorageError(
            f"store {store.uri}: run {run_id} was made before etstpm kept the calibration that "
            f"scores images; run the pipeline once more (its students are reused), or choose a "
            "newer run"
        )
    config = _config_of(store, artifact)
    compute = compute or _compute_here(config)
    teacher_key, student_key = artifact.card["teacher"], artifact.card["student"]
    with store.open(artifact, CALIBRATION) as folder:
        calibration = Calibration.load(folder / CALIBRATION, compute.device)
    return Detector(
        category=category,
        run_id=run_id,
        config=config,
        teacher=load_teacher(store, teacher_key).to(compute.device),
        student=load_student(store, student_key).to(compute.device),
        calibration=calibration,
        compute=compute,
        scores=artifact,
        keys=(teacher_key, student_key),
        dataset_key=record["dataset"],
    )


def _compute_here(config: Config) -> Compute:
    try:
        return choose_compute(config)
    except ConfigError:  # trained on a GPU, say, and asked on a machine that has none
        return choose_compute(config.model_copy(update={"device": "auto"}))


def _scores_key(store: Store, record: Mapping[str, Any], category: str) -> str:
    run_id = record["run_id"]
    outcomes = {outcome["category"]: outcome for outcome in record["outcomes"]}
    if category not in outcomes:
        raise StorageError(
            f"store {store.uri}: run {run_id} has no category {category!r}; it has "
            f"{', '.join(sorted(outcomes))}"
        )
    if outcomes[category]["scores_key"] is None:
        raise StorageError(
            f"store {store.uri}: {category} failed in run {run_id} "
            f"({outcomes[category]['failure']}); choose another run"
        )
    return str(outcomes[category]["scores_key"])


def _config_of(store: Store, artifact: Artifact) -> Config:
    try:
        return Config.model_validate(artifact.card["config"])
    except ValidationError as error:
        fault = error.errors()[0]
        raise StorageError(
            f"store {store.uri}: {artifact.key} was made with another version of etstpm "
            f"({artifact.card['versions']['etstpm']}): {'.'.join(map(str, fault['loc']))}: "
            f"{fault['msg'].lower()}; use that version, or run the pipeline again"
        ) from None
