"""Months in a file each: the same answers as from the runs themselves, whatever has gone wrong."""

import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bench.fake_history import FakeHistory
from etstpm.errors import ResultsError, StorageError
from etstpm.history import FOLDER, fold_history, fold_past_months, metrics_key, read_history
from etstpm.results.database import Results
from etstpm.runs import run_key, table_key
from etstpm.storage import Store
from etstpm.tables import METRICS, RUNS
from tests.published import add_category, publish

CATEGORIES = ("bottle", "screw")


@pytest.fixture
def store() -> Store:
    """Seventy nights of two categories: November to January, December's end being the last fold."""
    store = Store(f"memory://{uuid.uuid4().hex}/store")
    FakeHistory(store, nights=70, categories=CATEGORIES).draw()
    return store


def all_metrics(store: Store) -> list[dict[str, object]]:
    with Results(store) as results:
        rows: list[dict[str, object]] = results.query(
            "select * from metrics order by run_id, category, protocol, level, metric, defect_type"
        ).to_pylist()
    return rows


def months(store: Store) -> set[str]:
    return {key.removeprefix("history/") for key in store.list_files("history")}


def test_past_months_are_folded_and_this_one_is_read_directly(store: Store) -> None:
    assert months(store) == {
        f"{table}/{month}.parquet"
        for table in ("runs", "metrics")
        for month in ("2025-11", "2025-12")
    }
    history = read_history(store)
    assert len(history.runs) == 70
    assert set(history.months.values()) == {"2025-11", "2025-12"}
    assert len(history.months) == 61
    starts = [row["started_at"] for row in history.runs]
    assert starts == sorted(starts)
    for month in ("2025-11", "2025-12"):
        content = store.read_bytes(metrics_key(month))
        assert pq.read_schema(pa.BufferReader(content)).equals(METRICS, check_metadata=True)


def damage_nothing(store: Store) -> None:
    """Months as they are."""


def remove_months(store: Store) -> None:
    for key in store.list_files("history"):
        store.remove_file(key)


def kill_between_the_two_files(store: Store) -> None:
    """The fold of December was killed after the metrics, before the runs that say so."""
    store.remove_file(f"{FOLDER}/2025-12.parquet")


def keep_an_old_listing_of_runs(store: Store) -> None:
    """Another fold has lost a race: its December lacks the last ten nights, its metrics do not."""
    key = f"{FOLDER}/2025-12.parquet"
    table = pq.read_table(pa.BufferReader(store.read_bytes(key)))
    rewrite(store, key, table.slice(0, 21))


def copy_the_store(store: Store) -> None:
    """Every run.json has a new time, and where that is all there is, a new stamp."""
    for key in list(store.list_files("runs")):
        store.write_bytes(key, store.read_bytes(key))


def rewrite(store: Store, key: str, table: pa.Table) -> None:
    sink = pa.BufferOutputStream()
    pq.write_table(table.cast(RUNS), sink)
    store.write_bytes(key, sink.getvalue().to_pybytes())


@pytest.mark.parametrize(
    "happen",
    [
        damage_nothing,
        remove_months,
        kill_between_the_two_files,
        keep_an_old_listing_of_runs,
        copy_the_store,
    ],
)
def test_whatever_became_of_the_months_every_row_is_there_once(
    store: Store, happen: Callable[[Store], None]
) -> None:
    expected = all_metrics(store)
    assert len(expected) == 70 * (2 * (16 + 5 * 9) + 13)
    happen(store)
    assert all_metrics(store) == expected
    written, left_out = fold_history(store, before="2026-01")
    assert left_out == []
    assert ("2025-12" in written) == (happen is not damage_nothing)
    assert all_metrics(store) == expected
    assert set(read_history(store).months.values()) == {"2025-11", "2025-12"}


def test_a_run_published_again_is_read_as_it_is_now(store: Store) -> None:
    run_id = "20251115T020000Z-0000000e"
    assert run_id in read_history(store).months
    publish(store, [add_category(store)], run_id)
    with Results(store) as results:
        found = results.query(
            "select distinct category from metrics where run_id = ? order by 1", [run_id]
        )
    assert found["category"].to_pylist() == ["mean", "screw"]
    assert read_history(store).months.get(run_id) is None
    assert fold_history(store, before="2026-01") == (["2025-11"], [])
    assert run_id in read_history(store).months


def test_a_run_that_is_gone_is_gone_from_its_month(store: Store) -> None:
    run_id = "20251115T020000Z-0000000e"
    store.remove_file(run_key(run_id))
    assert run_id not in {str(row["run_id"]) for row in all_metrics(store)}
    assert fold_history(store) == (["2025-11", "2026-01"], [])
    assert run_id not in {str(row["run_id"]) for row in all_metrics(store)}


def test_a_damaged_table_is_left_out_of_its_month_and_named(store: Store) -> None:
    remove_months(store)
    run_id = "20251115T020000Z-0000000e"
    store.write_bytes(table_key("metrics", run_id), b"PAR1")
    _, left_out = fold_history(store, before="2026-01")
    assert left_out == [f"run {run_id}: its metrics are missing or damaged; run it again"]
    assert run_id not in read_history(store).months
    assert len(read_history(store).months) == 60


def test_the_first_publication_of_a_month_folds_the_one_before(store: Store) -> None:
    outcome = add_category(store)
    publish(store, [outcome], "20260131T020000Z-0000005b")
    assert "runs/2026-01.parquet" not in months(store)
    publish(store, [outcome], "20260201T020000Z-0000005c")
    assert {"runs/2026-01.parquet", "metrics/2026-01.parquet"} <= months(store)
    assert "20260131T020000Z-0000005b" in read_history(store).months


def test_a_month_without_runs_is_not_looked_for_twice(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    outcome = add_category(store)
    publish(store, [outcome], "20260501T020000Z-00000001")
    listed: list[str] = []
    whole = Store.list_files

    def count(self: Store, folder: str) -> dict[str, str]:
        listed.append(folder)
        return whole(self, folder)

    monkeypatch.setattr(Store, "list_files", count)
    publish(store, [outcome], "20260502T020000Z-00000002")
    assert listed == []
    assert (
        pq.read_table(pa.BufferReader(store.read_bytes(f"{FOLDER}/2026-04.parquet"))).num_rows == 0
    )


def test_a_fault_of_the_fold_is_no_fault_of_the_night(store: Store) -> None:
    store.write_bytes(f"{FOLDER}/2025-12.parquet", b"not Parquet")
    fold_past_months(store, datetime(2026, 2, 1, tzinfo=UTC))
    with pytest.raises(
        StorageError, match=r"history/runs/2025-12\.parquet is damaged .* remove it"
    ):
        read_history(store)


def test_a_month_of_a_newer_schema_version_is_refused(store: Store, tmp_path: Path) -> None:
    newer = RUNS.with_metadata({**RUNS.metadata, b"etstpm.schema_version": b"99"})
    pq.write_table(newer.empty_table(), tmp_path / "newer.parquet")
    store.put_file(tmp_path / "newer.parquet", f"{FOLDER}/2025-12.parquet")
    with pytest.raises(
        ResultsError, match=r"schema version 99, this etstpm reads up to 2; upgrade"
    ):
        read_history(store)
