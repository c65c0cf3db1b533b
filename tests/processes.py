"""The operating system's processes of a flow run, to be killed as a node's loss would."""

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from flows.forking import process_name
from tests.services import wait_until

SECONDS = 120.0


def children_of(*processes: int) -> list[int]:
    """The processes that these have started themselves, from whichever of their threads."""
    command = ["pgrep", "-P", ",".join(map(str, processes))]
    found = subprocess.run(command, check=False, capture_output=True, text=True)
    return [int(line) for line in found.stdout.split()]


def is_alive(process: int) -> bool:
    """Whether there is such a process, be it one that nobody has waited for."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


def processes_of(run_id: str) -> list[int]:
    """Processes that a worker has started for a run, and those that were forked for them.

    By what the worker put into their environment, or by their name.
    """
    proc = Path("/proc")
    if not proc.is_dir():
        pytest.skip("finds a run's process through /proc, which this system has not")
    needle = f"PREFECT__FLOW_RUN_ID={run_id}".encode()
    name = process_name(run_id)
    found = []
    for folder in proc.iterdir():
        with suppress(OSError):
            if folder.name.isdigit() and (
                (folder / "comm").read_text() == f"{name}\n"
                or needle in (folder / "environ").read_bytes().split(b"\0")
            ):
                found.append(int(folder.name))
    return found


def kill_run(run_id: str) -> None:
    """kill -9 of a run's process, as soon as it has one."""
    wait_until(lambda: bool(processes_of(run_id)), SECONDS, f"a process of run {run_id}")
    for process in processes_of(run_id):
        with suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)


@contextmanager
def paused(run_id: str) -> Iterator[None]:
    """A run whose process stands still meanwhile."""
    wait_until(lambda: bool(processes_of(run_id)), SECONDS, f"a process of run {run_id}")
    processes = processes_of(run_id)
    for process in processes:
        os.kill(process, signal.SIGSTOP)
    try:
        yield
    finally:
        for process in processes:
            os.kill(process, signal.SIGCONT)
