"""What earlier scans found of a dataset's files, so that an unchanged one is not decoded again."""

import hashlib
import json
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from etstpm.errors import ConfigError
from etstpm.images import ImageFacts

Stamps = list[list[object]]
"""Path, size in bytes and time of change (ns) of each file."""


def stamps_of(paths: Sequence[Path]) -> Stamps | None:
    """The stamps of these files, None if one is not there."""
    try:
        stats = [(path, path.stat()) for path in paths]
    except OSError:
        return None
    return [[path.as_posix(), stat.st_size, stat.st_mtime_ns] for path, stat in stats]


class KnownImages:
    """The facts of a split's images, valid while no file's size or time has changed."""

    def __init__(self, cache: Path, folder: Path, paths: Sequence[Path]) -> None:
        self.path = _facts_path(cache, folder)
        # Taken before anything is decoded: a file that changes meanwhile is then decoded again.
        self.stamps = stamps_of(paths)

    def recall(self, pixels: Callable[[list[str]], Path]) -> list[ImageFacts] | None:
        """The facts of these files, or None if a file changed or the decoded pixels are gone."""
        known = _read(self.path)
        if self.stamps is None or known.get("stamps") != self.stamps:
            return None
        facts = [ImageFacts(**fact) for fact in known["facts"]]
        return facts if pixels([fact.sha256 for fact in facts]).exists() else None

    def remember(self, facts: Sequence[ImageFacts | None]) -> None:
        """Keep the facts of a split in which every file could be read."""
        whole = [asdict(fact) for fact in facts if fact is not None]
        if self.stamps is not None and len(whole) == len(facts):
            _write(self.path, {"stamps": self.stamps, "facts": whole})


class KnownMasks:
    """The hashes of a category's masks that were as they should be."""

    def __init__(self, cache: Path, folder: Path) -> None:
        self.path = _facts_path(cache, folder)
        self.before = _read(self.path)
        self.now: dict[str, str] = {}

    def find(self, path: Path, image: ImageFacts) -> tuple[str, str | None]:
        """A key for `remember`, and the mask's hash if it is known for an image of this size."""
        key = json.dumps([stamps_of([path]), image.width, image.height])
        sha256 = self.before.get(key)
        if sha256 is not None:
            self.now[key] = sha256
        return key, sha256

    def remember(self, key: str, sha256: str) -> None:
        """Keep a mask's hash."""
        self.now[key] = sha256

    def save(self) -> None:
        """Write what is known now; masks that are gone are forgotten."""
        if self.now != self.before:
            _write(self.path, self.now)


def _facts_path(cache: Path, folder: Path) -> Path:
    name = hashlib.sha256(str(folder.resolve()).encode("utf-8", "surrogateescape")).hexdigest()[:32]
    return cache / "facts" / f"{name}.json"


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _write(path: Path, content: Mapping[str, object]) -> None:
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(json.dumps(content), "utf-8")
        partial.replace(path)
    except OSError as error:
        raise ConfigError(
            f"cache {path.parent} cannot be written ({error.strerror}); set ETSTPM_CACHE to a "
            "folder that can"
        ) from None
