"""The decoded cache: the pixels of a split at one size in one memory-mapped file.

A file is a NumPy array (N, S, S, 3) of uint8, `np.load`able, and behind it a trailer: the images'
hashes in order and a checksum over all. Its name is made of those hashes and the size, so that it
is never stale; whatever other file of the split holds some of the images spares their decoding.

A split, not a category: training opens no pixel of a test image.
"""

import errno
import hashlib
import json
import os
import re
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from io import BufferedRandom
from pathlib import Path
from typing import BinaryIO, TypeVar

import numpy as np
from filelock import FileLock

from etstpm.errors import ConfigError, DatasetError, reason_of
from etstpm.images import UNREADABLE, Pixels, read_image
from etstpm.locks import is_abandoned, locked
from etstpm.progress import track
from etstpm.settings import settings

MAGIC = b"etstpm decoded 2"
TAIL_BYTES = 8 + 32 + len(MAGIC)  # length of the hashes, checksum, magic
PARTIAL = ".partial"
CHUNK = 4
"""Images that a thread takes at once."""

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class ImageFile:
    """An image of the manifest: where it lies and the hash it had when it was validated."""

    path: Path
    sha256: str


def load_pixels(name: str, files: Sequence[ImageFile], size: int, cache: Path) -> Pixels:
    """The decoded images of `files`, memory-mapped read-only; decoded now if not in the cache.

    `name` is for people ("bottle/train") and says in which other files to look for the images.
    Raises `DatasetError` if a file is no longer the one that was validated.
    """
    path = cache_path(name, size, [file.sha256 for file in files], cache)
    pixels = _open_whole(path)
    if pixels is None:
        lock = path.with_name(f"{_prefix(name, size)}lock")
        with cache_faults(cache), locked(lock, f"decoding {name}"):
            pixels = _open_whole(path)  # made while this one waited
            if pixels is None:
                _build(name, files, size, cache)
                pixels = _open_whole(path)
    if pixels is None:
        raise ConfigError(
            f"cache {path}: what was written is not what is read back; check that disk, or set "
            "ETSTPM_CACHE to a folder on another"
        )
    return pixels


def cache_path(name: str, size: int, sha256s: Sequence[str], cache: Path) -> Path:
    """Where the decoded images of a split lie: their contents and the size make the name."""
    digest = hashlib.sha256("\n".join([str(size), *sha256s]).encode()).hexdigest()
    return cache / "decoded" / f"{_prefix(name, size)}{digest[:24]}.npy"


def _prefix(name: str, size: int) -> str:
    """What the names of a split's files begin with; a folder's name is hostile, and may be long."""
    readable = re.sub(r"[^A-Za-z0-9_]+", "-", name)[:60]
    digest = hashlib.sha256(name.encode("utf-8", "surrogateescape")).hexdigest()
    return f"{readable}-{size}-{digest[:8]}-"


def _build(name: str, files: Sequence[ImageFile], size: int, cache: Path) -> None:
    rows: dict[str, list[int]] = {}
    for row, file in enumerate(files):
        rows.setdefault(file.sha256, []).append(row)
    with new_decoded_file(name, len(files), size, cache) as draft:
        draft.sha256s[:] = [file.sha256 for file in files]
        for sha256, image in _harvest(cache / "decoded", _prefix(name, size), rows):
            for row in rows.pop(sha256):
                draft.write(row, image)

        def decode(row: int) -> None:
            try:
                facts, pixels = read_image(files[row].path, size)
            except UNREADABLE as error:
                raise DatasetError(
                    f"{files[row].path}: was a whole image when it was validated, found "
                    f"{reason_of(error)}; run again"
                ) from None
            if facts.sha256 != files[row].sha256:
                raise DatasetError(
                    f"{files[row].path}: changed since it was validated (SHA-256 "
                    f"{files[row].sha256[:12]} expected, {facts.sha256[:12]} found); run again"
                )
            draft.write(row, pixels)

        lacking = sorted(row for equal in rows.values() for row in equal)
        for _ in in_threads(decode, lacking, f"{name}: decode"):
            pass


def _harvest(
    folder: Path, prefix: str, wanted: Mapping[str, object]
) -> Iterator[tuple[str, Pixels]]:
    """Each wanted image that other whole files of the split hold, once; newest files first.

    The caller takes what it got out of `wanted`.
    """
    entries = [entry for entry in os.scandir(folder) if entry.name.startswith(prefix)]
    for entry in sorted(entries, key=_last_use, reverse=True):
        if not wanted:
            return
        path = Path(entry.path)
        held = _read_hashes(path) if path.suffix == ".npy" else None
        if held is None or wanted.keys().isdisjoint(held):
            continue
        pixels = _open_whole(path)
        for row, sha256 in enumerate(held if pixels is not None else ()):
            if pixels is not None and sha256 in wanted:
                yield sha256, pixels[row]


class Draft:
    """A file of the cache while it is filled. An image whose hash is empty is none."""

    def __init__(self, file: BufferedRandom, count: int, size: int) -> None:
        self.file, self.sha256s = file, [""] * count
        self._row_bytes = size * size * 3
        header = {"descr": "|u1", "fortran_order": False, "shape": (count, size, size, 3)}
        np.lib.format.write_array_header_1_0(file, header)
        self._start = file.tell()
        file.truncate(self._start + count * self._row_bytes)
        file.flush()
        reserve(file.fileno(), self._start, count * self._row_bytes)

    def write(self, row: int, pixels: Pixels) -> None:
        """An image into its row; threads may write at once.

        Through a map each page of a new file would be faulted in, which takes ten times as long.
        """
        content = np.ascontiguousarray(pixels).data
        write_at(self.file.fileno(), content, self._start + row * self._row_bytes)


def reserve(descriptor: int, start: int, size: int) -> None:
    """Take a file's room on the disk. Raises OSError: a full one is found now, not half way."""
    if hasattr(os, "posix_fallocate") and size:
        os.posix_fallocate(descriptor, start, size)


def write_at(descriptor: int, content: memoryview, offset: int) -> None:
    """Write all of it; threads may write at once. Raises OSError where the disk takes less."""
    if os.pwrite(descriptor, content, offset) != content.nbytes:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@contextmanager
def new_decoded_file(name: str, count: int, size: int, cache: Path) -> Iterator[Draft]:
    """Fill a file of the cache; it gets its name when the block has ended well.

    Until then it is held by its own lock, so that what a killed process left is known as such.
    """
    folder = cache / "decoded"
    partial = folder / f".{uuid.uuid4().hex}{PARTIAL}"
    with cache_faults(cache):
        folder.mkdir(parents=True, exist_ok=True)
        make_room(folder, count * size * size * 3)
        lock = FileLock(partial)
        lock.acquire()
    try:
        with ExitStack() as stack:
            with cache_faults(cache):
                draft = Draft(stack.enter_context(partial.open("w+b")), count, size)
            yield draft
            with cache_faults(cache):
                _append_trailer(draft.file, draft.sha256s)
                partial.replace(cache_path(name, size, draft.sha256s, cache))
    finally:
        partial.unlink(missing_ok=True)
        lock.release()


def _append_trailer(file: BufferedRandom, sha256s: Sequence[str]) -> None:
    hashes = json.dumps(list(sha256s)).encode()
    file.seek(0, os.SEEK_END)
    file.write(hashes + len(hashes).to_bytes(8, "big"))
    file.seek(0)
    checksum = hashlib.file_digest(file, "sha256").digest()
    file.seek(0, os.SEEK_END)
    file.write(checksum + MAGIC)
    file.flush()  # a full disk is found here, not when the file is closed


def _read_hashes(path: Path) -> list[str] | None:
    """The hashes of the images in a file, None if it is not one of the cache."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - TAIL_BYTES))
            tail = file.read()
            length = int.from_bytes(tail[:8], "big")
            if not tail.endswith(MAGIC) or length + TAIL_BYTES > size:
                return None
            file.seek(size - TAIL_BYTES - length)
            hashes = json.loads(file.read(length))
    except (OSError, ValueError):
        return None
    return hashes if isinstance(hashes, list) else None


_proven: dict[Path, int] = {}
"""Files whose checksum this process has verified, to the time of their last change (ns)."""


def _open_whole(path: Path) -> Pixels | None:
    """A file's pixels; None if it is not there, or is damaged: it is removed then."""
    try:
        with path.open("rb") as file:
            found = os.fstat(file.fileno())
            if _proven.get(path) != found.st_ctime_ns and not _is_whole(file, found.st_size):
                path.unlink(missing_ok=True)
                return None
        pixels: Pixels = np.load(path, mmap_mode="r")
        with suppress(OSError):  # of a cache that others fill
            os.utime(path)  # the time of its last use
        _proven[path] = path.stat().st_ctime_ns
    except (OSError, ValueError):
        return None
    return pixels


def _is_whole(file: BinaryIO, size: int) -> bool:
    digest = hashlib.sha256()
    left = size - 32 - len(MAGIC)
    while left > 0 and (block := file.read(min(left, 2**20))):
        digest.update(block)
        left -= len(block)
    return file.read() == digest.digest() + MAGIC


def make_room(folder: Path, needed: int) -> None:
    """Keep the cache within its bound: what was used least recently goes, and what was left."""
    entries = list(os.scandir(folder))
    for entry in entries:
        if entry.name.endswith(PARTIAL) and is_abandoned(Path(entry.path)):
            Path(entry.path).unlink(missing_ok=True)
    files = [entry for entry in entries if entry.name.endswith(".npy")]
    files.sort(key=_last_use)
    room = settings().cache_gib * 2**30 - needed
    total = sum(_size(entry) for entry in files)
    for entry in files:
        if total <= room:
            return
        # Whoever has it mapped keeps it: the disk's room comes free when they have ended.
        Path(entry.path).unlink(missing_ok=True)
        total -= _size(entry)


def _last_use(entry: os.DirEntry[str]) -> int:
    try:
        return entry.stat().st_mtime_ns
    except OSError:  # another process removed it
        return 0


def _size(entry: os.DirEntry[str]) -> int:
    try:
        return entry.stat().st_size
    except OSError:
        return 0


@contextmanager
def cache_faults(cache: Path) -> Iterator[None]:
    """What the cache's disk raises, in one line with the remedy."""
    try:
        yield
    except OSError as error:
        raise ConfigError(
            f"cache {cache} cannot be written ({error.strerror}); set ETSTPM_CACHE to a folder "
            "that can, with room for the decoded images"
        ) from None


def in_threads(
    work: Callable[[Item], Result], items: Sequence[Item], description: str
) -> Iterator[Result]:
    """`work` on each item by all cores, results in order, behind a bar."""
    if not items:
        return
    # A future an item would wake the waiting thread for each: 2 % of a validation.
    chunks = [items[start : start + CHUNK] for start in range(0, len(items), CHUNK)]
    with ThreadPoolExecutor(settings().threads) as pool:
        done = pool.map(lambda chunk: [work(item) for item in chunk], chunks)
        yield from track((result for chunk in done for result in chunk), description, len(items))
