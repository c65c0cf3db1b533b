"""The main job through its command, as `make run` calls it, in processes of its own."""

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path

import pandas as pd
import pytest

from etstpm.sample import draw_sample
from etstpm.storage import Store
from tests.etstpm.stage_runs import cards_of
from tests.prefect_server import REPOSITORY, Prefect, wait_until, without_prefect
from tests.processes import children_of, is_alive

RUN_SECONDS = 300.0
SETTINGS = (
    "dataset.image_size=64",
    "teacher.weights=formula",
    "student.epochs=4",
    "student.least_images=0",
    "student.batch_size=4",
)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A drawn dataset, enough for a student to learn something of it."""
    folder = tmp_path_factory.mktemp("full") / "drawn"
    draw_sample(folder, image_size=64, train=16, test_good=4, per_defect=2)
    return folder


class Pipeline:
    """`python -m flows.full` with a store and a cache of its own.

    It runs on the session's server; without one it starts its own, by these variables.
    """

    def __init__(
        self, server: Prefect | None, root: Path, folder: Path, variables: Mapping[str, str] = {}
    ) -> None:
        self.store = folder / "store"
        alone = without_prefect() | {"PREFECT_HOME": str(folder / "home")}
        environment = alone if server is None else server.environment
        self.environment = {**environment, "ETSTPM_CACHE": str(folder / "cache"), **variables}
        self.options = ["--dataset", str(root), "--store", str(self.store), "--config", "default"]

    def start(self, *options: str) -> "subprocess.Popen[str]":
        overrides = [word for setting in SETTINGS for word in ("--set", setting)]
        return subprocess.Popen(
            [sys.executable, "-m", "flows.full", *self.options, *overrides, *options],
            cwd=REPOSITORY,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def run(self, *options: str) -> "subprocess.CompletedProcess[str]":
        process = self.start(*options)
        output, errors = process.communicate(timeout=RUN_SECONDS)
        return subprocess.CompletedProcess(process.args, process.returncode, output, errors)

    def table(self, name: str) -> pd.DataFrame:
        """A table's rows over all runs, less what differs from run to run by its nature."""
        rows = pd.read_parquet(self.store / "tables" / name)
        return rows.drop(columns=["run_id", "created_at", "scored_at"], errors="ignore")

    def cards(self, kind: str) -> dict[str, str]:
        """When each whole artifact of a kind was made."""
        return cards_in(self.store, kind)


def cards_in(store: Path, kind: str) -> dict[str, str]:
    return {
        key.removesuffix("/card.json"): json.loads(card)["created_at"]
        for key, card in cards_of(Store(str(store))).items()
        if key.startswith(f"{kind}/")
    }


@pytest.fixture(scope="module")
def undisturbed(
    prefect_server: Prefect, root: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Pipeline, "subprocess.CompletedProcess[str]"]:
    """A run over all categories that nothing has disturbed."""
    pipeline = Pipeline(prefect_server, root, tmp_path_factory.mktemp("undisturbed"))
    return pipeline, pipeline.run()


def test_main_job_publishes_and_prints(
    undisturbed: tuple[Pipeline, "subprocess.CompletedProcess[str]"],
) -> None:
    pipeline, done = undisturbed

    assert done.returncode == 0, done.stderr
    assert done.stderr == "", "quiet when not a terminal"
    for word in (
        *("biscuit", "fabric", "flange", "mean", "image AUROC", "pixel AUROC", "AUPRO"),
        *("pre-trained on drawn pictures alone", "pandas.read_parquet"),
    ):
        assert word in done.stdout
    (report,) = pipeline.store.glob("reports/*/index.html")
    assert f"report        {report}" in done.stdout
    assert "Content-Security-Policy" in report.read_text("utf-8")
    scores = pipeline.table("image_scores")
    assert scores.groupby("category", observed=True).size().to_dict() == {
        "biscuit": 10,
        "fabric": 10,
        "flange": 10,
    }
    metrics = pipeline.table("metrics")
    assert metrics.groupby("category", observed=True).size().to_dict() == {
        "biscuit": 16 + 3 * 9,
        "fabric": 16 + 3 * 9,
        "flange": 16 + 3 * 9,
        "mean": 13,
    }
    is_threshold = metrics["metric"] == "f1_max_threshold"
    assert metrics.loc[~is_threshold, "value"].between(0, 1).all()
    assert metrics.loc[is_threshold, "value"].gt(0).all()


@pytest.fixture(scope="module")
def again(
    undisturbed: tuple[Pipeline, "subprocess.CompletedProcess[str]"],
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Path, "subprocess.CompletedProcess[str]"]:
    """The same run once more in a copy of the store, which cannot take a report."""
    first, _ = undisturbed
    store = tmp_path_factory.mktemp("again") / "store"
    shutil.copytree(first.store, store, ignore=shutil.ignore_patterns("reports"))
    (store / "reports").write_text("a file where the reports' folder should be")
    return store, first.run("--store", str(store))


def test_same_config_again_reuses_every_stage(
    undisturbed: tuple[Pipeline, "subprocess.CompletedProcess[str]"],
    again: tuple[Path, "subprocess.CompletedProcess[str]"],
) -> None:
    first, _ = undisturbed
    store, done = again

    assert done.returncode == 0, done.stderr
    assert done.stdout.count("reused") == 3
    for kind in ("datasets", "teachers", "students", "scores"):
        assert cards_in(store, kind) == first.cards(kind)
    runs = pd.read_parquet(store / "tables" / "image_scores")
    old, new = (
        rows.drop(columns="run_id").reset_index(drop=True)
        for _, rows in runs.groupby("run_id", observed=True)
    )
    pd.testing.assert_frame_equal(old, new)


def test_a_report_that_fails_is_not_the_runs_fault(
    again: tuple[Path, "subprocess.CompletedProcess[str]"], prefect_server: Prefect
) -> None:
    """The tables are published and the run passes; why there is no report is logged."""
    store, done = again

    assert done.returncode == 0, done.stderr
    assert "report  " not in done.stdout
    assert done.stderr.startswith("note: the report could not be written; 'etstpm report 2")
    assert done.stderr.count("\n") == 1
    newest = json.loads((store / "runs" / "latest.json").read_text())["run_id"]
    (run,) = prefect_server.post(
        "flow_runs/filter", {"flow_runs": {"name": {"like_": newest}}, "limit": 1, "offset": 0}
    )
    assert run["state"]["type"] == "COMPLETED"
    log = prefect_server.log(run)
    assert f"{store}/reports" in log
    assert "Traceback" not in log
    runs = sorted(path.name for path in (store / "tables" / "image_scores").iterdir())
    assert len(runs) == 2
    assert newest in runs[1]


def test_killed_run_goes_on_where_it_stopped(
    undisturbed: tuple[Pipeline, "subprocess.CompletedProcess[str]"],
    prefect_server: Prefect,
    root: Path,
    tmp_path: Path,
) -> None:
    reference, _ = undisturbed
    pipeline = Pipeline(prefect_server, root, tmp_path)
    process = pipeline.start()
    try:
        wait_until(lambda: len(pipeline.cards("scores")) == 1, RUN_SECONDS, "a first category")
        time.sleep(0.3)  # now the second student is at work
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    finished = {kind: pipeline.cards(kind) for kind in ("teachers", "students", "scores")}
    assert len(finished["students"]) < 3, "killed too late to prove anything"
    assert not (pipeline.store / "runs").exists()
    assert not list((pipeline.store).glob("tables/**/*.parquet"))

    pipeline.environment["ETSTPM_CATEGORY_PROCESSES"] = "2"  # the others side by side
    done = pipeline.run()

    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    for kind, cards in finished.items():
        after = pipeline.cards(kind)
        assert cards.items() <= after.items(), "what was finished is not done again"
        assert len(after) == len(reference.cards(kind)), "nothing is there twice"
    for name in ("image_scores", "metrics"):
        pd.testing.assert_frame_equal(pipeline.table(name), reference.table(name))


def test_failed_category_stops_no_other(
    prefect_server: Prefect, root: Path, tmp_path: Path
) -> None:
    pipeline = Pipeline(prefect_server, root, tmp_path)
    students = pipeline.store / "students"
    students.mkdir(parents=True)
    (students / "fabric").write_text("a file where the store wants a folder")

    done = pipeline.run("--categories", "biscuit,fabric")

    assert done.returncode == 1
    assert "Traceback" not in done.stdout
    assert done.stderr.startswith("etstpm: fabric failed: store")
    assert done.stderr.count("\n") == 1, "one line for each failure, and nothing else"
    metrics = pipeline.table("metrics")
    failed = metrics["category"] == "fabric"
    assert failed.sum() == 16
    assert metrics.loc[failed, "value"].isna().all()
    assert metrics.loc[failed, "reason"].str.startswith("store").all()
    assert metrics.loc[~failed, "value"].notna().all()
    (record,) = pipeline.store.glob("runs/*/run.json")
    assert json.loads(record.read_text())["status"] == "incomplete"
    assert not (pipeline.store / "runs" / "latest.json").exists()


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--dataset", "/no/such/root", "dataset /no/such/root: no such folder"),
        ("--dataset", "~nobody-here/x", "dataset ~nobody-here/x: no such folder"),
        ("--set", "student.epoch=3", "no such key 'student.epoch'"),  # ends before any import
    ],
)
def test_fault_is_one_line_and_exit_code_2(
    prefect_server: Prefect, root: Path, tmp_path: Path, option: str, value: str, message: str
) -> None:
    pipeline = Pipeline(prefect_server, root, tmp_path)

    done = pipeline.run(option, value)

    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("etstpm: ")
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert not pipeline.store.exists(), "nothing is written"


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("PREFECT_HOME", "/proc/nowhere", "Prefect's home /proc/nowhere cannot be written"),
        ("PREFECT_LOGGING_LEVEL", "loud", "level = 'LOUD' is refused"),
    ],
)
def test_what_prefect_cannot_begin_with_is_said_in_one_line(
    root: Path, tmp_path: Path, name: str, value: str, message: str
) -> None:
    pipeline = Pipeline(None, root, tmp_path, {name: value})

    done = pipeline.run()

    assert (done.returncode, done.stdout) == (2, "")
    assert "Traceback" not in done.stderr
    *_, last = done.stderr.splitlines()  # Prefect itself has warned before
    assert last.startswith("etstpm: Prefect's ")
    assert message in last
    assert not pipeline.store.exists(), "nothing is written"


def test_server_that_cannot_start_says_why_in_one_line(root: Path, tmp_path: Path) -> None:
    database = {"PREFECT_API_DATABASE_CONNECTION_URL": "sqlite+aiosqlite:////proc/nowhere/x.db"}

    done = Pipeline(None, root, tmp_path, database).run()

    assert (done.returncode, done.stdout) == (2, "")
    assert "Traceback" not in done.stderr
    *_, last = done.stderr.splitlines()
    assert last.startswith("etstpm: Prefect's embedded server ended with code ")
    assert "OperationalError: (sqlite3.OperationalError) unable to open database file" in last


def test_run_whose_server_fails_ends_in_one_line(root: Path, tmp_path: Path) -> None:
    pipeline = Pipeline(None, root, tmp_path)
    with pipeline.start() as process:
        wait_until((pipeline.store / "teachers").exists, RUN_SECONDS, "a teacher")
        with closing(sqlite3.connect(tmp_path / "home" / "prefect.db", timeout=60)) as database:
            database.execute("DROP TABLE flow_run_state")  # as good as a full disk
        stdout, stderr = process.communicate(timeout=RUN_SECONDS)

    assert (process.returncode, stdout) == (2, "")
    assert "Traceback" not in stderr
    *_, last = stderr.splitlines()
    assert last.startswith("etstpm: Prefect's API failed during the run (")
    assert "no such table: flow_run_state" in last


def test_run_ends_with_its_killed_server(root: Path, tmp_path: Path) -> None:
    pipeline = Pipeline(None, root, tmp_path)
    with pipeline.start() as process:
        wait_until((pipeline.store / "teachers").exists, RUN_SECONDS, "a teacher")
        (server,) = children_of(process.pid)
        os.kill(server, signal.SIGKILL)
        stdout, stderr = process.communicate(timeout=30)  # Prefect's client would try for minutes

    assert (process.returncode, stdout) == (2, "")
    (line,) = stderr.splitlines()
    assert line.startswith("etstpm: Prefect's embedded server ended with code -9 during the run (")
    assert "give the command again" in line


def test_embedded_server_ends_with_a_killed_run(root: Path, tmp_path: Path) -> None:
    proxy = {"HTTP_PROXY": "http://127.0.0.1:9"}  # a firm's: not for the server beside the run
    pipeline = Pipeline(None, root, tmp_path, proxy)
    with pipeline.start() as process:
        try:
            wait_until((pipeline.store / "teachers").exists, RUN_SECONDS, "a teacher")
            servers = children_of(process.pid)
        finally:
            process.kill()
    assert servers, "the run had no server of its own"
    wait_until(lambda: not any(map(is_alive, servers)), 30, "the end of the embedded server")
