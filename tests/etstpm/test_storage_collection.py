"""What `store gc` removes, and above all what it keeps."""

import json
import os
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from etstpm.cli import app
from etstpm.errors import StorageError
from etstpm.storage import Store
from etstpm.storage.collection import collect, keys_in, plan_collection
from etstpm.storage.keeping import Keeping
from etstpm.storage.lease import lease_key
from tests.fault_proxy import FaultProxy
from tests.s3_server import S3

NOW = datetime.now(UTC)
LATER = NOW + timedelta(days=10)
"""When everything that these tests write is old."""
DATASET, TEACHER = "datasets/" + "d" * 64, "teachers/" + "7" * 64


@pytest.fixture
def store(empty_store: Store) -> Store:
    return empty_store


def commit(store: Store, key: str, folder: Path, **card: Any) -> str:
    folder = folder / key.replace("/", "-")
    folder.mkdir(parents=True)
    (folder / "weights.safetensors").write_bytes(key.encode() * 100)
    (folder / "maps").mkdir()
    (folder / "maps" / "0.npy").write_bytes(b"map")
    store.commit(key, folder, card)
    return key


def publish(store: Store, run: str, night: int, outcomes: list[dict[str, Any]]) -> None:
    store.write_json(
        f"runs/{run}/run.json",
        {
            "created_at": (NOW - timedelta(days=100 - night)).isoformat(),
            "dataset": DATASET,
            "teacher": TEACHER,
            "outcomes": outcomes,
            "files": {},
        },
    )
    store.write_bytes(f"tables/metrics/run_id={run}/metrics.parquet", b"table")


def fill(store: Store, folder: Path) -> dict[str, str]:
    """Three nights, an ablation's record and artifacts that nobody refers to."""
    commit(store, DATASET, folder)
    commit(store, TEACHER, folder)
    keys = {"dataset": DATASET, "teacher": TEACHER}
    for night, run in enumerate(("a", "b", "c")):
        student = commit(store, f"students/bottle/{night:064x}", folder, teacher=TEACHER)
        scores = commit(
            store, f"scores/bottle/{night:064x}", folder, student=student, teacher=TEACHER
        )
        publish(store, run, night, [{"category": "bottle", "scores_key": scores}])
        keys |= {f"student {run}": student, f"scores {run}": scores}
    keys["tried student"] = commit(store, "students/bottle/" + "e" * 64, folder)
    keys["tried scores"] = commit(
        store, "scores/bottle/" + "e" * 64, folder, student=keys["tried student"]
    )
    store.write_json("ablation/one.json", {"scores": keys["tried scores"], "failure": None})
    keys["orphan"] = commit(store, "students/<b>bottle/" + "f" * 64, folder)
    keys["old teacher"] = commit(store, "teachers/" + "f" * 64, folder)
    store.write_json("runs/latest.json", {"run_id": "c"})
    return keys


def there(store: Store, keys: dict[str, str]) -> set[str]:
    return {name for name, key in keys.items() if store.find(key) is not None}


def run_gc(store: Store, keeping: Keeping, now: datetime = LATER) -> list[str]:
    return [item.key for item in collect(store, plan_collection(store, keeping, now), keeping)]


def test_what_any_run_refers_to_is_kept(store: Store, tmp_path: Path) -> None:
    keys = fill(store, tmp_path / "made")
    before = store.fs.find(store.root)
    plan = plan_collection(store, Keeping(), LATER)
    assert store.fs.find(store.root) == before
    assert {item.key for item in plan.garbage} == {keys["orphan"], keys["old teacher"]}
    assert {item.reason for item in plan.garbage} == {"no kept run refers to it"}
    assert plan.size == sum(
        store.fs.info(path)["size"]
        for path in before
        if keys["orphan"] in path or keys["old teacher"] in path
    )
    assert (plan.kept, plan.kept_runs, plan.dropped_runs) == (10, ["a", "b", "c"], [])
    assert len(list(collect(store, plan, Keeping()))) == 2
    after = store.fs.find(store.root)
    assert not any("f" * 64 in path for path in after)
    assert len(before) - len(after) == 2 * 3
    assert there(store, keys) == set(keys) - {"orphan", "old teacher"}
    assert plan_collection(store, Keeping(), LATER).garbage == []
    if store.is_local:
        assert not (Path(store.root) / "students" / "<b>bottle").exists()


@pytest.mark.parametrize("keeping", [Keeping(runs=1), Keeping(days=99.5)])
def test_older_runs_keep_their_tables_alone(tmp_path: Path, keeping: Keeping) -> None:
    store = Store(str(tmp_path / "store"))
    keys = fill(store, tmp_path / "made")
    now = NOW + timedelta(hours=3)
    keeping = Keeping(keeping.runs, keeping.days, timedelta(hours=1))
    gone = {keys[name] for name in ("student a", "scores a", "orphan", "old teacher")}
    if keeping.runs:
        gone |= {keys[name] for name in ("student b", "scores b")}
    assert set(run_gc(store, keeping, now)) == gone
    for run in "abc":
        assert store.read_bytes(f"tables/metrics/run_id={run}/metrics.parquet") == b"table"
        assert store.read_json(f"runs/{run}/run.json")["dataset"] == DATASET
    assert store.read_if_there("runs/a/collected.json") is not None
    assert store.read_if_there("runs/c/collected.json") is None


def test_the_latest_run_is_kept_however_old(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "store"))
    keys = fill(store, tmp_path / "made")
    store.write_json("runs/latest.json", {"run_id": "a"})  # b and c did not pass
    run_gc(store, Keeping(runs=1))
    assert {"student a", "scores a", "student c", "scores c"} <= there(store, keys)
    assert "student b" not in there(store, keys)


def test_a_warm_student_does_not_keep_the_one_it_began_from(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "store"))
    keys = fill(store, tmp_path / "made")
    start = {"key": keys["student b"], "epochs": 2, "held_out": [0]}
    warm = commit(
        store, "students/bottle/" + "a" * 64, tmp_path / "made", teacher=TEACHER, start=start
    )
    scores = commit(store, "scores/bottle/" + "a" * 64, tmp_path / "made", student=warm)
    publish(store, "d", 3, [{"category": "bottle", "scores_key": scores}])
    store.write_json("runs/latest.json", {"run_id": "d"})
    assert keys["student b"] not in run_gc(store, Keeping(runs=3)), "its own run keeps it"
    assert keys["student b"] in run_gc(store, Keeping(runs=1))
    assert store.find(warm) is not None
    assert "teacher" in there(store, keys)


def test_what_is_young_or_leased_is_kept(store: Store, tmp_path: Path) -> None:
    """A run that works at the same time has its artifacts there before its `run.json`."""
    keys = fill(store, tmp_path / "made")
    assert run_gc(store, Keeping(), NOW + timedelta(days=1)) == []
    store.write_json(lease_key(keys["orphan"]), {})
    soon, keeping = NOW + timedelta(hours=1), Keeping(min_age=timedelta(hours=2))
    if store.is_local:  # an old artifact, and the lease is new
        for path in Path(store.path(keys["orphan"])).rglob("*"):
            os.utime(path, (0, 0))
        assert keys["orphan"] not in run_gc(store, keeping, soon)
    assert keys["orphan"] in run_gc(store, Keeping(), LATER)
    assert store.read_if_there(lease_key(keys["orphan"])) is None


def test_a_clock_set_back_collects_nothing(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "store"))
    fill(store, tmp_path / "made")
    assert run_gc(store, Keeping(), datetime(1970, 1, 2, tzinfo=UTC)) == []


def test_what_a_run_uses_between_look_and_removal_stays(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "store"))
    keys = fill(store, tmp_path / "made")
    keeping = Keeping(min_age=timedelta(hours=1))
    long_ago = time.time() - 86400
    for path in Path(store.root).rglob("*"):
        os.utime(path, (long_ago, long_ago))
    plan = plan_collection(store, keeping)
    assert len(plan.garbage) == 2
    artifact = store.find(keys["orphan"])
    assert artifact is not None
    store.touch(artifact)
    assert [item.key for item in collect(store, plan, keeping)] == [keys["old teacher"]]


def test_what_was_never_finished_goes_and_its_neighbours_stay(store: Store, tmp_path: Path) -> None:
    keys = fill(store, tmp_path / "made")
    scores = store.get(keys["scores c"])
    store.write_bytes(f"students/bottle/{'a' * 64}/weights.safetensors", b"half")
    store.write_bytes(f"{scores.key}/{'0' * 32}/image_scores.parquet", b"came second")
    store.write_bytes(f"{DATASET}x/manifest.parquet", b"no key of ours")
    left = {f"students/bottle/{'a' * 64}", scores.key}
    assert set(run_gc(store, Keeping())) == left | {keys["orphan"], keys["old teacher"]}
    with store.open(store.get(scores.key), "weights.safetensors", "maps/0.npy"):
        pass
    assert store.read_bytes(f"{DATASET}x/manifest.parquet") == b"no key of ours"


def test_partial_files_of_killed_processes_go(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "store"))
    keys = fill(store, tmp_path / "made")
    hidden = [
        f".probe-{'0' * 32}",
        f"runs/.{'1' * 32}.partial",
        f"students/bottle/.{'2' * 32}.partial/weights.safetensors",
        f"students/bottle/.{'3' * 32}.discarded/card.json",
    ]
    for key in hidden:
        store.write_bytes(key, b"left")
    store.write_bytes(".keep", b"the user's own")
    run_gc(store, Keeping())
    assert [key for key in hidden if (Path(store.root) / key).exists()] == []
    assert store.read_bytes(".keep") == b"the user's own"
    assert len(there(store, keys)) == len(keys) - 2


def test_a_damaged_artifact_that_is_referred_to_is_left_for_verify(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "store"))
    keys = fill(store, tmp_path / "made")
    store.write_bytes(f"{keys['student c']}/card.json", b"{")
    assert keys["student c"] not in run_gc(store, Keeping())


@pytest.mark.parametrize("content", [b"{", b"[]", b"{}", b'{"created_at": "yesterday"}'])
def test_a_run_that_cannot_be_read_stops_the_collection(content: bytes, tmp_path: Path) -> None:
    """What it refers to is not known: nothing may go."""
    store = Store(str(tmp_path / "store"))
    keys = fill(store, tmp_path / "made")
    store.write_bytes("runs/b/run.json", content)
    with pytest.raises(StorageError, match=r"runs/b/run\.json|read json failed"):
        plan_collection(store, Keeping(), LATER)
    assert there(store, keys) == set(keys)


def test_a_store_that_cannot_delete_in_bulk_is_no_obstacle(
    faulty_s3: S3, s3_proxy: FaultProxy, tmp_path: Path
) -> None:
    store = Store(faulty_s3.uri)
    fill(store, tmp_path / "made")
    run_gc(store, Keeping())
    deletes = [request for request in s3_proxy.requests if request.method == "DELETE"]
    assert len(deletes) >= 6
    assert not any("?delete" in request.path for request in s3_proxy.requests)


def test_keys_are_found_wherever_they_stand() -> None:
    value = {"a": [{"b": TEACHER}, 3, None, "teachers/short"], "c": f"{DATASET}/card.json"}
    assert list(keys_in(value)) == [TEACHER]
    assert list(keys_in("scores/a/b/" + "1" * 64)) == []


def test_the_command_prints_first_and_deletes_when_told(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "store"))
    keys = fill(store, tmp_path / "made")
    command = ["store", "gc", str(tmp_path / "store"), "--min-age-days", "0"]
    dry = CliRunner().invoke(app, command)
    assert dry.exit_code == 0, dry.output
    assert f"{keys['orphan']}  " in dry.output
    assert "would remove 2 items, " in dry.output
    assert "keeps 10 artifacts, " in dry.output
    assert "the same with --delete" in dry.output
    assert len(there(store, keys)) == len(keys)
    wet = CliRunner().invoke(app, [*command, "--delete"])
    assert wet.exit_code == 0, wet.output
    assert "removed 2 items, " in wet.output
    assert len(there(store, keys)) == len(keys) - 2
    again = CliRunner().invoke(app, command)
    assert "would remove 0 items, 0 bytes" in again.output
    fewer = CliRunner().invoke(app, [*command, "--keep-runs", "2"])
    assert "of 2 runs (of 1 older ones the tables alone)" in fewer.output


def test_an_empty_store_is_clean(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["store", "gc", str(tmp_path)])
    assert done.exit_code == 0, done.output
    assert "would remove 0 items" in done.output
    assert not list(tmp_path.iterdir())


def test_a_card_refers_by_key(tmp_path: Path) -> None:
    """Scores keep their student although no run names it."""
    store = Store(str(tmp_path / "store"))
    keys = fill(store, tmp_path / "made")
    record = json.dumps(store.read_json("runs/c/run.json"))
    assert keys["student c"] not in record
    run_gc(store, Keeping())
    assert "student c" in there(store, keys)
