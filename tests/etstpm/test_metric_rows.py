"""Intervals of means from categories' replicates, and what a mean is of."""

import uuid
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from etstpm.evaluation import Evaluation
from etstpm.metric_rows import ROWS, Sums, mean_of, mean_rows, sum_replicates
from etstpm.parquet import write_parquet
from etstpm.storage import Artifact, Store
from etstpm.tables import REPLICATES

IMAGE_AUROC, PIXEL_AUROC = ROWS[0], ROWS[4]
Floats = npt.NDArray[np.float64]


def test_mean_is_over_what_is_defined() -> None:
    assert mean_of([0.5, None, 1.0]) == 0.75
    assert mean_of([None, None]) is None
    assert mean_of([]) is None


def add_replicates(
    store: Store, folder: Path, values: dict[tuple[str, str, str], Floats]
) -> Artifact:
    folder = folder / uuid.uuid4().hex
    table = Evaluation({}, values).replicate_table()
    write_parquet(folder / "replicates.parquet", REPLICATES, [table])
    return store.commit(f"scores/{folder.name}", folder, {})


def test_replicates_of_all_categories_are_added(tmp_path: Path) -> None:
    store = Store(f"memory://{uuid.uuid4().hex}/store")
    rng = np.random.default_rng(0)
    first, second, third = rng.random((3, 1000))
    artifacts = [
        add_replicates(store, tmp_path, {IMAGE_AUROC: first, PIXEL_AUROC: second}),
        add_replicates(store, tmp_path, {PIXEL_AUROC: third}),
        add_replicates(store, tmp_path, {}),
    ]
    sums = sum_replicates(store, artifacts)
    assert sums.keys() == {IMAGE_AUROC, PIXEL_AUROC}
    assert [count for _, count in sums.values()] == [1, 2]
    assert np.array_equal(sums[IMAGE_AUROC][0], first)
    assert np.array_equal(sums[PIXEL_AUROC][0], second + third)


def rows_of(values: list[float | None], defect_type: str = "all") -> list[dict[str, object]]:
    return [
        dict(zip(("protocol", "level", "metric"), name, strict=True))
        | {"value": value, "defect_type": defect_type}
        for value in values
        for name in ROWS
    ]


def mean_row(values: list[float | None], replicates: Sums) -> tuple[object, object, object]:
    rows = rows_of(values) + rows_of([0.0], "scratch")
    (row,) = (
        r for r in mean_rows(rows, replicates) if (r["level"], r["metric"]) == IMAGE_AUROC[1:]
    )
    return row["value"], row["ci_low"], row["ci_high"]


def test_a_means_interval_is_over_the_categories_that_have_a_value() -> None:
    total = np.linspace(1.0, 2.0, 1001)
    expected = (0.75, pytest.approx(0.5125), pytest.approx(0.9875))
    assert mean_row([0.5, None, 1.0], {IMAGE_AUROC: (total, 2)}) == expected
    # One of them has none: the interval of the others is not the mean's.
    assert mean_row([0.5, None, 1.0], {IMAGE_AUROC: (total, 1)}) == (0.75, None, None)
    assert mean_row([0.5], {}) == (0.5, None, None)
    assert mean_row([None], {}) == (None, None, None)


def test_a_mean_of_many_is_surer_than_each() -> None:
    rng = np.random.default_rng(1)
    replicates = rng.normal(0.9, 0.03, (15, 1000))
    alone = mean_row([0.9], {IMAGE_AUROC: (replicates[0], 1)})
    mean = mean_row([0.9] * 15, {IMAGE_AUROC: (replicates.sum(0), 15)})
    lengths = [float(str(high)) - float(str(low)) for _, low, high in (alone, mean)]
    assert lengths[0] / lengths[1] == pytest.approx(15**0.5, rel=0.15)
