"""Files below one URI: each appears whole or not at all; what passes by itself is waited for."""

import json
import os
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

from fsspec.core import has_magic
from fsspec.implementations.local import LocalFileSystem

from etstpm.errors import StorageError, reason_of
from etstpm.settings import settings
from etstpm.storage.location import PART_BYTES, is_s3, open_location
from etstpm.storage.retrying import persist

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


def on_the_store(
    operation: Callable[Concatenate[Any, Parameters], Result],
) -> Callable[Concatenate[Any, Parameters], Result]:
    """Be patient with what passes; make of the rest one line that names the store and the remedy.

    Every operation may be done twice: a connection can break after the store has done its part.
    """
    name = operation.__name__.strip("_").replace("_", " ")

    def wrapped(files: Any, /, *args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
        patience = 0.0 if files.is_local else settings().store_patience
        what = f"store {files.uri}: {name} failed"
        try:
            return persist(lambda: operation(files, *args, **kwargs), what, patience)
        except StorageError:
            raise
        except Exception as error:  # file systems are plug-ins: botocore's have no common base
            raise StorageError(
                f"{what} ({type(error).__name__}: {reason_of(error)}); check that the place "
                "exists, can be written, has room, and that credentials are set"
            ) from error

    wrapped.__name__, wrapped.__doc__ = operation.__name__, operation.__doc__
    return wrapped


class Files:
    """Files below one URI, by key. Raises `StorageError`."""

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self.fs, self.root = open_location(uri)

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

    def check_writable(self) -> None:
        """Write, read back and remove a small file: a store that fails should do so at once."""
        probe = f".probe-{uuid.uuid4().hex}"
        folder = Path(self.root)
        created = [p for p in (folder, *folder.parents) if not p.exists()] if self.is_local else []
        try:
            self.write_bytes(probe, b"etstpm")
            if self.read_bytes(probe) != b"etstpm":
                raise StorageError(
                    f"store {self.uri}: what was read back is not what was written; keep no "
                    "results there"
                )
        finally:
            with suppress(Exception):
                self.fs.rm_file(self.path(probe))
            # Only while empty: another run may have begun to write here in the meantime.
            with suppress(OSError):
                for path in created:
                    path.rmdir()

    @on_the_store
    def read_bytes(self, key: str) -> bytes:
        """A small file's content."""
        return self._cat(key)

    @on_the_store
    def read_if_there(self, key: str) -> bytes | None:
        """A small file's content, or None if there is no such file."""
        try:
            return self._cat(key)
        except FileNotFoundError:
            return None

    @on_the_store
    def exists(self, key: str) -> bool:
        """Whether there is such a file."""
        return bool(self.fs.exists(self.path(key)))

    @on_the_store
    def read_json(self, key: str) -> Any:
        """A JSON file of the store."""
        return json.loads(self._cat(key))

    @on_the_store
    def read_files(self, keys: Iterable[str]) -> dict[str, bytes]:
        """The content of small files, fetched side by side; those that are not there are left out.

        Raises `StorageError` for any other fault.
        """
        paths = {self.path(key): key for key in keys}
        found = self._cat_all(list(paths))
        for content in found.values():
            if isinstance(content, Exception) and not isinstance(content, FileNotFoundError):
                raise content
        return {paths[path]: v for path, v in found.items() if not isinstance(v, Exception)}

    @on_the_store
    def list_files(self, folder: str) -> dict[str, str]:
        """The key of every file below a folder, each with a stamp that changes with its content.

        One request a thousand files on S3, whatever lies elsewhere in the store.
        """
        self.fs.invalidate_cache()  # another process may have published since
        try:
            found = self.fs.find(self.path(folder), detail=True)
        except FileNotFoundError:
            return {}
        return {path[len(self.root) + 1 :]: _stamp(info) for path, info in found.items()}

    @on_the_store
    def fetch(self, key: str, local: Path) -> bool:
        """Copy a file out of the store to `local`; whether it was there."""
        local.parent.mkdir(parents=True, exist_ok=True)
        try:
            self.fs.get_file(self.path(key), str(local))
        except FileNotFoundError:
            return False
        return True

    def write_json(self, key: str, value: object) -> None:
        """Write a JSON file; it appears whole or not at all."""
        self.write_bytes(key, json.dumps(value, indent=1, sort_keys=True).encode() + b"\n")

    def write_bytes(self, key: str, content: bytes) -> None:
        """Write a small file; it appears whole or not at all."""
        with tempfile.TemporaryDirectory(prefix="etstpm-") as temporary:
            local = Path(temporary) / "content"
            local.write_bytes(content)
            self.put_file(local, key)

    @on_the_store
    def put_file(self, local: Path, key: str) -> None:
        """Copy a local file into the store; it appears whole or not at all."""
        target = self.path(key)
        if not self.is_local:
            self.fs.put_file(str(local), target, **self._in_parts())
            return
        Path(target).parent.mkdir(parents=True, exist_ok=True)
        # A leading dot hides the partial file from readers who glob for Parquet.
        partial = Path(target).with_name(f".{uuid.uuid4().hex}.partial")
        try:
            copy_durably(local, partial)
            partial.replace(target)
        finally:
            partial.unlink(missing_ok=True)

    @on_the_store
    def create_exclusively(self, key: str, content: bytes) -> bool:
        """Write a small file unless there is one; whether it was written. Local stores only."""
        target = Path(self.path(key))
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f".{uuid.uuid4().hex}.partial")
        try:
            partial.write_bytes(content)
            target.hardlink_to(partial)
        except FileExistsError:
            return False
        finally:
            partial.unlink(missing_ok=True)
        return True

    @on_the_store
    def remove_file(self, key: str) -> None:
        """Remove one file if it is there. Never many at once: not every store can."""
        with suppress(FileNotFoundError):
            self.fs.rm_file(self.path(key))

    def _cat(self, key: str) -> bytes:
        # One request: s3fs would ask for the size first, to fetch large files in parts.
        parts = {"max_concurrency": 1} if is_s3(self.fs) else {}
        content: bytes = self.fs.cat_file(self.path(key), **parts)
        return content

    def _cat_all(self, paths: list[str]) -> dict[str, Any]:
        """Each path's content, or the exception that took its place."""
        # `cat` takes [, * and ? in a path for a pattern, and most stores' paths have none.
        plain = [path for path in paths if not has_magic(path)]
        found = dict(self.fs.cat(plain, on_error="return")) if plain else {}
        for path in set(paths) - set(plain):
            try:
                found[path] = self.fs.cat_file(path)
            except FileNotFoundError as error:
                found[path] = error
        return found

    def _in_parts(self) -> dict[str, int]:
        return {"chunksize": PART_BYTES} if is_s3(self.fs) else {}


def _stamp(info: Mapping[str, Any]) -> str:
    """S3's is made of the content; elsewhere the time of change must do."""
    return f"{info.get('ETag') or info.get('mtime') or info.get('created')} {info['size']}"


def copy_durably(source: str | Path, target: str | Path) -> None:
    """Copy a file's content and wait until the disk has it: a power cut leaves no empty file."""
    shutil.copyfile(source, target)
    with Path(target).open("rb+") as file:
        os.fsync(file.fileno())


def write_durably(target: Path, content: bytes) -> None:
    """Write a file and wait until the disk has it."""
    with target.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
