"""What passes by itself is waited for, what does not is said at once: against a real S3 server."""

import os
import time
from pathlib import Path

import pytest

from etstpm.errors import StorageError
from etstpm.settings import settings
from etstpm.storage import Store, file_sha256
from etstpm.storage.location import PART_BYTES
from etstpm.storage.retrying import is_transient, persist
from tests.fault_proxy import Fault, FaultProxy, Request
from tests.s3_server import S3


@pytest.fixture
def store(faulty_s3: S3) -> Store:
    store = Store(faulty_s3.uri)
    store.write_bytes("there", b"content")
    return store


def be_patient(patch: pytest.MonkeyPatch, seconds: float, timeout: float = 30.0) -> None:
    patch.setenv("ETSTPM_STORE_PATIENCE", str(seconds))
    patch.setenv("ETSTPM_STORE_TIMEOUT", str(timeout))
    settings.cache_clear()


@pytest.mark.parametrize("fault", [Fault.SLOW_DOWN, Fault.INTERNAL])
def test_a_server_that_is_overloaded_is_waited_for(
    fault: Fault, store: Store, s3_proxy: FaultProxy, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(2):
        s3_proxy.fail_next(3, fault)  # as many as botocore itself tries
        store.write_bytes("written", b"new")
    s3_proxy.fail_next(3, fault)
    assert store.read_bytes("written") == b"new"
    assert s3_proxy.broken == 9
    assert f"store {store.uri}: put file failed (OSError: " in caplog.text
    assert caplog.text.count("; trying again in ") == 3


@pytest.mark.parametrize("fault", [Fault.CUT, Fault.CUT_ANSWER, Fault.CUT_AFTER])
def test_a_connection_that_breaks_is_made_anew(
    fault: Fault, store: Store, s3_proxy: FaultProxy, tmp_path: Path
) -> None:
    s3_proxy.fail_next(1, fault)
    store.write_bytes("written", b"new")
    s3_proxy.fail_next(1, fault)
    assert store.read_bytes("written") == b"new"
    s3_proxy.fail_next(1, fault)
    assert store.fetch("written", tmp_path / "written")
    assert (tmp_path / "written").read_bytes() == b"new"
    s3_proxy.fail_next(1, fault)
    assert store.read_if_there("not there") is None
    s3_proxy.fail_next(1, fault)
    store.remove_file("written")
    assert store.read_if_there("written") is None
    assert s3_proxy.broken == 5


def test_a_stalled_connection_is_given_up_and_made_anew(
    faulty_s3: S3, s3_proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    be_patient(monkeypatch, 30, timeout=0.5)
    store = Store(faulty_s3.uri)
    store.write_bytes("there", b"content")
    s3_proxy.fail_next(1, Fault.STALL)
    started = time.monotonic()
    assert store.read_bytes("there") == b"content"
    assert 0.4 < time.monotonic() - started < 20


@pytest.mark.parametrize("fault", [Fault.SLOW_DOWN, Fault.INTERNAL, Fault.CUT])
def test_patience_ends_in_one_line(
    fault: Fault, store: Store, s3_proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    be_patient(monkeypatch, 1)
    s3_proxy.fail_always(fault)
    started = time.monotonic()
    with pytest.raises(StorageError) as caught:
        store.write_bytes("written", b"new")
    assert time.monotonic() - started < 20
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(f"store {store.uri}: put file failed (")
    assert message.endswith("has room, and that credentials are set")
    s3_proxy.heal()
    assert store.read_if_there("written") is None


def test_what_does_not_pass_is_said_at_once(store: Store, s3_proxy: FaultProxy) -> None:
    s3_proxy.fail_always(Fault.DENIED)
    before = len(s3_proxy.requests)
    with pytest.raises(StorageError, match=r"put file failed \(PermissionError"):
        store.write_bytes("written", b"new")
    assert len(s3_proxy.requests) == before + 1
    s3_proxy.heal()
    with pytest.raises(StorageError, match=r"s3://no-such-bucket/x: put file failed"):
        Store("s3://no-such-bucket/x").check_writable()


def test_an_answer_that_is_damaged_on_the_way_is_fetched_again(
    faulty_s3: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is no damage in the store: the artifact stays."""
    store = Store(faulty_s3.uri)
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "a").write_bytes(b"content")
    artifact = store.commit("teachers/0123abcd", tmp_path / "made", {})
    fetch, damaged = Store.fetch, list[str]()

    def damages_once(self: Store, key: str, local: Path) -> bool:
        found = bool(fetch(self, key, local))
        if not damaged:
            damaged.append(key)
            local.write_bytes(b"contenT")
        return found

    monkeypatch.setattr(Store, "fetch", damages_once)
    with store.open(artifact, "a") as folder:
        assert (folder / "a").read_bytes() == b"content"
    assert damaged
    assert store.find("teachers/0123abcd") == artifact


def test_a_large_file_goes_up_in_parts_each_tried_again_by_itself(
    store: Store, s3_proxy: FaultProxy, tmp_path: Path
) -> None:
    large = tmp_path / "large"
    large.write_bytes(os.urandom(1024) * (2 * PART_BYTES // 1024 + 3))
    failed: list[str] = []

    def second_part_once(request: Request) -> Fault | None:
        if "partNumber=2" in request.path and not failed:
            failed.append(request.path)
            return Fault.INTERNAL
        return None

    s3_proxy.plan = second_part_once
    s3_proxy.requests.clear()
    store.put_file(large, "large")
    parts = [request.path for request in s3_proxy.requests if "partNumber=" in request.path]
    assert sorted(path.partition("partNumber=")[2][0] for path in parts) == ["1", "2", "2", "3"]
    assert failed
    assert store.fetch("large", tmp_path / "back")
    assert file_sha256(tmp_path / "back") == file_sha256(large)


def test_a_run_lists_nothing(store: Store, s3_proxy: FaultProxy, tmp_path: Path) -> None:
    """What it asks for, it asks for by key: the number of nights does not matter."""
    s3_proxy.requests.clear()
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "a").write_bytes(b"content")
    assert store.find("teachers/0123abcd") is None
    assert len(s3_proxy.requests) == 1
    store.commit("teachers/0123abcd", tmp_path / "made", {})
    s3_proxy.requests.clear()
    artifact = store.get("teachers/0123abcd")
    assert len(s3_proxy.requests) == 1
    with store.open(artifact, "a"):
        pass
    assert len(s3_proxy.requests) == 2
    store.check_writable()
    assert not [request for request in s3_proxy.requests if request.is_listing]


def test_pauses_grow_and_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    clock = [0.0]

    def sleep(seconds: float) -> None:
        pauses.append(seconds)
        clock[0] += seconds

    monkeypatch.setattr("etstpm.storage.retrying.time.sleep", sleep)
    monkeypatch.setattr("etstpm.storage.retrying.time.monotonic", lambda: clock[0])

    def fails() -> None:
        raise ConnectionResetError("peer")

    with pytest.raises(ConnectionResetError):
        persist(fails, "store x: find failed", 100.0)
    assert sum(pauses) <= 100
    for number, pause in enumerate(pauses):
        whole = min(0.25 * 2**number, 15.0)
        assert whole / 2 <= pause <= whole
    assert len({pause / min(0.25 * 2**n, 15.0) for n, pause in enumerate(pauses)}) > 3


def test_faults_of_the_request_or_the_disk_are_not_transient() -> None:
    for error in (ValueError("x"), PermissionError("x"), OSError(28, "No space left on device")):
        assert not is_transient(error)
    wrapped = OSError("wrapped")
    wrapped.__cause__ = TimeoutError("x")
    assert is_transient(wrapped)
