"""Real servers and workers as processes that can be stopped, killed and started again."""

import os
import pwd
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

START_SECONDS = 300.0  # a first start writes a database: 15 s alone, far more beside other work
STOP_SECONDS = 20.0


class Service:
    """A program in a session of its own, its output in `folder`/NAME.log.

    What it starts in its turn ends with it: signals go to the whole session.
    """

    def __init__(
        self,
        name: str,
        arguments: Sequence[str | Path],
        environment: Mapping[str, str],
        folder: Path,
        *,
        is_ready: Callable[[], bool] = lambda: True,
        user: str | None = None,
    ) -> None:
        self.name, self.arguments, self.environment = name, arguments, environment
        self.folder, self.is_ready, self.user = folder, is_ready, user
        self.log = folder / f"{name}.log"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and wait until it is ready. Raises `TimeoutError` with the end of its log."""
        with self.log.open("ab") as output:
            self.process = process = subprocess.Popen(
                self.arguments,
                cwd=self.folder,
                env=dict(self.environment),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                user=self.user,
            )

        def is_up() -> bool:
            if process.poll() is not None:
                raise TimeoutError(f"{self.name} ended with code {process.returncode}")
            return self.is_ready()

        try:
            wait_until(is_up, START_SECONDS, f"the start of {self.name}")
        except TimeoutError as error:
            error.add_note(f"{self.log}:\n{self.log.read_text(errors='replace')[-4000:]}")
            self.kill()
            raise

    def stop(self) -> None:
        """End it as an operator does, and by force if it does not obey."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """kill -9, with all that it started."""
        self._end(signal.SIGKILL)

    def _end(self, number: signal.Signals) -> None:
        if self.process is None:
            return
        for attempt in (number, signal.SIGKILL):
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, attempt)
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(STOP_SECONDS)
        self.process = None


def postgres(folder: Path) -> Service | None:
    """PostgreSQL with an empty database `prefect`, not started yet; None where it is not installed.

    It listens on the loopback alone, trusts who comes, and runs as the user `postgres` when the
    tests run as root, which it refuses to be. So `folder` must not lie below pytest's own, which
    every other session of pytest closes to other users when it starts.
    """
    programs = [shutil.which("initdb"), *sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))]
    found = next((Path(program).resolve() for program in programs if program), None)
    if found is None:
        return None
    user = "postgres" if os.geteuid() == 0 else None
    data, port = folder / "data", free_port()
    data.mkdir(parents=True)
    if user is not None:
        account = pwd.getpwnam(user)
        for path in (data, folder):
            os.chown(path, account.pw_uid, account.pw_gid)
    environment = {"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8"}
    subprocess.run(
        [found, "--pgdata", data, "--username", "prefect", "--auth", "trust", "--no-sync"],
        cwd=folder,
        env=environment,
        user=user,
        check=True,
        capture_output=True,
    )
    options = {"listen_addresses": "127.0.0.1", "port": str(port), "fsync": "off"}
    options |= {"unix_socket_directories": "", "max_connections": "200"}
    words = [word for name, value in options.items() for word in ("-c", f"{name}={value}")]
    return Service(
        "postgres",
        [found.with_name("postgres"), "-D", data, *words],
        environment | {"PORT": str(port)},
        folder,
        is_ready=lambda: _accepts(found.with_name("pg_isready"), port),
        user=user,
    )


def database_url(database: Service) -> str:
    """What Prefect's server calls a `postgres` service: the database that initdb made."""
    return f"postgresql+asyncpg://prefect@127.0.0.1:{database.environment['PORT']}/postgres"


def wait_until(is_done: Callable[[], bool], seconds: float, what: str) -> None:
    """Poll `is_done`. Raises `TimeoutError`, saying `what`, after `seconds`."""
    deadline = time.monotonic() + seconds
    while not is_done():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not within {seconds:.0f} s")
        time.sleep(0.2)


def free_port() -> int:
    """A port of the loopback that nobody listens on now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _accepts(pg_isready: Path, port: int) -> bool:
    """It listens before it has recovered from a kill, and turns away who comes."""
    command = [str(pg_isready), "--host", "127.0.0.1", "--port", str(port), "--quiet"]
    return subprocess.run(command, check=False).returncode == 0
