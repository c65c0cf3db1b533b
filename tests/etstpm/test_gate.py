"""The gate on real evaluations: what falls, how sure that is, and what becomes the latest."""

import uuid
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from etstpm.comparison import Change, ScoresOfRun, compare_category
from etstpm.config import Config
from etstpm.errors import ConfigError, ResultsError, StorageError
from etstpm.gate import Verdict
from etstpm.intervals import draw_weights
from etstpm.runs import LATEST_KEY, Outcome, decisions, latest_run, move_latest, read_run, table_key
from etstpm.storage import Store
from etstpm.storage.artifact import seal
from etstpm.summary import Run
from tests.published import add_category, publish

FIRST, SECOND, THIRD = (f"2026112{day}T020000Z-0000000{day}" for day in (3, 4, 5))


@pytest.fixture
def store() -> Store:
    return Store(f"memory://{uuid.uuid4().hex}/store")


def verdict_of(run: Run) -> Verdict:
    assert run.verdict is not None
    return run.verdict


def compare_scores(store: Store, levels: tuple[str, ...]) -> list[Change]:
    """How the category 'screw' moved from the first run to the second."""
    before, after = (
        ScoresOfRun(store, read_run(store, run)).artifact("screw") for run in (FIRST, SECOND)
    )
    return list(compare_category(store, before, after, "screw", levels=levels))


def test_the_first_run_passes_and_becomes_the_latest(store: Store) -> None:
    run = publish(store, [add_category(store)], FIRST)
    assert verdict_of(run) == Verdict("passed", None)
    assert latest_run(store) == FIRST


def test_a_night_without_change_passes_and_reads_no_replicates(store: Store) -> None:
    outcome = add_category(store)
    publish(store, [outcome], FIRST)
    # Of the baseline's category nothing can be read any more but that it is the same artifact.
    verdict = verdict_of(publish(store, [outcome], SECOND))
    assert verdict == Verdict("passed", FIRST)
    assert latest_run(store) == SECOND


def test_a_drop_that_is_large_and_sure_keeps_the_run_back(store: Store) -> None:
    publish(store, [add_category(store, "pill"), add_category(store, separation=2.0)], FIRST)
    worse = Config.load(None, ["student.epochs=3", "seed=4"])
    outcomes = [
        add_category(store, "pill"),
        add_category(store, separation=0.8, config=worse, torch="2.12.0"),
    ]
    run = publish(store, outcomes, SECOND, worse)
    verdict = verdict_of(run)
    assert run.is_complete
    assert (verdict.status, verdict.baseline) == ("regressed", FIRST)
    assert [(f.kind, f.change.category, f.change.level) for f in verdict.findings] == [
        ("drop", "screw", "image"),
        ("drop", "screw", "pixel"),
    ]
    for finding in verdict.findings:
        change = finding.change
        assert change.before is not None
        assert change.after is not None
        assert change.low is not None
        assert change.high is not None
        assert change.difference == change.after - change.before < -0.1
        assert change.low < change.difference < change.high < 0
        assert change.is_paired
    assert verdict.changed == ("config: student.epochs 16 -> 3", "seed: 0 -> 4")
    assert verdict.findings[0].change.what == (
        "config: student.epochs 16 -> 3",
        "code: torch 2.11.0 -> 2.12.0",
        "seed 0 -> 4",
    )
    assert verdict.reason is not None
    assert verdict.reason.startswith("screw: image AUROC fell by 0.")
    assert "95 % interval of the difference -0." in verdict.reason
    assert latest_run(store) == FIRST
    assert read_run(store, SECOND)["verdict"]["reason"] == verdict.reason
    # The next night is judged against the last good run, not against the bad one.
    again = publish(store, outcomes, THIRD, worse)
    assert (verdict_of(again).status, verdict_of(again).baseline) == ("regressed", FIRST)


def test_a_reason_names_the_worst_findings_and_what_changed_once(store: Store) -> None:
    separations = {"bottle": 1.2, "pill": 0.4, "screw": 0.8}
    publish(store, [add_category(store, name) for name in separations], FIRST)
    worse = Config.load(None, ["student.epochs=3"])
    run = publish(
        store,
        [add_category(store, name, separation=s, config=worse) for name, s in separations.items()],
        SECOND,
        worse,
    )
    reason = verdict_of(run).reason
    assert len(verdict_of(run).findings) == 6
    assert reason is not None
    *named, rest, changed = reason.split("; ")
    assert [part.split(":")[0] for part in named][:2] == ["pill", "pill"]
    assert (len(named), rest) == (4, "2 more")
    assert changed == "changed: config: student.epochs 16 -> 3"


def test_the_interval_is_that_of_a_paired_bootstrap(store: Store) -> None:
    """The oracle counts, in each draw of images, the pairs that are ranked right."""
    for separation, run in ((2.0, FIRST), (1.2, SECOND)):
        publish(store, [add_category(store, separation=separation)], run)
    change, _ = compare_scores(store, levels=("image", "pixel"))
    labels = np.arange(80) >= 40
    noise = np.random.default_rng(list(b"screw/a/40")).normal(size=80)
    weights = draw_weights(labels, "screw")
    areas = []
    for separation in (2.0, 1.2):
        is_right = noise[labels][:, None] + separation > noise[~labels]
        pairs = ((weights[:, labels] @ is_right) * weights[:, ~labels]).sum(1)
        areas.append(pairs / 40**2)
    expected = np.percentile(areas[1] - areas[0], [2.5, 97.5])
    assert [change.low, change.high] == pytest.approx(expected.tolist())


def test_a_large_drop_on_few_images_is_not_sure(store: Store) -> None:
    image = Config.load(None, ['gate.levels=["image"]'])
    publish(store, [add_category(store, count=3, separation=1.0)], FIRST)
    run = publish(store, [add_category(store, count=3, separation=0.4)], SECOND, image)
    assert verdict_of(run).status == "passed"
    (change,) = compare_scores(store, levels=("image",))
    assert change.difference is not None
    assert change.difference < -0.01
    assert not change.is_sure


def test_a_sure_drop_within_the_tolerance_passes(store: Store) -> None:
    publish(store, [add_category(store, separation=2.0)], FIRST)
    lenient = Config.load(None, ["gate.tolerance=0.5"])
    worse = add_category(store, separation=0.8)
    assert verdict_of(publish(store, [worse], SECOND, lenient)).status == "passed"


def test_only_the_levels_that_are_asked_for_count(store: Store) -> None:
    publish(store, [add_category(store, separation=2.0)], FIRST)
    pixel = Config.load(None, ['gate.levels=["pixel"]'])
    verdict = verdict_of(publish(store, [add_category(store, separation=0.8)], SECOND, pixel))
    assert [finding.change.level for finding in verdict.findings] == ["pixel"]


def test_other_test_images_are_said_to_be_others_and_compared_unpaired(store: Store) -> None:
    publish(store, [add_category(store, separation=2.0)], FIRST)
    run = publish(store, [add_category(store, separation=0.5, images="b")], SECOND)
    verdict = verdict_of(run)
    assert verdict.status == "regressed"
    assert not verdict.findings[0].change.is_paired
    assert "data: test images" in verdict.findings[0].change.what
    assert "other test images" in str(verdict.reason)


def test_an_unpaired_interval_is_wider_where_students_agree(store: Store) -> None:
    """The same scores on the same images: paired they do not differ at all."""
    pairs = []
    for images in ("a", "b"):
        publish(store, [add_category(store, separation=1.0, torch="1")], FIRST)
        publish(store, [add_category(store, separation=1.0, torch="2", images=images)], SECOND)
        (change,) = compare_scores(store, levels=("image",))
        pairs.append(change)
    assert (pairs[0].low, pairs[0].high, pairs[0].is_paired) == (0.0, 0.0, True)
    assert pairs[1].low is not None
    assert pairs[1].high is not None
    assert pairs[1].high - pairs[1].low > 0.1


def test_a_run_that_lacks_or_failed_a_category_does_not_become_the_latest(store: Store) -> None:
    both = [add_category(store, "pill"), add_category(store)]
    publish(store, both, FIRST)
    verdict = verdict_of(publish(store, both[:1], SECOND))
    assert (verdict.status, verdict.reason) == (
        "incomplete",
        "screw is missing, the last good run has it",
    )
    run = publish(store, [both[0], Outcome("screw", failure="no power")], THIRD)
    assert not run.is_complete
    assert verdict_of(run).reason == "screw failed: no power"
    assert latest_run(store) == FIRST


def test_a_figure_that_is_lost_is_no_pass(store: Store) -> None:
    publish(store, [add_category(store)], FIRST)
    outcome = add_category(store, torch="3")
    card = store.get(str(outcome.scores_key)).card
    card["metrics"]["values"]["paper-256"]["image"]["auroc"] = None
    store.write_bytes(f"{outcome.scores_key}/card.json", seal(card))
    verdict = verdict_of(publish(store, [outcome], SECOND))
    assert verdict.status == "incomplete"
    assert "screw: image AUROC is not defined any more (was 0.9" in str(verdict.reason)


def test_a_baseline_that_cannot_be_read_leaves_the_run_unjudged(store: Store) -> None:
    first = add_category(store, separation=2.0)
    publish(store, [first], FIRST)
    artifact = store.get(str(first.scores_key))
    store.remove_file(f"{artifact.folder}/replicates.parquet")
    run = publish(store, [add_category(store, separation=0.5)], SECOND)
    verdict = verdict_of(run)
    assert verdict.status == "unjudged"
    assert f"the last good run {FIRST} cannot be compared with: " in str(verdict.reason)
    assert latest_run(store) == FIRST
    assert read_run(store, SECOND)["status"] == "complete"


def test_a_persons_decision_is_kept_and_moves_the_baseline(store: Store) -> None:
    good, bad = add_category(store, separation=2.0), add_category(store, separation=0.5)
    publish(store, [good], FIRST)
    assert verdict_of(publish(store, [bad], SECOND)).status == "regressed"
    promoted = move_latest(store, "promote", SECOND, "the camera was moved, this is the new normal")
    assert (promoted.previous, latest_run(store)) == (FIRST, SECOND)
    assert "@" in promoted.who
    assert verdict_of(publish(store, [bad], THIRD)) == Verdict("passed", SECOND)
    move_latest(store, "rollback", FIRST, "the camera was moved back", who="Ada")
    assert latest_run(store) == FIRST
    assert [(d.action, d.run_id, d.previous, d.who == "Ada") for d in decisions(store)] == [
        ("promote", SECOND, FIRST, False),
        ("rollback", FIRST, THIRD, True),
    ]


@pytest.mark.parametrize(
    ("run", "why", "message"),
    [
        (SECOND, "because", f"no run '{SECOND}'; the newest are {FIRST}"),
        (FIRST, " ", "no reason; give one with --why"),
        (FIRST, "because", f"run {FIRST} is the latest already"),
        ("../runs/x", "because", "cannot be a run's id"),
    ],
)
def test_a_decision_that_makes_no_sense_is_refused(
    store: Store, run: str, why: str, message: str
) -> None:
    publish(store, [add_category(store)], FIRST)
    with pytest.raises(ResultsError, match=message):
        move_latest(store, "promote", run, why)
    assert decisions(store) == []
    assert latest_run(store) == FIRST


def test_killed_before_latest_moves_the_same_publication_moves_it(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "store"))
    outcome = add_category(store)
    publish(store, [outcome], FIRST)
    publish(store, [outcome], SECOND)
    store.write_json(LATEST_KEY, {"run_id": FIRST})  # as the kill left it
    before = store.list_files("tables")
    publish(store, [outcome], SECOND)
    assert latest_run(store) == SECOND
    assert store.list_files("tables") == before, "nothing is written twice"
    # Another run has become the latest since: an old one that is run again does not push it out.
    publish(store, [outcome], THIRD)
    publish(store, [outcome], SECOND)
    assert latest_run(store) == THIRD


def test_a_rollback_outlasts_the_same_publication(store: Store) -> None:
    outcome = add_category(store)
    publish(store, [outcome], FIRST)
    publish(store, [outcome], SECOND)
    move_latest(store, "rollback", FIRST, "false alarms")
    publish(store, [outcome], SECOND)
    assert latest_run(store) == FIRST
    # An old decision keeps no later run back.
    publish(store, [outcome], THIRD)
    store.write_json(LATEST_KEY, {"run_id": FIRST})  # as a kill leaves it
    publish(store, [outcome], THIRD)
    assert latest_run(store) == THIRD


def test_a_promotion_outlasts_a_run_that_is_made_whole_again(store: Store) -> None:
    good, bad = add_category(store, separation=2.0), add_category(store, separation=0.5)
    publish(store, [good], FIRST)
    publish(store, [bad], SECOND)
    move_latest(store, "promote", SECOND, "the camera was moved")
    store.remove_file(table_key("metrics", SECOND))
    assert verdict_of(publish(store, [bad], SECOND)).status == "regressed"
    assert latest_run(store) == SECOND
    assert store.read_if_there(table_key("metrics", SECOND)) is not None
    # What was promoted is not what it is now.
    worse = add_category(store, separation=0.25)
    assert verdict_of(publish(store, [worse], SECOND)).status == "regressed"
    assert latest_run(store) == FIRST


@pytest.mark.parametrize("is_first", [True, False], ids=["the first run", "a later run"])
def test_published_again_and_worse_a_run_is_the_latest_no_longer(
    store: Store, is_first: bool
) -> None:
    outcome, failed = add_category(store), Outcome("screw", failure="screw: no power")
    if not is_first:
        publish(store, [outcome], FIRST)
    publish(store, [outcome], SECOND)
    assert latest_run(store) == SECOND
    assert verdict_of(publish(store, [failed], SECOND)).status == "incomplete"
    assert latest_run(store) == (None if is_first else FIRST)
    assert verdict_of(publish(store, [outcome], SECOND)).has_passed
    assert latest_run(store) == SECOND


def test_the_latest_run_is_there_whenever_its_publication_is_killed(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    good, bad = add_category(store, separation=2.0), add_category(store, separation=0.5)
    publish(store, [good], FIRST)
    publish(store, [good], SECOND)
    for name in ("write_json", "remove_file"):
        change = getattr(Store, name)

        def kill(self: Store, *arguments: Any, change: Any = change) -> None:
            change(self, *arguments)
            raise KeyboardInterrupt

        with monkeypatch.context() as patched:
            patched.setattr(Store, name, kill)
            with pytest.raises(KeyboardInterrupt):
                publish(store, [bad], SECOND)
        latest = latest_run(store)
        assert latest == FIRST
        assert read_run(store, latest)
    assert verdict_of(publish(store, [bad], SECOND)).status == "regressed"
    assert latest_run(store) == FIRST


def test_no_run_json_stands_beside_tables_of_another_making(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    outcomes = [add_category(store, "pill"), add_category(store)]
    publish(store, outcomes[:1], FIRST)
    put = Store.put_file

    def full(self: Store, local: Path, key: str) -> None:
        if key.endswith("metrics.parquet"):
            raise StorageError("no room")
        put(self, local, key)

    with monkeypatch.context() as patched:
        patched.setattr(Store, "put_file", full)
        with pytest.raises(StorageError, match="no room"):
            publish(store, outcomes, FIRST)
    assert store.list_files(f"runs/{FIRST}") == {}
    assert store.list_files("tables") == {}
    assert verdict_of(publish(store, outcomes, FIRST)).status == "passed"


def test_a_damaged_table_is_made_anew_by_publishing_again(store: Store) -> None:
    outcome = add_category(store)
    publish(store, [outcome], FIRST)
    key = read_run(store, FIRST)["files"]["metrics"]["key"]
    content = store.read_files([key])[key]
    store.write_bytes(key, content[:-1])
    publish(store, [outcome], FIRST)
    rows = pq.read_table(pa.BufferReader(store.read_files([key])[key])).num_rows
    assert rows == read_run(store, FIRST)["files"]["metrics"]["rows"] > 0


@pytest.mark.parametrize("levels", ['["image", "image"]', '["region"]'])
def test_levels_that_cannot_be_are_refused(levels: str) -> None:
    with pytest.raises(ConfigError, match=r"gate\.levels"):
        Config.load(None, [f"gate.levels={levels}"])
