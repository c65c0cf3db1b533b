"""What an artifact's card says, and networks to artifacts and back."""

import dataclasses
import platform
import tempfile
import time
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from etstpm import __version__
from etstpm.compute import Compute
from etstpm.config import Config
from etstpm.networks import FeaturePyramid, freeze
from etstpm.parquet import write_parquet
from etstpm.storage import Card, Store
from etstpm.students import Student, restore_student

VERSIONS = {
    "dataset": 3,
    "teacher": 1,
    "finetuning": 3,
    "student": 3,
    "reverse": 1,
    "scores": 11,
}
"""Of each stage: part of its output's address. Raise it when its code changes what it puts out.

Fine-tuning has its own, so that a change to it leaves the teachers of mode 'imagenet' where they
are, and their students with them; so has what concerns reverse students alone.
"""


def make_card(
    stage: str,
    config: Config,
    inputs: Mapping[str, Any],
    compute: Compute | None = None,
    started: float | None = None,
) -> Card:
    """A stage's card: what it was made from and with; `started` is of `time.monotonic`."""
    result: Card = {
        "stage": stage,
        "stage_version": VERSIONS[stage],
        "inputs": dict(inputs),
        "config": config.model_dump(mode="json", exclude={"store"}),
        "seed": config.seed,
        "created_at": datetime.now(UTC).isoformat(),
        "versions": {
            "etstpm": __version__,
            "python": platform.python_version(),
            "torch": str(torch.__version__),
            "numpy": np.__version__,
        },
    }
    if compute is not None:
        result["compute"] = compute.describe()
    if started is not None:
        result["seconds"] = round(time.monotonic() - started, 3)
    return result


def commit_network(
    store: Store,
    key: str,
    network: nn.Module,
    *,
    history: Iterable[Any],
    schema: pa.Schema,
    card: Card,
) -> None:
    """Publish a network and its history as an artifact."""
    with tempfile.TemporaryDirectory(prefix="etstpm-") as folder:
        tensors = {name: t.cpu().contiguous() for name, t in network.state_dict().items()}
        save_file(tensors, Path(folder) / "weights.safetensors")
        rows = [dataclasses.asdict(record) for record in history]
        table = pa.Table.from_pylist(rows, schema=schema)
        write_parquet(Path(folder) / "history.parquet", schema, [table])
        store.commit(key, Path(folder), card)


def load_teacher(store: Store, key: str) -> FeaturePyramid:
    """A frozen teacher from an artifact, its file's hash verified."""
    pyramid = FeaturePyramid()
    pyramid.load_state_dict(_load_weights(store, key))
    return freeze(pyramid)


def load_student(store: Store, key: str) -> Student:
    """A frozen student, likewise."""
    return freeze(restore_student(_load_weights(store, key)))


def _load_weights(store: Store, key: str) -> dict[str, Tensor]:
    with store.open(store.get(key), "weights.safetensors") as folder:
        return load_file(folder / "weights.safetensors")
