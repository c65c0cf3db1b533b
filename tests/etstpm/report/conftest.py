"""Two nights of a run over real artifacts, whose names are as hostile as a file system allows."""

import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from etstpm.config import Config
from etstpm.sample import MARKER
from etstpm.settings import settings
from etstpm.storage import Store
from tests.nights import publish_night

STARTED = datetime(2026, 11, 23, 2, 0, tzinfo=UTC)
HOSTILE = "<img src=x onerror=alert(1)>&\"'"
"""A category: a folder's name holds everything but a slash."""
SCRIPT = "script><img src=x onerror=alert(2)>.png"
"""A file in the folder `<`: the path of the two ends a script element."""
FAILURE = "biscuit: the student's loss is <b>nan</b> in epoch 1; lower student.learning_rate"


def run_id(night: int) -> str:
    return f"{STARTED + timedelta(days=night):%Y%m%dT%H%M%SZ}-0a1b2c3{night}"


@pytest.fixture(scope="session")
def store(drawn: Path, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A store with three runs: complete, incomplete, complete; to be read, or copied."""
    folder = tmp_path_factory.mktemp("report")
    root = folder / "dataset"
    for name in ("fabric", "biscuit"):
        shutil.copytree(drawn / name, root / name)
    shutil.copy(drawn / MARKER, root)
    category = (root / "fabric").rename(root / HOSTILE)
    (name, *_) = sorted(path.name for path in (category / "ground_truth").iterdir())
    for place, suffix in (("test", ""), ("ground_truth", "_mask")):
        (category / place / name).rename(category / place / "<")
        (image,) = (category / place / "<").iterdir()
        image.rename(image.with_name(SCRIPT.removesuffix(".png") + suffix + ".png"))
    uri = str(folder / "store")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ETSTPM_CACHE", str(folder / "cache"))
        settings.cache_clear()
        for night in range(3):
            _publish(root, uri, night)
    settings.cache_clear()
    return Store(uri)


def _publish(root: Path, uri: str, night: int) -> None:
    config = Config.model_validate(
        {
            "dataset": {"root": str(root), "image_size": 64},
            "teacher": {"weights": "formula"},
            "student": {"epochs": 3 if night == 2 else 2, "least_images": 0, "batch_size": 2},
            "gate": {"tolerance": 1.0},  # so short a training swings
            "store": uri,
            "device": "cpu",
            "precision": "float32",
        }
    )
    started_at = STARTED + timedelta(days=night)
    failures = {"biscuit": FAILURE} if night == 1 else None
    publish_night(config, run_id(night), started_at, failures=failures)
