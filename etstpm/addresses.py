"""What each artifact's content address is made of: all that its content depends on.

Worked out from the dataset's manifest and the config alone, so that a scheduler can tell what is
made already without starting anything.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from etstpm.cards import VERSIONS
from etstpm.config import Config, digest_of
from etstpm.dataset import unsaid
from etstpm.inputs import Inputs, open_inputs, proven_weights
from etstpm.networks import TeacherWeights
from etstpm.storage import Store
from etstpm.warm_start import Start, find_start

PUBLISHED_SCORES = ("image_scores.parquet", "replicates.parquet", "hardest.png")
"""Files of a category's scores that a run publishes: they must be sound, or are made anew."""


@dataclass(frozen=True)
class Address:
    """Where an artifact lies in the store, and why there."""

    folder: str
    identity: dict[str, Any]
    """What the artifact is made from; its card keeps it."""

    @property
    def key(self) -> str:
        """The artifact's key below the store's root."""
        return f"{self.folder}/{self.digest}"

    @property
    def digest(self) -> str:
        """SHA-256 of the identity, 64 hexadecimal digits."""
        return digest_of(self.identity)


@dataclass(frozen=True)
class Made:
    """What of a category is in the store already."""

    student_digest: str
    """Of its student, whether that is made or not."""
    scores_key: str | None
    """None where scores or student are still to be made."""


def address_teacher(
    config: Config, inputs: Inputs, weights: TeacherWeights, categories: Iterable[str]
) -> Address:
    """Of the frozen teacher. What is not fine-tuned depends on its weights file alone."""
    identity: dict[str, Any] = {
        "version": VERSIONS["teacher"],
        "weights": weights.sha256 or weights.description,
        "mode": config.teacher.mode,
    }
    if config.teacher.mode != "imagenet":
        identity |= {
            "finetuning": VERSIONS["finetuning"],
            "config": config.teacher.model_dump(exclude={"weights", "weights_sha256"}),
            "images": {name: inputs.digest(name, "train") for name in categories},
            **_numerics(config),
        }
    return Address("teachers", identity)


def address_student(
    config: Config, store: Store, inputs: Inputs, teacher_key: str, category: str
) -> tuple[Address, Start | None]:
    """Of one category's student on this teacher, and the earlier student that it begins from."""
    identity = {
        "version": VERSIONS["student"],
        "teacher": digest_in(teacher_key),
        "images": inputs.digest(category, "train"),
        "config": config.student.identity(),
        **({"reverse": VERSIONS["reverse"]} if config.student.network == "reverse" else {}),
        **_numerics(config),
    }
    images = [row["image_sha256"] for row in inputs.rows(category, "train")]
    start = find_start(config, store, category, identity, images)
    if start is not None:
        identity["start"] = start.identity
    return Address(f"students/{category}", identity), start


def address_scores(config: Config, inputs: Inputs, student_key: str, category: str) -> Address:
    """Of one category's test images, scored by this student."""
    return Address(
        f"scores/{category}",
        {
            "version": VERSIONS["scores"],
            "student": digest_in(student_key),
            # Its table names each image and its defect type, which most layouts' paths say.
            "paths": [
                [row["image_path"], *unsaid(row)] if unsaid(row) else row["image_path"]
                for row in inputs.rows(category, "test")
            ],
            "images": inputs.digest(category, "test"),
            "config": config.scoring.model_dump(mode="json"),
            **({} if config.maps.kept == "none" else {"maps": config.maps.model_dump()}),
        },
    )


def find_teacher(config: Config, store: Store, dataset_key: str) -> str | None:
    """Key of the run's teacher if it is made already."""
    inputs = open_inputs(config, store, dataset_key)
    categories = sorted(store.get(dataset_key).card["categories"])
    address = address_teacher(config, inputs, proven_weights(config), categories)
    artifact = store.find(address.key)
    if artifact is not None:
        store.touch(artifact)
    return None if artifact is None else artifact.key


def find_scores(
    config: Config, store: Store, dataset_key: str, teacher_key: str, categories: Iterable[str]
) -> dict[str, Made]:
    """What is made already of each category, and sound; it is marked as used, for `store gc`."""
    inputs = open_inputs(config, store, dataset_key)
    found = {}
    for category in categories:
        student, _ = address_student(config, store, inputs, teacher_key, category)
        scores = address_scores(config, inputs, student.key, category)
        artifacts = store.find(student.key), store.find_sound(scores.key, *PUBLISHED_SCORES)
        for artifact in artifacts:
            if artifact is not None:
                store.touch(artifact)
        found[category] = Made(student.digest, scores.key if all(artifacts) else None)
    return found


def digest_in(key: str) -> str:
    """The content address that ends an artifact's key."""
    return key.rsplit("/", 1)[-1]


def _numerics(config: Config) -> dict[str, Any]:
    """What else a training's result depends on."""
    return {
        "seed": config.seed,
        "image_size": config.dataset.image_size,
        "device": config.device,
        "precision": config.precision,
    }
