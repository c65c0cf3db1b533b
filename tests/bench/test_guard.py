"""The guard can fail: what slows a loop down is seen in its ratio, and ends `make guard`."""

import sys
import time
from collections.abc import Callable
from typing import Any

import pytest

from bench import guard
from bench.metrics_memory import draw

FLOORS = {"training": 0.75, "scoring": 0.55, "metrics": 0.2}
SLOWED = {
    "training": "etstpm.distillation.matching_loss",
    "scoring": "etstpm.scoring.anomaly_maps",
    "metrics": "bench.guard.pixel_metrics",
}
"""Something inside each of our loops, and not in the plain one beside it."""
SECONDS = 0.5
"""So much longer takes a call: many times a whole step of these sizes, on a busy machine too."""


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Little of everything: how exact a ratio is does not matter here."""
    monkeypatch.setattr(guard, "IMAGES", 8)
    monkeypatch.setattr(guard, "SIZE", 32)
    monkeypatch.setattr(guard, "EPOCHS", 4)
    monkeypatch.setattr(guard, "ROUNDS", 1)
    monkeypatch.setattr("bench.guard.draw", lambda *_: draw(4, 64))


def slowed(work: Callable[..., Any]) -> Callable[..., Any]:
    def later(*arguments: Any, **options: Any) -> Any:
        time.sleep(SECONDS)
        return work(*arguments, **options)

    return later


def test_a_loop_that_is_slowed_down_falls_below_its_floor(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {name: getattr(guard, name)() for name in FLOORS}
    for path in SLOWED.values():
        module, name = path.rsplit(".", 1)
        monkeypatch.setattr(path, slowed(getattr(sys.modules[module], name)))

    with pytest.raises(SystemExit) as ended:
        guard.main()

    assert ended.value.code
    said = capsys.readouterr().out.splitlines()
    assert len(said) == len(FLOORS)
    for line, (name, floor) in zip(said, FLOORS.items(), strict=True):
        ratio = float(line.rpartition(": ")[2].split()[0])
        assert line.startswith(name if name != "metrics" else "pixel metrics")
        assert f"(at least {floor:g})" in line
        assert ratio < floor
        assert ratio < before[name]
