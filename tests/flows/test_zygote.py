"""A process that is forked for a run stands for `python -m` in all that a worker can see."""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from flows import forking
from flows.zygote import name_of_zygote
from tests.processes import is_alive
from tests.services import wait_until

SECONDS = 60.0
pytestmark = pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="the zygote needs Linux")

PROBE = """
import json, os, sys, time

told = dict(
    words=sys.argv[1:],
    folder=os.getcwd(),
    run=os.environ.get("PREFECT__FLOW_RUN_ID"),
    loaded="torch" in sys.modules,
    pid=os.getpid(),
    ppid=os.getppid(),
)
print(json.dumps(told), flush=True)
print("said to stderr", file=sys.stderr)
if "sleep" in sys.argv:
    time.sleep(600)
sys.exit(7)
"""


WORKER = """
import os, signal, subprocess, sys, threading
from pathlib import Path

# A shell's background job ignores Ctrl-C, and so would all that it starts.
signal.signal(signal.SIGINT, signal.default_int_handler)

def run(place):
    environment = {**os.environ, "PREFECT__FLOW_RUN_ID": f"run-{place.name}"}
    words = [sys.executable, "-m", "flows.zygote", *(place / "words").read_text().splitlines()]
    with (place / "out").open("w") as out, (place / "err").open("w") as err:
        started = subprocess.Popen(words, cwd=place, env=environment, stdout=out, stderr=err)
    (place / "pid").write_text(str(started.pid))
    code = started.wait()
    (place / "new").write_text(str(code))
    (place / "new").rename(place / "code")

for line in sys.stdin:
    threading.Thread(target=run, args=(Path(line.strip()),)).start()
"""


class Worker:
    """A process that starts runs, as Prefect's worker does, and sees how they end."""

    def __init__(self, folder: Path, temporary: Path) -> None:
        self.folder = folder
        self.runs = 0
        (folder / "probe.py").write_text(PROBE)
        environment = {**os.environ, "PYTHONPATH": str(folder), "TMPDIR": str(temporary)}
        command = [sys.executable, "-c", WORKER]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, env=environment, text=True)

    def begin(self, *words: str) -> Path:
        """Begin a run of the probe; the folder with its pid, its output and its exit code."""
        self.runs += 1
        place = self.folder / str(self.runs)
        place.mkdir()
        (place / "words").write_text("\n".join(["probe", *words]))
        assert self.process.stdin is not None
        self.process.stdin.write(f"{place}\n")
        self.process.stdin.flush()
        wait_until(lambda: "}" in read(place / "out"), SECONDS, "the probe's first line")
        return place

    def stop(self) -> None:
        """Wait for its runs, and end it."""
        self.process.communicate()


def read(path: Path) -> str:
    return path.read_text() if path.exists() else ""


def told(place: Path) -> dict[str, Any]:
    return dict(json.loads(read(place / "out")))


def code(place: Path) -> int:
    """A run's exit code when it has ended; the negative signal that ended it."""
    wait_until((place / "code").exists, SECONDS, "the end of the run")
    return int(read(place / "code"))


@pytest.fixture(scope="module")
def temporary() -> Iterator[Path]:
    """A folder with a short name: an address has room for 107 letters."""
    with tempfile.TemporaryDirectory(prefix="etstpm-z-") as folder:
        yield Path(folder)


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory, temporary: Path) -> Iterator[Worker]:
    started = Worker(tmp_path_factory.mktemp("worker"), temporary)
    yield started
    started.stop()


def test_it_runs_what_python_m_would(worker: Worker) -> None:
    places = [worker.begin("a b", "c") for _ in range(2)]

    for place in places:
        assert code(place) == 7
        assert read(place / "err") == "said to stderr\n"
        expected = {"words": ["a b", "c"], "folder": str(place), "run": f"run-{place.name}"}
        assert told(place).items() >= expected.items()
        assert told(place)["loaded"]
    first, second = (told(place) for place in places)
    assert first["ppid"] == second["ppid"], "one process has forked both"
    assert first["pid"] != second["pid"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_signal_to_it_ends_what_it_stands_for(worker: Worker, number: signal.Signals) -> None:
    place = worker.begin("sleep")

    os.kill(int(read(place / "pid")), number)

    assert code(place) == -number
    wait_until(lambda: not is_alive(told(place)["pid"]), SECONDS, "the end of the forked process")


def test_it_ends_as_what_it_stands_for(worker: Worker) -> None:
    """A worker calls a child that ran out of memory crashed, with status -9."""
    place = worker.begin("sleep")

    os.kill(told(place)["pid"], signal.SIGKILL)

    assert code(place) == -signal.SIGKILL


def test_its_process_is_named_after_the_run(worker: Worker) -> None:
    place = worker.begin("sleep")
    process = told(place)["pid"]

    assert Path(f"/proc/{process}/comm").read_text() == f"etstpm run-{place.name}\n"

    os.kill(process, signal.SIGKILL)
    code(place)


def test_in_a_folder_that_others_may_write_to_it_runs_here(tmp_path: Path, temporary: Path) -> None:
    shared = temporary / "shared"
    (shared / f"etstpm-zygotes-{os.getuid()}").mkdir(parents=True)
    (shared / f"etstpm-zygotes-{os.getuid()}").chmod(0o770)
    alone = Worker(tmp_path, shared)

    place = alone.begin()

    assert code(place) == 7
    assert told(place)["ppid"] == alone.process.pid
    assert not told(place)["loaded"]
    alone.stop()


def test_a_killed_zygote_takes_its_own_with_it_and_ends_with_its_worker(
    worker: Worker, temporary: Path
) -> None:
    place = worker.begin("sleep")
    process, zygote = told(place)["pid"], told(place)["ppid"]
    os.kill(zygote, signal.SIGKILL)
    assert code(place) == -signal.SIGKILL
    wait_until(lambda: not is_alive(process), SECONDS, "the end of the forked process")

    place = worker.begin()  # there is a new one
    assert code(place) == 7
    zygote = told(place)["ppid"]
    worker.stop()

    wait_until(lambda: not is_alive(zygote), SECONDS, "the end of the zygote")
    (folder,) = temporary.glob("etstpm-zygotes-*")
    assert [path.name for path in folder.iterdir()] == ["lock"]


def test_without_a_module_it_says_what_it_takes() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "flows.zygote"], capture_output=True, text=True, check=False
    )

    assert done.returncode == 2
    assert done.stderr == (
        "etstpm: no module to run; give one, as: -m flows.zygote prefect.engine\n"
    )


def test_another_environment_has_another_zygote() -> None:
    names = {
        name_of_zygote(process, {"OMP_NUM_THREADS": threads})
        for process in (os.getpid(), os.getppid())
        for threads in ("1", "2")
    }
    assert len(names) == 4


def test_one_that_nobody_asks_is_gone_and_one_that_is_asked_is_not(temporary: Path) -> None:
    address = temporary / "address"
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as asker:
        listener.bind(str(address))
        listener.listen()
        zygote = forking.Zygote(listener, os.getpid())
        asker.connect(str(address))
        assert not zygote.is_forgotten()
        listener.accept()[0].close()
        assert address.exists()
        assert zygote.is_forgotten()
        assert not address.exists()
