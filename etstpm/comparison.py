"""Two runs side by side: by how much a category's figures moved, how sure that is, what else moved.

Bootstrap replicates of a category are seeded by its name (`etstpm.intervals`): where two runs have
judged the same test images, a replicate of both has drawn the same images, and the difference of
the two is one of paired samples. Where the test images differ, one side's replicates are shuffled,
so that the interval is that of independent samples: wider, and said to be so.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from etstpm.intervals import interval
from etstpm.metric_rows import value_of
from etstpm.runs import Record
from etstpm.storage import Artifact, Card, Store
from etstpm.tables import PAPER

Values = npt.NDArray[np.float64]
Replicates = dict[tuple[str, str, str], Values]
"""By protocol, level and metric: (replicates,)."""

PLACES = {"store", "gate", "dataset.root", "dataset.categories", "teacher.weights"}
"""What a config says that is no choice of the experiment, or shows by the data's digests."""


@dataclass(frozen=True)
class Change:
    """A figure of a category in two runs; None where a run has no such value."""

    category: str
    protocol: str
    level: str
    metric: str
    before: float | None
    after: float | None
    difference: float | None = None
    """After less before: a drop is negative."""
    low: float | None = None
    """95 % bootstrap interval of the difference, lower end; None where nothing can be drawn."""
    high: float | None = None
    is_paired: bool = True
    """Whether both runs have judged the same test images."""
    what: tuple[str, ...] = ()
    """What else is not the same: data, config, code, seed, device; empty for the same artifact."""

    @property
    def is_sure(self) -> bool:
        """Whether the interval of the difference excludes zero."""
        return self.low is not None and self.high is not None and self.low * self.high > 0


class ScoresOfRun:
    """The score artifacts that a run's `run.json` names, read when they are asked for."""

    def __init__(self, store: Store, record: Record) -> None:
        self.store = store
        self.keys: dict[str, str] = {
            outcome["category"]: outcome["scores_key"]
            for outcome in record["outcomes"]
            if outcome["scores_key"] is not None
        }
        self._artifacts: dict[str, Artifact] = {}

    def artifact(self, category: str) -> Artifact | None:
        """A category's scores, None if it has failed or is not in the run."""
        if category not in self.keys:
            return None
        if category not in self._artifacts:
            self._artifacts[category] = self.store.get(self.keys[category])
        return self._artifacts[category]


def compare_category(
    store: Store,
    before: Artifact | None,
    after: Artifact | None,
    category: str,
    *,
    levels: Sequence[str],
    sure_below: float | None = None,
) -> Iterator[Change]:
    """How a category's AUROC moved at each level ('image', 'pixel'; maps at the input's size).

    Replicates are read where a difference lies below `sure_below`, everywhere if it is None; what
    else changed is worked out there too. The same artifact in both runs is not read.
    """
    is_same = before is not None and after is not None and before.key == after.key
    cards = [artifact.card if artifact else {} for artifact in (before, after)]
    is_paired = is_same or _images(cards[0]) == _images(cards[1])
    for level in levels:
        name = (PAPER, level, "auroc")
        old, new = (value_of(card.get("metrics", {}), *name) for card in cards)
        if before is None or after is None or old is None or new is None:
            yield Change(category, *name, old, new, is_paired=is_paired)
        elif is_same:
            yield Change(category, *name, old, new, 0.0, 0.0, 0.0)
        elif sure_below is not None and new - old >= sure_below:
            yield Change(category, *name, old, new, new - old, is_paired=is_paired)
        else:
            replicates = [_replicates(store, artifact).get(name) for artifact in (before, after)]
            low, high = _interval(*replicates, is_paired=is_paired) or (None, None)
            what = what_changed(store, before, after)
            yield Change(category, *name, old, new, new - old, low, high, is_paired, what)


def what_changed(store: Store, before: Artifact, after: Artifact) -> tuple[str, ...]:
    """What two score artifacts of a category were not made from alike, in words.

    From their cards and their students' cards: what a run reused is as old as it is.
    """
    students = [store.find(artifact.card["student"]) for artifact in (before, after)]
    pairs = [(before.card, after.card)]
    if students[0] is not None and students[1] is not None:
        pairs.append((students[0].card, students[1].card))
    said: list[str] = []
    for (old, new), images in zip(pairs, ("test", "train"), strict=False):
        if _images(old) != _images(new):
            said.append(f"data: {images} images")
        said += changed_config(old.get("config", {}), new.get("config", {}))
        said += _named("code", _code(old), _code(new))
        said += _named("", {"seed": old.get("seed")}, {"seed": new.get("seed")})
        said += _named("device", old.get("compute", {}), new.get("compute", {}))
    teachers = [card.card.get("teacher") for card in (before, after)]
    if teachers[0] != teachers[1]:
        said.append("teacher: other weights")
    return tuple(dict.fromkeys(said))


def changed_config(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """The keys of two configs that differ, with their values."""
    old, new = (
        {key: value for key, value in _flat(config) if key not in PLACES and key != "seed"}
        for config in (before, after)
    )
    return _named("config", old, new)


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and name not in PLACES:
            yield from _flat(value, f"{name}.")
        else:
            yield name, value


def _named(kind: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """'kind: key 1 -> 2' for each key whose values differ."""
    keys = [key for key in {**old, **new} if old.get(key) != new.get(key)]
    start = f"{kind}: " if kind else ""
    return [f"{start}{key} {_shown(old, key)} -> {_shown(new, key)}" for key in keys]


def _shown(values: Mapping[str, Any], key: str) -> str:
    return str(values.get(key, "nothing"))


def _code(card: Card) -> dict[str, Any]:
    stage = {f"stage {card.get('stage')}": card.get("stage_version")}
    return {**card.get("versions", {}), **stage}


def _images(card: Card) -> Any:
    inputs = card.get("inputs", {})
    return [inputs.get("images"), inputs.get("paths")]


def _interval(
    before: Values | None, after: Values | None, *, is_paired: bool
) -> list[float] | None:
    """Of the difference; None where one side has no replicates."""
    if before is None or after is None:
        return None
    count = min(len(before), len(after))  # one may be of a version that draws more
    if not is_paired:
        before = np.random.default_rng(0).permutation(before)
    return interval(after[:count] - before[:count])


def _replicates(store: Store, artifact: Artifact) -> Replicates:
    with store.open(artifact, "replicates.parquet") as folder:
        table = pq.read_table(folder / "replicates.parquet", partitioning=None)
    keys = ["protocol", "level", "metric"]
    groups = table.to_pandas().groupby(keys, observed=True)["value"]
    return {name: values.to_numpy() for name, values in groups}
