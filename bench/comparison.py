"""Experiments compared: means over categories, spread over seeds, differences paired by seed."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from bench.experiments import Ablation, Check
from bench.results import Result
from etstpm.tables import OFFICIAL, PAPER

Verdict = Literal["helped", "hurt", "undecided"]

MEASURES = {
    "image_auroc": ("image AUROC", PAPER, "image", "auroc"),
    "pixel_auroc": ("pixel AUROC", PAPER, "pixel", "auroc"),
    "aupro": ("AUPRO", OFFICIAL, "pixel", "aupro"),
}
"""What is compared: its name, and its protocol, level and metric."""


Values = Mapping[str, Mapping[str, Mapping[str, float | None]]]
"""Of one category: by protocol, level and metric."""


def spell(values: Values, digits: int) -> str:
    """The measures in one line."""
    found = {
        title: values[protocol][level][metric]
        for title, protocol, level, metric in MEASURES.values()
    }
    return ", ".join(
        f"{title} {'n/a' if value is None else f'{value:.{digits}f}'}"
        for title, value in found.items()
    )


@dataclass(frozen=True)
class Difference:
    """An experiment less its reference, over the trials that both have."""

    by_seed: dict[int, float]
    """Seed to the mean over the categories."""
    pairs: int

    @property
    def mean(self) -> float:
        """Over the seeds."""
        return statistics.mean(self.by_seed.values())

    @property
    def verdict(self) -> Verdict:
        """'helped' or 'hurt' where every seed says so."""
        if all(value > 0 for value in self.by_seed.values()):
            return "helped"
        return "hurt" if all(value < 0 for value in self.by_seed.values()) else "undecided"


class Comparison:
    """The results of an ablation, asked by experiment, measure, category and seed."""

    def __init__(self, ablation: Ablation, results: Sequence[Result]) -> None:
        self.ablation = ablation
        self.results = results
        self._values: dict[tuple[str, str, str], dict[int, float]] = {}
        for result in results:
            for measure, (_, protocol, level, metric) in MEASURES.items():
                value = result.values[protocol][level][metric]
                if value is not None:
                    cell = (result.trial.experiment, measure, result.trial.category)
                    self._values.setdefault(cell, {})[result.trial.seed] = value

    def categories(self, measure: str) -> tuple[str, ...]:
        """What a measure's mean is taken over."""
        of_images = self.ablation.image_categories
        return of_images if measure == "image_auroc" else self.ablation.categories

    def cell(self, experiment: str, measure: str, category: str) -> dict[int, float]:
        """Seed to value, for the seeds that have one."""
        return self._values.get((experiment, measure, category), {})

    def means(self, experiment: str, measure: str) -> dict[int, float]:
        """Seed to mean over the categories, for the seeds of which every category is there."""
        cells = [self.cell(experiment, measure, name) for name in self.categories(measure)]
        seeds = sorted(set.intersection(*(set(cell) for cell in cells)))
        return {seed: statistics.mean(cell[seed] for cell in cells) for seed in seeds}

    def difference(self, experiment: str, measure: str) -> Difference | None:
        """Against the reference; None if there is no pair of trials to compare."""
        reference = self.ablation.reference_of(experiment)
        if reference is None:
            return None
        pairs: dict[int, list[float]] = {}
        for category in self.categories(measure):
            own = self.cell(experiment, measure, category)
            other = self.cell(reference, measure, category)
            for seed in sorted(own.keys() & other.keys()):
                pairs.setdefault(seed, []).append(own[seed] - other[seed])
        if not pairs:
            return None
        by_seed = {seed: statistics.mean(values) for seed, values in sorted(pairs.items())}
        return Difference(by_seed, sum(len(values) for values in pairs.values()))

    def cost_ratios(self, experiment: str) -> dict[int, float]:
        """Seed to training cost, as a share of the recipe's on the same categories."""
        spent: dict[int, list[tuple[int, int]]] = {}
        for result in self.results:
            if result.trial.experiment == experiment:
                cost = (result.cost, result.recipe_cost)
                spent.setdefault(result.trial.seed, []).append(cost)
        return {
            seed: sum(own for own, _ in costs) / sum(recipe for _, recipe in costs)
            for seed, costs in sorted(spent.items())
        }

    def checked(self, check: Check) -> tuple[float | None, int]:
        """A check's figure and of how many seeds it is; no figure where there are too few."""
        measure = "image_auroc" if check.measure == "worst_seed_gap" else check.measure
        if measure == "cost_ratio":
            by_seed = self.cost_ratios(check.experiment)
        elif check.category is not None:
            by_seed = self.cell(check.experiment, measure, check.category)
        else:
            by_seed = self.means(check.experiment, measure)
        if len(by_seed) < check.least_seeds:
            return None, len(by_seed)
        reduce: Callable[[Sequence[float]], float] = (
            worst_gap if check.measure == "worst_seed_gap" else statistics.mean
        )
        return reduce(list(by_seed.values())), len(by_seed)


def worst_gap(values: Sequence[float]) -> float:
    """How far the worst lies below the mean."""
    return statistics.mean(values) - min(values)
