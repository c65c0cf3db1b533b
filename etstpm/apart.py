"""A function in a process of its own, forked from one that has imported torch: it starts at once.

Ctrl-C is for the process that asked for it. However that one ends, the other ends with it.
"""

import logging
import os
import signal
import threading
import traceback
from collections.abc import Callable
from contextlib import suppress
from multiprocessing import get_context, parent_process
from multiprocessing.connection import Connection, wait
from typing import Any, Generic, TypeVar

import torch

from etstpm.errors import EtstpmError

Result = TypeVar("Result")

_CONTEXT = get_context("forkserver")
_CONTEXT.set_forkserver_preload(["etstpm.stages"])
_running: set["Apart[Any]"] = set()
_stopped = threading.Event()


class DiedError(Exception):
    """The process ended without a result."""

    def __init__(self, exit_code: int | None) -> None:
        killed = ": killed, perhaps for want of memory" if exit_code == -signal.SIGKILL else ""
        super().__init__(f"its process ended with exit code {exit_code}{killed}")


class Apart(Generic[Result]):
    """`function(*arguments)` at work in its process, with so many threads of torch's."""

    def __init__(self, function: Callable[..., Result], *arguments: object, threads: int) -> None:
        self._messages, sender = _CONTEXT.Pipe(duplex=False)
        if _stopped.is_set():
            raise KeyboardInterrupt
        # The process that forks has the environment of when it was started.
        given = sender, threads, dict(os.environ), function, arguments
        self.process = _CONTEXT.Process(target=_work, args=given, daemon=True)
        self.process.start()
        sender.close()
        _running.add(self)

    def result(self) -> Result:
        """Wait for what the function returns, or raise what it raised.

        Its log records are this process's. Raises `DiedError` where the process was killed, and
        `KeyboardInterrupt` after `stop`.
        """
        try:
            with self._messages:
                while (message := self._messages.recv())[0] == "record":
                    _log(*message[1])
        except EOFError:
            self.process.join()
            if _stopped.is_set():
                raise KeyboardInterrupt from None
            raise DiedError(self.process.exitcode) from None
        finally:
            _running.discard(self)
        self.process.join()
        kind, content = message
        if kind == "raised":
            raise content
        return content  # type: ignore[no-any-return]


def share_of_threads(processes: int) -> int:
    """Threads of each of so many processes side by side.

    PyTorch's own number is OMP_NUM_THREADS, or the cores. Two processes of a thread each train a
    fifth more images/s than one of two (two AVX2 cores: 10.8, 9.0).
    """
    return max(1, torch.get_num_threads() // processes)


def stop() -> None:
    """End all that are at work, and begin no other: each thread that waits is interrupted."""
    _stopped.set()
    for one in list(_running):
        one.process.terminate()


def prepare() -> None:
    """Allow new ones, and start the process that forks, where Ctrl-C does not reach it."""
    _stopped.clear()
    first = _CONTEXT.Process(target=_nothing, daemon=True)
    if threading.current_thread() is not threading.main_thread():  # Ctrl-C is not for this one
        first.start()
    else:
        handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            first.start()
        finally:
            signal.signal(signal.SIGINT, handler)
    first.join()


def _nothing() -> None:
    pass


def _work(
    sender: Connection,
    threads: int,
    environment: dict[str, str],
    function: Callable[..., object],
    arguments: tuple[object, ...],
) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    os.environ.clear()
    os.environ.update(environment)
    torch.set_num_threads(threads)
    records = _Sending(sender)
    logging.getLogger("etstpm").addHandler(records)
    try:
        message: tuple[str, Any] = "returned", function(*arguments)
    except BaseException as error:
        if not isinstance(error, EtstpmError):
            error.add_note(traceback.format_exc())  # a traceback itself does not travel
        message = "raised", error
    records.acquire()  # a thread may still have something to say
    sender.send(message)


def _end_with_parent() -> None:
    if (parent := parent_process()) is not None:
        wait([parent.sentinel])
        os._exit(1)


class _Sending(logging.Handler):
    """Sends records to the process that waits for the result."""

    def __init__(self, sender: Connection) -> None:
        super().__init__()
        self._sender = sender

    def emit(self, record: logging.LogRecord) -> None:
        content = record.name, record.levelno, record.pathname, record.lineno, record.getMessage()
        with suppress(OSError):
            self._sender.send(("record", content))


def _log(name: str, level: int, path: str, line: int, message: str) -> None:
    logger = logging.getLogger(name)
    if logger.isEnabledFor(level):
        logger.handle(logger.makeRecord(name, level, path, line, message, (), None))
