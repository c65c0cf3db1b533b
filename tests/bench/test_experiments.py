"""The table of experiments: what it asks for, in which order, and what it refuses."""

from pathlib import Path

import pytest

from bench.experiments import Trial, load_ablation, trials_of
from etstpm.config import Config
from etstpm.errors import ConfigError
from tests.prefect_server import REPOSITORY

TABLE = """\
categories = ["biscuit", "fabric"]
image_categories = ["biscuit", "fabric"]
seeds = [0, 1]
reference = "plain"

[[experiment]]
name = "plain"
group = "preset"
hypothesis = "h"
source = "s"

[[experiment]]
name = "summed"
group = "scoring"
hypothesis = "h"
source = "s"
changes = ["scoring.fusion=sum", "student.epochs=10"]
seeds = [0]
"""


def written(folder: Path, text: str) -> Path:
    path = folder / "table.toml"
    path.write_text(text, "utf-8")
    return path


def named(trials: list[Trial]) -> list[tuple[str, str, int]]:
    return [(trial.experiment, trial.category, trial.seed) for trial in trials]


def test_the_projects_own_table_is_whole() -> None:
    ablation = load_ablation(REPOSITORY / "bench" / "ablation.toml")

    trials = trials_of(ablation)

    cells = {
        (row.name, category, seed)
        for row in ablation.experiment
        for category in row.categories or ablation.categories
        for seed in row.seeds or ablation.seeds
    }
    assert set(named(trials)) == cells
    configs = [trial.config.model_copy(update={"seed": 0}).digest() for trial in trials]
    assert len(set(configs)) == len(ablation.experiment), "two rows are the same experiment"


def test_trials_are_in_turn_and_changed_as_their_row_says(tmp_path: Path) -> None:
    trials = trials_of(load_ablation(written(tmp_path, TABLE)))

    assert named(trials) == [
        ("plain", "biscuit", 0),
        ("summed", "biscuit", 0),
        ("plain", "fabric", 0),
        ("summed", "fabric", 0),
        ("plain", "biscuit", 1),
        ("plain", "fabric", 1),
    ]
    default = Config.load("default", ["dataset.categories=biscuit,fabric"])
    assert trials[0].config == default
    changed = ["scoring.fusion=sum", "student.epochs=10", "dataset.categories=biscuit,fabric"]
    assert trials[1].config == Config.load("default", changed)
    assert trials[4].config == default.model_copy(update={"seed": 1})


def test_a_row_on_another_takes_its_changes_first_and_is_compared_with_it(tmp_path: Path) -> None:
    row = """
[[experiment]]
name = "longer"
group = "scoring"
base = "summed"
hypothesis = "h"
source = "s"
changes = ["student.epochs=20"]
"""
    ablation = load_ablation(written(tmp_path, TABLE + row))

    assert ablation.reference_of("longer") == "summed"
    config = trials_of(ablation, only=["longer"])[0].config
    assert (config.scoring.fusion, config.student.epochs) == ("sum", 20)


def test_a_choice_of_categories_leaves_the_config_as_it_is(tmp_path: Path) -> None:
    """A teacher that is tuned on all categories would be another one."""
    ablation = load_ablation(written(tmp_path, TABLE))

    (trial,) = trials_of(ablation, only=["summed"], categories=["fabric"], seeds=[0])

    assert trial in trials_of(ablation)


def test_a_share_of_the_epochs_makes_other_trials(tmp_path: Path) -> None:
    ablation = load_ablation(written(tmp_path, TABLE))

    whole, short = (trials_of(ablation, only=["summed"], epochs_share=s) for s in (1.0, 0.25))

    assert [trial.config.student.epochs for trial in short] == [2, 2]
    assert {trial.key for trial in whole}.isdisjoint(trial.key for trial in short)


def test_a_narrowed_table_is_of_its_trials_and_their_reference(tmp_path: Path) -> None:
    ablation = load_ablation(written(tmp_path, TABLE))

    narrowed = ablation.narrowed(trials_of(ablation, only=["summed"], categories=["fabric"]))

    assert narrowed.names() == ["plain", "summed"]
    assert narrowed.categories == narrowed.image_categories == ("fabric",)
    assert ablation.narrowed(trials_of(ablation, only=["plain"])).names() == ["plain"]


def test_keys_differ_by_category_seed_and_config_not_by_name(tmp_path: Path) -> None:
    ablation = load_ablation(written(tmp_path, TABLE))
    renamed = load_ablation(written(tmp_path, TABLE.replace('"plain"', '"other"')))

    keys = [trial.key for trial in trials_of(ablation)]

    assert len(set(keys)) == len(keys)
    assert keys == [trial.key for trial in trials_of(renamed)]


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("seeds = [0, 1]\n", "seeds = [0, 1\n", "cannot be read"),
        ('reference = "plain"', 'reference = "best"', "no experiment 'best'; there are plain"),
        ('name = "summed"', 'name = "plain"', "two experiments are named 'plain'"),
        ('name = "summed"', 'name = "a|b"', "experiment.1.name"),
        ('group = "scoring"', 'base = "later"\ngroup = "s"', "no row 'later' before it"),
        ('group = "scoring"', 'kind = "scoring"', "experiment.1.kind"),
        ("seeds = [0]\n", '[[check]]\nexperiment = "plain"\nmeasure = "aupro"\n', "give one of"),
    ],
)
def test_a_table_with_a_fault_is_refused(
    before: str, after: str, message: str, tmp_path: Path
) -> None:
    assert before in TABLE

    with pytest.raises(ConfigError) as refused:
        load_ablation(written(tmp_path, TABLE.replace(before, after)))

    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("scoring.fusion=mean", "experiment 'summed': default: scoring.fusion = 'mean' is refused"),
        ("scoring.fuse=sum", "experiment 'summed': default: no such key 'scoring.fuse'"),
        ("dataset.root=/data", "'dataset.root=/data' is not a row's to change"),
        ("seed = 3", "'seed = 3' is not a row's to change"),
    ],
)
def test_a_row_with_a_fault_is_refused(change: str, message: str, tmp_path: Path) -> None:
    ablation = load_ablation(written(tmp_path, TABLE.replace("scoring.fusion=sum", change)))

    with pytest.raises(ConfigError, match=r"experiment 'summed'") as refused:
        trials_of(ablation)

    assert message in str(refused.value)


def test_an_unknown_preset_names_the_row(tmp_path: Path) -> None:
    table = TABLE.replace('group = "scoring"', 'group = "scoring"\npreset = "no-such"')

    with pytest.raises(ConfigError, match="experiment 'summed': config 'no-such' cannot be read"):
        trials_of(load_ablation(written(tmp_path, table)))
