"""A Prefect server for one run on one machine, where the user has set up none.

Prefect can start one by itself, but that one outlives a killed flow, gives up after 20 s, and makes
the flow's process import the whole server first. This one is the same application; it boots while
torch is imported, and it ends when the process that started it has ended, however that happened.
"""

import atexit
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from etstpm.errors import EtstpmError, reason_of

if TYPE_CHECKING:
    from prefect.settings import Settings

START_SECONDS = 180.0  # 7 s on an idle machine, 15 s the first time, and a busy one takes its time
STOP_SECONDS = 5.0

# Read by Prefect when it is first imported. What the user has set stands.
QUIET = {
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "ERROR",  # the API still gets every record
}

# Nothing is scheduled, watched or looked at while the server is only there for this one run.
SERVER = {
    "PREFECT_LOGGING_LEVEL": "ERROR",
    "PREFECT_SERVER_LOGGING_LEVEL": "ERROR",
    "PREFECT_SERVER_UI_ENABLED": "false",
    "PREFECT_SERVER_SERVICES_CANCELLATION_CLEANUP_ENABLED": "false",
    "PREFECT_SERVER_SERVICES_FOREMAN_ENABLED": "false",
    "PREFECT_SERVER_SERVICES_LATE_RUNS_ENABLED": "false",
    "PREFECT_SERVER_SERVICES_PAUSE_EXPIRATIONS_ENABLED": "false",
    "PREFECT_SERVER_SERVICES_SCHEDULER_ENABLED": "false",
    "PREFECT_SERVER_SERVICES_TRIGGERS_ENABLED": "false",
}


# The line that ends a traceback: an exception's dotted name, and what it says.
_FAULT = re.compile(r"^(?:\w+\.)*\w*(?:Error|Exception): .+$", re.MULTILINE)


class PrefectError(EtstpmError):
    """Prefect's API cannot be reached, or the embedded server does not start."""


class Server:
    """The embedded server, as a child of this process."""

    def __init__(self) -> None:
        self._is_stopping = False
        port = _free_port()
        self.api = f"http://127.0.0.1:{port}/api"
        for name in ("NO_PROXY", "no_proxy"):  # a firm's proxy is not the way to this machine
            hosts = os.environ.get(name)
            os.environ[name] = f"{hosts},127.0.0.1" if hosts else "127.0.0.1"
        # It appends, wherever this process reads.
        self._output = tempfile.TemporaryFile("ab+")  # noqa: SIM115 - as long as the process
        self._process = subprocess.Popen(  # noqa: S603
            [sys.executable, "-m", "flows.embedded", str(port)],
            env={**os.environ, **SERVER},
            stdin=subprocess.PIPE,
            stdout=self._output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C is for the flow, whose last report must be received
        )
        # Prefect sends its last logs and events after the main thread's end and before this.
        atexit.register(self._stop)

    def wait(self) -> None:
        """Return when the server answers. Raises `PrefectError` when it ended or is too late."""
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                raise PrefectError(
                    f"Prefect's embedded server ended with code {self._process.returncode} "
                    f"({self._why_ended()}); mend that, or set "
                    "PREFECT_API_URL to a server of your own"
                )
            try:
                with opener.open(f"{self.api}/health", timeout=5):
                    return
            except (urllib.error.URLError, OSError):
                time.sleep(0.05)
        raise PrefectError(
            f"Prefect's embedded server at {self.api} did not answer within {START_SECONDS:.0f} s; "
            "try again on a less busy machine, or set PREFECT_API_URL to a server of your own"
        )

    def end_run_with_it(self) -> None:
        """From now on, should the server end before this process has stopped it, both do."""
        threading.Thread(target=self._end_run_with_it, daemon=True).start()

    def _end_run_with_it(self) -> None:
        code = self._process.wait()
        if self._is_stopping:
            return
        # Whatever this process would still report, its client would try for minutes. What the store
        # has is whole at any moment, as when it is killed.
        shown_again = "\x1b[?25h\n" if sys.stderr.isatty() else ""  # the cursor, by a bar hidden
        sys.stderr.write(
            f"{shown_again}etstpm: Prefect's embedded server ended with code {code} during the run "
            f"({self._why_ended()}); give the command again, which goes on from what the store "
            "has\n"
        )
        sys.stderr.flush()
        os._exit(PrefectError.exit_code)

    def _why_ended(self) -> str:
        was_killed = self._process.returncode < 0
        unsaid = "it was killed, for want of memory perhaps" if was_killed else "it gave no reason"
        return self.last_fault() or unsaid

    def last_fault(self) -> str | None:
        """What ended the last traceback that it has written, if it has written one."""
        self._output.seek(0)
        faults = _FAULT.findall(self._output.read().decode(errors="replace"))
        return faults[-1] if faults else None

    def _stop(self) -> None:
        self._is_stopping = True
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def begin() -> Server | None:
    """Start the embedded server unless the user has a server; call before torch is imported.

    A server is the user's own when PREFECT_API_URL is set, in the environment, the active Prefect
    profile, a prefect.toml or a pyproject.toml. Raises `PrefectError` where a setting is none, or
    where the embedded server has no place to write to.
    """
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    for name in ("APILogWorker", "EventsWorker"):  # "Still processing items", at every exit
        logging.getLogger(name).setLevel(logging.ERROR)
    # A record that Prefect's server does not take is no news: what fails there says so itself.
    logging.raiseExceptions = False

    settings = _read_settings()
    if settings.api.url is not None:
        return None
    try:  # its database and results lie there
        settings.home.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=settings.home):
            pass
    except OSError as error:
        raise PrefectError(
            f"Prefect's home {settings.home} cannot be written ({error.strerror}); set "
            "PREFECT_HOME to a folder that can"
        ) from None
    return Server()


def _read_settings() -> "Settings":
    """Prefect's, from wherever it reads them; in one line what it refuses."""
    from pydantic import ValidationError

    try:
        from prefect.settings import get_current_settings

        return get_current_settings()
    except ValidationError as error:
        fault = error.errors()[0]
        where = ".".join(str(part) for part in fault["loc"])
        raise PrefectError(
            f"Prefect's {error.title}: {where} = {fault['input']!r} is refused: "
            f"{fault['msg'].lower()}; correct the PREFECT_ variable, or the profile that sets it"
        ) from None


@contextmanager
def connected(server: Server | None) -> Iterator[None]:
    """Flows called inside run against `server`, or against the user's own where it is None.

    Raises `PrefectError` in one line where that server does not answer, now or later.
    """
    from prefect.client.orchestration import get_client
    from prefect.settings import (
        PREFECT_API_URL,
        PREFECT_FLOWS_HEARTBEAT_FREQUENCY,
        get_current_settings,
        temporary_settings,
    )

    from flows.faults import SERVER_FAULTS

    changes = {}
    if server is not None:
        server.wait()
        server.end_run_with_it()
        # Nobody listens for heartbeats here, and their thread costs up to a second at the end.
        changes = {PREFECT_API_URL: server.api, PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}
    else:
        with get_client(sync_client=True) as client:
            fault = client.api_healthcheck()
        if fault is not None:
            raise PrefectError(
                f"Prefect's API at {get_current_settings().api.url} does not answer ({fault}); "
                "start it, correct PREFECT_API_URL, or unset it to run with an embedded server"
            )
    try:
        with temporary_settings(changes):
            yield
    except SERVER_FAULTS as error:
        reason = (server and server.last_fault()) or reason_of(error)
        raise PrefectError(
            f"Prefect's API failed during the run ({reason}); mend that and give the command "
            "again, which goes on from what the store has"
        ) from None


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _end_with_parent() -> None:
    os.read(0, 1)  # returns when the parent has gone or has closed the other end
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(STOP_SECONDS)
    os._exit(1)


def _serve(port: int) -> None:
    import uvicorn

    threading.Thread(target=_end_with_parent, daemon=True).start()
    uvicorn.run(
        "prefect.server.api.server:create_app",
        factory=True,
        host="127.0.0.1",
        port=port,
        log_level="error",
    )


if __name__ == "__main__":
    _serve(int(sys.argv[1]))
