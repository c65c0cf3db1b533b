"""What lies in a store: listed for maintenance alone, never by a run.

Folder by folder, so that memory holds one category's files and not the store's.
"""

import re
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, TypeVar

from etstpm.storage.artifact import CARD, KEY, KINDS
from etstpm.storage.files import on_the_store
from etstpm.storage.store import Store

Item = TypeVar("Item")
Result = TypeVar("Result")

PARALLEL = 16
"""Requests at a time: a store far away answers each in tens of milliseconds."""

RUN = re.compile(r"runs/([^/]+)/run\.json")


@dataclass(frozen=True)
class Entry:
    """A file of the store."""

    key: str
    size: int
    """Bytes."""
    modified: datetime
    """By the store's clock."""


@dataclass
class Folder:
    """All files below one artifact's key, whether it is whole or not."""

    key: str
    entries: list[Entry] = field(default_factory=list)

    @property
    def has_card(self) -> bool:
        """Whether there is a card, sound or not."""
        return any(entry.key == f"{self.key}/{CARD}" for entry in self.entries)

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(entry.size for entry in self.entries)

    @property
    def modified(self) -> datetime:
        """When a file of it was last written, or the artifact last used (`Store.touch`)."""
        return max(entry.modified for entry in self.entries)


def artifact_folders(store: Store) -> Iterator[Folder]:
    """Every folder that is, was or was to be an artifact; kind by kind, category by category."""
    for kind in KINDS:
        places = [kind]
        if kind in ("students", "scores"):
            places = [f"{kind}/{name}" for name in subfolders(store, kind)]
        for place in places:
            folders: dict[str, Folder] = {}
            for entry in files_below(store, place):
                match = KEY.match(entry.key)
                if match is not None:
                    key = match.group()
                    folders.setdefault(key, Folder(key)).entries.append(entry)
            yield from (folders[key] for key in sorted(folders))


def run_ids(store: Store) -> list[str]:
    """The runs that are published, sorted."""
    matches = [RUN.fullmatch(entry.key) for entry in files_below(store, "runs")]
    return sorted(match.group(1) for match in matches if match is not None)


def files_below(store: Store, place: str) -> list[Entry]:
    """Every file below a folder of the store, hidden ones too; none if there is no such folder."""
    return [
        Entry(path[len(store.root) + 1 :], info["size"] or 0, modified_of(info))
        for path, info in _find(store, place).items()
    ]


def in_parallel(function: Any, items: Iterable[Item]) -> Iterator[Any]:
    """Map over many small requests at a time, in order."""
    with ThreadPoolExecutor(PARALLEL) as pool:
        yield from pool.map(function, items)


def subfolders(store: Store, place: str) -> list[str]:
    """Names of the folders in a folder of the store, sorted."""
    return sorted(
        info["name"].rstrip("/").rsplit("/", 1)[-1]
        for info in _list(store, place)
        if info["type"] == "directory"
    )


def modified_of(info: dict[str, Any]) -> datetime:
    """When a file was last written; file systems have each their own word for it."""
    for name in ("LastModified", "mtime", "last_modified", "updated", "created"):
        value = info.get(name)
        if isinstance(value, datetime):
            return value if value.tzinfo else value.replace(tzinfo=UTC)
        if isinstance(value, int | float):
            return datetime.fromtimestamp(value, UTC)
        if isinstance(value, str):
            return datetime.fromisoformat(value)
    return datetime.now(UTC)  # unknown: as young as can be, so that nothing is collected


@on_the_store
def _find(store: Store, place: str) -> dict[str, dict[str, Any]]:
    try:
        found: dict[str, dict[str, Any]] = store.fs.find(store.path(place), detail=True)
    except FileNotFoundError:
        return {}
    return found


@on_the_store
def _list(store: Store, place: str) -> list[dict[str, Any]]:
    try:
        found: list[dict[str, Any]] = store.fs.ls(store.path(place), detail=True)
    except FileNotFoundError:
        return []
    return found
