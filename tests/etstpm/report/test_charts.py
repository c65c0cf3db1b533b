"""Charts: what they say agrees with what they are drawn from, and one class is no fault."""

import json
import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from xml.etree import ElementTree

import pytest

from etstpm.report.charts import draw_nights, draw_pro, draw_roc, draw_scores, draw_training
from etstpm.report.content import CategoryContent, CurvePoints, Epoch, Night, ScoredImage, Value
from etstpm.report.drawing import HEIGHT, WIDTH, Chart
from etstpm.tables import OFFICIAL, PAPER


def image(score: float, *, is_defective: bool, threshold: float = 2e-9) -> ScoredImage:
    kind = "crack" if is_defective else "good"
    return ScoredImage(f"cup/test/{kind}/0.png", kind, is_defective, score > threshold, score)


def category(images: Sequence[ScoredImage] = (), **changes: Any) -> CategoryContent:
    values = {"auroc": 0.875, "aupro": 0.7}
    metrics = {
        "threshold": 2e-9,
        "held_out_scores": [1e-9, 2e-9],
        "values": {PAPER: {"image": values, "pixel": values}, OFFICIAL: {"pixel": values}},
    }
    return CategoryContent("cup", metrics=metrics, images=images, **changes)


def parts(chart: Chart | None, kind: str) -> list[ElementTree.Element]:
    """The chart's elements of a class; proves that it is well-formed and stays inside."""
    assert chart is not None
    root = ElementTree.fromstring(str(chart.svg))  # noqa: S314 (drawn by us)
    for x, y, text in json.loads(root.attrib["data-marks"]):
        assert -1 <= x <= float(root.attrib["viewBox"].split()[2]) + 1
        assert -1 <= y <= HEIGHT
        assert text
    assert all(len(row) == len(chart.columns) for row in chart.rows)
    assert chart.summary in root.attrib["aria-label"]
    return [part for part in root.iter() if kind in part.attrib.get("class", "").split()]


IMAGES = [
    *(image(score * 1e-9, is_defective=False) for score in (0.5, 1.0, 1.9, 2.5)),
    *(image(score * 1e-9, is_defective=True) for score in (1.5, 2.1, 30, 400)),
]


def test_histogram_holds_every_image_and_no_bar_crosses_the_threshold() -> None:
    chart = draw_scores(category(IMAGES))
    (rule,) = parts(chart, "rule")
    assert chart is not None
    place = float(rule.attrib["x1"])
    for bar in parts(chart, "bar"):
        left = float(bar.attrib["x"])
        right = left + float(bar.attrib["width"])
        assert right <= place + 0.1 or left >= place - 0.1
    assert [sum(int(row[column]) for row in chart.rows) for column in (1, 2)] == [4, 4]
    below = [row for row in chart.rows if float(row[0].split(" to ")[1]) <= 1.001]
    assert sum(int(row[2]) for row in below) == 1
    assert "1 of 4 defective images lie below the threshold, 1 of 4 good ones above" in (
        chart.summary
    )


@pytest.mark.parametrize("images", [IMAGES[:4], IMAGES[4:], [image(0.0, is_defective=False)], []])
def test_histogram_of_one_class_or_none(images: list[ScoredImage]) -> None:
    chart = draw_scores(category(images))
    assert (chart is None) == (not images)
    if chart is not None:
        parts(chart, "bar")


def test_roc_tells_areas_and_where_the_threshold_is() -> None:
    curve = CurvePoints([0, 0, 0.25, 0.25, 1], [0, 0.5, 0.5, 1, 1])
    curves = {(PAPER, "image", "roc"): curve, (PAPER, "pixel", "roc"): curve}
    chart = draw_roc(category(IMAGES, curves=curves))
    (dot,) = parts(chart, "now")
    assert chart is not None
    assert "images 0.875, pixels 0.875" in chart.summary
    (line,) = parts(chart, "line-a")
    corners = re.findall(r"([\d.]+) ([\d.]+)", line.attrib["d"])
    assert len(corners) == 5
    # A quarter of the good ones are called defective, three quarters of the defective ones found.
    assert (dot.attrib["cx"], dot.attrib["cy"]) == (corners[2][0], dot.attrib["cy"])
    assert chart.rows[0] == ["0", "0.500", "0.500"]
    assert draw_roc(category(IMAGES)) is None


def test_pro_ends_where_aupro_does() -> None:
    curve = CurvePoints([0, 0.1, 0.5, 1], [0, 0.8, 0.9, 1])
    chart = draw_pro(category(curves={(OFFICIAL, "pixel", "pro"): curve}))
    (line,) = parts(chart, "line-a")
    assert chart is not None
    last = line.attrib["d"].split("L")[-1].split()
    assert float(last[0]) == pytest.approx(WIDTH - 12)
    assert chart.rows[-1] == ["0.3", "0.850"]
    assert "0.700" in chart.summary


def test_training_marks_the_epoch_that_was_kept() -> None:
    history = [Epoch(n, 1.0 / n, 2.0 / n if n < 4 else 1.5, 0.02, 1.0) for n in range(1, 6)]
    chart = draw_training(category(history=history, best_epoch=3))
    assert len(parts(chart, "now")) == 1
    assert chart is not None
    assert "Epoch 3 of 5" in chart.summary
    assert len(chart.rows) == 5
    assert draw_training(category(history=history[:1], best_epoch=1)) is None


def nights(values: Sequence[float | None], state: str = "complete") -> list[Night]:
    start = datetime(2026, 11, 1, 2, tzinfo=UTC)
    return [
        Night(
            f"run-{number}",
            start + timedelta(days=number),
            state if number == 1 else "complete",
            {("cup", "image"): Value(value, value and value - 0.02, value and value + 0.01)},
        )
        for number, value in enumerate(values)
    ]


def test_nights_leave_out_what_is_not_defined_and_mark_what_was_held_back() -> None:
    chart = draw_nights(nights([0.9, 0.8, None, 0.95], "regressed"), "cup", "image", published=0.9)
    (bad,) = parts(chart, "bad")
    assert chart is not None
    assert bad.tag.endswith("circle")
    assert [row[1] for row in chart.rows] == ["0.950", "n/a", "0.800", "0.900"]
    assert chart.rows[2][3] == "regressed"
    assert ("bad", "incomplete or held back") in chart.legend
    assert "published" in str(chart.svg)


def test_a_single_night_is_no_trend() -> None:
    assert draw_nights(nights([0.9]), "cup", "image") is None
    assert draw_nights(nights([0.9, None]), "cup", "image") is None
    assert draw_nights(nights([0.9, 0.9]), "jug", "image") is None


def test_what_a_mark_says_is_text() -> None:
    state = '"><script>alert(1)</script>'
    chart = draw_nights(nights([0.9, 0.8], state), "cup", "image")
    assert chart is not None
    assert "<script" not in str(chart.svg)
    root = ElementTree.fromstring(str(chart.svg))  # noqa: S314 (drawn by us)
    assert state in json.loads(root.attrib["data-marks"])[1][2]
