"""Scales and ticks: round, inside, and few enough to read."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from etstpm.report.axes import Scale, label, log_ticks, ticks


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (0, 0.3, [0, 0.1, 0.2, 0.3]),
        (0.93, 0.998, [0.94, 0.96, 0.98]),
        (0, 63, [0, 20, 40, 60]),
        (4, 4, [4]),
    ],
)
def test_ticks_are_round_numbers(low: float, high: float, expected: list[float]) -> None:
    assert ticks(low, high, 5) == pytest.approx(expected)


@given(st.floats(-1e6, 1e6), st.floats(1e-6, 1e6), st.integers(2, 9))
def test_ticks_lie_inside_and_are_about_as_many_as_asked(
    low: float, width: float, count: int
) -> None:
    high = low + width
    if not high > low:
        return
    found = ticks(low, high, count)
    slack = 1e-6 * max(abs(low), abs(high), width)
    assert all(low - slack <= value <= high + slack for value in found)
    assert len(found) <= count + 2
    assert found == sorted(found)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.4, 30, [0.5, 1, 2, 5, 10, 20]),
        (1e-4, 1e2, [1e-4, 1e-3, 1e-2, 1e-1, 1, 10, 100]),
        (0.9, 1.2, [1]),
    ],
)
def test_log_ticks(low: float, high: float, expected: list[float]) -> None:
    assert log_ticks(low, high) == pytest.approx(expected)


def test_log_ticks_of_many_decades_are_few() -> None:
    assert len(log_ticks(1e-12, 1e12)) <= 9


def test_scales_run_either_way_and_hold_what_lies_outside() -> None:
    down = Scale(0, 10, 200, 100)
    assert [down(0), down(5), down(10), down(99)] == [200, 150, 100, 100]
    log = Scale(0.1, 10, 0, 100, is_log=True)
    assert log(1) == pytest.approx(50)
    assert log(0) == 0
    assert Scale(3, 3, 0, 100)(3) == 50


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0"), (0.2, "0.2"), (1000, "1000"), (1e-6, "1e-6"), (2e7, "2e7")]
)
def test_labels_are_short(value: float, text: str) -> None:
    assert label(value) == text
