"""Paths of this machine, as people write them."""

import os
from pathlib import Path


def local_path(written: str | Path) -> Path:
    """The path with a leading ~ or ~user expanded.

    A user that does not exist is left as it is written, and is then not found like any other wrong
    path: pathlib's own `expanduser` ends in a RuntimeError.
    """
    return Path(os.path.expanduser(written))  # noqa: PTH111
