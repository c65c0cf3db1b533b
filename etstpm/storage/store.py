"""Content-addressed artifacts.

An artifact is a folder of files and a `card.json` that names every file with its hash: without a
card there is no artifact, so a killed run leaves nothing to trip over. A commit appears whole or
not at all, and two commits of one artifact never mix: in a folder it is one rename, on an object
store each attempt has a folder of its own, and the card, one object written last, names it.
"""

import errno
import logging
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from etstpm.errors import DamagedArtifactError, StorageError
from etstpm.storage.artifact import CARD, Artifact, describe_files, file_sha256, seal, unseal
from etstpm.storage.files import Files, copy_durably, on_the_store, write_durably

TOUCH_AFTER = timedelta(days=1)
RENAMES = 5
"""More often than that nobody comes first to an artifact's place."""

_log = logging.getLogger("etstpm.storage")


class Store(Files):
    """Everything that the pipeline keeps, below one URI. Raises `StorageError`."""

    def find(self, key: str) -> Artifact | None:
        """The artifact of this key, or None if it is not whole. Reads one file, lists nothing."""
        try:
            return self._read_card(key)
        except DamagedArtifactError as error:
            _log.warning("%s", error)
            return None

    def get(self, key: str) -> Artifact:
        """The artifact of this key. Raises `DamagedArtifactError` if it is not whole."""
        artifact = self._read_card(key)
        if artifact is None:
            raise DamagedArtifactError(
                f"store {self.uri}: no artifact {key}; run the stage that makes it"
            )
        return artifact

    def has(self, key: str) -> bool:
        """Whether the artifact is whole."""
        try:
            return self._read_card(key) is not None
        except DamagedArtifactError:
            return False

    def find_sound(self, key: str, *names: str) -> Artifact | None:
        """The artifact of this key if these files of it have their hashes too.

        A damaged one is discarded, and a warning says so.
        """
        artifact = self.find(key)
        if artifact is None:
            return None
        try:
            with self.open(artifact, *names):
                return artifact
        except DamagedArtifactError as error:
            _log.warning("%s", error)
            return None

    def commit(self, key: str, folder: Path, card: Mapping[str, Any]) -> Artifact:
        """Publish the files of a local folder as an artifact.

        If it is there already it stays, and is returned: who commits first wins.
        """
        if (existing := self.find(key)) is not None:
            return existing
        artifact = Artifact(key, {**card, "key": key, "files": describe_files(folder)})
        if self.is_local:
            self._commit_by_rename(artifact, folder)
        else:
            artifact.card["attempt"] = uuid.uuid4().hex
            for name in artifact.card["files"]:
                self.put_file(folder / name, f"{artifact.folder}/{name}")
            self.write_bytes(f"{key}/{CARD}", seal(artifact.card))
        return self.get(key)

    @contextmanager
    def open(self, artifact: Artifact, *names: str) -> Iterator[Path]:
        """A local folder with these files of an artifact, their hashes verified.

        Raises `DamagedArtifactError` for a file that is missing or damaged; its card is removed
        then, so that the next run makes the artifact anew.
        """
        with tempfile.TemporaryDirectory(prefix="etstpm-") as temporary:
            folder = Path(self.path(artifact.folder)) if self.is_local else Path(temporary)
            for name in names:
                if not self._is_sound_file(artifact, name, folder / name):
                    with suppress(StorageError):  # a reader may not be allowed to
                        self.discard(artifact)
                    raise DamagedArtifactError(
                        f"store {self.uri}: {artifact.key}/{name} is missing or damaged; the "
                        "artifact was discarded, the next run makes it anew"
                    )
            yield folder

    def discard(self, artifact: Artifact) -> None:
        """Remove an artifact's card: it is no longer there, and the next run makes it anew."""
        self.remove_file(f"{artifact.key}/{CARD}")

    def touch(self, artifact: Artifact) -> None:
        """Note that a run uses an artifact made earlier: `store gc` keeps what was used lately."""
        with suppress(StorageError):  # who may only read collects nothing either
            self._touch(artifact)

    @on_the_store
    def _touch(self, artifact: Artifact) -> None:
        path = self.path(f"{artifact.key}/{CARD}")
        if self.is_local:
            os.utime(path)
        elif datetime.now(UTC) - self.fs.modified(path) > TOUCH_AFTER:
            self.write_bytes(f"{artifact.key}/{CARD}", seal(artifact.card))

    def _read_card(self, key: str) -> Artifact | None:
        content = self.read_if_there(f"{key}/{CARD}")
        if content is None:
            return None
        try:
            return unseal(key, content)
        except ValueError as error:
            raise DamagedArtifactError(
                f"store {self.uri}: {key}/{CARD} {error}; the artifact does not count, the next "
                "run makes it anew"
            ) from None

    def _is_sound_file(self, artifact: Artifact, name: str, local: Path) -> bool:
        expected = artifact.card["files"].get(name, {}).get("sha256")
        if self.is_local:
            return local.is_file() and file_sha256(local) == expected
        # Twice: what went wrong on the way is no damage in the store.
        for _ in range(2):
            if self.fetch(f"{artifact.folder}/{name}", local) and file_sha256(local) == expected:
                return True
        return False

    @on_the_store
    def _commit_by_rename(self, artifact: Artifact, folder: Path) -> None:
        """One rename makes it appear. Remains without a sound card give way to it."""
        target = Path(self.path(artifact.key))
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f".{uuid.uuid4().hex}.partial")
        try:
            shutil.copytree(folder, partial, copy_function=copy_durably)
            write_durably(partial / CARD, seal(artifact.card))
            for _ in range(RENAMES):
                try:
                    partial.rename(target)
                    return
                except OSError as error:
                    if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                        raise
                if self.find(artifact.key) is not None:
                    return
                _set_aside(target)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def _set_aside(target: Path) -> None:
    """Remove a folder at once for everybody who looks."""
    aside = target.with_name(f".{uuid.uuid4().hex}.discarded")
    with suppress(FileNotFoundError):
        target.rename(aside)
    shutil.rmtree(aside, ignore_errors=True)
