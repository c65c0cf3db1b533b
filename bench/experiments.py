"""The table of experiments (bench/ablation.toml), and the trials that it asks for."""

import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, Self, TypeVar

from pydantic import Field, ValidationError, field_validator, model_validator

from etstpm.cards import VERSIONS
from etstpm.config import Config, Fraction, PositiveInt, Section, digest_of
from etstpm.errors import ConfigError

Item = TypeVar("Item")

Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9.+-]*$")]
Line = Annotated[str, Field(pattern=r"^[^\n|]+$")]
Names = Annotated[tuple[str, ...], Field(min_length=1)]
Seeds = Annotated[tuple[int, ...], Field(min_length=1)]

PLACES = ("dataset.root", "dataset.categories", "store", "seed")
"""Keys that a row may not change: the command and the row's own lists give them."""


class Experiment(Section):
    """A row: a preset and what is changed in it.

    base: an earlier row whose preset and changes come before its own, and its reference unless it
    names another.
    """

    name: Name
    group: Line
    hypothesis: Line
    source: Line
    base: str | None = None
    preset: str = "default"
    changes: tuple[str, ...] = ()
    reference: str | None = None
    categories: Names | None = None
    seeds: Seeds | None = None


class Check(Section):
    """What one measure of one experiment must reach; exactly one bound."""

    experiment: str
    measure: Literal["image_auroc", "pixel_auroc", "aupro", "worst_seed_gap", "cost_ratio"]
    level: Literal["must", "aim"] = "must"
    category: str | None = None
    at_least: float | None = None
    at_most: float | None = None
    least_seeds: PositiveInt = 1

    @model_validator(mode="after")
    def _has_one_bound(self) -> Self:
        if (self.at_least is None) == (self.at_most is None):
            raise ValueError("give one of at_least and at_most")
        return self

    @property
    def bound(self) -> str:
        """As a person reads it."""
        if self.at_least is not None:
            return f">= {self.at_least:.3f}"
        return f"<= {self.at_most:.3f}"

    def is_reached(self, value: float) -> bool:
        """Whether a figure, not rounded, keeps the bound."""
        if self.at_least is not None:
            return value >= self.at_least
        return self.at_most is not None and value <= self.at_most


class Ablation(Section):
    """The whole table."""

    categories: Names
    image_categories: Names
    """Those that the mean image AUROC is taken over."""
    seeds: Seeds
    reference: str
    experiment: Annotated[tuple[Experiment, ...], Field(min_length=1)]
    check: tuple[Check, ...] = ()

    @field_validator("experiment")
    @classmethod
    def _build_on_bases(cls, rows: tuple[Experiment, ...]) -> tuple[Experiment, ...]:
        built: dict[str, Experiment] = {}
        for row in rows:
            if row.base is not None and row.base not in built:
                raise ValueError(f"experiment {row.name!r}: no row {row.base!r} before it")
            if row.name in built:
                raise ValueError(f"two experiments are named {row.name!r}")
            built[row.name] = row if row.base is None else _on(built[row.base], row)
        return tuple(built.values())

    @model_validator(mode="after")
    def _names_fit(self) -> Self:
        names = self.names()
        named = [self.reference, *(row.reference for row in self.experiment if row.reference)]
        for name in [*named, *(check.experiment for check in self.check)]:
            if name not in names:
                raise ValueError(f"no experiment {name!r}; there are {', '.join(names)}")
        return self

    def narrowed(self, trials: Iterable["Trial"]) -> Self:
        """Of these trials alone: their experiments and categories, and nothing to be reached."""
        seen = list(trials)
        names = {trial.experiment for trial in seen} | {self.reference}
        categories = {trial.category for trial in seen}
        return self.model_copy(
            update={
                "experiment": tuple(row for row in self.experiment if row.name in names),
                "categories": tuple(name for name in self.categories if name in categories),
                "image_categories": tuple(
                    name for name in self.image_categories if name in categories
                ),
                "check": (),
            }
        )

    def names(self) -> list[str]:
        """The experiments' names, in their order."""
        return [row.name for row in self.experiment]

    def reference_of(self, name: str) -> str | None:
        """The experiment that this one is compared with; None for the reference itself."""
        row = next(row for row in self.experiment if row.name == name)
        reference = row.reference or self.reference
        return None if reference == name else reference


def _on(base: Experiment, row: Experiment) -> Experiment:
    inherited = {
        "preset": base.preset,
        "changes": base.changes + row.changes,
        "reference": row.reference or base.name,
    }
    return row.model_copy(update=inherited)


@dataclass(frozen=True)
class Trial:
    """One experiment on one category with one seed."""

    experiment: str
    category: str
    config: Config
    """Without the machine's places: neither the dataset's root nor the store."""

    @property
    def seed(self) -> int:
        """Of the config."""
        return self.config.seed

    @property
    def digest(self) -> str:
        """Of what a trial is made of, its name apart."""
        content = self.config.model_dump(mode="json", exclude={"store"})
        return digest_of([VERSIONS, self.category, content])

    @property
    def key(self) -> str:
        """Of its record in the store."""
        return f"ablation/{self.digest}.json"

    def __str__(self) -> str:
        return f"{self.experiment}, {self.category}, seed {self.seed}"


def load_ablation(path: Path) -> Ablation:
    """Read the table. Raises `ConfigError`, one line, for whatever is wrong in it."""
    try:
        values = tomllib.loads(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"experiments {path} cannot be read: {error}") from None
    try:
        return Ablation.model_validate(values)
    except ValidationError as error:
        faults = (
            f"{'.'.join(str(part) for part in fault['loc']) or 'the table'}: {fault['msg']}"
            for fault in error.errors()
        )
        raise ConfigError(f"experiments {path}: {'; '.join(faults)}") from None


def trials_of(
    ablation: Ablation,
    *,
    only: Sequence[str] = (),
    categories: Sequence[str] = (),
    seeds: Sequence[int] = (),
    epochs_share: Fraction = 1.0,
) -> list[Trial]:
    """The trials asked for; an empty choice means all. `epochs_share` shortens every student.

    Seed by seed, category by category, and there every experiment: whenever a run is cut, each
    experiment has about as many trials as its reference. Raises `ConfigError` for a choice that
    the table has not, and for a row whose config is refused.
    """
    rows = ablation.experiment
    _require(only, ablation.names(), "experiment")
    _require(categories, _union(row.categories or ablation.categories for row in rows), "category")
    _require(seeds, _union(row.seeds or ablation.seeds for row in rows), "seed")
    chosen = [
        (seed, category, row)
        for row in rows
        if not only or row.name in only
        for category in row.categories or ablation.categories
        if not categories or category in categories
        for seed in row.seeds or ablation.seeds
        if not seeds or seed in seeds
    ]
    configs = {
        row.name: _config_of(row, row.categories or ablation.categories, epochs_share)
        for _, _, row in chosen
    }
    order = {category: number for number, category in enumerate(ablation.categories)}
    chosen.sort(key=lambda item: (item[0], order.get(item[1], len(order))))
    return [
        Trial(row.name, category, configs[row.name].model_copy(update={"seed": seed}))
        for seed, category, row in chosen
    ]


def _config_of(row: Experiment, categories: Sequence[str], epochs_share: float) -> Config:
    """A row's config; a tuned teacher sees all of the row's categories, whichever are run."""
    for change in row.changes:
        if change.partition("=")[0].strip() in PLACES:
            raise ConfigError(
                f"experiment {row.name!r}: {change!r} is not a row's to change; give "
                "--dataset, --store, or the row's own categories and seeds"
            )
    try:
        config = Config.load(row.preset, row.changes, {"dataset.categories": ",".join(categories)})
    except ConfigError as error:
        raise ConfigError(f"experiment {row.name!r}: {error}") from None
    epochs = max(1, round(config.student.epochs * epochs_share))
    student = config.student.model_copy(update={"epochs": epochs})
    return config.model_copy(update={"student": student})


def _union(groups: Iterable[Sequence[Item]]) -> list[Item]:
    return list(dict.fromkeys(item for group in groups for item in group))


def _require(asked: Sequence[Item], known: Sequence[Item], kind: str) -> None:
    for item in asked:
        if item not in known:
            there = ", ".join(str(name) for name in known)
            raise ConfigError(f"no {kind} {item!r} among the experiments; there are {there}")
