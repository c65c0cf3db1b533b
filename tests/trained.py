"""A store in which tiny runs are published, for what works with a published student.

Its imports are where they are used: pytest's process that hands out the tests needs no torch.
"""

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pytest

from etstpm.config import Config
from etstpm.settings import settings
from etstpm.storage import Store

CATEGORY = "biscuit"
FAILED = "fabric"


@dataclass(frozen=True)
class Published:
    """To be read only: runs `quantile-sum` and, the latest, `product`, named by their fusion.

    Of each there is an incomplete twin in which `fabric` failed.
    """

    store: Path
    root: Path
    """Of the dataset: the drawn sample, 64x64 pixels."""
    scores: str
    """Key of the scores of the run `product`."""


@pytest.fixture(scope="session")
def published(drawn: Path, tmp_path_factory: pytest.TempPathFactory) -> Published:
    from etstpm.runs import latest_run, move_latest

    folder = tmp_path_factory.mktemp("published")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ETSTPM_CACHE", str(folder / "cache"))
        settings.cache_clear()
        for fusion in ("quantile-sum", "product"):
            key = _publish(drawn, folder / "store", fusion)
        store = Store(str(folder / "store"))
        if latest_run(store) != "product":  # so little training is not always better, says the gate
            move_latest(store, "promote", "product", why="a fixture", who="tests")
    settings.cache_clear()
    return Published(folder / "store", drawn, key)


def _publish(root: Path, place: Path, fusion: str) -> str:
    from etstpm import stages
    from etstpm.publishing import Outcome, publish_run

    config = Config.model_validate(
        {
            "dataset": {"root": str(root), "categories": (CATEGORY,), "image_size": 64},
            "teacher": {"weights": "formula"},
            "student": {"epochs": 2, "batch_size": 1, "validation_fraction": 0.5},
            "scoring": {"fusion": fusion, "batch_size": 2, "smoothing_sigma": 1.0},
            "store": str(place),
            "device": "cpu",
            "precision": "float32",
        }
    )
    store, started_at = Store(config.store), datetime.now(UTC)
    dataset = stages.validate(config, store)
    teacher = stages.teacher(config, store, dataset)
    student = stages.student(config, store, dataset, teacher, CATEGORY)
    scores = stages.scores(config, store, dataset, student, CATEGORY)
    burst = Outcome(FAILED, failure="it <b>burst</b>")
    for run_id, failed in ((fusion, []), (f"{fusion}-incomplete", [burst])):
        publish_run(
            store,
            config,
            run_id=run_id,
            started_at=started_at,
            dataset_key=dataset,
            teacher_key=teacher,
            outcomes=[Outcome(CATEGORY, scores_key=scores), *failed],
        )
    return scores
