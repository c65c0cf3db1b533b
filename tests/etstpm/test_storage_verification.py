"""Every kind of damage is one line, exit code 1, and no error."""

import hashlib
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from etstpm.cli import app
from etstpm.errors import StorageError
from etstpm.storage import Store
from etstpm.storage.verification import Damage, verify

KEY, OTHER = "students/bottle/" + "1" * 64, "teachers/" + "2" * 64
TABLE = "tables/metrics/run_id=a/metrics.parquet"
FILE = "weights.safetensors"


@pytest.fixture
def store(empty_store: Store, tmp_path: Path) -> Store:
    """Two artifacts and a run."""
    store = empty_store
    made = tmp_path / "made"
    made.mkdir()
    (made / FILE).write_bytes(bytes(range(256)) * 100)
    (made / "history.parquet").write_bytes(b"PAR1")
    for key in (KEY, OTHER):
        store.commit(key, made, {"seed": 3})
    store.write_bytes(TABLE, b"table")
    files = {"metrics": {"key": TABLE, "sha256": hashlib.sha256(b"table").hexdigest(), "rows": 1}}
    store.write_json("runs/a/run.json", {"files": files, "teacher": OTHER})
    return store


def damages(store: Store) -> list[Damage]:
    return [damage for seen in verify(store) for damage in seen.damages]


def change(store: Store, key: str, how: Callable[[bytes], bytes]) -> None:
    store.fs.pipe_file(store.path(key), how(store.read_bytes(key)))


def flip(content: bytes) -> bytes:
    return content[:5000] + bytes([content[5000] ^ 1]) + content[5001:]


DAMAGES: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "flipped bit": (flip, "has SHA-256 "),
    "truncated": (lambda content: content[:-1], "has 25599 bytes, expected 25600"),
    "empty": (lambda _: b"", "has 0 bytes, expected 25600"),
    "replaced": (lambda content: content[::-1], "has SHA-256 "),
    "pickle": (lambda _: pickle.dumps({"conv1.weight": 0}), "bytes, expected 25600"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_file_is_named_and_the_repair_discards_it(name: str, store: Store) -> None:
    damage, fault = DAMAGES[name]
    path = f"{store.get(KEY).folder}/{FILE}"
    change(store, path, damage)
    (found,) = damages(store)
    assert (found.place, found.artifact) == (path, KEY)
    assert fault in found.fault
    done = CliRunner().invoke(app, ["store", "verify", store.uri, "--repair"])
    assert done.exit_code == 1
    assert f"damaged: {path} {found.fault} (discarded)" in done.output
    assert "3 artifacts, runs and batches, 8 files" in done.output
    assert "1 damaged" in done.output
    assert store.find(KEY) is None
    assert store.find(OTHER) is not None
    again = CliRunner().invoke(app, ["store", "verify", store.uri])
    assert again.exit_code == 0, again.output
    assert "all as written" in again.output


def test_a_sound_store_is_all_as_written(store: Store) -> None:
    before = store.fs.find(store.root)
    done = CliRunner().invoke(app, ["store", "verify", store.uri])
    assert (done.exit_code, done.output.count("\n")) == (0, 1)
    assert "3 artifacts, runs and batches, 8 files, 51.2 kB read: all as written" in done.output
    assert store.fs.find(store.root) == before


def test_a_lost_file_and_a_damaged_card(store: Store) -> None:
    store.remove_file(f"{store.get(OTHER).folder}/history.parquet")
    change(store, f"{KEY}/card.json", lambda content: content.replace(b"3", b"4", 1))
    found = {damage.place: damage.fault for damage in damages(store)}
    assert found == {
        f"{KEY}/card.json": "was changed after it was written: its own hash differs",
        f"{store.get(OTHER).folder}/history.parquet": "is missing",
    }


@pytest.mark.parametrize(
    ("content", "fault"), [(b"{", "is not JSON"), (b'{"a": 1}', "is not a card: it names no files")]
)
def test_a_card_that_is_none(content: bytes, fault: str, store: Store) -> None:
    store.write_bytes(f"{KEY}/card.json", content)
    assert damages(store) == [Damage(f"{KEY}/card.json", fault, KEY)]


def test_a_damaged_table_stays_and_is_reported_each_time(store: Store) -> None:
    """No artifact: nothing makes it anew."""
    store.write_bytes(TABLE, b"tablE")
    for _ in range(2):
        done = CliRunner().invoke(app, ["store", "verify", store.uri, "--repair"])
        assert done.exit_code == 1
        assert f"damaged: {TABLE} has SHA-256 " in done.output
        assert "(discarded)" not in done.output
    assert store.read_bytes(TABLE) == b"tablE"


def test_a_run_whose_artifact_is_gone(store: Store) -> None:
    store.discard(store.get(OTHER))
    assert damages(store) == [Damage(OTHER, "is not there, and run a refers to it")]
    store.write_json("runs/a/collected.json", {})  # `store gc` has said so
    assert damages(store) == []


@pytest.mark.parametrize("content", [b"{", b"[]", b"{}", b'{"files": 3}'])
def test_a_run_that_is_none(content: bytes, store: Store) -> None:
    store.write_bytes("runs/a/run.json", content)
    assert damages(store) == [Damage("runs/a/run.json", "is not a run's record")]


@pytest.mark.parametrize("command", ["verify", "gc"])
def test_a_store_that_is_not_there_is_refused(command: str, tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["store", command, str(tmp_path / "none")])
    assert isinstance(done.exception, StorageError)
    assert str(done.exception).startswith(f"store {tmp_path}/none: no such folder; check")
    assert not (tmp_path / "none").exists()


def test_an_empty_store_is_all_as_written(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["store", "verify", str(tmp_path)])
    assert done.exit_code == 0
    assert "0 artifacts, runs and batches" in done.output
