"""What earlier scans found of a category's files, so that an unchanged one is not decoded again."""

import hashlib
import json
import os
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from etstpm.errors import ConfigError
from etstpm.images import ImageFacts

VERSION = 2
"""Raised when a fact is worked out in another way, or there is a new one."""

Stamp = list[int]


@dataclass(frozen=True)
class MaskFacts:
    """What decoding a mask has shown; `above` is the grey value that it was cut at."""

    sha256: str
    width: int
    height: int
    above: int
    is_empty: bool
    is_full: bool
    is_binary: bool


Fact = TypeVar("Fact", ImageFacts, MaskFacts)


def stamp_of(path: Path) -> Stamp | None:
    """Size in bytes, times of the last change of contents and of the file's record (ns).

    The second cannot be set by hand: a copy that keeps the first does not pass for the original.
    """
    try:
        found = path.stat()
    except OSError:
        return None
    return [found.st_size, found.st_mtime_ns, found.st_ctime_ns]


class Facts:
    """A category's facts, each valid while its file's stamp stays as it was."""

    def __init__(self, cache: Path, root: Path, category: str) -> None:
        place = os.fsencode(root.resolve() / category)
        self.path = cache / "facts" / f"{hashlib.sha256(place).hexdigest()[:32]}.json"
        self.root = root
        self.before = self._read()
        self.now: dict[str, tuple[Stamp, dict[str, Any]]] = {}

    def image(self, path: Path) -> ImageFacts | None:
        """The facts of an unchanged image."""
        return self._recall(path, ImageFacts)

    def mask(self, path: Path, above: int) -> MaskFacts | None:
        """The facts of an unchanged mask that was cut at this grey value."""
        fact = self._recall(path, MaskFacts)
        return fact if fact is not None and fact.above == above else None

    def found(self, path: Path, kind: type[Fact]) -> Fact | None:
        """What this scan knows of a file."""
        known = self.now.get(self._name(path))
        return _build(kind, known[1]) if known is not None else None

    def _recall(self, path: Path, kind: type[Fact]) -> Fact | None:
        name = self._name(path)
        known = self.before.get(name)
        if known is None or known[0] != stamp_of(path):
            return None
        fact = _build(kind, known[1])
        if fact is not None:
            self.now[name] = known
        return fact

    def remember(self, path: Path, stamp: Stamp | None, fact: ImageFacts | MaskFacts) -> None:
        """Keep what was found of a file; the stamp is from before it was read."""
        if stamp is not None:
            self.now[self._name(path)] = stamp, fact.__dict__.copy()

    def save(self) -> None:
        """Write what is known now; files that are gone are forgotten."""
        if self.now == self.before:
            return
        partial = self.path.with_name(f".{self.path.name}.{uuid.uuid4().hex}")
        content = json.dumps({"version": VERSION, "files": self.now}, separators=(",", ":"))
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            partial.write_text(content, "utf-8")
            partial.replace(self.path)
        except OSError as error:
            raise ConfigError(
                f"cache {self.path.parent} cannot be written ({error.strerror}); set ETSTPM_CACHE "
                "to a folder that can"
            ) from None

    def _name(self, path: Path) -> str:
        return str(path)[len(str(self.root)) + 1 :]

    def _read(self) -> dict[str, tuple[Stamp, dict[str, Any]]]:
        try:
            content = json.loads(self.path.read_text("utf-8"))
            if content["version"] != VERSION:
                return {}
            return {name: (stamp, fact) for name, (stamp, fact) in content["files"].items()}
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            return {}


def _build(kind: type[Fact], values: Any) -> Fact | None:
    """A fact from its values; None of damaged ones."""
    try:
        if kind is ImageFacts:
            values = values | {"notes": tuple(values["notes"])}
        return kind(**values)
    except (TypeError, KeyError):
        return None
