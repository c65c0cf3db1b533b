"""A real Prefect server and a real process worker, each a subprocess that its fixture ends."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
START_SECONDS = 180.0  # a first start writes the database: 15 s alone, far more beside other work
STOP_SECONDS = 20.0
COMMAND_SECONDS = 120.0


@dataclass(frozen=True)
class Prefect:
    """The `prefect` command against one server."""

    api: str
    environment: Mapping[str, str]

    def __call__(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        """Run `prefect ARGUMENTS` in the repository's root, whatever its exit code."""
        return subprocess.run(
            [*_prefect_command(), *arguments],
            cwd=REPOSITORY,
            env=dict(self.environment),
            capture_output=True,
            text=True,
            timeout=COMMAND_SECONDS,
            check=False,
        )


def wait_until(is_done: Callable[[], bool], seconds: float, what: str) -> None:
    """Poll `is_done`. Raises `TimeoutError`, saying `what`, after `seconds`."""
    deadline = time.monotonic() + seconds
    while not is_done():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not within {seconds:.0f} s")
        time.sleep(0.2)


@pytest.fixture(scope="session")
def prefect_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prefect]:
    """A server of its own: SQLite in a fresh folder, a free port, no account, no analytics."""
    folder = tmp_path_factory.mktemp("prefect")
    port = _free_port()
    api = f"http://127.0.0.1:{port}/api"
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")},
        "DO_NOT_TRACK": "1",
        "ETSTPM_CACHE": str(folder / "etstpm-cache"),
        "NO_COLOR": "1",
        "COLUMNS": "200",
        "PREFECT_API_URL": api,
        "PREFECT_HOME": str(folder),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_SERVER_SERVICES_SCHEDULER_LOOP_SECONDS": "5",
        "PREFECT_SERVER_UI_ENABLED": "false",
        "PREFECT_WORKER_QUERY_SECONDS": "1",
    }
    arguments = ("server", "start", "--host", "127.0.0.1", "--port", str(port))
    with _running(arguments, environment, folder / "server.log", folder) as server:
        wait_until(lambda: _is_healthy(api, server), START_SECONDS, "the Prefect server's start")
        yield Prefect(api, environment)


@pytest.fixture(scope="session")
def deployed(prefect_server: Prefect) -> Prefect:
    """The server with the pool `local` and everything that deployments/prefect.yaml declares."""
    for command in (
        "work-pool create local --type process",
        "--no-prompt deploy --all --prefect-file deployments/prefect.yaml",
    ):
        done = prefect_server(*command.split())
        assert done.returncode == 0, done.stdout + done.stderr
    return prefect_server


@pytest.fixture(scope="session")
def worker(deployed: Prefect, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prefect]:
    """A process worker on `local`, started far from the repository's root."""
    folder = tmp_path_factory.mktemp("worker")
    arguments = ("worker", "start", "--pool", "local", "--type", "process", "--limit", "1")
    with _running(arguments, deployed.environment, folder / "worker.log", folder):
        yield deployed


@contextmanager
def _running(
    arguments: Sequence[str], environment: Mapping[str, str], log: Path, folder: Path
) -> Iterator["subprocess.Popen[bytes]"]:
    """Run `prefect ARGUMENTS` in a session of its own, and end it with all that it started."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*_prefect_command(), *arguments],
            cwd=folder,
            env=dict(environment),
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield process
    except TimeoutError as error:
        error.add_note(f"{log}:\n{log.read_text(errors='replace')[-4000:]}")
        raise
    finally:
        _end(process)


def _end(process: "subprocess.Popen[bytes]") -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
            process.wait(STOP_SECONDS)
        except (ProcessLookupError, subprocess.TimeoutExpired):
            continue


def _is_healthy(api: str, server: "subprocess.Popen[bytes]") -> bool:
    if server.poll() is not None:
        raise TimeoutError(f"the Prefect server ended with code {server.returncode}")
    try:
        with urllib.request.urlopen(f"{api}/health", timeout=5) as answer:  # noqa: S310
            return bool(answer.status == 200)
    except OSError:
        return False


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _prefect_command() -> tuple[str, ...]:
    return sys.executable, "-m", "prefect"
