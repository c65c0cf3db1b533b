"""An artifact's card: what it says of itself, and whether it can be believed."""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

Card = dict[str, Any]
"""What an artifact is made of: digests, config, versions, seed, metrics, files with hashes."""

CARD = "card.json"
SEAL = "card_sha256"
KINDS = ("datasets", "teachers", "students", "scores")
KEY = re.compile(r"(?:datasets|teachers|(?:students|scores)/[^/]+)/[0-9a-f]{8,64}(?=/|$)")
"""An artifact's key, alone or at the start of a file's."""

_ATTEMPT = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True)
class Artifact:
    """A whole artifact: its key below the store's root, and its card."""

    key: str
    card: Card

    @property
    def digest(self) -> str:
        """The content address: the last part of the key."""
        return self.key.rsplit("/", 1)[-1]

    @property
    def folder(self) -> str:
        """Where its files lie: its key, or on an object store a folder of one attempt below it."""
        attempt = self.card.get("attempt")
        return f"{self.key}/{attempt}" if attempt else self.key


def seal(card: Mapping[str, Any]) -> bytes:
    """The card's file: JSON for people, with a hash over everything else that it says."""
    sealed = {name: value for name, value in card.items() if name != SEAL}
    return _pretty(sealed | {SEAL: _hash(sealed)})


def unseal(key: str, content: bytes) -> Artifact:
    """The artifact that a card's file describes. Raises `ValueError` saying what is wrong.

    A card without a seal is of etstpm 0.1.0, and is believed.
    """
    try:
        card = json.loads(content)
    except ValueError:
        raise ValueError("is not JSON") from None
    if not isinstance(card, dict) or not isinstance(card.get("files"), dict):
        raise ValueError("is not a card: it names no files")
    if SEAL in card and card[SEAL] != _hash({k: v for k, v in card.items() if k != SEAL}):
        raise ValueError("was changed after it was written: its own hash differs")
    if card.get("key", key) != key:
        raise ValueError(f"is of another artifact, {card['key']!r}")
    attempt = card.get("attempt")
    if attempt is not None and not _ATTEMPT.fullmatch(str(attempt)):
        raise ValueError(f"names a folder {attempt!r} that no commit makes")
    for name, entry in card["files"].items():
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or not isinstance(entry, dict):
            raise ValueError(f"names a file {name!r} that no commit makes")
    return Artifact(key, card)


def describe_files(folder: Path) -> dict[str, dict[str, Any]]:
    """Hash and size of every file below a folder, by name."""
    return {
        path.relative_to(folder).as_posix(): {
            "sha256": file_sha256(path),
            "bytes": path.stat().st_size,
        }
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _pretty(value: object) -> bytes:
    return json.dumps(value, indent=1, sort_keys=True).encode() + b"\n"


def _hash(card: Mapping[str, Any]) -> str:
    text = json.dumps(card, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
