"""Scores of new images in a store: kept until somebody says otherwise, and verified."""

import hashlib
import os
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from typer.testing import CliRunner

from etstpm.cli import app
from etstpm.storage import Store
from etstpm.storage.batches import batches_of
from etstpm.storage.collection import collect, plan_collection
from etstpm.storage.keeping import Keeping
from tests.trained import CATEGORY, Published

NOW = datetime.now(UTC)
HOSTILE = "<b>[red]..'; drop table"
TABLE = b"PAR1" * 100


@pytest.fixture
def store(empty_store: Store) -> Store:
    """Batches of 1, 10 and 100 days ago, one that was never finished, one of a hostile name."""
    store = empty_store
    for name, days in (("screw/a", 1), ("screw/b", 10), ("bottle/a", 100), (f"{HOSTILE}/a", 5)):
        put(store, name, days)
    store.write_bytes("scored/bottle/killed/heatmaps/1.png", b"PNG")
    return store


def put(store: Store, name: str, days: float) -> None:
    place = f"scored/{name}"
    store.write_bytes(f"{place}/image_scores.parquet", TABLE)
    store.write_bytes(f"{place}/heatmaps/1.png", b"PNG")
    sha256 = hashlib.sha256(TABLE).hexdigest()
    record = {
        "created_at": (NOW - timedelta(days=days)).isoformat(),
        "files": {"image_scores.parquet": {"sha256": sha256, "bytes": len(TABLE), "rows": 1}},
    }
    store.write_json(f"{place}/score.json", record)


def removed(store: Store, keeping: Keeping, now: datetime = NOW) -> set[str]:
    """What a collection removes of `scored/`."""
    gone = {item.key for item in collect(store, plan_collection(store, keeping, now), keeping)}
    assert gone == {name.removesuffix("/") for name in gone}
    there = {batch.key for batch in batches_of(store)}
    assert not gone & there
    return {key.removeprefix("scored/") for key in gone}


def test_all_are_kept_but_what_a_killed_process_has_left(store: Store) -> None:
    assert removed(store, Keeping()) == set()
    assert removed(store, Keeping(runs=1, days=1), NOW + timedelta(days=3)) == {"bottle/killed"}
    assert len(list(batches_of(store))) == 4


@pytest.mark.parametrize(
    ("days", "gone"),
    [
        (0, {"screw/a", "screw/b", "bottle/a", f"{HOSTILE}/a"}),
        (7, {"screw/b", "bottle/a"}),
        (200, set()),
    ],
)
def test_older_ones_go_by_age(store: Store, days: float, gone: set[str]) -> None:
    assert removed(store, Keeping(scored_days=days)) == gone


@pytest.mark.parametrize(
    ("names", "gone"),
    [
        (("screw",), {"screw/a", "screw/b"}),
        (("screw/b", "bottle/a"), {"screw/b", "bottle/a"}),
        (("bottle",), {"bottle/a", "bottle/killed"}),
        ((HOSTILE,), {f"{HOSTILE}/a"}),
    ],
)
def test_those_that_are_named_go(store: Store, names: tuple[str, ...], gone: set[str]) -> None:
    assert removed(store, Keeping(dropped_batches=names)) == gone


def test_a_record_that_cannot_be_read_keeps_its_batch(tmp_path: Path) -> None:
    """How old it is is not known; by its name it goes."""
    store = Store(str(tmp_path))
    for number, content in enumerate((b"{", b"[]", b"{}", b'{"created_at": "now", "files": {}}')):
        store.write_bytes(f"scored/screw/{number}/score.json", content)
    assert removed(store, Keeping(scored_days=0)) == set()
    done = CliRunner().invoke(app, ["store", "verify", str(tmp_path)])
    assert done.exit_code == 1
    assert "damaged: scored/screw/2/score.json is not a record of scored images" in done.output
    assert "4 damaged" in done.output
    assert len(removed(store, Keeping(dropped_batches=("screw",)))) == 4


def test_a_removal_that_was_cut_off_is_finished_by_the_next_one(tmp_path: Path) -> None:
    """The record goes first: what is left of the batch was then never finished."""
    store = Store(str(tmp_path))
    put(store, "screw/a", 10)
    keeping = Keeping(scored_days=1)
    (item,) = plan_collection(store, keeping, NOW).garbage
    store.remove_file(f"{item.key}/score.json")
    for path in Path(store.path(item.key)).rglob("*.p*"):
        os.utime(path, (0, 0))
    assert removed(store, keeping) == {"screw/a"}
    assert not (tmp_path / "scored").exists()


def test_the_command_names_them_and_removes_them_when_told(tmp_path: Path) -> None:
    place = str(tmp_path / "store")
    store = Store(place)
    for name, days in (("screw/a", 1), (f"{HOSTILE}/a", 50)):
        put(store, name, days)
    command = ["store", "gc", place, "--scored-days", "30"]
    dry = CliRunner().invoke(app, command)
    assert dry.exit_code == 0, dry.output
    assert f"scored/{HOSTILE}/a  " in dry.output
    assert "scored 50 days ago" in dry.output
    assert "and new images' scores of 1 batch" in dry.output
    wet = CliRunner().invoke(app, [*command, "--scored", "scored/screw/a/", "--delete"])
    assert "named by --scored" in wet.output
    assert "removed 2 items" in wet.output
    assert list(batches_of(store)) == []


def test_a_name_that_is_not_there_is_one_line_and_nothing_goes(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    put(store, "screw/a", 10)
    done = CliRunner().invoke(
        app, ["store", "gc", str(tmp_path), "--scored-days", "1", "--scored", "scre", "--delete"]
    )
    assert str(done.exception).startswith(f"store {tmp_path}: no scored/scre in it; --scored takes")
    assert len(list(batches_of(store))) == 1


def test_a_damaged_table_is_named_and_left(store: Store) -> None:
    sound = CliRunner().invoke(app, ["store", "verify", store.uri])
    assert sound.exit_code == 0, sound.output
    assert "4 artifacts, runs and batches, 8 files" in sound.output

    place = "scored/screw/a/image_scores.parquet"
    store.write_bytes(place, TABLE[:-1] + b"0")
    store.remove_file("scored/bottle/a/image_scores.parquet")
    done = CliRunner().invoke(app, ["store", "verify", store.uri, "--repair"])

    assert done.exit_code == 1
    assert f"damaged: {place} has SHA-256 " in done.output
    assert "damaged: scored/bottle/a/image_scores.parquet is missing" in done.output
    assert "(discarded)" not in done.output
    assert len(list(batches_of(store))) == 5, "nothing was removed"


def test_what_the_command_score_writes_is_verified(published: Published, tmp_path: Path) -> None:
    place = tmp_path / "store"
    shutil.copytree(published.store, place)
    images = published.root / CATEGORY / "test" / "good"
    command = ["score", str(images), "--category", CATEGORY, "--store", str(place)]
    done = CliRunner().invoke(app, [*command, "--heatmaps", "all"])
    assert done.exit_code == 0, done.output
    assert CliRunner().invoke(app, ["store", "verify", str(place)]).exit_code == 0
    (table,) = place.glob("scored/*/*/image_scores.parquet")
    table.write_bytes(table.read_bytes()[:-1])
    assert CliRunner().invoke(app, ["store", "verify", str(place)]).exit_code == 1
    batch = table.parent.relative_to(place / "scored").as_posix()
    assert removed(Store(str(place)), Keeping(scored_days=0), datetime.now(UTC)) == {batch}
