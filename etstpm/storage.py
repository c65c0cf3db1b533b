"""Content-addressed artifacts in a folder or any fsspec URI, and the only code that publishes.

An artifact is a folder of files and a `card.json`, which is written last and names every file with
its hash: without a card there is no artifact, so a killed run leaves nothing to trip over. A file
appears whole or not at all: renamed into place in a folder, put as one object elsewhere.
"""

import hashlib
import json
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import fsspec
from fsspec.implementations.local import LocalFileSystem

from etstpm.errors import StorageError, reason_of

Card = dict[str, Any]
"""What an artifact is made of: digests, config, versions, seed, metrics, files with hashes."""

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")

CARD = "card.json"


@dataclass(frozen=True)
class Artifact:
    """A whole artifact: its key below the store's root, and its card."""

    key: str
    card: Card

    @property
    def digest(self) -> str:
        """The content address: the last part of the key."""
        return self.key.rsplit("/", 1)[-1]


def _names_the_store(
    operation: Callable[Parameters, Result],
) -> Callable[Parameters, Result]:
    """Turn what a file system raises into one line that names the store and the remedy."""

    def wrapped(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
        try:
            return operation(*args, **kwargs)
        except StorageError:
            raise
        except Exception as error:  # file systems are plug-ins: botocore's have no common base
            store = args[0]
            name = operation.__name__.strip("_").replace("_", " ")
            raise StorageError(
                f"store {getattr(store, 'uri', store)}: {name} failed ({type(error).__name__}: "
                f"{reason_of(error)}); check that the place exists, can be written, has room, and "
                "that credentials are set"
            ) from error

    wrapped.__name__, wrapped.__doc__ = operation.__name__, operation.__doc__
    return wrapped


class Store:
    """Everything that the pipeline keeps, below one URI. Raises `StorageError`."""

    def __init__(self, uri: str) -> None:
        self.uri = uri
        try:
            self.fs, root = fsspec.core.url_to_fs(uri)
        except (ValueError, ImportError, OSError) as error:
            raise StorageError(
                f"store {uri!r} is not a place that fsspec knows ({error}); give a folder or a URI "
                "such as s3://bucket/prefix"
            ) from error
        self.root = root.rstrip("/")

    @property
    def is_local(self) -> bool:
        """Whether the store is a folder of this machine."""
        return isinstance(self.fs, LocalFileSystem)

    def path(self, key: str) -> str:
        """A key's path in the store's file system."""
        return f"{self.root}/{key}"

    def display(self, key: str) -> str:
        """A key's address as a person would open it."""
        return f"{self.uri.rstrip('/')}/{key}"

    @_names_the_store
    def check_writable(self) -> None:
        """Write, read back and remove a small file: a store that fails should do so at once."""
        probe = f".probe-{uuid.uuid4().hex}"
        folder = Path(self.root)
        created = [p for p in (folder, *folder.parents) if not p.exists()] if self.is_local else []
        try:
            self.write_bytes(probe, b"etstpm")
            content = self.fs.cat_file(self.path(probe))
        finally:
            with suppress(Exception):
                self.fs.rm_file(self.path(probe))
            # Only while empty: another run may have begun to write here in the meantime.
            with suppress(OSError):
                for path in created:
                    path.rmdir()
        if content != b"etstpm":
            raise OSError("what was read back is not what was written")

    @_names_the_store
    def find(self, key: str) -> Artifact | None:
        """The artifact of this key, or None if it is not whole."""
        try:
            content = self.fs.cat_file(self.path(f"{key}/{CARD}"))
        except FileNotFoundError:
            return None
        try:
            card = json.loads(content)
        except ValueError:
            return None
        return Artifact(key, card) if isinstance(card, dict) and "files" in card else None

    def get(self, key: str) -> Artifact:
        """The artifact of this key. Raises `StorageError` if it is not there."""
        artifact = self.find(key)
        if artifact is None:
            raise StorageError(f"store {self.uri}: no artifact {key}; run the stage that makes it")
        return artifact

    @_names_the_store
    def commit(self, key: str, folder: Path, card: Mapping[str, Any]) -> Artifact:
        """Publish the files of a local folder as an artifact; its card is written last."""
        files = {}
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                name = path.relative_to(folder).as_posix()
                self.put_file(path, f"{key}/{name}")
                files[name] = {"sha256": file_sha256(path), "bytes": path.stat().st_size}
        full_card = {**card, "key": key, "files": files}
        self.write_json(f"{key}/{CARD}", full_card)
        return Artifact(key, full_card)

    @contextmanager
    def open(self, artifact: Artifact, *names: str) -> Iterator[Path]:
        """A local folder with these files of an artifact, their hashes verified.

        Raises `StorageError` for a file that is missing or damaged; its card is removed then, so
        that the next run makes the artifact anew.
        """
        with tempfile.TemporaryDirectory(prefix="etstpm-") as temporary:
            folder = Path(temporary)
            for name in names:
                local = self._fetch(artifact, name, folder)
                expected = artifact.card["files"].get(name, {}).get("sha256")
                if not local.is_file() or file_sha256(local) != expected:
                    self._discard(artifact)
                    raise StorageError(
                        f"store {self.uri}: {artifact.key}/{name} is missing or damaged; the "
                        "artifact is discarded, run again to make it anew"
                    )
            yield Path(self.path(artifact.key)) if self.is_local else folder

    @_names_the_store
    def _fetch(self, artifact: Artifact, name: str, folder: Path) -> Path:
        path = self.path(f"{artifact.key}/{name}")
        if self.is_local:
            return Path(path)
        local = folder / name
        local.parent.mkdir(parents=True, exist_ok=True)
        try:
            self.fs.get_file(path, str(local))
        except FileNotFoundError:
            local.unlink(missing_ok=True)
        return local

    @_names_the_store
    def _discard(self, artifact: Artifact) -> None:
        with suppress(FileNotFoundError):
            self.fs.rm_file(self.path(f"{artifact.key}/{CARD}"))

    @_names_the_store
    def read_json(self, key: str) -> Any:
        """A JSON file of the store."""
        return json.loads(self.fs.cat_file(self.path(key)))

    def write_json(self, key: str, value: object) -> None:
        """Write a JSON file; it appears whole or not at all."""
        self.write_bytes(key, json.dumps(value, indent=1, sort_keys=True).encode() + b"\n")

    def write_bytes(self, key: str, content: bytes) -> None:
        """Write a small file; it appears whole or not at all."""
        with tempfile.TemporaryDirectory(prefix="etstpm-") as temporary:
            local = Path(temporary) / "content"
            local.write_bytes(content)
            self.put_file(local, key)

    @_names_the_store
    def put_file(self, local: Path, key: str) -> None:
        """Copy a local file into the store; it appears whole or not at all."""
        target = self.path(key)
        if not self.is_local:
            self.fs.put_file(str(local), target)
            return
        Path(target).parent.mkdir(parents=True, exist_ok=True)
        # A leading dot hides the partial file from readers who glob for Parquet.
        partial = Path(target).with_name(f".{uuid.uuid4().hex}.partial")
        try:
            shutil.copyfile(local, partial)
            partial.replace(target)
        finally:
            partial.unlink(missing_ok=True)


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
