"""Tonight's student from an earlier night's, where the category's images have grown since.

`student.warm_start` names the earlier run. Its student is taken where it was made by the same
recipe (everything in its address but the images) of some of tonight's images and of no others;
everywhere else tonight's student begins from random weights, as without. The earlier student's
address is part of tonight's: the same start gives the same bits.

What the earlier student was trained on is never held out tonight: it would look normal beyond its
due, and the decision threshold would be too low. Held out are the images that were held out then,
and some of the new ones.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from etstpm.config import Config
from etstpm.dataset import rows_of
from etstpm.errors import StorageError
from etstpm.runs import LATEST, latest_run, read_run
from etstpm.splits import Indices, count_held_out, split_train_validation
from etstpm.storage import Card, Store

CHANGING = frozenset({"images", "start"})
"""What of a student's identity is no part of its recipe."""


@dataclass(frozen=True)
class Start:
    """An earlier student that tonight's begins from."""

    key: str
    epochs: int
    held_out: list[int]
    """Rows of tonight's train/good, ascending."""

    @property
    def identity(self) -> dict[str, Any]:
        """What of it enters the address of tonight's student."""
        return {"student": self.key.rsplit("/", 1)[-1], "epochs": self.epochs}

    def split(self, count: int) -> tuple[Indices, Indices]:
        """Which of tonight's images train the student and which are held out."""
        held_out = np.array(self.held_out, np.int64)
        return np.setdiff1d(np.arange(count), held_out), held_out


def pin_run(config: Config, store: Store) -> Config:
    """The config with the run that "latest" means now: asked once, by whoever begins a run."""
    if config.student.warm_start != LATEST:
        return config
    student = config.student.model_copy(update={"warm_start": latest_run(store)})
    return config.model_copy(update={"student": student})


def find_start(
    config: Config,
    store: Store,
    category: str,
    recipe: dict[str, Any],
    images: Sequence[str],
) -> Start | None:
    """The student to begin from; None for random weights.

    recipe: the identity of tonight's student without a start. images: SHA-256 of each image of
    tonight's train/good, in order. Raises `ResultsError` for a run that the store does not have.
    """
    run_id = pin_run(config, store).student.warm_start
    if run_id is None:
        return None
    run = read_run(store, run_id)
    card = _student_card(store, run, category)
    if card is None or _fixed(card["inputs"]) != _fixed(recipe):
        return None
    if card["inputs"]["images"] == recipe["images"]:
        # Nothing is new: the student is that run's own, whatever that began from.
        return Start(**card["start"]) if card.get("start") else None
    earlier = _image_hashes(store, run["dataset"], category)
    if not set(earlier) < set(images):
        return None
    _, then = split_of(card, len(earlier), config)
    held_out = extend_held_out(
        images,
        [earlier[row] for row in then],
        set(earlier),
        count=count_held_out(len(images), config.student.validation_fraction),
        seed=config.seed,
    )
    return Start(card["key"], config.student.warm_epochs, held_out)


def extend_held_out(
    images: Sequence[str], held_out: Sequence[str], earlier: set[str], *, count: int, seed: int
) -> list[int]:
    """Rows held out tonight: those of before, and as many new ones as are lacking to `count`.

    images, held_out, earlier: SHA-256 of tonight's images, of those held out before, of all before.
    """
    before = set(held_out)
    kept = [row for row, image in enumerate(images) if image in before]
    new = [row for row, image in enumerate(images) if image not in earlier]
    drawn = np.random.default_rng([seed, 2]).permutation(new)[: max(0, count - len(kept))]
    return sorted([*kept, *drawn.tolist()])


def split_of(card: Card, count: int, config: Config) -> tuple[Indices, Indices]:
    """Which of `count` good images trained the student of this card, and which were held out."""
    if card.get("start"):
        return Start(**card["start"]).split(count)
    return split_train_validation(count, config.student.validation_fraction, config.seed)


def _student_card(store: Store, run: dict[str, Any], category: str) -> Card | None:
    """The card of a run's student; None where the category failed, or what it made is gone."""
    keys = {o["category"]: o["scores_key"] for o in run["outcomes"] if o["scores_key"]}
    if category not in keys:
        return None
    try:
        return store.get(store.get(keys[category]).card["student"]).card
    except StorageError:
        return None


def _image_hashes(store: Store, dataset_key: str, category: str) -> list[str]:
    with store.open(store.get(dataset_key), "manifest.parquet") as folder:
        manifest = pq.read_table(folder / "manifest.parquet", partitioning=None)
    return [row["image_sha256"] for row in rows_of(manifest, category, "train")]


def _fixed(identity: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in identity.items() if name not in CHANGING}
