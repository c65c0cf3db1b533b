"""A category's figures against metrics of the same images taken by hand."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from etstpm.evaluation import METRICS_OF_LEVEL, METRICS_OF_TYPE, Evaluation, evaluate
from etstpm.intervals import REPLICATES
from etstpm.metrics import image_metrics, pixel_metrics
from etstpm.tables import REPLICATES as REPLICATES_SCHEMA

GROUPS = [None, "crack", None, "dent", "crack", None, "crack", "hole", "dent"]
LABELS = np.array([group is not None for group in GROUPS])
WHERE = [("paper", "image"), ("paper", "pixel"), ("own", "pixel")]


def draw(groups: list[str | None]) -> dict[str, Any]:
    """Scores, masks and maps of the images; at two sizes."""
    rng = np.random.default_rng(0)
    count = len(groups)
    sizes = {"paper": [(6, 6)] * count, "own": [(8 + number, 9) for number in range(count)]}
    pixels = {}
    for protocol, shapes in sizes.items():
        masks = [np.zeros(shape, bool) for shape in shapes]
        for mask, group in zip(masks, groups, strict=True):
            mask[2:4, 1:5] = group is not None
        maps = [rng.integers(0, 9, mask.shape) + 4.0 * mask for mask in masks]
        pixels[protocol] = masks, maps
    scores = rng.normal(size=count) + [group is not None for group in groups]
    return {"groups": groups, "scores": {"paper": scores}, "pixels": pixels}


@pytest.fixture(scope="module")
def drawn() -> dict[str, Any]:
    return draw(GROUPS)


@pytest.fixture(scope="module")
def found(drawn: dict[str, Any]) -> Evaluation:
    return evaluate("bottle", **drawn)


def test_all_images_have_every_metric_under_each_protocol(
    drawn: dict[str, Any], found: Evaluation
) -> None:
    values = found.figures["values"]
    assert values["paper"]["image"] == image_metrics(LABELS, drawn["scores"]["paper"])
    for protocol, images in drawn["pixels"].items():
        assert values[protocol]["pixel"] == pixel_metrics(*images)
    assert (found.figures["n_good"], found.figures["n_defective"]) == (3, 6)


@pytest.mark.parametrize(("name", "count"), [("crack", 3), ("dent", 2), ("hole", 1)])
def test_a_defect_types_images_are_judged_among_the_good_ones(
    drawn: dict[str, Any], found: Evaluation, name: str, count: int
) -> None:
    figures = found.figures["defect_types"][name]
    assert (figures["n_good"], figures["n_defective"]) == (3, count)
    chosen = [number for number, group in enumerate(GROUPS) if group in (None, name)]
    by_hand = {
        ("paper", "image"): image_metrics(LABELS[chosen], drawn["scores"]["paper"][chosen])
    } | {
        (protocol, "pixel"): pixel_metrics(*([part[i] for i in chosen] for part in images))
        for protocol, images in drawn["pixels"].items()
    }
    for (protocol, level), expected in by_hand.items():
        kept = {metric: expected[metric] for metric in METRICS_OF_TYPE[level]}
        assert figures["values"][protocol][level] == pytest.approx(kept, abs=1e-12)


def test_every_value_that_can_has_an_interval(found: Evaluation) -> None:
    types = found.figures["defect_types"]
    parts: list[tuple[dict[str, Any], Mapping[str, tuple[str, ...]]]] = [
        (found.figures, METRICS_OF_LEVEL),
        (types["crack"], METRICS_OF_TYPE),
        # One image, of which every draw is the same, says nothing of others.
        (types["hole"], dict.fromkeys(METRICS_OF_TYPE, ())),
    ]
    for figures, names in parts:
        for protocol, level in WHERE:
            intervals = figures["intervals"][protocol][level]
            assert set(intervals) == set(names[level]) - {"f1_max_threshold"}
            for low, high in intervals.values():
                assert 0 <= low <= high <= 1
    assert all(low < high for low, high in found.figures["intervals"]["own"]["pixel"].values())


def test_replicates_are_those_of_the_intervals(found: Evaluation) -> None:
    intervals = found.figures["intervals"]
    assert set(found.replicates) == {
        (protocol, level, metric)
        for protocol, level in WHERE
        for metric in intervals[protocol][level]
    }
    for (protocol, level, metric), values in found.replicates.items():
        expected = np.percentile(values, [2.5, 97.5])
        assert intervals[protocol][level][metric] == expected.tolist()
    table = found.replicate_table()
    assert table.schema.equals(REPLICATES_SCHEMA, check_metadata=True)
    rows = table.to_pylist()
    assert len(rows) == len(found.replicates) * REPLICATES
    for row in rows[:: REPLICATES // 4]:
        where = row["protocol"], row["level"], row["metric"]
        assert row["value"] == found.replicates[where][row["replicate"]]


def test_another_student_of_the_category_is_judged_on_the_same_draws(
    drawn: dict[str, Any], found: Evaluation
) -> None:
    scores: npt.NDArray[np.float64] = drawn["scores"]["paper"]
    again = evaluate("bottle", GROUPS, {"paper": 2 * scores}, {}).replicates
    other = evaluate("screw", GROUPS, {"paper": scores}, {}).replicates
    name = ("paper", "image", "auroc")
    assert np.array_equal(again[name], found.replicates[name])
    assert not np.array_equal(other[name], found.replicates[name])


def test_without_good_images_pixels_alone_are_judged() -> None:
    found = evaluate("toothbrush", **draw(["crack"] * 4))
    assert set(found.figures["values"]["paper"]["image"].values()) == {None}
    assert found.figures["intervals"]["paper"]["image"] == {}
    assert {level for _, level, _ in found.replicates} == {"pixel"}
    assert found.figures["defect_types"]["crack"]["values"]["own"]["pixel"]["aupro"] is not None


def test_one_mask_alone_gives_pixels_no_interval(drawn: dict[str, Any]) -> None:
    """Six images are defective, but one of them alone says where: every draw of it is the same."""
    with_mask = [group is None or number == 1 for number, group in enumerate(GROUPS)]
    found = evaluate("bottle", **drawn, has_mask=with_mask)
    assert found.figures["intervals"]["paper"]["image"].keys() >= {"auroc"}
    assert found.figures["values"]["own"]["pixel"]["auroc"] is not None
    for protocol in ("paper", "own"):
        assert found.figures["intervals"][protocol]["pixel"] == {}
