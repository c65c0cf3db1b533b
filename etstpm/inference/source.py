"""New images from a file, a folder or a bucket's prefix: found, read and decoded ahead of use."""

import os
import stat
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from fsspec.implementations.local import LocalFileSystem

from etstpm.errors import DatasetError, StorageError, reason_of
from etstpm.findings import IMAGE_SUFFIXES
from etstpm.images import UNREADABLE, ImageFacts, Pixels, decode_image
from etstpm.paths import leads_to_folder
from etstpm.storage.location import open_location

LARGEST = 2**29
"""Bytes of an image file; a larger one is refused without being read."""


@dataclass(frozen=True)
class NewImage:
    """One image file: read and decoded, or the fault that it has."""

    path: str
    """Relative to the folder that is scored, '/' between folders; UTF-8."""
    facts: ImageFacts | None = None
    pixels: Pixels | None = None
    """(size, size, 3) uint8, RGB."""
    fault: str | None = None


class ImageSource:
    """The images below one place: an image file, a folder, or any fsspec URI of such.

    Raises `DatasetError` if there is no such place, it cannot be listed, or its address carries
    credentials.
    """

    def __init__(self, uri: str) -> None:
        self.uri = uri
        try:
            self.fs, root = open_location(uri)
        except StorageError as error:
            raise DatasetError(str(error).replace("store", "images", 1)) from None
        self.root = root or "/"
        with self._faults_named():
            self.kind = self.fs.info(self.root)["type"]
        if self.kind not in {"file", "directory"}:
            raise DatasetError(
                f"images {self.uri}: neither a file nor a folder but {self.kind!r}; give an "
                "image, a folder of images or a bucket's prefix"
            )

    @contextmanager
    def _faults_named(self) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError:
            raise DatasetError(
                f"images {self.uri}: no such file or folder; give an image, a folder of images, "
                "or an fsspec URI such as s3://bucket/prefix"
            ) from None
        except Exception as error:  # file systems are plug-ins: botocore's have no common base
            raise DatasetError(
                f"images {self.uri} cannot be listed ({type(error).__name__}: "
                f"{reason_of(error)}); check the address, its permissions and the credentials"
            ) from None

    @property
    def local_root(self) -> Path | None:
        """The folder, or the file's folder, where it is this machine's."""
        if not isinstance(self.fs, LocalFileSystem):
            return None
        root = Path(self.root)
        return root if self.kind == "directory" else root.parent

    def paths(self) -> Iterator[str]:
        """Addresses of the image files, folder by folder, each folder's by name.

        Hidden files and folders, links to folders and what is no image by its suffix are left out.
        The names of one folder are held in memory at a time.
        """
        if self.kind == "file":
            yield self.root
            return
        with self._faults_named():
            yield from self._walk(self.root)

    def _walk(self, folder: str) -> Iterator[str]:
        folders = []
        for name, is_folder in sorted(self._entries(folder)):
            if name.startswith("."):
                continue
            if is_folder:
                folders.append(name)
            elif PurePosixPath(name).suffix.lower() in IMAGE_SUFFIXES:
                yield f"{folder}/{name}"
        for name in folders:
            yield from self._walk(f"{folder}/{name}")

    def _entries(self, folder: str) -> Iterator[tuple[str, bool]]:
        """Names in a folder, and whether each is a folder."""
        if isinstance(self.fs, LocalFileSystem):
            with os.scandir(folder) as entries:
                for entry in entries:
                    if not (entry.is_symlink() and leads_to_folder(entry)):
                        yield entry.name, leads_to_folder(entry)
            return
        for info in self.fs.ls(folder, detail=True):
            name = info["name"].rstrip("/").rsplit("/", 1)[-1]
            if name and info["name"].rstrip("/") != folder:  # a prefix may list its own marker
                yield name, info["type"] == "directory"

    def read(self, path: str, size: int) -> NewImage:
        """Read and decode one image; what is wrong with it is its fault, never an exception."""
        relative = path.rsplit("/", 1)[-1] if path == self.root else path[len(self.root) + 1 :]
        relative = relative.encode("utf-8", "backslashreplace").decode()
        try:
            content = self._content(path)
        except Exception as error:  # file systems are plug-ins: botocore's have no common base
            return NewImage(relative, fault=f"cannot be read: {_reason(error)}")
        try:
            facts, pixels = decode_image(content, size)
        except UNREADABLE as error:
            return NewImage(relative, fault=f"not a whole image: {_reason(error)}")
        return NewImage(relative, facts, pixels)

    def _content(self, path: str) -> bytes:
        # A pipe that is named like an image would be waited for until morning.
        if isinstance(self.fs, LocalFileSystem) and not stat.S_ISREG(Path(path).stat().st_mode):
            raise ValueError("not a regular file")
        content: bytes = self.fs.cat_file(path, end=LARGEST + 1)
        if not content:
            raise ValueError("the file is empty")
        if len(content) > LARGEST:
            raise ValueError(f"larger than {LARGEST // 2**20} MiB")
        return content

    def decoded(self, size: int, *, threads: int, ahead: int) -> Iterator[NewImage]:
        """All images in the order of `paths`, decoded by `threads`, at most `ahead` in advance."""
        waiting: deque[Future[NewImage]] = deque()
        pool = ThreadPoolExecutor(threads, thread_name_prefix="decode")
        try:
            for path in self.paths():
                waiting.append(pool.submit(self.read, path, size))
                if len(waiting) > ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


def _reason(error: BaseException) -> str:
    """What an exception says, less the address in it: the row has that."""
    return getattr(error, "strerror", None) or reason_of(error)
