"""A lease, so that two runs do not make the same artifact at once.

It saves work and guards nothing: a commit is idempotent without it (`store.py`). So it can do with
what every store has, reading and writing small files: who finds no lease writes one, waits a moment
and reads it back; who then reads another's has lost. Two who write at the very same moment may
both believe to hold it; they do the same work twice, and the one that commits first is kept.

No clock is compared with another machine's. A holder writes a new beat into its lease every few
seconds; who waits sees the lease unchanged for `EXPIRY` seconds of its own monotonic clock, and
takes it over. A holder's death on the same machine is seen at once.
"""

import json
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from etstpm.errors import StorageError
from etstpm.storage.store import Store

FOLDER = "leases"

_log = logging.getLogger("etstpm.storage")


@dataclass(frozen=True)
class Pace:
    """Seconds."""

    beat: float = 10.0
    expiry: float = 60.0
    settle: float = 0.25
    """Longer than a write usually takes to be seen."""
    poll: float = 1.0


@dataclass(frozen=True)
class Lease:
    """What a lease's file says."""

    key: str
    owner: str
    machine: str
    pid: int
    process_start: str
    beat: int = 0

    @property
    def is_dead(self) -> bool:
        """Whether its holder was a process of this machine, and has ended."""
        return self.machine == _machine() and _start_of(self.pid) != self.process_start


def lease_key(key: str) -> str:
    """Where the lease of an artifact's key lies. The digest alone: it is unique."""
    return f"{FOLDER}/{key.rsplit('/', 1)[-1]}.json"


def make_once(
    store: Store,
    key: str,
    make: Callable[[], object],
    *,
    verified: tuple[str, ...] = (),
    pace: Pace = Pace(),
) -> str:
    """The key, when its artifact is there: as it was, or made by `make`, or by another meanwhile.

    Of an artifact that was there before, these files are `verified`: if one is damaged it is made
    anew. Raises what `make` raises.
    """
    if (artifact := store.find_sound(key, *verified)) is not None:
        store.touch(artifact)
        return key
    with _held(store, key, pace) as is_ours:
        if is_ours:
            make()
    return key


@contextmanager
def _held(store: Store, key: str, pace: Pace) -> Iterator[bool]:
    """Wait for the lease: True when it is ours, False when the artifact is there meanwhile."""
    lease = _wait(store, key, pace)
    if lease is None:
        yield False
        return
    ended = threading.Event()
    beating = threading.Thread(target=_beat, args=(store, lease, pace, ended), daemon=True)
    beating.start()
    try:
        yield True
    finally:
        ended.set()
        beating.join(pace.poll)
        with suppress(StorageError):  # it expires
            if _read(store, key, lease.owner) is not None:
                store.remove_file(lease_key(key))


def _wait(store: Store, key: str, pace: Pace) -> Lease | None:
    seen: Lease | None = None
    since = time.monotonic()
    while True:
        held = _read(store, key)
        if held != seen:
            if held is not None and (seen is None or held.owner != seen.owner):
                _log.warning(
                    "store %s: %s is being made by process %d on %s; waiting for it",
                    *(store.uri, key, held.pid, held.machine.split("/")[0]),
                )
            seen, since = held, time.monotonic()
        if held is None or held.is_dead or time.monotonic() - since > pace.expiry:
            lease = _claim(store, key, held, pace)
            if lease is not None and not store.has(key):
                return lease
            if lease is not None:  # its holder has committed before giving it up
                store.remove_file(lease_key(key))
        if store.has(key):
            return None
        time.sleep(pace.poll)


def _claim(store: Store, key: str, held: Lease | None, pace: Pace) -> Lease | None:
    """Write a lease of our own in place of `held`; None if another was quicker."""
    lease = Lease(key, uuid.uuid4().hex, _machine(), os.getpid(), _start_of(os.getpid()))
    if store.is_local:
        if held is not None:
            store.remove_file(lease_key(key))
        return lease if store.create_exclusively(lease_key(key), _content(lease)) else None
    store.write_bytes(lease_key(key), _content(lease))
    time.sleep(pace.settle)
    return lease if _read(store, key, lease.owner) is not None else None


def _beat(store: Store, lease: Lease, pace: Pace, ended: threading.Event) -> None:
    while not ended.wait(pace.beat):
        with suppress(StorageError):  # the store may come back before the lease expires
            if _read(store, lease.key, lease.owner) is None:
                return  # taken over: we were thought dead. The work goes on, and may be in vain
            lease = replace(lease, beat=lease.beat + 1)
            store.write_bytes(lease_key(lease.key), _content(lease))


def _read(store: Store, key: str, owner: str | None = None) -> Lease | None:
    """The lease that is there, if it is `owner`'s. One that nobody understands has to expire."""
    content = store.read_if_there(lease_key(key))
    if content is None:
        return None
    try:
        lease = Lease(**json.loads(content))
    except (ValueError, TypeError):
        lease = Lease(key, owner="", machine="unknown", pid=0, process_start="")
    return lease if owner in (None, lease.owner) else None


def _content(lease: Lease) -> bytes:
    return json.dumps(asdict(lease), indent=1).encode() + b"\n"


def _machine() -> str:
    """Host, boot and process namespace: who shares them sees another process's death."""
    parts = [socket.gethostname()]
    with suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip())
        parts.append(str(Path("/proc/self/ns/pid").readlink()))
    return "/".join(parts)


def _start_of(pid: int) -> str:
    """When a process began, in the kernel's words; empty if there is none."""
    try:
        # The 22nd field; the name before it, in brackets, may hold anything.
        stat = Path(f"/proc/{pid}/stat").read_text("ascii", "replace")
        return stat.rpartition(")")[2].split()[19]
    except OSError:
        pass
    if Path("/proc/self/stat").exists():
        return ""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return ""
    except PermissionError:
        pass
    return "running"
