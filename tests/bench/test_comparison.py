"""Means, spreads, paired differences and checks, from figures that are known."""

import statistics

import pytest

from bench.comparison import Comparison
from bench.experiments import Ablation, Check, Trial
from bench.results import Result
from etstpm.config import Config

ABLATION = Ablation.model_validate(
    {
        "categories": ["a", "b", "c"],
        "image_categories": ["a", "b"],
        "seeds": [0, 1, 2],
        "reference": "base",
        "experiment": [
            {"name": name, "group": "g", "hypothesis": "h", "source": "s"}
            for name in ("base", "better", "mixed", "late")
        ],
    }
)


def result(
    experiment: str, category: str, seed: int, image: float | None, pixel: float = 0.9
) -> Result:
    """A finished trial with these AUROCs, an AUPRO of a half, and a cost of 30 in 100."""
    trial = Trial(experiment, category, Config(seed=seed))
    values: dict[str, dict[str, dict[str, float | None]]] = {
        "paper-256": {"image": {"auroc": image}, "pixel": {"auroc": pixel}},
        "mvtec-official": {"pixel": {"aupro": 0.5}},
    }
    digests = {name: name for name in ("weights", "dataset", "teacher", "student", "scores")}
    return Result(trial, values, 3, 30, 100, 1.0, images=("x", "y"), **digests)


BASE = [
    result("base", category, seed, image, pixel)
    for seed, values in enumerate([(0.8, 0.9), (0.7, 0.9), (0.9, 0.9)])
    for category, image, pixel in (("a", values[0], 0.9), ("b", values[1], 0.8), ("c", None, 0.7))
]


def test_a_mean_needs_all_its_categories() -> None:
    comparison = Comparison(ABLATION, [*BASE, result("late", "a", 0, 0.5)])

    assert comparison.cell("base", "image_auroc", "a") == {0: 0.8, 1: 0.7, 2: 0.9}
    assert comparison.cell("base", "image_auroc", "c") == {}
    assert comparison.means("base", "image_auroc") == pytest.approx({0: 0.85, 1: 0.8, 2: 0.9})
    assert comparison.means("base", "pixel_auroc") == pytest.approx({0: 0.8, 1: 0.8, 2: 0.8})
    assert comparison.cell("late", "image_auroc", "a") == {0: 0.5}
    assert comparison.means("late", "image_auroc") == {}


def test_differences_are_paired_by_category_and_seed() -> None:
    better = [result("better", "a", 0, 0.9), result("better", "a", 1, 0.72)]
    comparison = Comparison(ABLATION, [*BASE, *better, result("better", "b", 1, 0.94)])

    difference = comparison.difference("better", "image_auroc")

    assert difference is not None
    assert difference.by_seed == pytest.approx({0: 0.1, 1: 0.03})
    assert difference.pairs == 3
    assert difference.mean == pytest.approx(0.065)
    assert difference.verdict == "helped"


@pytest.mark.parametrize(
    ("values", "verdict"),
    [
        ((0.81, 0.71), "helped"),
        ((0.79, 0.69), "hurt"),
        ((0.9, 0.69), "undecided"),
        ((0.8, 0.71), "undecided"),
    ],
)
def test_a_verdict_needs_every_seed(values: tuple[float, float], verdict: str) -> None:
    results = [result("mixed", "a", seed, value) for seed, value in enumerate(values)]

    difference = Comparison(ABLATION, [*BASE, *results]).difference("mixed", "image_auroc")

    assert difference is not None
    assert difference.verdict == verdict


def test_there_is_no_difference_without_a_pair() -> None:
    comparison = Comparison(ABLATION, [*BASE, result("late", "a", 7, 0.5)])

    assert comparison.difference("base", "image_auroc") is None
    assert comparison.difference("better", "image_auroc") is None
    assert comparison.difference("late", "image_auroc") is None


@pytest.mark.parametrize(
    ("values", "figure", "seeds", "is_reached"),
    [
        ({"measure": "image_auroc", "at_least": 0.85}, 0.85, 3, True),
        ({"measure": "image_auroc", "at_least": 0.8501}, 0.85, 3, False),
        ({"measure": "image_auroc", "category": "b", "at_least": 0.9}, 0.9, 3, True),
        ({"measure": "worst_seed_gap", "at_most": 0.04}, 0.05, 3, False),
        ({"measure": "worst_seed_gap", "category": "b", "at_most": 0.01}, 0.0, 3, True),
        ({"measure": "cost_ratio", "at_most": 0.3}, 0.3, 3, True),
        ({"measure": "aupro", "at_least": 0.6}, 0.5, 3, False),
    ],
)
def test_checks(values: dict[str, object], figure: float, seeds: int, is_reached: bool) -> None:
    check = Check.model_validate({"experiment": "base"} | values)

    found, count = Comparison(ABLATION, BASE).checked(check)

    assert found == pytest.approx(figure)
    assert count == seeds
    # What floats make of (0.85 + 0.8 + 0.9) / 3 is not what this is about.
    assert check.is_reached(round(found or 0.0, 9)) is is_reached


def test_a_check_of_the_spread_waits_for_its_seeds() -> None:
    check = Check(experiment="base", measure="worst_seed_gap", at_most=0.1, least_seeds=3)
    two = [one for one in BASE if one.trial.seed < 2]

    assert Comparison(ABLATION, two).checked(check) == (None, 2)
    assert Comparison(ABLATION, BASE).checked(check)[0] == pytest.approx(
        statistics.mean([0.85, 0.8, 0.9]) - 0.8
    )
