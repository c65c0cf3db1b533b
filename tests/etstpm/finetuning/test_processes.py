"""Two processes with gloo tune the same teacher as one."""

from pathlib import Path

import pytest
import torch

from etstpm import stages
from etstpm.cards import load_teacher
from etstpm.config import Config
from etstpm.errors import TrainingError
from etstpm.finetuning.processes import finetune_on
from etstpm.inputs import proven_weights
from etstpm.networks import random_pyramid
from etstpm.settings import settings
from etstpm.storage import Store, file_sha256

TOLERANCE = 1e-4


def make_config(root: Path, folder: Path, processes: int = 1) -> Config:
    """Batch normalisation counts as folded: it does nothing in a random network."""
    file = folder / "random.pth"
    torch.save(random_pyramid(5).state_dict(), file)
    values = {"dataset.root": str(root), "store": str(folder / str(processes))}
    return Config.load(
        "sample",
        # Nine images and a batch of five: shares of three, the second one filled up.
        [
            "dataset.image_size=32",
            "student.network=forward",
            "teacher.batch_size=5",
            "teacher.epochs=2",
            "device=cpu",
            "teacher.learning_rate=0.001",
        ],
        values
        | {
            "teacher.weights": str(file),
            "teacher.weights_sha256": file_sha256(file),
            "teacher.mode": "metric",
            "precision": "float32",
        },
    )


def test_two_processes_give_the_weights_of_one(
    drawn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """'metric' compares images of different processes: a loss by share would differ."""
    tuned = {}
    for processes in (1, 2):
        monkeypatch.setenv("ETSTPM_TEACHER_PROCESSES", str(processes))
        settings.cache_clear()
        config = make_config(drawn, tmp_path, processes)
        store = Store(config.store)
        key = stages.teacher(config, store, stages.validate(config, store))
        tuned[processes] = key, load_teacher(store, key).state_dict(), store.get(key).card

    (key, one, card), (same_key, two, same_card) = tuned[1], tuned[2]
    assert key == same_key, "how many processes is the machine's matter"
    assert card["summary"] == same_card["summary"]
    assert "fine-tuned" in card["summary"]
    assert max(float((one[name] - two[name]).abs().max()) for name in one) < TOLERANCE
    start = proven_weights(make_config(drawn, tmp_path)).tensors
    moved = max(float((one[name] - start[name]).abs().max()) for name in one)
    assert moved > 10 * TOLERANCE, "nothing was tuned: the comparison says nothing"


def test_fault_of_a_process_is_one_line(drawn: Path, tmp_path: Path) -> None:
    config = make_config(drawn, tmp_path)

    with pytest.raises(
        TrainingError, match=r"teacher on 2 processes: store .*no artifact"
    ) as raised:
        finetune_on(2, config, "datasets/missing")

    assert "\n" not in str(raised.value)
