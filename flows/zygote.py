"""Run a module in a process that is forked from one which has imported torch and Prefect.

    python -m flows.zygote prefect.engine

The command of the process pools: the children of a night begin at once, not after seconds of
imports. The first run of a worker starts the process that forks, its zygote (the word of Android
and Chromium). It ends with the worker, or when it was idle for long. Another environment has a
zygote of its own, so that what is read at import, such as OMP_NUM_THREADS, holds.

The forked process ends with the one that stands for it here, however that ends. Where no zygote is
to be had (it needs Linux, and a folder of its own for temporary files), the module runs here.
"""

import fcntl
import hashlib
import json
import os
import re
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

OF_ONE_RUN = re.compile("PREFECT__.*|PWD|OLDPWD|SHLVL|_")
"""Variables that differ from run to run: what Prefect and shells say of a single command."""


def main(words: list[str]) -> None:
    """Run a module with its arguments; the exit code is the module's, a killed one's its signal."""
    if not words:
        sys.stderr.write("etstpm: no module to run; give one, as: -m flows.zygote prefect.engine\n")
        raise SystemExit(2)
    if words[0] == "--fork":
        from flows.forking import fork_for_requests

        words = fork_for_requests(socket.socket(fileno=int(words[1])), int(words[2]))
        if not words:
            return
    else:
        zygote = None
        with suppress(OSError, EOFError):
            zygote = ask(words)
        if zygote is not None:
            raise SystemExit(await_end(zygote))
    sys.argv = words
    sys.modules.pop(words[0], None)  # its code runs anew, as __main__
    runpy.run_module(words[0], run_name="__main__", alter_sys=True)


def ask(words: list[str]) -> socket.socket:
    """Have a module run with this process's files, folder and environment.

    The connection tells how it ends. Raises `OSError` or `EOFError` if nothing was begun, for want
    of a zygote.
    """
    zygote = _connection()
    request = {"words": words, "folder": str(Path.cwd()), "environment": dict(os.environ)}
    content = json.dumps(request).encode()
    socket.send_fds(zygote, [len(content).to_bytes(4, "big")], [0, 1, 2])
    zygote.sendall(content)
    _number(zygote)  # it has forked
    return zygote


def await_end(zygote: socket.socket) -> int:
    """The exit code of what runs; signals are passed on to it. Ends by the signal that ends it."""

    def pass_on(number: int, _: FrameType | None) -> None:
        with suppress(OSError):
            zygote.sendall(bytes([number]))

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, pass_on)
    try:
        code = _number(zygote)
    except (OSError, EOFError):  # the zygote was killed, and with it what it had forked
        code = -signal.SIGKILL
    if code < 0:
        if code != -signal.SIGKILL:
            signal.signal(signal.Signals(-code), signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    return code


def _connection() -> socket.socket:
    """A connection to the zygote of this process's parent; started if there is none."""
    if not hasattr(os, "pidfd_open"):
        raise OSError("needs Linux")
    folder = Path(tempfile.gettempdir()) / f"etstpm-zygotes-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    if found.st_uid != os.getuid() or found.st_mode & 0o170077 != 0o040000:
        raise OSError(f"{folder} is not a folder of this user alone")
    worker = os.getppid()
    environment = {k: v for k, v in os.environ.items() if not OF_ONE_RUN.fullmatch(k)}
    address = folder / name_of_zygote(worker, environment)
    zygote = socket.socket(socket.AF_UNIX)
    with addresses_locked(folder):
        try:
            zygote.connect(str(address))
        except OSError:
            address.unlink(missing_ok=True)
            _start(address, worker, environment)
            zygote.connect(str(address))
    return zygote


@contextmanager
def addresses_locked(folder: Path) -> Iterator[None]:
    """Nobody else starts a zygote, or takes its address away, meanwhile.

    Not `etstpm.locks`, whose imports take as long as all else that a run does here.
    """
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def name_of_zygote(worker: int, environment: Mapping[str, str]) -> str:
    """The same for all whom it may serve: of one worker, one environment and one program."""
    started = Path(f"/proc/{worker}/stat").read_text().rpartition(")")[2].split()[19]
    identity = [worker, started, sys.executable, __file__, dict(environment)]
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]


def _start(address: Path, worker: int, environment: Mapping[str, str]) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(address))
        listener.listen(128)
        subprocess.Popen(  # noqa: S603
            [sys.executable, "-m", "flows.zygote", "--fork", str(listener.fileno()), str(worker)],
            cwd=Path(__file__).parents[1],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,  # this process's own is read until all have closed it
            stderr=subprocess.DEVNULL,
            pass_fds=[listener.fileno()],
            start_new_session=True,
        )


def _number(zygote: socket.socket) -> int:
    content = b""
    while len(content) < 4:
        block = zygote.recv(4 - len(content))
        if not block:
            raise EOFError
        content += block
    return int.from_bytes(content, "big", signed=True)


if __name__ == "__main__":
    main(sys.argv[1:])
