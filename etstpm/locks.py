"""One process at a time, and who waits says so. The kernel frees the lock of a killed process."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

PATIENCE_SECONDS = 2.0  # waiting for less is not worth a word


@contextmanager
def locked(path: Path, doing: str) -> Iterator[None]:
    """Hold the lock file `path`; `doing` says what another process holds it for."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    try:
        lock.acquire(timeout=PATIENCE_SECONDS)
    except Timeout:
        sys.stderr.write(f"note: another process is {doing}; waiting for it\n")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def is_abandoned(path: Path) -> bool:
    """Whether nobody holds this file's own lock any more."""
    try:
        with FileLock(path, timeout=0):
            return True
    except (OSError, Timeout):
        return False
