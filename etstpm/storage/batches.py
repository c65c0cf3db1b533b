"""Scores of new images below `scored/`: what `store gc` and `store verify` know of them.

No run makes them again: the images may be gone, and a later run's student scores them otherwise. So
they are kept until somebody gives an age or a name.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from etstpm.errors import StorageError
from etstpm.storage.inventory import files_below, in_parallel, subfolders
from etstpm.storage.keeping import UNFINISHED, Garbage, Keeping
from etstpm.storage.store import Store

SCORED = "scored"
"""The folder below a store: `scored/CATEGORY/BATCH/`."""
SUMMARY = "score.json"
"""A batch's record, written last: what a batch has put without it was never finished."""


@dataclass(frozen=True)
class Batch:
    """What a command or a flow has scored at one time."""

    name: str
    """`CATEGORY/BATCH`."""
    content: bytes | None
    """Its record's; None of one that was never finished."""

    @property
    def key(self) -> str:
        """Its folder below the store."""
        return f"{SCORED}/{self.name}"

    @property
    def record(self) -> dict[str, Any] | None:
        """Its record; None if it is not one."""
        try:
            found = json.loads(self.content or b"")
            datetime.fromisoformat(found["created_at"])
            [file["sha256"] for file in found["files"].values()]
        except (ValueError, TypeError, KeyError, AttributeError):
            return None
        return dict(found)


def batches_of(store: Store) -> Iterator[Batch]:
    """Every batch below the store, category by category; a file of each is read."""
    for category in subfolders(store, SCORED):
        names = [f"{category}/{name}" for name in subfolders(store, f"{SCORED}/{category}")]
        contents = in_parallel(lambda n: store.read_if_there(f"{SCORED}/{n}/{SUMMARY}"), names)
        yield from map(Batch, names, contents)


def batch_garbage(
    store: Store, batches: list[Batch], keeping: Keeping, now: datetime
) -> Iterator[Garbage]:
    """The batches that can go. Raises `StorageError` for a name that is to go and is not there."""
    for name in keeping.dropped_batches:
        if any(_is_of(batch, name) for batch in batches):
            continue
        raise StorageError(
            f"store {store.uri}: no {SCORED}/{name} in it; --scored takes a category, or "
            "CATEGORY/BATCH as it stands below scored/"
        )
    for batch in batches:
        reason = _why(batch, keeping, now)
        if reason is None:
            continue
        entries = tuple(files_below(store, batch.key))
        is_young = any(not keeping.is_old(entry.modified, now) for entry in entries)
        if entries and not (is_young and reason == UNFINISHED):
            yield Garbage(batch.key, reason, entries)


def _why(batch: Batch, keeping: Keeping, now: datetime) -> str | None:
    """Why a batch may go; None if it is kept, as one is whose record cannot be read."""
    if any(_is_of(batch, name) for name in keeping.dropped_batches):
        return "named by --scored"
    if batch.content is None:
        return UNFINISHED
    record = batch.record
    if record is None or keeping.scored_days is None:
        return None
    age = now - datetime.fromisoformat(record["created_at"])
    if age <= timedelta(days=keeping.scored_days):
        return None
    return f"scored {age.days} days ago"


def _is_of(batch: Batch, name: str) -> bool:
    return batch.name == name or batch.name.startswith(f"{name}/")
