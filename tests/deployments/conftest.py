"""One night that nothing disturbs, for the tests that look at it or compare with it."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from etstpm.sample import draw_sample
from tests.prefect_server import RUN_SECONDS, Prefect

OF_ONE_RUN = ["run_id", "created_at", "scored_at"]
"""Columns that differ from run to run by their nature."""


@dataclass
class Night:
    """What is run, and what came of it when nothing went wrong, in a store on disk."""

    values: Mapping[str, Any]
    """The config but for the store."""
    categories: list[str]
    store: Path
    seconds: float = RUN_SECONDS
    run: dict[str, Any] = field(default_factory=dict)

    def config(self, store: str) -> dict[str, Any]:
        return {**self.values, "store": store}

    @property
    def record(self) -> dict[str, Any]:
        """Its run.json."""
        (path,) = self.store.glob("runs/*/run.json")
        loaded: dict[str, Any] = json.loads(path.read_text())
        return loaded

    def undisturbed(self, table: str) -> pd.DataFrame:
        """A table of the run on which nothing went wrong."""
        return pd.read_parquet(self.store / self.record["files"][table]["key"])


@pytest.fixture(scope="session")
def night(workers: Prefect, tmp_path_factory: pytest.TempPathFactory) -> Night:
    """Drawn images, seconds of training; real ones where `make e2e` is given them."""
    folder = tmp_path_factory.mktemp("night")
    real = os.environ.get("ETSTPM_REAL_DATA") if os.environ.get("ETSTPM_E2E") == "full" else None
    if real:
        root, categories = Path(real) / "mvtec_ad", ["capsule", "toothbrush"]
        (weights,) = (Path(real) / "weights").glob("*.pth")
        values: dict[str, Any] = {
            "dataset": {"root": str(root), "categories": categories, "image_size": 128},
            "teacher": {"weights": str(weights)},
            "student": {"epochs": 4, "least_images": 0, "batch_size": 4},
            "device": "cpu",
        }
        tonight = Night(values, categories, folder / "store", seconds=3600.0)
    else:
        draw_sample(folder / "drawn", image_size=64, train=16, test_good=4, per_defect=2)
        root, categories = folder / "drawn", ["biscuit", "flange"]
        values = {
            "dataset": {"root": str(root), "categories": categories, "image_size": 64},
            "teacher": {"weights": "formula"},
            # Of fewer epochs the loss does not fall enough.
            "student": {"epochs": 8, "least_images": 0, "batch_size": 4},
            "device": "cpu",
        }
        tonight = Night(values, categories, folder / "store")
    begun = workers.begin_by_command("etstpm/full", config=tonight.config(str(tonight.store)))
    tonight.run = workers.finish(begun, tonight.seconds)
    assert tonight.run["state"]["type"] == "COMPLETED", workers.log(tonight.run)
    return tonight
