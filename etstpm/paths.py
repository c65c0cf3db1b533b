"""Paths of this machine, as people write them."""

import errno
import os
from pathlib import Path


def local_path(written: str | Path) -> Path:
    """The path with a leading ~ or ~user expanded.

    A user that does not exist is left as it is written, and is then not found like any other wrong
    path: pathlib's own `expanduser` ends in a RuntimeError.
    """
    return Path(os.path.expanduser(written))  # noqa: PTH111


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
