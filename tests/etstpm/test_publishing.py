"""Runs published from scores in a real store; read back as analysts read them."""

import json
import uuid
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from etstpm.catalog import ET_STPM_MEAN, STPM_PUBLISHED
from etstpm.category_scores import IMAGE_SCORES_OF_ARTIFACT
from etstpm.config import Config
from etstpm.errors import ResultsError, StorageError
from etstpm.evaluation import Evaluation
from etstpm.parquet import schema_without, write_parquet
from etstpm.publishing import publish_run
from etstpm.runs import Outcome
from etstpm.storage import Store, file_sha256
from etstpm.summary import Run, load_run
from etstpm.tables import IMAGE_SCORES, METRICS, REPLICATES

STARTED = datetime(2026, 11, 23, 22, 0, tzinfo=UTC)
FIRST, SECOND = "20261123T220000Z-0a1b2c3d", "20261124T220000Z-4e5f6a7b"
DATASET, TEACHER = "datasets/" + "1" * 64, "teachers/" + "2" * 64
FAILURE = "capsule: the student's loss is nan in epoch 1; lower student.learning_rate (now 9.0)"

Name = tuple[str, str, str]
CURVE = ("auroc", "ap", "f1_max", "f1_max_threshold")
REGIONS = ("aupro", "aupro_0.05")
NAMES = [
    *(("paper-256", "image", metric) for metric in CURVE),
    *(("paper-256", "pixel", metric) for metric in CURVE + REGIONS),
    *(("mvtec-official", "pixel", metric) for metric in CURVE + REGIONS),
]
"""What every category's rows are called, in their order."""
NAMES_OF_MEANS = [name for name in NAMES if name[-1] != "f1_max_threshold"]
UNDEFINED = "only one class among the test images: not defined"


NAMES_OF_TYPE = [
    *(("paper-256", "image", metric) for metric in ("auroc", "ap", "f1_max")),
    *(("paper-256", "pixel", metric) for metric in ("auroc", "ap", "aupro")),
    *(("mvtec-official", "pixel", metric) for metric in ("auroc", "ap", "aupro")),
]
"""What the rows of every defect type are called."""


def nested(names: Sequence[Name], values: Sequence[Any]) -> dict[str, Any]:
    """By protocol, level and metric, as `stages.scores` nests them in an artifact's card."""
    result: dict[str, Any] = {"paper-256": {"image": {}, "pixel": {}}, "mvtec-official": {}}
    result["mvtec-official"]["pixel"] = {}
    for (protocol, level, metric), value in zip(names, values, strict=True):
        result[protocol][level][metric] = value
    return result


def interval_of(name: Name, value: float | None) -> list[float] | None:
    """The interval that a card of these tests holds beside a value."""
    is_there = value is not None and name[-1] != "f1_max_threshold"
    return [value - 0.1, value + 0.1] if is_there and value is not None else None


def figures(
    names: Sequence[Name], values: Sequence[float | None], n_good: int, n_defective: int
) -> dict[str, Any]:
    ends = [interval_of(name, value) for name, value in zip(names, values, strict=True)]
    return {
        "values": nested(names, values),
        "intervals": nested(names, ends),
        "n_good": n_good,
        "n_defective": n_defective,
    }


def card_metrics(values: Sequence[float | None], n_good: int, n_defective: int) -> dict[str, Any]:
    """The metrics of a score artifact's card; all its defects are of one type."""
    of_type = figures(NAMES_OF_TYPE, TYPE_VALUES, n_good, n_defective)
    return figures(NAMES, values, n_good, n_defective) | {"defect_types": {"broken": of_type}}


TYPE_VALUES = [0.81 + 0.01 * number for number in range(9)]
BOTTLE_VALUES = [0.50 + 0.01 * number for number in range(16)]
BRUSH_VALUES = [None] * 4 + [0.70 + 0.01 * number for number in range(12)]
BOTTLE = card_metrics(BOTTLE_VALUES, n_good=1, n_defective=2)
BRUSH = card_metrics(BRUSH_VALUES, n_good=0, n_defective=2)


def add_scores(
    store: Store, folder: Path, category: str, metrics: dict[str, Any], hours: int = 1
) -> Outcome:
    """A category's student and scores, as the stages leave them; `hours` after the run's start."""
    created_at = (STARTED + timedelta(hours=hours)).isoformat()
    folder = folder / uuid.uuid4().hex
    folder.mkdir()
    student_key = f"students/{category}/{'3' * 64}"
    store.commit(student_key, folder, {"created_at": created_at, "seconds": 40.0})
    rows = [
        {
            "category": category,
            "split": "test",
            "defect_type": "good" if number < metrics["n_good"] else "broken",
            "image_path": f"{category}/test/{number:03d}.png",
            "label": int(number >= metrics["n_good"]),
            "score": 1e-12 * (number + 1),
            "scored_at": STARTED,
        }
        for number in range(metrics["n_good"] + metrics["n_defective"])
    ]
    # As before there was a column `fault`: such artifacts are published too.
    schema = schema_without(IMAGE_SCORES_OF_ARTIFACT, "fault")
    table = pa.Table.from_pylist(rows, schema=schema)
    write_parquet(folder / "image_scores.parquet", schema, [table])
    # Replicates that lie evenly about each value.
    replicates = {
        name: metrics["values"][name[0]][name[1]][name[2]] + np.linspace(-0.1, 0.1, 1001)
        for name in NAMES_OF_MEANS
        if metrics["values"][name[0]][name[1]][name[2]] is not None
    }
    table = Evaluation({}, replicates).replicate_table()
    write_parquet(folder / "replicates.parquet", REPLICATES, [table])
    key = f"scores/{category}/{'4' * 64}"
    card = {"created_at": created_at, "seconds": 2.5, "student": student_key, "metrics": metrics}
    store.commit(key, folder, card)
    return Outcome(category, scores_key=key)


def publish(store: Store, outcomes: list[Outcome], run_id: str = FIRST) -> Run:
    return publish_run(
        store,
        Config(seed=7),
        run_id=run_id,
        started_at=STARTED,
        dataset_key=DATASET,
        teacher_key=TEACHER,
        outcomes=outcomes,
    )


@pytest.fixture(params=["folder", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "folder":
        # A folder named as partitions are must not become a column.
        return Store(str(tmp_path / "env=test" / "store"))
    return Store(f"memory://{uuid.uuid4().hex}/store")


@pytest.fixture
def local(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "store"))


def read_table(store: Store, name: str, run_id: str = FIRST) -> pa.Table:
    path = store.path(f"tables/{name}/run_id={run_id}/{name}.parquet")
    with store.fs.open(path, "rb") as file:
        return pq.read_table(file)


def files_of(store: Store) -> set[str]:
    return {path.removeprefix(f"{store.root}/") for path in store.fs.find(store.root)}


def test_a_run_with_a_failed_and_an_undefined_category(store: Store, tmp_path: Path) -> None:
    outcomes = [
        add_scores(store, tmp_path, "bottle", BOTTLE),
        Outcome("capsule", failure=FAILURE),
        add_scores(store, tmp_path, "toothbrush", BRUSH),
    ]
    run = publish(store, outcomes)
    assert not run.is_complete
    table = read_table(store, "metrics")
    assert table.schema.equals(METRICS, check_metadata=True)
    rows = table.to_pylist()
    parts = {
        category: [row for row in rows if row["category"] == category]
        for category in ("bottle", "capsule", "toothbrush", "mean")
    }
    assert [row for part in parts.values() for row in part] == rows
    for category, part in parts.items():
        names = [(row["protocol"], row["level"], row["metric"]) for row in part]
        types = [row["defect_type"] for row in part]
        count = 13 if category == "mean" else 16
        assert names[:count] == (NAMES_OF_MEANS if category == "mean" else NAMES)
        assert types[:count] == ["all"] * count
        if category in ("bottle", "toothbrush"):
            assert names[count:] == NAMES_OF_TYPE
            assert types[count:] == ["broken"] * 9
            assert [row["value"] for row in part[count:]] == TYPE_VALUES
        else:
            assert len(part) == count
        for name, row in zip(names, part, strict=True):
            if category != "mean":
                ends = interval_of(name, row["value"])
                assert (row["ci_low"], row["ci_high"]) == (tuple(ends) if ends else (None, None))
    expected = {
        "bottle": ([(value, None) for value in BOTTLE_VALUES], 1, 2, "3" * 64),
        "capsule": ([(None, FAILURE)] * 16, None, None, None),
        "toothbrush": (
            [(value, UNDEFINED if value is None else None) for value in BRUSH_VALUES],
            0,
            2,
            "3" * 64,
        ),
    }
    for category, (values, *others) in expected.items():
        assert [(row["value"], row["reason"]) for row in parts[category][:16]] == values
        for row in parts[category]:
            assert [row["n_good"], row["n_defective"], row["student_digest"]] == others
    for row in rows:
        assert row["run_id"] == FIRST
        assert (row["seed"], row["dataset_digest"], row["teacher_digest"]) == (
            7,
            "1" * 64,
            "2" * 64,
        )


def test_a_category_without_masks_says_so(local: Store, tmp_path: Path) -> None:
    values = [0.9] * 4 + [None] * 12
    metrics = card_metrics(values, n_good=1, n_defective=2)
    publish(local, [add_scores(local, tmp_path, "bottle", metrics)])
    rows = [row for row in read_table(local, "metrics").to_pylist() if row["category"] == "bottle"]
    reasons = {row["level"]: row["reason"] for row in rows[:16]}
    assert reasons == {"image": None, "pixel": "no masks of the defective images: not defined"}


def test_mean_rows_are_over_the_categories_that_have_a_value(store: Store, tmp_path: Path) -> None:
    outcomes = [
        add_scores(store, tmp_path, "bottle", BOTTLE),
        Outcome("capsule", failure=FAILURE),
        add_scores(store, tmp_path, "toothbrush", BRUSH),
    ]
    publish(store, outcomes)
    means = [row for row in read_table(store, "metrics").to_pylist() if row["category"] == "mean"]
    pairs = zip(BOTTLE_VALUES, BRUSH_VALUES, strict=True)
    by_hand = dict(zip(NAMES, (a if b is None else (a + b) / 2 for a, b in pairs), strict=True))
    # Thresholds of different students have no common scale: no mean of them.
    assert len(means) == 13
    assert {(r["protocol"], r["level"], r["metric"]): r["value"] for r in means} == pytest.approx(
        {name: by_hand[name] for name in NAMES_OF_MEANS}
    )
    for row in means:
        assert row["reason"] is row["n_good"] is row["n_defective"] is row["student_digest"] is None
        ends = row["value"] - 0.095, row["value"] + 0.095
        assert (row["ci_low"], row["ci_high"]) == pytest.approx(ends, abs=1e-12)


def test_image_scores_hold_every_image_of_what_was_scored(store: Store, tmp_path: Path) -> None:
    outcomes = [
        add_scores(store, tmp_path, "bottle", BOTTLE),
        Outcome("capsule", failure=FAILURE),
        add_scores(store, tmp_path, "toothbrush", BRUSH),
    ]
    run = publish(store, outcomes)
    table = read_table(store, "image_scores")
    assert table.schema.equals(IMAGE_SCORES, check_metadata=True)
    assert table["image_path"].to_pylist() == [
        "bottle/test/000.png",
        "bottle/test/001.png",
        "bottle/test/002.png",
        "toothbrush/test/000.png",
        "toothbrush/test/001.png",
    ]
    assert table["score"].to_pylist() == pytest.approx([1e-12, 2e-12, 3e-12, 1e-12, 2e-12])
    assert set(table["run_id"].to_pylist()) == {FIRST}
    assert set(run.files) == {"image_scores", "metrics"}
    for address in run.files.values():
        assert store.fs.exists(store.path(address.removeprefix(f"{store.uri}/")))


def test_run_json_proves_its_files_and_latest_names_complete_runs_only(
    store: Store, tmp_path: Path
) -> None:
    bottle = add_scores(store, tmp_path, "bottle", BOTTLE)
    assert publish(store, [bottle]).is_complete
    assert store.read_json("runs/latest.json") == {"run_id": FIRST}
    publish(store, [bottle, Outcome("capsule", failure=FAILURE)], SECOND)
    assert store.read_json("runs/latest.json") == {"run_id": FIRST}
    first, second = (store.read_json(f"runs/{run}/run.json") for run in (FIRST, SECOND))
    assert (first["status"], second["status"]) == ("complete", "incomplete")
    assert second["outcomes"][1]["failure"] == FAILURE
    assert first["config"]["seed"] == 7
    for name, file in first["files"].items():
        assert file["rows"] == read_table(store, name).num_rows
        local = tmp_path / "copy.parquet"
        local.write_bytes(store.fs.cat_file(store.path(file["key"])))
        assert file["sha256"] == file_sha256(local)


def test_the_same_run_published_again_replaces_itself(store: Store, tmp_path: Path) -> None:
    outcomes = [
        add_scores(store, tmp_path, "bottle", BOTTLE),
        add_scores(store, tmp_path, "toothbrush", BRUSH),
    ]
    publish(store, [outcomes[0], Outcome("toothbrush", failure="toothbrush: no power")])
    files = files_of(store)
    publish(store, outcomes)
    assert files_of(store) == files | {"runs/latest.json"}
    assert read_table(store, "image_scores").num_rows == 5
    assert "toothbrush: no power" not in read_table(store, "metrics")["reason"].to_pylist()
    again = [read_table(store, name) for name in ("image_scores", "metrics")]
    publish(store, outcomes)
    assert read_table(store, "image_scores").equals(again[0])
    metrics = read_table(store, "metrics")
    assert metrics.drop_columns("created_at").equals(again[1].drop_columns("created_at"))


def test_a_fault_between_the_tables_leaves_neither(local: Store, tmp_path: Path) -> None:
    bottle = add_scores(local, tmp_path, "bottle", BOTTLE)
    publish(local, [bottle])
    # A file where the second table's folder must be: the first table is out, the second fails.
    blocked = Path(local.path(f"tables/metrics/run_id={SECOND}"))
    blocked.write_text("in the way")
    before = files_of(local)
    with pytest.raises(StorageError, match=r"store .*: put file failed"):
        publish(local, [bottle], SECOND)
    assert files_of(local) == before
    assert local.read_json("runs/latest.json") == {"run_id": FIRST}
    blocked.unlink()
    assert publish(local, [bottle], SECOND).is_complete
    assert local.read_json("runs/latest.json") == {"run_id": SECOND}
    assert read_table(local, "image_scores", SECOND).num_rows == 3


@pytest.mark.parametrize("table", ["image_scores", "metrics"])
def test_pandas_and_duckdb_read_all_runs_of_a_table(
    local: Store, tmp_path: Path, table: str
) -> None:
    outcomes = [
        add_scores(local, tmp_path, "bottle", BOTTLE),
        add_scores(local, tmp_path, "toothbrush", BRUSH),
    ]
    publish(local, outcomes)
    publish(local, outcomes[:1], SECOND)
    expected = {
        "image_scores": {FIRST: 5, SECOND: 3},
        "metrics": {FIRST: 2 * (16 + 9) + 13, SECOND: 16 + 9 + 13},
    }[table]
    folder = f"{local.uri}/tables/{table}"
    frame = pd.read_parquet(folder)
    assert frame["run_id"].astype(str).value_counts().to_dict() == expected
    assert set(frame.columns) == set((IMAGE_SCORES if table == "image_scores" else METRICS).names)
    assert count_by_duckdb(f"{folder}/*/*.parquet") == expected


def test_pandas_reads_a_store_that_is_no_folder(tmp_path: Path) -> None:
    store = Store(f"memory://{uuid.uuid4().hex}/store")
    outcome = add_scores(store, tmp_path, "bottle", BOTTLE)
    publish(store, [outcome])
    publish(store, [outcome], SECOND)
    frame = pd.read_parquet(f"{store.uri}/tables/image_scores")
    assert frame["run_id"].astype(str).value_counts().to_dict() == {FIRST: 3, SECOND: 3}


def count_by_duckdb(pattern: str) -> dict[str, int]:
    with duckdb.connect() as connection:
        rows: Sequence[tuple[str, int]] = connection.execute(
            "select run_id, count(*) from read_parquet(?, hive_partitioning = true) group by 1",
            [pattern],
        ).fetchall()
    return dict(rows)


def test_the_summary_is_what_a_person_sees(local: Store, tmp_path: Path) -> None:
    outcomes = [
        add_scores(local, tmp_path, "bottle", BOTTLE),
        Outcome("capsule", failure=FAILURE),
        add_scores(local, tmp_path, "toothbrush", BRUSH, hours=-1),  # of an earlier run
    ]
    cells = [list(row.display().values()) for row in publish(local, outcomes).summary]
    assert cells == [
        # Image and pixel AUROC as the papers have them; AUPRO at the images' own sizes.
        ["bottle", "0.500", "0.540", "0.640", "1.000", "0.988", "42"],
        ["capsule", "failed", "failed", "failed", "0.893", "0.986", "-"],
        ["toothbrush", "n/a", "0.700", "0.800", "0.897", "0.990", "42 reused"],
        ["mean", "0.500", "0.620", "0.720", "-", "-", "42"],
    ]


def test_a_published_run_is_loaded_by_its_id(store: Store, tmp_path: Path) -> None:
    outcomes = [
        add_scores(store, tmp_path, "bottle", BOTTLE),
        Outcome("capsule", failure=FAILURE),
    ]
    run = publish(store, outcomes)
    assert load_run(store, FIRST) == run
    assert (run.run_id, run.dataset_key, run.teacher_key) == (FIRST, DATASET, TEACHER)
    assert [row.failure for row in run.summary] == [None, FAILURE, None]
    with pytest.raises(ResultsError, match=f"no run '{SECOND}'; the newest are {FIRST}"):
        load_run(store, SECOND)


def test_one_category_needs_no_mean_line_and_all_fifteen_have_the_papers(
    local: Store, tmp_path: Path
) -> None:
    outcome = add_scores(local, tmp_path, "bottle", BOTTLE)
    assert [row.category for row in publish(local, [outcome]).summary] == ["bottle"]
    outcomes = [Outcome(name, failure="-") for name in STPM_PUBLISHED]
    summary = publish(local, outcomes).summary
    assert len(summary) == 16
    assert summary[-1].published == ET_STPM_MEAN
    assert (ET_STPM_MEAN.image_auroc, ET_STPM_MEAN.pixel_auroc) == (0.971, 0.977)


def test_a_run_where_all_failed_says_so(local: Store) -> None:
    publish(local, [Outcome("capsule", failure=FAILURE)])
    assert read_table(local, "image_scores").num_rows == 0
    rows = read_table(local, "metrics").to_pylist()
    assert [(row["category"], row["value"], row["reason"]) for row in rows] == [
        *[("capsule", None, FAILURE)] * 16,
        *[("mean", None, "no category has a value")] * 13,
    ]
    assert json.loads(Path(local.path(f"runs/{FIRST}/run.json")).read_text())["files"]
