"""What no kept run refers to, and its removal (`etstpm store gc`).

A run is never asked what it uses: whatever in its `run.json`, in an ablation's record or in a kept
artifact's card looks like an artifact's key is kept, but for the student that a warm one began
from: it is not needed any more. Tables, run records and reports are history and stay.

Against a run that works at the same time stand three things: what was written or used within the
last `min_age` stays (a run touches what it reuses), what somebody holds a lease on stays, and the
age is read once more before the removal.
"""

import re
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from etstpm.errors import StorageError
from etstpm.storage.artifact import CARD, KEY
from etstpm.storage.batches import SUMMARY, batch_garbage, batches_of
from etstpm.storage.inventory import (
    Entry,
    Folder,
    artifact_folders,
    files_below,
    in_parallel,
    run_ids,
)
from etstpm.storage.keeping import UNFINISHED, Garbage, Keeping
from etstpm.storage.lease import FOLDER as LEASES
from etstpm.storage.lease import lease_key
from etstpm.storage.store import Store

COLLECTED = "collected.json"
"""Beside a `run.json` whose artifacts are no longer kept."""

RECORDS = ("ablation",)
"""Folders of JSON files that refer to artifacts, as runs do."""

LEFTOVER = re.compile(
    r"(?:^|/)\.(?:probe-[0-9a-f]{32}$|[0-9a-f]{32}\.(?:partial|discarded)(?:/|$))"
)


@dataclass(frozen=True)
class Plan:
    """What a collection would remove, and what it keeps."""

    garbage: list[Garbage]
    kept_runs: list[str]
    dropped_runs: list[str]
    """Published, and their artifacts not kept."""
    kept: int
    """Artifacts."""
    kept_size: int
    """Their bytes."""
    kept_batches: int
    """Of new images' scores."""
    now: datetime

    @property
    def size(self) -> int:
        """Bytes to be removed."""
        return sum(item.size for item in self.garbage)


def plan_collection(store: Store, keeping: Keeping, now: datetime | None = None) -> Plan:
    """Find what can go. Writes nothing. Raises `StorageError` if a run's record cannot be read."""
    now = now or datetime.now(UTC)
    records = dict(
        zip(
            ids := run_ids(store),
            in_parallel(lambda run: store.read_json(f"runs/{run}/run.json"), ids),
            strict=True,
        )
    )
    published = {run: _published_at(store, run, record) for run, record in records.items()}
    kept_runs = keeping.choose(published, now) | (_latest(store) & set(records))
    roots = [records[run] for run in sorted(kept_runs)] + _records(store)
    referred = _closure(store, set(keys_in(roots)))
    garbage, kept, kept_size = list[Garbage](), 0, 0
    leases = {entry.key: entry for entry in files_below(store, LEASES)}
    for folder in artifact_folders(store):
        lease = leases.get(lease_key(folder.key))
        is_held = lease is not None and not keeping.is_old(lease.modified, now)
        found = None if is_held else _judge(store, folder, referred, keeping, now)
        if found is not None:
            garbage.append(found)
        if found is None or found.entries != tuple(folder.entries):
            kept += 1
            kept_size += folder.size - (found.size if found else 0)
    batches = list(batches_of(store))
    old_batches = list(batch_garbage(store, batches, keeping, now))
    garbage += [*old_batches, *_leftovers(store, leases.values(), keeping, now)]
    kept_batches = len(batches) - len(old_batches)
    dropped = sorted(set(records) - kept_runs)
    return Plan(garbage, sorted(kept_runs), dropped, kept, kept_size, kept_batches, now)


def collect(store: Store, plan: Plan, keeping: Keeping) -> Iterator[Garbage]:
    """Remove it, and yield each that has gone: file after file, what makes it count first.

    Before anything else each run that loses its artifacts is marked, so that `store verify` does
    not take them for lost.
    """
    for run in plan.dropped_runs:
        if store.read_if_there(f"runs/{run}/{COLLECTED}") is None:
            store.write_json(f"runs/{run}/{COLLECTED}", {"collected_at": plan.now.isoformat()})
    for item in plan.garbage:
        if _was_used_since(store, item, keeping, plan.now):
            continue
        keys = [entry.key for entry in item.entries]
        first = {f"{item.key}/{CARD}", f"{item.key}/{SUMMARY}"}.intersection(keys)
        for key in first:
            store.remove_file(key)
        deque(in_parallel(store.remove_file, [key for key in keys if key not in first]), maxlen=0)
        _remove_empty_folders(store, item)
        yield item


def keys_in(value: Any) -> Iterator[str]:
    """Every artifact's key that a JSON value holds, however deep."""
    if isinstance(value, str):
        if KEY.fullmatch(value):
            yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from keys_in(item)
    elif isinstance(value, list):
        for item in value:
            yield from keys_in(item)


def _closure(store: Store, keys: set[str]) -> set[str]:
    """The keys, and what their artifacts' cards refer to: scores to students to teachers."""
    found, new = set(keys), sorted(keys)
    while new:
        cards = [artifact.card for artifact in in_parallel(store.find, new) if artifact is not None]
        # Through its start each night's student would keep those of all nights before.
        needed = [{name: card[name] for name in card.keys() - {"start"}} for card in cards]
        new = sorted(set(keys_in(needed)) - found)
        found |= set(new)
    return found


def _judge(
    store: Store, folder: Folder, referred: set[str], keeping: Keeping, now: datetime
) -> Garbage | None:
    if folder.key not in referred or not folder.has_card:
        if not keeping.is_old(folder.modified, now):
            return None
        reason = "no kept run refers to it" if folder.has_card else UNFINISHED
        return Garbage(folder.key, reason, tuple(folder.entries))
    artifact = store.find(folder.key)
    if artifact is None:
        return None  # damaged: for `store verify` to say
    own = {
        f"{folder.key}/{CARD}",
        *(f"{artifact.folder}/{name}" for name in artifact.card["files"]),
    }
    others = tuple(
        entry
        for entry in folder.entries
        if entry.key not in own and keeping.is_old(entry.modified, now)
    )
    return Garbage(folder.key, "left by an attempt that came second", others) if others else None


def _leftovers(
    store: Store, leases: Iterable[Entry], keeping: Keeping, now: datetime
) -> Iterator[Garbage]:
    """What killed processes left behind: expired leases, partial files."""
    for entry in leases:
        if keeping.is_old(entry.modified, now):
            yield Garbage(entry.key, "a lease that nobody holds", (entry,))
    if not store.is_local:
        return  # objects are put whole
    root = Path(store.root)
    for path in root.rglob(".*"):
        if LEFTOVER.fullmatch(path.name):
            key = path.relative_to(root).as_posix()
            entries = tuple(files_below(store, key))
            if all(keeping.is_old(entry.modified, now) for entry in entries):
                yield Garbage(key, "left by a process that was killed", entries)


def _was_used_since(store: Store, item: Garbage, keeping: Keeping, now: datetime) -> bool:
    if not KEY.fullmatch(item.key) and item.reason != UNFINISHED:
        return False
    return any(not keeping.is_old(entry.modified, now) for entry in files_below(store, item.key))


def _remove_empty_folders(store: Store, item: Garbage) -> None:
    """An object store has no folders; a file system is left without empty ones."""
    if not store.is_local:
        return
    root = Path(store.root)
    for entry in item.entries:
        for parent in Path(store.path(entry.key)).parents:
            if parent in (root, *root.parents):
                break
            try:
                parent.rmdir()
            except OSError:
                break


def _published_at(store: Store, run: str, record: Any) -> datetime:
    try:
        return datetime.fromisoformat(record["created_at"])
    except (TypeError, KeyError, ValueError):
        raise StorageError(
            f"store {store.uri}: runs/{run}/run.json does not say when it was published "
            "(created_at); restore it, or remove the run's folder before collecting"
        ) from None


def _latest(store: Store) -> set[str]:
    content = store.read_if_there("runs/latest.json")
    record = store.read_json("runs/latest.json") if content is not None else {}
    return {str(record["run_id"])} if isinstance(record, dict) and "run_id" in record else set()


def _records(store: Store) -> list[Any]:
    keys = [
        entry.key
        for folder in RECORDS
        for entry in files_below(store, folder)
        if entry.key.endswith(".json")
    ]
    return list(in_parallel(store.read_json, keys))
