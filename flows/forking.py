"""The zygote of `flows.zygote`: imports once, forks for each request, says how each ended."""

import ctypes
import gc
import importlib
import json
import os
import selectors
import signal
import socket
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flows.zygote import addresses_locked

MODULES = ("flows.full", "flows.score", "flows.student", "flows.teacher", "flows.validate")
"""What the deployments run, and with it torch and Prefect."""
IDLE_SECONDS = 1800.0
REQUEST_SECONDS = 60.0
PR_SET_PDEATHSIG, PR_SET_NAME = 1, 15


def fork_for_requests(listener: socket.socket, worker: int) -> list[str]:
    """Fork for each request until the worker has ended, or nobody has asked for half an hour.

    Returns in each forked process, which has become what was asked for by then: the words to run.
    In the zygote they are none.
    """
    for module in MODULES:
        importlib.import_module(module)  # and touch no GPU: CUDA does not survive a fork
    gc.collect()
    gc.freeze()  # a collection would write to pages that all forked processes share
    return Zygote(listener, worker).serve()


@dataclass(frozen=True)
class _Fork:
    """A forked process, a file that tells of its end, and who is to hear of it."""

    process: int
    handle: int
    asker: socket.socket


class Zygote:
    def __init__(self, listener: socket.socket, worker: int) -> None:
        self.listener = listener
        self.forks: dict[int, _Fork] = {}
        self.selector = selectors.DefaultSelector()
        self.selector.register(listener, selectors.EVENT_READ)
        self.worker: int | None = None
        with suppress(ProcessLookupError):
            self.worker = os.pidfd_open(worker)
            self.selector.register(self.worker, selectors.EVENT_READ)

    def serve(self) -> list[str]:
        while self.worker is not None or self.forks:
            events = self.selector.select(IDLE_SECONDS)
            if not events and not self.forks and self.is_forgotten():
                break
            for key, _ in events:
                if key.fileobj is self.listener:
                    if request := self._next_request():
                        return request
                elif key.fd == self.worker:
                    self.selector.unregister(self.worker)
                    os.close(self.worker)
                    self.worker = None
                    Path(self.listener.getsockname()).unlink(missing_ok=True)
                elif key.data.process in self.forks:  # both of its files may have something to say
                    self._hear(key.data, is_end=key.fd == key.data.handle)
        return []

    def is_forgotten(self) -> bool:
        """Whether nobody asks just now. The address is gone then: the next one starts another."""
        address = Path(self.listener.getsockname())
        with addresses_locked(address.parent):
            if self.selector.select(0):
                return False
            address.unlink(missing_ok=True)
            return True

    def _next_request(self) -> list[str]:
        """Fork for it. In the forked process: its words."""
        asker, _ = self.listener.accept()
        asker.settimeout(REQUEST_SECONDS)
        files: list[int] = []
        try:
            size, files, *_ = socket.recv_fds(asker, 4, 3)
            with asker.makefile("rb") as stream:
                request = json.loads(stream.read(int.from_bytes(size, "big")))
        except (OSError, ValueError):  # it has ended meanwhile
            asker.close()
            request = None
        zygote, words = os.getpid(), []
        if request is not None:
            process = os.fork()
            if process:
                self._keep(_Fork(process, os.pidfd_open(process), asker))
            else:
                self._leave()
                asker.close()
                _become(zygote, request, files)
                words = request["words"]
        for file in files:
            os.close(file)
        return words

    def _keep(self, fork: _Fork) -> None:
        self.forks[fork.process] = fork
        self.selector.register(fork.handle, selectors.EVENT_READ, fork)
        self.selector.register(fork.asker, selectors.EVENT_READ, fork)
        _say(fork.asker, fork.process)

    def _hear(self, fork: _Fork, *, is_end: bool) -> None:
        """It has ended; or who asked for it passes a signal on, or has ended."""
        if is_end:
            _, status = os.waitpid(fork.process, 0)
            del self.forks[fork.process]
            self.selector.unregister(fork.handle)
            os.close(fork.handle)
            if fork.asker.fileno() >= 0:
                self.selector.unregister(fork.asker)
                _say(fork.asker, os.waitstatus_to_exitcode(status))
                fork.asker.close()
            return
        signals = b""
        with suppress(OSError):
            signals = fork.asker.recv(64)
        for number in signals or [signal.SIGKILL]:
            os.kill(fork.process, number)
        if not signals:
            self.selector.unregister(fork.asker)
            fork.asker.close()

    def _leave(self) -> None:
        """Close in a forked process what is the zygote's."""
        self.selector.close()
        self.listener.close()
        for fork in self.forks.values():
            fork.asker.close()
            os.close(fork.handle)
        if self.worker is not None:
            os.close(self.worker)


def _say(asker: socket.socket, number: int) -> None:
    with suppress(OSError):  # it has ended
        asker.sendall(number.to_bytes(4, "big", signed=True))


def process_name(run_id: str) -> str:
    """What `ps` and `top` call a run's process: of its id what tells it from the others."""
    return f"etstpm {run_id[-8:]}".rstrip()


def _become(zygote: int, request: dict[str, Any], files: list[int]) -> None:
    """Take on the folder, environment and standard files of who asked."""
    os.setsid()
    system = ctypes.CDLL(None)
    run_id = request["environment"].get("PREFECT__FLOW_RUN_ID", "")
    system.prctl(PR_SET_NAME, process_name(run_id).encode())
    system.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != zygote:  # it was killed before that was said
        os._exit(1)
    for place, file in enumerate(files):
        os.dup2(file, place)
    os.chdir(request["folder"])
    sys.path[0] = request["folder"]
    os.environ.clear()
    os.environ.update(request["environment"])
