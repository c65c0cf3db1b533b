"""A store in which tiny runs are published, for what works with a published student.

Its imports are where they are used: pytest's process that hands out the tests needs no torch.
"""

from dataclasses import dataclass
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
    from tests.nights import publish_night

    config = Config.model_validate(
        {
            "dataset": {"root": str(root), "categories": (CATEGORY,), "image_size": 64},
            "teacher": {"weights": "formula"},
            "student": {
                "epochs": 2,
                "least_images": 0,
                "batch_size": 1,
                "validation_fraction": 0.5,
            },
            "scoring": {"fusion": fusion, "batch_size": 2, "smoothing_sigma": 1.0},
            "store": str(place),
            "device": "cpu",
            "precision": "float32",
        }
    )
    publish_night(config, fusion)
    incomplete = publish_night(config, f"{fusion}-incomplete", failures={FAILED: "it <b>burst</b>"})
    return incomplete.scores[CATEGORY]
