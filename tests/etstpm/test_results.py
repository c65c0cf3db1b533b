"""What readers ask of a store, on a folder and on S3; and what they are told of wrong questions."""

import csv
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest

from bench.fake_history import LOSS, SICK, FakeHistory
from etstpm.cli import main
from etstpm.errors import StorageError
from etstpm.history import read_history
from etstpm.results.database import Results, script
from etstpm.results.queries import (
    compare_runs,
    list_runs,
    metric_history,
    run_metrics,
    worst_images,
)
from etstpm.runs import Outcome, decisions, latest_run, run_key, table_key
from etstpm.storage import Store
from tests.fault_proxy import FaultProxy
from tests.published import add_category, publish
from tests.s3_server import S3

FIRST, SECOND, THIRD = (f"2026112{day}T020000Z-0000000{day}" for day in (3, 4, 5))
FAILURE = "capsule: the student's loss is nan in epoch 1; lower student.learning_rate"
Command = Callable[..., tuple[int, str, str]]


def fill(store: Store) -> Store:
    """Three nights: one passes, in one 'screw' falls, in one 'capsule' has failed."""
    pill, screw = add_category(store, "pill"), add_category(store, separation=2.0)
    publish(store, [pill, screw], FIRST)
    publish(store, [pill, add_category(store, separation=0.8)], SECOND)
    publish(store, [Outcome("capsule", failure=FAILURE), pill, screw], THIRD)
    return store


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """To be read only."""
    return fill(Store(str(tmp_path_factory.mktemp("results") / "it's a store")))


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Exit code, output and errors of `etstpm ARGUMENTS`."""

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["etstpm", *arguments])
        monkeypatch.setenv("COLUMNS", "80")
        with pytest.raises(SystemExit) as ended:
            main()
        captured = capsys.readouterr()
        return int(ended.value.code or 0), captured.out, captured.err

    return run


def check_answers(store: Store) -> None:
    """Every question, with the answers that `fill` makes true."""
    with Results(store) as results:
        runs = list_runs(results).to_pylist()
        assert [(row["run_id"], row["verdict"], row["is_latest"]) for row in runs] == [
            (FIRST, "passed", True),
            (SECOND, "regressed", False),
            (THIRD, "incomplete", False),
        ]
        assert [(row["categories"], row["failed"]) for row in runs] == [(2, 0), (2, 0), (2, 1)]
        assert runs[1]["reason"].startswith("screw: image AUROC fell by 0.")
        rows = run_metrics(results, "latest", level="image", metric="auroc").to_pylist()
        assert [row["category"] for row in rows] == ["pill", "screw", "mean"]
        assert (
            runs[0]["image_auroc"]
            == rows[2]["value"]
            == pytest.approx((rows[0]["value"] + rows[1]["value"]) / 2)
        )
        assert list_runs(results, last=1)["run_id"].to_pylist() == [THIRD]
        nights = metric_history(results, "screw").to_pylist()
        assert [row["value"] for row in nights] == [
            nights[0]["value"],
            nights[1]["value"],
            nights[0]["value"],
        ]
        assert [row["change"] for row in nights[1:]] == [
            pytest.approx(nights[1]["value"] - nights[0]["value"]),
            pytest.approx(nights[0]["value"] - nights[1]["value"]),
        ]
        failed = metric_history(results, "capsule").to_pylist()
        assert [(row["run_id"], row["value"], row["reason"]) for row in failed] == [
            (THIRD, None, FAILURE)
        ]
        failures = results.query("select run_id, category, reason from failures").to_pylist()
        assert failures == [{"run_id": THIRD, "category": "capsule", "reason": FAILURE}]
        worst = worst_images(results, FIRST, category="screw", limit=80).to_pylist()
        assert len(worst) == 80
        is_wrong = [row["error"] is not None for row in worst]
        assert is_wrong == sorted(is_wrong, reverse=True)
        assert {row["error"] for row in worst if row["score"] > row["threshold"]} <= {
            "false alarm",
            None,
        }
        errors = results.query("select count(*) n from errors where run_id = ?", [FIRST])
        in_screw = sum(is_wrong)
        assert in_screw <= errors["n"][0].as_py() <= 2 * in_screw + 80
    changes = compare_runs(store, SECOND)
    assert [(c.category, c.level, c.is_sure, c.is_paired) for c in changes] == [
        ("pill", "image", False, True),
        ("pill", "pixel", False, True),
        ("screw", "image", True, True),
        ("screw", "pixel", True, True),
    ]
    assert [c.difference for c in changes[:2]] == [0.0, 0.0]
    assert [c.difference for c in compare_runs(store, FIRST, SECOND, categories=["screw"])] == [
        -(c.difference or 0) for c in changes[2:]
    ]


def test_every_question_on_a_folder(filled: Store) -> None:
    check_answers(filled)


def test_every_question_on_s3(s3: S3) -> None:
    check_answers(fill(Store(s3.uri)))


def test_metrics_can_be_had_by_defect_type(filled: Store) -> None:
    with Results(filled) as results:
        every = run_metrics(results, FIRST, defect_type=None)
        one = run_metrics(results, FIRST, category="screw", defect_type="scratch", level="image")
        assert every.num_rows == 2 * (16 + 9) + 13
        assert one["metric"].to_pylist() == ["auroc", "ap", "f1_max"]


def test_a_run_that_is_not_published_is_not_there(tmp_path: Path) -> None:
    """As a kill between the tables, or before run.json, leaves it: the views do not see it."""
    store = Store(str(tmp_path / "store"))
    outcome = add_category(store)
    publish(store, [outcome], FIRST)
    publish(store, [outcome], SECOND)
    store.remove_file(run_key(SECOND))
    store.remove_file(table_key("metrics", SECOND))
    globbed = pd.read_parquet(f"{store.uri}/tables/image_scores")
    assert set(globbed["run_id"]) == {FIRST, SECOND}, "a glob sees it: whole, but not published"
    with Results(store) as results:
        for table in ("runs", "metrics", "image_scores"):
            found = results.query(f"select distinct run_id from {table}")  # noqa: S608
            assert found["run_id"].to_pylist() == [FIRST]


KILLED = """
import os, sys
from etstpm.storage import Store
from tests.published import add_category, publish

put = Store.put_file
def killed(self, local, key):
    put(self, local, key)
    if key.endswith(sys.argv[3]):
        os.kill(os.getpid(), 9)
Store.put_file = killed
store = Store(sys.argv[1])
publish(store, [add_category(store)], sys.argv[2])
"""


@pytest.mark.parametrize("after", ["image_scores.parquet", "metrics.parquet", "run.json"])
def test_killed_at_each_step_a_publication_is_whole_or_not_there(
    tmp_path: Path, after: str
) -> None:
    """kill -9 right after each put; then the same publication again ends well."""
    store = Store(str(tmp_path / "store"))
    publish(store, [add_category(store)], FIRST)
    done = subprocess.run(
        [sys.executable, "-c", KILLED, store.uri, SECOND, after],
        check=False,
        env={**os.environ, "PYTHONPATH": "."},
    )
    assert done.returncode == -9
    is_published = after == "run.json"
    expected = [FIRST, SECOND] if is_published else [FIRST]
    with Results(store) as results:
        found = results.query("select distinct run_id from metrics order by 1")
        assert found["run_id"].to_pylist() == expected
        assert results.latest == FIRST
    for path in (tmp_path / "store/tables").rglob("*.parquet"):
        assert pq.read_table(path, partitioning=None).num_rows > 0, "what is there is whole"
    publish(store, [add_category(store)], SECOND)
    assert latest_run(store) == SECOND
    assert len(store.list_files("tables")) == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["results", "metrics", "nope"], "no run 'nope'; the newest are"),
        (["results", "metrics", "../../etc/passwd"], "cannot be a run's id"),
        (["results", "metrics", "x'; drop view runs; --"], "cannot be a run's id"),
        (["results", "metrics", "--category", "x' or '1'='1"], "no category \"x' or '1'='1\""),
        (["results", "metrics", "--metric", "accuracy"], "no metric 'accuracy' in run"),
        (["results", "metrics", "--defect-type", "rust"], "no defect type 'rust' in run"),
        (["results", "worst", FIRST, "--category", "bottle"], "no category 'bottle' in run"),
        (["results", "history", "bottle"], "no category 'bottle' in any run; there are capsule"),
        (["results", "history", "screw", "--level", "region"], "no level 'region' in category"),
        (["results", "compare", FIRST], "is the first good one; name the run to compare it with"),
        (["results", "compare", SECOND, "--category", "x"], "no scores of category 'x' in run"),
        (["results", "runs", "--columns", "run_id,no"], "no column 'no'; there are run_id, status"),
        (["results", "runs", "--format", "parquet"], "give --output FILE"),
        (["results", "runs", "--output", "/no/such/folder/x.csv"], "cannot be written"),
        (
            ["results", "sql", "select nope from runs"],
            'SQL is refused: Binder Error: Referenced column "nope"',
        ),
        (["results", "sql", "from read_csv('/etc/passwd')"], "SQL is refused"),
        (["results", "sql", "copy runs to 'x.csv'"], "SQL is refused"),
        (["results", "sql", "select from where"], "SQL is refused: Parser Error"),
        (["runs", "promote", SECOND, "--why", " "], "no reason; give one with --why"),
        (["runs", "rollback", "nope", "--why", "x"], "no run 'nope'"),
    ],
)
def test_a_wrong_question_is_one_clear_line(
    filled: Store, command: Command, arguments: list[str], message: str
) -> None:
    code, output, errors = command(*arguments, "--store", filled.uri)
    assert (code, output) == (2, "")
    assert message in errors
    assert errors.count("\n") == 1
    assert errors.startswith("etstpm: ")


@pytest.mark.parametrize(
    "question",
    [
        *("results runs", "results metrics", "results worst", "results compare"),
        *("results history screw", "results rebuild", "runs decisions"),
    ],
)
def test_a_store_without_runs_says_so(tmp_path: Path, command: Command, question: str) -> None:
    code, _, errors = command(*question.split(), "--store", str(tmp_path / "none"))
    assert code == 2
    assert errors == (
        f"etstpm: store {tmp_path}/none holds no published run; check its address, or publish one "
        "with 'make run STORE=...'\n"
    )


def damage(store: Store, key: str, how: str) -> None:
    content = bytearray(store.read_bytes(key))
    if how == "cut":
        del content[len(content) // 2 :]
    elif how == "gone":
        store.remove_file(key)
        return
    else:
        content[200] ^= 255
    store.write_bytes(key, bytes(content))


@pytest.mark.parametrize("how", ["cut", "flipped", "gone"])
def test_a_damaged_table_is_named(tmp_path: Path, command: Command, how: str) -> None:
    store = Store(str(tmp_path / "store"))
    publish(store, [add_category(store)], FIRST)
    key = table_key("metrics", FIRST)
    damage(store, key, how)
    code, output, errors = command("results", "metrics", "--store", store.uri)
    assert (code, output) == (2, "")
    assert errors.startswith(f"etstpm: store {store.uri}: {key} is missing or damaged (")
    assert errors.count("\n") == 1


def test_damaged_json_is_named(tmp_path: Path, command: Command) -> None:
    store = Store(str(tmp_path / "store"))
    publish(store, [add_category(store)], FIRST)
    for key in (run_key(FIRST), "runs/latest.json"):
        content = store.read_bytes(key)
        store.write_bytes(key, content[:-5])
        code, _, errors = command("results", "metrics", "--store", store.uri)
        assert code == 2
        assert f"{key} is damaged" in errors
        store.write_bytes(key, content)


def test_tables_of_a_newer_schema_version_are_refused(tmp_path: Path, command: Command) -> None:
    store = Store(str(tmp_path / "store"))
    publish(store, [add_category(store)], FIRST)
    record = store.read_json(run_key(FIRST))
    store.write_json(run_key(FIRST), record | {"schema_version": 3})
    code, _, errors = command("results", "history", "screw", "--store", store.uri)
    assert code == 2
    assert f"the tables of run {FIRST} have schema version 3, this etstpm reads up to 2" in errors


def test_names_of_folders_are_neither_sql_nor_markup_nor_control_codes(
    tmp_path: Path, command: Command
) -> None:
    store = Store(str(tmp_path / "store"))
    hostile = "a'; drop table runs; -- [red]:+1:\x1b[31m\u202e"
    publish(store, [add_category(store, hostile, defect_type="[b]\x1b]0;x\x07")], FIRST)
    for question in (
        ["metrics", "--category", hostile],
        ["history", hostile],
        ["worst", "--category", hostile],
    ):
        code, output, errors = command("results", *question, "--store", store.uri)
        assert (code, errors) == (0, "")
        assert not set("\x1b\x07\u202e") & set(output)
    question = ["metrics", "--category", hostile, "--columns", "category"]
    _, output, _ = command("results", *question, "--store", store.uri)
    assert "a'; drop table runs; -- [red]:+1:\\x1b[31m\\u202e" in output
    _, output, _ = command("results", "history", hostile, "--store", store.uri, "--format", "json")
    assert json.loads(output)[0]["run_id"] == FIRST


def test_a_digest_is_short_on_the_terminal_and_whole_in_files(
    filled: Store, command: Command
) -> None:
    question = ["results", "sql", "select distinct student_digest from metrics limit 1"]
    question += ["--store", filled.uri]
    _, written, _ = command(*question, "--format", "csv")
    digest = written.splitlines()[1].strip('"')
    assert len(digest) == 64

    _, printed, _ = command(*question)

    assert digest[:12] in printed
    assert digest[:13] not in printed


def test_the_script_runs_in_a_duckdb_of_ones_own(filled: Store, command: Command) -> None:
    import duckdb

    code, output, _ = command("results", "sql", "--store", filled.uri)
    assert (code, output) == (0, script(filled))
    with duckdb.connect() as connection, Results(filled) as results:
        connection.execute(output)
        for view in (
            "runs",
            "metrics",
            "image_scores",
            "latest_metrics",
            "nights",
            "errors",
            "failures",
        ):
            count = f"select count(*) n from {view}"  # noqa: S608
            row = connection.execute(count).fetchone()
            assert row is not None
            assert row[0] == results.query(count)["n"][0].as_py() > 0


def test_every_format_says_the_same(filled: Store, command: Command, tmp_path: Path) -> None:
    question = ["results", "runs", "--store", filled.uri, "--columns", "run_id,verdict,failed"]
    expected = [
        {"run_id": FIRST, "verdict": "passed", "failed": 0},
        {"run_id": SECOND, "verdict": "regressed", "failed": 0},
        {"run_id": THIRD, "verdict": "incomplete", "failed": 1},
    ]
    _, output, _ = command(*question, "--format", "json")
    assert json.loads(output) == expected
    _, output, _ = command(*question, "--format", "csv")
    assert list(csv.DictReader(io.StringIO(output))) == [
        {key: str(value) for key, value in row.items()} for row in expected
    ]
    for name in ("runs.parquet", "runs.json", "runs.csv"):
        assert command(*question, "--output", str(tmp_path / name))[:2] == (0, "")
    assert pq.read_table(tmp_path / "runs.parquet").to_pylist() == expected
    assert json.loads((tmp_path / "runs.json").read_text()) == expected
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "runs.csv",
        "runs.json",
        "runs.parquet",
    ]
    _, output, _ = command(*question)
    for row in expected:
        line = next(line for line in output.splitlines() if str(row["run_id"]) in line)
        assert line.split()[:2] == [row["run_id"], row["verdict"]]


def test_a_reader_writes_nothing(
    filled: Store, monkeypatch: pytest.MonkeyPatch, command: Command
) -> None:
    """Whoever may only read gets every answer: nothing that changes the store is even tried."""
    before = filled.list_files("")

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    for name in ("put_file", "remove_file", "create_exclusively", "touch"):
        monkeypatch.setattr(Store, name, refuse)
    for name in ("rm_file", "rm", "pipe_file", "put_file", "mv", "makedirs", "mkdir"):
        monkeypatch.setattr(type(filled.fs), name, refuse)
    for question in ("runs", "metrics", "worst", f"compare {SECOND}", "history screw", "sql"):
        code, _, errors = command("results", *question.split(), "--store", filled.uri)
        assert (code, errors) == (0, ""), question
    assert command("runs", "decisions", "--store", filled.uri)[0] == 0
    assert filled.list_files("") == before


def test_promotion_by_the_command(tmp_path: Path, command: Command) -> None:
    store = fill(Store(str(tmp_path / "store")))
    why = "the camera was moved: [bold]new[/bold] normal"
    code, output, _ = command(
        *("runs", "promote", SECOND, "--why", why, "--who", "Ada", "--store", store.uri)
    )
    assert code == 0
    assert output == f"{SECOND} is the latest now, it was {FIRST}; recorded: {why}\n"
    assert latest_run(store) == SECOND
    (decision,) = decisions(store)
    assert (decision.who, decision.why, decision.previous) == ("Ada", why, FIRST)
    _, output, _ = command("runs", "decisions", "--store", store.uri)
    assert why in output


def test_a_decision_that_cannot_be_recorded_has_no_effect(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: Command
) -> None:
    store = fill(Store(str(tmp_path / "store")))

    def refuse(self: Store, _: Path, key: str) -> None:
        raise StorageError(f"store {self.uri}: put file failed: {key}")

    monkeypatch.setattr(Store, "put_file", refuse)
    code, _, errors = command("runs", "promote", SECOND, "--why", "x", "--store", store.uri)
    assert code == 2
    assert "put file failed: decisions/" in errors
    assert latest_run(store) == FIRST


@pytest.fixture(scope="module")
def year(tmp_path_factory: pytest.TempPathFactory) -> FakeHistory:
    """A year of fifteen categories, to be read only."""
    history = FakeHistory(Store(str(tmp_path_factory.mktemp("year") / "store")))
    history.draw()
    return history


def test_a_year_shows_its_trend_its_regression_and_its_rollback(year: FakeHistory) -> None:
    store, sick = year.store, year.run_ids[year.sick_night]
    with Results(store) as results:
        values = metric_history(results, SICK)["value"].to_pandas()
        assert len(values) == 365
        assert values[-30:].mean() - values[:30].mean() == pytest.approx(0.0275, abs=0.003)
        drops = results.query(
            "select run_id, category, verdict from nights "
            "where change < -0.05 and level = 'image' and metric = 'auroc'"
        ).to_pylist()
        assert drops == [{"run_id": sick, "category": SICK, "verdict": "regressed"}]
        runs = {row["run_id"]: row for row in list_runs(results).to_pylist()}
        assert runs[sick]["reason"].startswith(f"{SICK}: image AUROC fell by 0.1")
        assert runs[sick]["reason"].count("fell") == 1
        assert LOSS == 0.12
        after = year.run_ids[year.sick_night + 1]
        assert runs[after]["baseline"] == year.run_ids[year.sick_night - 1], "not the sick one"
        (decision,) = decisions(store)
        night = year.rolled_back_night
        assert (decision.action, decision.run_id, decision.previous) == (
            *("rollback", year.run_ids[night - 2], year.run_ids[night]),
        )
        assert runs[year.run_ids[night + 1]]["baseline"] == year.run_ids[night - 2]
        assert results.latest == year.run_ids[-1]


def test_a_year_is_read_in_few_files(year: FakeHistory) -> None:
    history = read_history(year.store)
    assert len(history.runs) == 365
    assert len(history.runs) - len(history.months) == 31, "the current month's runs alone"
    assert len(set(history.months.values())) == 11


def test_a_years_question_costs_requests_for_months_not_for_nights(
    faulty_s3: S3, s3_proxy: FaultProxy
) -> None:
    """Of 70 nights on S3, 61 of them in past months: what is asked of the server."""
    history = FakeHistory(Store(faulty_s3.uri), nights=70, categories=("bottle", "screw"))
    history.draw()
    s3_proxy.requests.clear()
    with Results(history.store) as results:
        assert metric_history(results, "screw").num_rows == 70
    asked = [request.path for request in s3_proxy.requests]
    assert not any(run_id in path for path in asked for run_id in history.run_ids[:61])
    assert len(asked) < 80  # a listing, two months, nine runs of this month, each in a few requests
