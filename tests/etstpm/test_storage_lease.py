"""Who makes an artifact when several want it."""

import json
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from etstpm.storage import Store, make_once
from etstpm.storage.lease import Pace, lease_key

KEY = "students/bottle/0123abcd"
QUICK = Pace(beat=0.1, expiry=1.5, settle=0.1, poll=0.05)
SPAWN = multiprocessing.get_context("spawn")


@pytest.fixture
def store(empty_store: Store) -> Store:
    return empty_store


def maker(store: Store, folder: Path, made: list[str], seconds: float = 0.0) -> Callable[[], None]:
    """Makes the artifact, slowly, and notes that it did."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "a.txt").write_text("content")

    def make() -> None:
        made.append(threading.current_thread().name)
        time.sleep(seconds)
        store.commit(KEY, folder, {"stage": "student"})

    return make


def test_one_of_many_makes_it_and_no_lease_stays(store: Store, tmp_path: Path) -> None:
    made: list[str] = []
    with ThreadPoolExecutor(6) as pool:
        work = [
            pool.submit(
                make_once,
                Store(store.uri),
                KEY,
                maker(store, tmp_path / str(number), made, 0.3),
                pace=QUICK,
            )
            for number in range(6)
        ]
    assert {job.result() for job in work} == {KEY}
    assert len(made) == 1
    assert store.read_if_there(lease_key(KEY)) is None


def test_what_is_there_is_not_made_and_needs_no_lease(store: Store, tmp_path: Path) -> None:
    made: list[str] = []
    make_once(store, KEY, maker(store, tmp_path / "a", made), pace=QUICK)
    make_once(store, KEY, maker(store, tmp_path / "b", made), pace=QUICK)
    assert len(made) == 1


def test_a_maker_that_fails_gives_up_its_lease(store: Store, tmp_path: Path) -> None:
    def fails() -> None:
        raise ArithmeticError("the loss is not finite")

    with pytest.raises(ArithmeticError):
        make_once(store, KEY, fails, pace=QUICK)
    assert store.read_if_there(lease_key(KEY)) is None
    made: list[str] = []
    make_once(store, KEY, maker(store, tmp_path / "a", made), pace=QUICK)
    assert len(made) == 1


def foreign(store: Store, beat: int, **changes: object) -> None:
    """A lease of another machine."""
    lease = {
        "key": KEY,
        "owner": "somebody",
        "machine": "elsewhere/boot/pid:[1]",
        "pid": 1,
        "process_start": "1",
        "beat": beat,
    }
    store.write_json(lease_key(KEY), lease | changes)


def test_a_beating_lease_is_waited_for_and_a_silent_one_expires(
    store: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    foreign(store, 0)
    ended = threading.Event()

    def beat() -> None:
        for number in range(1, 10):
            ended.wait(0.3)
            foreign(store, number)

    holder = threading.Thread(target=beat)
    holder.start()
    made: list[str] = []
    started = time.monotonic()
    make_once(store, KEY, maker(store, tmp_path / "a", made), pace=QUICK)
    waited = time.monotonic() - started
    holder.join()
    assert waited > 9 * 0.3 + QUICK.expiry - 0.5  # it beat for so long, and was silent then
    assert len(made) == 1
    assert f"{KEY} is being made by process 1 on elsewhere; waiting for it" in caplog.text


def test_a_clock_set_back_or_forward_changes_nothing(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A lease knows no time of day: neither of its holder nor of who waits."""
    monkeypatch.setattr(time, "time", lambda: 86400.0)  # 1970
    foreign(store, 0)
    made: list[str] = []
    started = time.monotonic()
    make_once(store, KEY, maker(store, tmp_path / "a", made), pace=QUICK)
    assert QUICK.expiry < time.monotonic() - started < QUICK.expiry + 5
    assert len(made) == 1


@pytest.mark.parametrize("content", [b"", b"[]", b'{"owner": 3}', b"\x80\x04pickle"])
def test_a_lease_that_nobody_understands_expires(
    store: Store, content: bytes, tmp_path: Path
) -> None:
    store.write_bytes(lease_key(KEY), content)
    made: list[str] = []
    make_once(store, KEY, maker(store, tmp_path / "a", made), pace=QUICK)
    assert len(made) == 1


def hold_for_ever(uri: str) -> None:
    make_once(Store(uri), KEY, lambda: time.sleep(600))


def test_a_killed_holder_of_this_machine_is_seen_at_once(store: Store, tmp_path: Path) -> None:
    holder = SPAWN.Process(target=hold_for_ever, args=(store.uri,))
    holder.start()
    assert holder.pid is not None
    deadline = time.monotonic() + 60
    while store.read_if_there(lease_key(KEY)) is None and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.5)  # it has read its own back
    os.kill(holder.pid, signal.SIGKILL)
    holder.join()
    made: list[str] = []
    started = time.monotonic()
    make_once(store, KEY, maker(store, tmp_path / "a", made))
    assert time.monotonic() - started < 10  # of the 60 s that a lease lasts
    assert len(made) == 1


def test_who_lost_the_lease_commits_in_vain(store: Store, tmp_path: Path) -> None:
    """A holder that was paused for long, and thought dead: the other's artifact stays."""
    made: list[str] = []
    (tmp_path / "late").mkdir()
    (tmp_path / "late" / "a.txt").write_text("late")

    def paused() -> None:
        foreign(store, 0)  # takes over meanwhile,
        maker(store, tmp_path / "a", made)()  # and commits first
        store.commit(KEY, tmp_path / "late", {"stage": "student"})

    make_once(store, KEY, paused, pace=QUICK)
    with store.open(store.get(KEY), "a.txt") as folder:
        assert (folder / "a.txt").read_text() == "content"
    assert json.loads(store.read_bytes(lease_key(KEY)))["owner"] == "somebody"  # not ours to remove


def test_a_damaged_artifact_is_made_anew(
    store: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made: list[str] = []
    make = maker(store, tmp_path / "a", made)
    make_once(store, KEY, make, pace=QUICK)
    store.fs.pipe_file(store.path(f"{store.get(KEY).folder}/a.txt"), b"contenT")
    make_once(store, KEY, make, pace=QUICK)
    assert len(made) == 1  # nobody asked for this file
    make_once(store, KEY, make, verified=("a.txt",), pace=QUICK)
    assert len(made) == 2
    assert f"{KEY}/a.txt is missing or damaged" in caplog.text
    with store.open(store.get(KEY), "a.txt") as folder:
        assert (folder / "a.txt").read_text() == "content"
