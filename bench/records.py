"""What became of each trial: small records in the store, and whether one still holds."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from bench.experiments import Trial
from etstpm import stages
from etstpm.config import Config
from etstpm.inputs import proven_weights
from etstpm.runs import Outcome
from etstpm.storage import Store

Record = dict[str, Any]


@dataclass(frozen=True)
class Places:
    """What belongs to the machine: where images, weights and results are."""

    dataset: str
    weights: str | None
    store: str

    def fill(self, config: Config) -> Config:
        """The config with these places; weights that a row names itself stay."""
        return config.model_copy(
            update={
                "dataset": config.dataset.model_copy(update={"root": self.dataset}),
                "teacher": config.teacher.model_copy(
                    update={"weights": config.teacher.weights or self.weights}
                ),
                "store": self.store,
            }
        )


class Origins:
    """What trials are made from: the digests of the validated images and of the weights."""

    def __init__(self, places: Places, trials: Iterable[Trial]) -> None:
        """Validate the images and prove the weights of all these trials, each only once."""
        store = Store(places.store)
        self._datasets: dict[str, str] = {}
        self._weights: dict[tuple[str | None, str | None], str] = {}
        for trial in trials:
            config = places.fill(trial.config)
            if config.dataset.digest() not in self._datasets:
                self._datasets[config.dataset.digest()] = stages.validate(config, store)
            if _weights_of(config) not in self._weights:
                self._weights[_weights_of(config)] = proven_weights(config).sha256

    def dataset_key(self, config: Config) -> str:
        """Of the validated dataset of a config that has its places."""
        return self._datasets[config.dataset.digest()]

    def of(self, config: Config) -> dict[str, str]:
        """Both digests, as a record has them."""
        dataset, weights = self.dataset_key(config), self._weights[_weights_of(config)]
        return {"dataset": dataset, "weights": weights}


def _weights_of(config: Config) -> tuple[str | None, str | None]:
    return config.teacher.weights, config.teacher.weights_sha256


def read_record(store: Store, trial: Trial) -> Record | None:
    """What became of a trial; None if it has not run, or if its scores have gone since."""
    if not store.fs.exists(store.path(trial.key)):
        return None
    record: Record = store.read_json(trial.key)
    if record["failure"] is None and store.find(record["scores"]) is None:
        return None
    return record


def is_done(store: Store, trial: Trial, origin: dict[str, str]) -> bool:
    """Whether the store has the trial's scores, made from these images and weights."""
    record = read_record(store, trial)
    return record is not None and record["failure"] is None and record["origin"] == origin


def write_record(store: Store, trial: Trial, origin: dict[str, str], outcome: Outcome) -> None:
    """Keep what became of a trial, a failure too."""
    store.write_json(
        trial.key,
        {
            "experiment": trial.experiment,
            "category": trial.category,
            "seed": trial.seed,
            "origin": origin,
            "scores": outcome.scores_key,
            "failure": outcome.failure,
            "finished_at": datetime.now(UTC).isoformat(),
        },
    )
