"""Paths of this machine, as people write them."""

import errno
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def local_path(written: str | Path) -> Path:
    """The path with a leading ~ or ~user expanded.

    A user that does not exist is left as it is written, and is then not found like any other wrong
    path: pathlib's own `expanduser` ends in a RuntimeError.
    """
    return Path(os.path.expanduser(written))  # noqa: PTH111


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """A file beside `path`, to be written: it takes that place when the block ends without a fault.

    On a full disk what stood there before still stands. A device or a pipe is written directly.
    """
    if path.exists() and not path.is_file():
        yield path
        return
    partial = path.with_name(f".{uuid.uuid4().hex}.partial")
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def leads_to_folder(entry: os.DirEntry[str]) -> bool:
    """Whether an entry of a listing is a folder, or a link to one.

    A link that leads in a circle is none: `os.path.isdir` says so, `DirEntry.is_dir` raises.
    """
    try:
        return entry.is_dir()
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        return False
