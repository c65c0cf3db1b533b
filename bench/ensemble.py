"""What students of several experiments find together: their maps and scores averaged.

Each member's maps and scores are divided by its own thresholds, which held-out good images gave, so
that none outweighs another. An ensemble costs as many trainings and forward passes as it has
members.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from bench.comparison import spell
from bench.experiments import Trial
from bench.records import Origins, Places, read_record
from etstpm.calibration import Calibration
from etstpm.cards import load_student, load_teacher
from etstpm.category_scores import evaluate_scored
from etstpm.compute import choose_compute
from etstpm.errors import StorageError
from etstpm.images import resize_mask
from etstpm.inference.detector import CALIBRATION
from etstpm.inputs import Inputs, open_inputs, own_mask
from etstpm.scorer import Scorer
from etstpm.scoring import ScoredImages
from etstpm.storage import Store


def find_together(trials: Sequence[Trial], places: Places) -> Iterator[str]:
    """A line for each experiment and one for all together, of each category and seed.

    Raises `StorageError` for a trial that has not run.
    """
    store, origins = Store(places.store), Origins(places, trials)
    for category, seed in dict.fromkeys((trial.category, trial.seed) for trial in trials):
        members = [trial for trial in trials if (trial.category, trial.seed) == (category, seed)]
        found: list[ScoredImages] = []
        for trial in members:
            config = places.fill(trial.config)
            inputs = open_inputs(config, store, origins.dataset_key(config))
            found.append(_score(store, trial, inputs))
            yield f"{trial}: {_judge(inputs, category, found[-1])}"
        together = ScoredImages(
            np.mean([member.maps for member in found], axis=0),
            np.mean([member.scores for member in found], axis=0),
        )
        yield f"together, {category}, seed {seed}: {_judge(inputs, category, together)}"


def _score(store: Store, trial: Trial, inputs: Inputs) -> ScoredImages:
    """A trial's test images scored again, in units of its own thresholds."""
    record = read_record(store, trial)
    if record is None or record["failure"] is not None:
        raise StorageError(f"store {store.uri}: {trial} has no scores; run bench.ablation first")
    config, artifact = trial.config, store.get(record["scores"])
    compute = choose_compute(config)
    with store.open(artifact, CALIBRATION) as folder:
        calibration = Calibration.load(folder / CALIBRATION, compute.device)
    networks = (
        load_teacher(store, artifact.card["teacher"]),
        load_student(store, artifact.card["student"]),
    )
    pixels = inputs.pixels(trial.category, "test", config.dataset.image_size)
    scorer = Scorer(*networks, config.scoring, compute, str(trial))
    scored = scorer.score(pixels, calibration)
    metrics = artifact.card["metrics"]
    return ScoredImages(
        scored.maps / np.float32(metrics["map_threshold"]), scored.scores / metrics["threshold"]
    )


def _judge(inputs: Inputs, category: str, scored: ScoredImages) -> str:
    rows = inputs.rows(category, "test")
    own = [own_mask(inputs.root, row) for row in rows]
    masks = np.stack([resize_mask(mask, scored.maps.shape[1]) for mask in own])
    evaluation = evaluate_scored(category, rows, scored, own, masks)
    return spell(evaluation.figures["values"], digits=4)
