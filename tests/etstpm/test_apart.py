"""Functions in processes of their own: what they return, raise and log, and how they end."""

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from etstpm import apart
from etstpm.apart import Apart, DiedError
from etstpm.errors import DamagedArtifactError
from tests.prefect_server import REPOSITORY
from tests.processes import is_alive
from tests.services import wait_until

SECONDS = 60.0


@pytest.fixture(autouse=True)
def prepared() -> Iterator[None]:
    apart.prepare()
    yield
    apart.prepare()  # after `stop` too, the next test may begin


def look(name: str) -> tuple[int, str | None, int, bool]:
    """What a process has of its own."""
    is_ignored = signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    return os.getpid(), os.environ.get(name), torch.get_num_threads(), is_ignored


def complain(count: int) -> str:
    for number in range(count):
        logging.getLogger("etstpm.storage").warning("%d of %s", number, "x" * 100)
    raise DamagedArtifactError("scores/a is damaged")


def blunder() -> None:
    raise ZeroDivisionError("a bug")


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def work_on(file: str) -> None:
    Path(file).write_text(str(os.getpid()))
    time.sleep(SECONDS)


def test_environment_threads_and_interrupts_are_what_they_should_be(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen = []
    for value in ("one", "two"):  # the process that forks knows neither
        monkeypatch.setenv("ETSTPM_TEST_APART", value)
        seen.append(Apart(look, "ETSTPM_TEST_APART", threads=3).result())

    assert [rest for _, *rest in seen] == [["one", 3, True], ["two", 3, True]]
    assert len({os.getpid(), *(process for process, *_ in seen)}) == 3


def test_fault_and_records_come_back(caplog: pytest.LogCaptureFixture) -> None:
    """More of them than a pipe holds."""
    with (
        caplog.at_level(logging.WARNING, "etstpm"),
        pytest.raises(DamagedArtifactError, match=r"^scores/a is damaged$") as raised,
    ):
        Apart(complain, 1000, threads=1).result()

    assert not hasattr(raised.value, "__notes__")
    assert [record.getMessage()[:8] for record in caplog.records] == [
        f"{number} of {'x' * 100}"[:8] for number in range(1000)
    ]
    assert {record.name for record in caplog.records} == {"etstpm.storage"}


def test_bug_says_where() -> None:
    with pytest.raises(ZeroDivisionError, match="a bug") as raised:
        Apart(blunder, threads=1).result()

    assert "in blunder" in raised.value.__notes__[0]


def test_death_is_told() -> None:
    with pytest.raises(DiedError, match=r"exit code -9: killed, perhaps for want of memory$"):
        Apart(die, threads=1).result()


def test_stopped_each_thread_that_waits_is_interrupted(tmp_path: Path) -> None:
    files, ended = [tmp_path / "a", tmp_path / "b"], list[type[BaseException]]()

    def wait_for(file: Path) -> None:
        try:
            Apart(work_on, str(file), threads=1).result()
        except BaseException as error:
            ended.append(type(error))

    threads = [threading.Thread(target=wait_for, args=(file,)) for file in files]
    for thread in threads:
        thread.start()
    wait_until(lambda: all(file.exists() and file.read_text() for file in files), SECONDS, "work")
    apart.stop()
    for thread in threads:
        thread.join(SECONDS)

    assert ended == [KeyboardInterrupt] * 2
    assert not any(is_alive(int(file.read_text())) for file in files)
    with pytest.raises(KeyboardInterrupt):
        Apart(look, "HOME", threads=1)


def test_it_ends_with_the_process_that_asked_for_it(tmp_path: Path) -> None:
    file = tmp_path / "process"
    code = (
        "import sys; from etstpm.apart import Apart, prepare; prepare(); "
        "from tests.etstpm.test_apart import work_on; Apart(work_on, sys.argv[1], threads=1)"
        ".result()"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(file)], cwd=REPOSITORY) as asking:
        wait_until(lambda: file.exists() and bool(file.read_text()), SECONDS, "work")
        asking.kill()
    wait_until(lambda: not is_alive(int(file.read_text())), SECONDS, "its end")
