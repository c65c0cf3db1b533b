"""A real Prefect server on PostgreSQL, its deployments, and real process workers.

Where PostgreSQL is not installed the server keeps its state in SQLite, and tests that need the
other skip.
"""

import json
import os
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from tests.s3_server import S3Server, s3_environment
from tests.services import Service, database_url, free_port, postgres, wait_until

__all__ = ["REPOSITORY", "Prefect", "wait_until"]

REPOSITORY = Path(__file__).parents[1]
PREFECT = (sys.executable, "-m", "prefect")
COMMAND_SECONDS = 600.0  # alone: 5 s; other work beside takes its share
RUN_SECONDS = 900.0
API_SECONDS = 120.0
FINAL = {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}

LEASES_ON_DISK = "prefect.server.concurrency.lease_storage.filesystem"

# Read by whatever runs the server: a night that is watched every second.
SERVER = {
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_SERVICES_SCHEDULER_LOOP_SECONDS": "5",
    "PREFECT_SERVER_DEPLOYMENTS_CONCURRENCY_SLOT_WAIT_SECONDS": "2",
    # The default keeps the slots' leases in memory: a server that starts again would end the
    # night that runs, whose lease it no longer knows.
    "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": LEASES_ON_DISK,
    "PREFECT_SERVER_SERVICES_DB_VACUUM_ENABLED": "true",
}
CLIENT = {
    "DO_NOT_TRACK": "1",
    "OMP_NUM_THREADS": "1",  # children side by side: two teams of threads wait for each other
    "NO_COLOR": "1",
    "COLUMNS": "200",
    "PREFECT_WORKER_QUERY_SECONDS": "1",
    "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",
}


@dataclass(frozen=True)
class Prefect:
    """The `prefect` command and the API of one server."""

    api: str
    environment: Mapping[str, str]
    server: Service
    database: Service | None
    workers: dict[str, Service] = field(default_factory=dict)
    """By pool, where the fixture `workers` has started them."""

    def __call__(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        """Run `prefect ARGUMENTS` in the repository's root, whatever its exit code."""
        return self.command(*PREFECT, *arguments)

    def command(self, *words: str) -> "subprocess.CompletedProcess[str]":
        """Run a command against this server in the repository's root, whatever its exit code."""
        return subprocess.run(
            words,
            cwd=REPOSITORY,
            env=dict(self.environment),
            capture_output=True,
            text=True,
            timeout=COMMAND_SECONDS,
            check=False,
        )

    def get(self, path: str) -> Any:
        """What the API answers to GET."""
        with urllib.request.urlopen(f"{self.api}/{path}", timeout=API_SECONDS) as answer:  # noqa: S310
            return json.load(answer)

    def post(self, path: str, body: Mapping[str, object]) -> Any:
        """What the API answers to POST."""
        request = urllib.request.Request(  # noqa: S310
            f"{self.api}/{path}",
            data=json.dumps(body).encode(),
            headers={"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=API_SECONDS) as answer:  # noqa: S310
            content = answer.read()
        return json.loads(content) if content else None

    def begin(self, deployment: str, **parameters: object) -> dict[str, Any]:
        """Start a run of a deployment; the run."""
        found = self.get(f"deployments/name/{deployment}")
        body = {"state": {"type": "SCHEDULED"}, "parameters": parameters}
        return dict(self.post(f"deployments/{found['id']}/create_flow_run", body))

    def begin_by_command(self, deployment: str, **parameters: object) -> dict[str, Any]:
        """The same by `prefect deployment run`, which takes the seconds of an import."""
        before = datetime.now().astimezone().isoformat()
        words = [
            word
            for name, value in parameters.items()
            for word in ("--param", f"{name}={json.dumps(value)}")
        ]
        started = self("deployment", "run", deployment, *words)
        assert started.returncode == 0, started.stdout + started.stderr
        flow, _, name = deployment.partition("/")
        query = {
            "flow_runs": {"expected_start_time": {"after_": before}},
            "flows": {"name": {"any_": [flow]}},
            "deployments": {"name": {"any_": [name]}},
            "sort": "EXPECTED_START_TIME_ASC",
        }
        (created,) = (
            run for run in self.post("flow_runs/filter", query) if not run["auto_scheduled"]
        )
        return dict(created)

    def run(self, run_id: str) -> dict[str, Any]:
        """A run as it stands."""
        return dict(self.get(f"flow_runs/{run_id}"))

    def state(self, run_id: str) -> str:
        """The type of its state, as COMPLETED."""
        return str(self.run(run_id)["state"]["type"])

    def finish(self, run: Mapping[str, Any], seconds: float = RUN_SECONDS) -> dict[str, Any]:
        """The run when it has ended."""
        wait_until(lambda: self.state(run["id"]) in FINAL, seconds, f"the end of run {run['name']}")
        return self.run(run["id"])

    def children(self, run: Mapping[str, Any]) -> list[dict[str, Any]]:
        """The child runs of a run, as they stand."""
        query = {"flow_runs": {"parent_flow_run_id": {"any_": [run["id"]]}}}
        return list(self.post("flow_runs/filter", query))

    def child(self, run: Mapping[str, Any], subject: str) -> dict[str, Any] | None:
        """The newest child run of a category, or the teacher's."""
        found = [c for c in self.children(run) if c["name"].startswith(f"{subject} ")]
        return max(found, key=lambda child: str(child["created"]), default=None)

    def wait_for_child(
        self,
        run: Mapping[str, Any],
        subject: str,
        state: str = "RUNNING",
        other_than: str | None = None,
    ) -> str:
        """The id of the newest child run of a category when it is in this state."""

        def is_there() -> bool:
            child = self.child(run, subject)
            return (
                child is not None and child["id"] != other_than and child["state"]["type"] == state
            )

        wait_until(is_there, RUN_SECONDS, f"the child of {subject}, {state}")
        child = self.child(run, subject)
        assert child is not None
        return str(child["id"])

    def log(self, run: Mapping[str, Any]) -> str:
        """The run's log and, last, its state's message; the log reaches the server in batches."""
        query = {"logs": {"flow_run_id": {"any_": [run["id"]]}}, "sort": "TIMESTAMP_ASC"}

        def messages(of_flow_alone: bool) -> list[str]:
            return [
                record["message"]
                for record in self.post("logs/filter", query)
                if not of_flow_alone or record["task_run_id"] is None
            ]

        wait_until(
            lambda: any(message.startswith("Finished in state") for message in messages(True)),
            30,
            f"the end of the log of run {run['name']}",
        )
        return "\n".join([*messages(False), run["state"]["message"] or ""])


@contextmanager
def running_prefect(
    folder: Path, settings: Mapping[str, str] | None = None, *, has_ui: bool = False
) -> Iterator[Prefect]:
    """A server of its own below `folder`: a free port, no account, no analytics."""
    with tempfile.TemporaryDirectory(prefix="etstpm-postgres-") as of_database:
        yield from _running(folder, postgres(Path(of_database)), settings or {}, has_ui=has_ui)


def without_prefect() -> dict[str, str]:
    """This process's environment, less what Prefect reads."""
    return {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}


def _running(
    folder: Path, database: Service | None, settings: Mapping[str, str], *, has_ui: bool
) -> Iterator[Prefect]:
    port = free_port()
    api = f"http://127.0.0.1:{port}/api"
    environment = {
        **without_prefect(),
        **CLIENT,
        "ETSTPM_CACHE": str(folder / "etstpm-cache"),
        "PREFECT_API_URL": api,
        "PREFECT_HOME": str(folder),
    }
    of_server = {**SERVER, "PREFECT_SERVER_UI_ENABLED": str(has_ui).lower(), **settings}
    if database is not None:
        of_server["PREFECT_SERVER_DATABASE_CONNECTION_URL"] = database_url(database)
        database.start()
    server = Service(
        "prefect-server",
        (*PREFECT, "server", "start", "--host", "127.0.0.1", "--port", str(port)),
        environment | of_server,
        folder,
        is_ready=lambda: _is_healthy(api),
    )
    try:
        server.start()
        yield Prefect(api, environment, server, database)
    finally:
        server.stop()
        if database is not None:
            database.stop()


def worker_on(
    prefect: Prefect, pool: str, limit: int, folder: Path, settings: Mapping[str, str]
) -> Service:
    """A process worker on a pool as on its own machine: far from the repository, own cache."""
    arguments = (*PREFECT, "worker", "start", "--pool", pool, "--limit", str(limit))
    environment = {**prefect.environment, "ETSTPM_CACHE": str(folder / f"cache-{pool}"), **settings}
    return Service(f"worker-{pool}", arguments, environment, folder)


@pytest.fixture(scope="session")
def prefect_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prefect]:
    """The session's server, shared: not to be stopped."""
    with running_prefect(tmp_path_factory.mktemp("prefect")) as prefect:
        yield prefect


@pytest.fixture(scope="session")
def deployed(prefect_server: Prefect) -> Prefect:
    """The server with the pools and everything that deployments/ declares."""
    done = prefect_server.command("make", "deploy")
    assert done.returncode == 0, done.stdout + done.stderr
    return prefect_server


@pytest.fixture(scope="session")
def workers(
    deployed: Prefect, s3_server: S3Server, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Prefect]:
    """A worker on each pool, two runs at a time; both know the session's S3 server."""
    folder = tmp_path_factory.mktemp("workers")
    settings = s3_environment(s3_server.endpoint, folder)
    for pool in ("cpu", "gpu"):
        deployed.workers[pool] = worker_on(deployed, pool, 2, folder, settings)
    try:
        for worker in deployed.workers.values():
            worker.start()
        yield deployed
    finally:
        for worker in deployed.workers.values():
            worker.stop()


def _is_healthy(api: str) -> bool:
    try:
        with urllib.request.urlopen(f"{api}/health", timeout=5) as answer:  # noqa: S310
            return bool(answer.status == 200)
    except OSError:
        return False
