"""A whole run without Prefect, small and the same to the bit each time, for what breaks it."""

import contextlib
import os
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from etstpm import stages
from etstpm.config import Config
from etstpm.settings import settings
from etstpm.storage import Store, make_once
from tests.nights import publish_night

CATEGORY = "biscuit"
RUN = "20261123T220000Z-0a1b2c3d"
STARTED = datetime(2026, 11, 23, 22, 0, tzinfo=UTC)
TIMES = {"scored_at", "created_at"}
"""Columns that differ from run to run."""

Image.init()  # a child of the fork server begins with what is imported here

Tables = dict[str, pa.Table]


def tiny_config(root: Path, store: str) -> Config:
    """One category, 32 x 32, two epochs, the teacher of the package, float32 on the CPU."""
    return Config.model_validate(
        {
            "dataset": {"root": str(root), "categories": (CATEGORY,), "image_size": 48},
            "teacher": {"weights": "formula"},
            "student": {"epochs": 2, "least_images": 0, "batch_size": 1},
            "store": store,
            "device": "cpu",
            "precision": "float32",
        }
    )


def run_stages(config: Config, run_id: str = RUN) -> dict[str, str]:
    """All stages and the tables; the key of each stage's artifact."""
    night = publish_night(config, run_id, STARTED, categories=[CATEGORY])
    return {
        "dataset": night.dataset,
        "teacher": night.teacher,
        "student": night.students[CATEGORY],
        "scores": night.scores[CATEGORY],
    }


def run_in_child(
    config: Config, environment: Mapping[str, str], log: str, run_id: str = RUN
) -> None:
    """The same in a process of its own; what it makes is noted in `log`, a line each."""
    import torch

    os.environ.update(environment)
    settings.cache_clear()
    torch.set_num_threads(1)

    def noted(store: Store, key: str, make: Any, **options: Any) -> str:
        def make_and_note() -> None:
            with Path(log).open("a", encoding="utf-8") as file:
                file.write(f"{key}\n")
            make()

        return make_once(store, key, make_and_note, **options)

    vars(stages)["make_once"] = noted
    with open(os.devnull, "w", encoding="utf-8") as nowhere, contextlib.redirect_stderr(nowhere):  # noqa: PTH123
        run_stages(config, run_id)


def tables_of(store: Store, folder: Path, run_id: str = RUN) -> Tables:
    """A run's tables without the columns that differ from run to run."""
    folder.mkdir(exist_ok=True)
    tables = {}
    for name in ("image_scores", "metrics"):
        key = f"tables/{name}/run_id={run_id}/{name}.parquet"
        assert store.fetch(key, folder / f"{name}.parquet"), key
        table = pq.read_table(folder / f"{name}.parquet", partitioning=None)
        tables[name] = table.drop_columns([c for c in table.column_names if c in TIMES])
    return tables


def cards_of(store: Store) -> dict[str, bytes]:
    """Every card, as its file has it; a hidden folder that a killed process filled has none."""
    paths = store.fs.find(store.root) if store.fs.exists(store.root) else []
    keys = [path[len(store.root) + 1 :] for path in paths if path.endswith("/card.json")]
    return {key: store.read_bytes(key) for key in keys if "/." not in key}
