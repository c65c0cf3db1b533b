"""The ablation on the drawn sample: real trainings in real processes, then the table."""

import io
import json
import multiprocessing
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import threading
import time
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bench.ablation import main
from bench.experiments import load_ablation, trials_of
from bench.jobs import plan_jobs, run_jobs
from bench.records import Origins, Places, read_record
from etstpm.settings import settings
from etstpm.storage import Store
from etstpm.storage.artifact import seal
from tests.prefect_server import REPOSITORY, wait_until
from tests.processes import children_of, is_alive

SMALL = (
    '"dataset.image_size=48", "student.epochs=2", "student.least_images=0", "student.batch_size=1"'
)
TABLE = f"""\
categories = ["biscuit", "fabric"]
image_categories = ["biscuit", "fabric"]
seeds = [0, 1]
reference = "plain"

[[experiment]]
name = "plain"
group = "preset"
hypothesis = "h"
source = "s"
changes = [{SMALL}]

[[experiment]]
name = "summed"
group = "scoring"
hypothesis = "h"
source = "s"
changes = [{SMALL}, "scoring.calibration=none", "scoring.smoothing_sigma=2"]

[[experiment]]
name = "diverging"
group = "optimiser"
hypothesis = "h"
source = "s"
changes = [{SMALL}, "student.learning_rate=1e38"]
categories = ["fabric"]
seeds = [0]

[[experiment]]
name = "mistuned"
group = "teacher"
hypothesis = "h"
source = "s"
changes = [{SMALL}, "teacher.mode=classification", "teacher.learning_rate=1e30"]
seeds = [0]

[[check]]
experiment = "plain"
measure = "image_auroc"
at_least = 0.0

[[check]]
experiment = "plain"
measure = "pixel_auroc"
at_least = 1.0

[[check]]
experiment = "plain"
measure = "worst_seed_gap"
at_most = 0.01
least_seeds = 3
"""
FINISHED = [
    (name, category, seed)
    for name in ("plain", "summed")
    for category in ("biscuit", "fabric")
    for seed in (0, 1)
]


@dataclass(frozen=True)
class Said:
    """What a command ended with and printed."""

    code: int
    output: str
    errors: str


@dataclass(frozen=True)
class Finished:
    """A store in which the whole table has run once, and what the command said."""

    folder: Path
    dataset: Path
    said: Said

    def options(self, store: Path | None = None) -> list[str]:
        """Of both commands."""
        table = str(self.folder / "table.toml")
        return ["--experiments", table, "--store", str(store or self.folder / "store")]

    def inputs(self) -> list[str]:
        """Of `run`."""
        return ["--dataset", str(self.dataset), "--weights", "formula"]


def call(*arguments: str) -> Said:
    """`python -m bench.ablation ARGUMENTS`, in this process."""
    output, errors = io.StringIO(), io.StringIO()
    handlers = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)}
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(output), redirect_stderr(errors):
        patch.setattr(sys, "argv", ["ablation", *arguments])
        patch.setenv("COLUMNS", "200")
        with pytest.raises(SystemExit) as ended:
            main()
    for number, handler in handlers.items():
        signal.signal(number, handler)
    return Said(int(ended.value.code or 0), output.getvalue(), errors.getvalue())


@pytest.fixture(scope="module")
def finished(drawn: Path, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """To be read, or copied."""
    folder = tmp_path_factory.mktemp("ablation")
    (folder / "table.toml").write_text(TABLE, "utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ETSTPM_CACHE", str(folder / "cache"))
        settings.cache_clear()
        new = Finished(folder, drawn, Said(0, "", ""))
        said = call("run", *new.options(), *new.inputs())
    settings.cache_clear()
    return Finished(folder, drawn, said)


def contents(store: Path) -> dict[str, bytes]:
    return {str(p.relative_to(store)): p.read_bytes() for p in store.rglob("*") if p.is_file()}


def long_rows(finished: Finished, folder: Path) -> list[dict[str, Any]]:
    assert call("table", *finished.options(), "--out", str(folder / "quality.md")).code == 0
    rows: list[dict[str, Any]] = pq.read_table(folder / "quality.parquet").to_pylist()
    return rows


def test_failed_trials_are_named_and_the_others_go_on(finished: Finished) -> None:
    said = finished.said
    ended = re.findall(r"^\[\d+/8 [\d:]+\] (.+?): (.+)$", said.output, re.MULTILINE)
    figures = r"image AUROC [01]\.\d{3}, pixel AUROC [01]\.\d{3}, AUPRO [01]\.\d{3}"

    assert said.code == 1, said
    assert said.output.startswith("11 trials, 11 to do in 8 jobs, 2 at a time\n")
    assert said.errors == ""
    reasons = dict(ended)
    for name, category, seed in FINISHED:
        assert re.fullmatch(figures, reasons[f"{name}, {category}, seed {seed}"])
    assert reasons["diverging, fabric, seed 0"].startswith("fabric: the student's loss")
    assert "lower teacher.learning_rate" in reasons["mistuned, teacher, seed 0"]
    for category in ("biscuit", "fabric"):
        reason = reasons[f"mistuned, {category}, seed 0"]
        assert reason == f"its teacher failed: {reasons['mistuned, teacher, seed 0']}"


def test_a_first_look_has_a_page_of_what_it_was_at(finished: Finished, tmp_path: Path) -> None:
    """Half of four epochs are the two that the store has."""
    page = tmp_path / "look.md"
    (tmp_path / "table.toml").write_text(TABLE.replace("epochs=2", "epochs=4"), "utf-8")
    (tmp_path / "look-story.md").write_text("Few steps say little.\n", "utf-8")
    options = ["--experiments", str(tmp_path / "table.toml"), "--epochs-share", "0.5"]
    store = str(finished.folder / "store")

    assert call("table", *options, "--store", store, "--out", str(page)).code == 0

    words = page.read_text("utf-8")
    assert "# A first look: 0.5 of the epochs\n\nFew steps say little.\n\n8 of 8 trials" in words
    assert "\n    python -m bench.ablation table --epochs-share 0.5\n" in words
    assert re.findall(r"^\| (\S+) \| [01]\.\d{3} ", words, re.MULTILINE) == [
        *("plain", "plain", "summed")  # the reference stands in the other's group too
    ]
    assert "What was to be reached" not in words
    assert "### optimiser" not in words
    rows = pq.read_table(page.with_suffix(".parquet")).to_pylist()
    assert {(row["experiment"], row["epochs"], row["epochs_share"]) for row in rows} == {
        ("plain", 2, 0.5),
        ("summed", 2, 0.5),
    }


def test_rows_that_differ_in_scoring_share_their_students(
    finished: Finished, tmp_path: Path
) -> None:
    digests = {
        (row["experiment"], row["category"], row["seed"]): (
            row["student_digest"],
            row["scores_digest"],
        )
        for row in long_rows(finished, tmp_path)
    }

    assert sorted(digests) == sorted(FINISHED)
    students = list((finished.folder / "store" / "students").glob("*/*/card.json"))
    assert len(students) == 4
    for _, category, seed in FINISHED:
        plain, summed = digests["plain", category, seed], digests["summed", category, seed]
        assert plain[0] == summed[0]
        assert plain[1] != summed[1]


def test_students_of_several_experiments_together(finished: Finished, tmp_path: Path) -> None:
    measured = {
        (row["experiment"], row["category"], row["seed"], row["metric"]): row["value"]
        for row in long_rows(finished, tmp_path)
        if (row["protocol"], row["level"]) in {("paper-256", "pixel"), ("mvtec-official", "pixel")}
        and row["metric"] == {"paper-256": "auroc", "mvtec-official": "aupro"}[row["protocol"]]
    }

    said = call("ensemble", *finished.options(), *finished.inputs(), "--only", "plain,summed")
    alone = call(
        *("ensemble", *finished.options(), *finished.inputs(), "--only", "plain"),
        *("--categories", "fabric", "--seeds", "1"),
    )

    assert (said.code, said.errors, alone.code) == (0, "", 0)
    figures = r"image AUROC [01]\.\d{4}, pixel AUROC ([01]\.\d{4}), AUPRO ([01]\.\d{4})"
    found = re.findall(rf"^(\w+), (\w+), seed (\d): {figures}$", said.output, re.MULTILINE)
    assert len(said.output.splitlines()) == 12
    assert sorted(
        (member, category, int(seed)) for member, category, seed, _, _ in found
    ) == sorted(FINISHED + [("together", *trial[1:]) for trial in FINISHED[:4]])
    for member, category, seed, *values in found:
        if member != "together":
            expected = [measured[member, category, int(seed), m] for m in ("auroc", "aupro")]
            assert [float(value) for value in values] == pytest.approx(expected, abs=5.1e-5)
    itself, together = alone.output.splitlines()
    assert together == itself.replace("plain,", "together,")


def test_an_ensemble_needs_students_that_have_run(finished: Finished) -> None:
    said = call("ensemble", *finished.options(), *finished.inputs(), "--only", "plain,diverging")

    assert said.code == 2
    assert said.errors.startswith("ablation: store ")
    assert "diverging, fabric, seed 0 has no scores; run bench.ablation first" in said.errors
    assert said.errors.count("\n") == 1


def test_a_second_run_does_nothing(finished: Finished) -> None:
    before = contents(finished.folder / "store")

    said = call(
        "run", *finished.options(), *finished.inputs(), "--only", "plain", "--only", "summed"
    )

    assert said == Said(0, "8 trials, 0 to do in 0 jobs, 2 at a time\n", "")
    assert contents(finished.folder / "store") == before


def test_scores_that_are_gone_are_made_again_without_training(
    finished: Finished, tmp_path: Path
) -> None:
    shutil.copytree(finished.folder / "store", tmp_path / "store")
    (trial,) = trials_of(
        load_ablation(finished.folder / "table.toml"),
        only=["summed"],
        categories=["fabric"],
        seeds=[1],
    )
    store = Store(str(tmp_path / "store"))
    record = read_record(store, trial)
    assert record is not None
    shutil.rmtree(tmp_path / "store" / record["scores"])
    assert read_record(store, trial) is None
    trained = contents(tmp_path / "store" / "students")

    choice = ["--only", "plain,summed", "--categories", "fabric", "--seeds", "0,1"]
    said = call("run", *finished.options(tmp_path / "store"), *finished.inputs(), *choice)

    assert said.output.startswith("4 trials, 1 to do in 1 jobs, 2 at a time\n[1/1 ")
    assert "summed, fabric, seed 1: image AUROC" in said.output
    assert said.code == 0
    assert contents(tmp_path / "store" / "students") == trained
    assert (
        store.get(record["scores"]).card["metrics"]
        == (Store(finished.options()[-1]).get(record["scores"]).card["metrics"])
    )


def test_figures_are_those_of_the_cards(finished: Finished, tmp_path: Path) -> None:
    rows = long_rows(finished, tmp_path)
    values: dict[tuple[str, str, int], float] = {}

    for row in rows:
        path = finished.folder / "store" / "scores" / row["category"] / row["scores_digest"]
        card = json.loads((path / "card.json").read_text())
        assert card["seed"] == row["seed"]
        value = card["metrics"]["values"][row["protocol"]][row["level"]][row["metric"]]
        assert row["value"] == value
        if (row["protocol"], row["level"], row["metric"]) == ("paper-256", "image", "auroc"):
            values[row["experiment"], row["category"], row["seed"]] = value
    student = next(iter((finished.folder / "store" / "students").glob("*/*/card.json")))
    assert {(row["epochs"], row["cost"], row["recipe_cost"]) for row in rows} == {
        (2, 2 * 3, 100 * 3)  # four images, one of them held out by either preset
    }
    assert json.loads(student.read_text())["seconds"] in {row["train_seconds"] for row in rows}

    page = (tmp_path / "quality.md").read_text("utf-8")
    means = [
        statistics.mean(values["plain", category, seed] for category in ("biscuit", "fabric"))
        for seed in (0, 1)
    ]
    cell = f"{statistics.mean(means):.3f} ± {statistics.stdev(means):.3f} | {min(means):.3f}"
    (line,) = {
        line for line in page.splitlines() if line.startswith(("| plain | 0.", "| plain | 1."))
    }
    assert cell in line
    assert line.endswith("| 2 | - | 0.02 |")
    differences = [
        statistics.mean(
            values["summed", category, seed] - values["plain", category, seed]
            for category in ("biscuit", "fabric")
        )
        for seed in (0, 1)
    ]
    shown = f"{statistics.mean(differences):+.3f} ± {statistics.stdev(differences):.3f}"
    (verdict,) = (line for line in page.splitlines() if line.startswith("| summed | plain |"))
    assert shown in verdict
    assert verdict.endswith("| 2 | 4 |")


def test_page_says_what_is_reached_missing_and_failed(finished: Finished, tmp_path: Path) -> None:
    (tmp_path / "quality-story.md").write_text("What the figures mean.\n", "utf-8")
    long_rows(finished, tmp_path)
    page = (tmp_path / "quality.md").read_text("utf-8")

    assert "# Detection quality\n\nWhat the figures mean.\n\n8 of 11 trials" in page
    assert re.search(
        r"^\| plain .*>= 0\.000 \| [01]\.\d{4} \| 2 \| reached \|$", page, re.MULTILINE
    )
    assert re.search(r">= 1\.000 \| 0\.\d{4} \| 2 \| \*\*not reached\*\* \|$", page, re.MULTILINE)
    assert "<= 0.010 | - | 2 | not measured (needs seeds: 3) |" in page
    assert "| diverging | - | - | - | - | - | - | 0 | - | - |" in page
    assert "- diverging, fabric, seed 0: fabric: the student's loss" in page
    assert "published" not in page, "the drawn categories are no paper's"


def test_pictures_go_into_a_folder(finished: Finished, tmp_path: Path) -> None:
    out = ["--out", str(tmp_path / "quality.md"), "--pictures", str(tmp_path / "pictures")]

    assert call("table", *finished.options(), *out).code == 0

    assert sorted(path.name for path in (tmp_path / "pictures").iterdir()) == [
        "plain-biscuit.png",
        "plain-fabric.png",
        "summed-biscuit.png",
        "summed-fabric.png",
    ]


def test_figures_outlive_their_store(finished: Finished, tmp_path: Path) -> None:
    out, page = ["--out", str(tmp_path / "quality.md")], tmp_path / "quality.md"
    table = finished.options()[:2]
    rows = long_rows(finished, tmp_path)
    with_store = page.read_text("utf-8").partition("## Trials that failed")[0]
    page.unlink()

    said = call("table", *table, *out)

    assert said == Said(0, f"8 of 11 trials, 0 failed: {page}\n", "")
    assert pq.read_table(tmp_path / "quality.parquet").to_pylist() == rows
    assert page.read_text("utf-8").startswith(with_store.replace("3 have failed", "0 have failed"))

    shutil.copytree(finished.folder / "store", tmp_path / "store")
    shutil.rmtree(tmp_path / "store" / "ablation")
    assert call("table", *finished.options(tmp_path / "store"), *out) == said

    said = call("table", *table, *out, "--pictures", str(tmp_path / "pictures"))
    assert said == Said(2, "", "ablation: --pictures are copied out of a store: give --store\n")


def test_figures_of_a_row_that_has_changed_are_dropped(finished: Finished, tmp_path: Path) -> None:
    long_rows(finished, tmp_path)
    other = tmp_path / "other.toml"
    other.write_text(TABLE.replace("smoothing_sigma=2", "smoothing_sigma=3"), "utf-8")

    said = call("table", "--experiments", str(other), "--out", str(tmp_path / "quality.md"))

    assert said.output.startswith("4 of 11 trials, 0 failed: ")


@pytest.mark.parametrize("fault", ["another table", "no Parquet"])
def test_figures_that_cannot_be_read_are_one_line(
    fault: str, finished: Finished, tmp_path: Path
) -> None:
    path = tmp_path / "quality.parquet"
    if fault == "no Parquet":
        path.write_bytes(b"PAR1")
    else:
        pq.write_table(pa.table({"a": [1]}), path)
    before = path.read_bytes()

    said = call("table", *finished.options(), "--out", str(tmp_path / "quality.md"))

    assert (said.code, said.output, said.errors.count("\n")) == (2, "", 1)
    assert f"{path} " in said.errors
    assert path.read_bytes() == before
    assert not (tmp_path / "quality.md").exists()


@pytest.mark.parametrize("kept", [True, False])
def test_figures_of_different_images_are_not_compared(
    kept: bool, finished: Finished, tmp_path: Path
) -> None:
    """Whether the others are in the store too, or in the table that an earlier one has left."""
    if kept:
        long_rows(finished, tmp_path)
        (tmp_path / "quality.md").unlink()
    shutil.copytree(finished.folder / "store", tmp_path / "store")
    card = next(iter((tmp_path / "store" / "scores" / "fabric").glob("*/card.json")))
    content = json.loads(card.read_text())
    content["inputs"]["images"] = "0" * 64
    card.write_bytes(seal(content))
    out = ["--out", str(tmp_path / "quality.md")]

    said = call("table", *finished.options(tmp_path / "store"), *out)

    assert said.code == 2
    assert "were made from different images" in said.errors
    assert said.errors.count("\n") == 1
    assert not (tmp_path / "quality.md").exists()


def test_images_that_changed_are_run_again(finished: Finished, dataset: Path) -> None:
    trials = trials_of(load_ablation(finished.folder / "table.toml"), only=["plain"])
    store = finished.folder / "store"
    same = Origins(Places(str(finished.dataset), "formula", str(store)), trials)
    (dataset / "fabric" / "train" / "good" / "000.png").unlink()
    other = Origins(Places(str(dataset), "formula", str(store)), trials)
    record = read_record(Store(str(store)), trials[0])
    places = Places(str(dataset), "formula", str(store))
    here = Places(str(finished.dataset), "formula", str(store))

    assert record is not None
    assert record["origin"] == same.of(here.fill(trials[0].config))
    assert record["origin"] != other.of(places.fill(trials[0].config))


def test_students_wait_for_their_tuned_teacher_and_scorings_share_a_job(
    finished: Finished,
) -> None:
    trials = trials_of(load_ablation(finished.folder / "table.toml"), seeds=[0])
    places = Places(str(finished.dataset), "formula", str(finished.folder / "store"))

    jobs = plan_jobs([*trials, *trials], places, Origins(places, trials))

    named = [(job.name, [trial.experiment for trial in job.trials]) for job in jobs.values()]
    assert named == [
        ("plain, biscuit, seed 0", ["plain", "summed"]),
        ("mistuned, teacher, seed 0", []),
        ("mistuned, biscuit, seed 0", ["mistuned"]),
        ("plain, fabric, seed 0", ["plain", "summed"]),
        ("diverging, fabric, seed 0", ["diverging"]),
        ("mistuned, fabric, seed 0", ["mistuned"]),
    ]
    keys = {job.name: key for key, job in jobs.items()}
    needs = {job.name: job.needs for job in jobs.values() if job.needs is not None}
    teacher = keys["mistuned, teacher, seed 0"]
    assert needs == {
        "mistuned, biscuit, seed 0": teacher,
        "mistuned, fabric, seed 0": teacher,
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--only", "best"], "no experiment 'best' among the experiments; there are plain, "),
        (["--categories", "bolt"], "no category 'bolt' among the experiments; there are biscuit"),
        (["--seeds", "7"], "no seed 7 among the experiments; there are 0, 1"),
        (["--seeds", "one"], "--seeds 'one' is not a whole number"),
        (["--experiments", "/no/such.toml"], "experiments /no/such.toml cannot be read"),
        (["--dataset", "/no/such/root"], "dataset /no/such/root: no such folder"),
    ],
)
def test_fault_is_one_line_and_exit_code_2(
    arguments: list[str], message: str, finished: Finished, tmp_path: Path
) -> None:
    store = tmp_path / "store"

    said = call("run", *finished.options(store), *finished.inputs(), *arguments)

    assert (said.code, said.output) == (2, "")
    assert message in said.errors
    assert said.errors.count("\n") == 1
    assert not store.exists()


def test_an_interrupted_run_leaves_no_process_and_goes_on(
    finished: Finished, tmp_path: Path
) -> None:
    table = tmp_path / "table.toml"
    table.write_text(TABLE.replace("student.epochs=2", "student.epochs=100000"), "utf-8")
    store = tmp_path / "store"
    options = ["--experiments", str(table), "--store", str(store), *finished.inputs()]
    command = [sys.executable, "-m", "bench.ablation", "run", *options]
    with subprocess.Popen(
        [*command, "--only", "plain", "--jobs", "1"],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as running:
        while not has_teacher(store):  # its student is next
            assert running.poll() is None
            time.sleep(0.1)
        children = children_of(running.pid)
        children += children_of(*children)
        os.killpg(running.pid, signal.SIGINT)  # as Ctrl-C does: to the jobs too
        output, errors = running.communicate(timeout=60)

    assert running.returncode == 130
    assert output == "4 trials, 4 to do in 4 jobs, 1 at a time\n"
    assert errors == "ablation: interrupted; the same command goes on from here\n"
    assert children
    # multiprocessing's own tracker ends a moment after it
    wait_until(lambda: not any(map(is_alive, children)), 30, "the end of its processes")
    assert not list(store.rglob("students/*"))
    assert not list(store.rglob(".*.partial"))


def test_a_job_whose_process_is_killed_has_failed(finished: Finished, tmp_path: Path) -> None:
    """As the kernel does when memory runs out."""
    table = tmp_path / "table.toml"
    table.write_text(TABLE.replace("student.epochs=2", "student.epochs=100000"), "utf-8")
    trials = trials_of(load_ablation(table), only=["plain", "summed"], seeds=[0])[:2]
    places = Places(str(finished.dataset), "formula", str(tmp_path / "store"))
    jobs = plan_jobs(trials, places, Origins(places, trials))

    def kill() -> None:
        while not has_teacher(tmp_path / "store"):  # its student is next
            time.sleep(0.1)
        (process,) = multiprocessing.active_children()
        process.kill()

    killer = threading.Thread(target=kill)
    killer.start()
    ((job, outcomes),) = run_jobs(jobs, 1)
    killer.join()

    assert job.trials == tuple(trials)
    assert [outcome.failure for outcome in outcomes] == [
        "its process ended with exit code -9: killed, perhaps for want of memory; try --jobs 1"
    ] * 2


def has_teacher(store: Path) -> bool:
    """Not one that is being written, `.ID.partial`."""
    return any(path.parent.suffix != ".partial" for path in store.glob("teachers/*/card.json"))
