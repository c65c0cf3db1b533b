"""The charts of a report: scores, ROC, PRO, training, nights."""

import math
from collections.abc import Callable, Sequence

import numpy as np

from etstpm.report.content import CategoryContent, CurvePoints, Night
from etstpm.report.drawing import WIDTH, Chart, canvas
from etstpm.tables import OFFICIAL, PAPER

BINS = 28
RATES = (0.0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 1.0)
"""False positive rates at which a curve is told in words and numbers."""
PRO_LIMIT = 0.3
"""AUPRO is the area up to here."""


def draw_scores(category: CategoryContent) -> Chart | None:
    """How the scores of good and defective images lie about the threshold, both in its units."""
    threshold = category.threshold
    factors = [(image, image.score / threshold) for image in category.images]
    values = [max(factor, 1e-6) for _, factor in factors]
    if not values:
        return None
    low, high = min(*values, 0.8), max(*values, 1.25)
    low, high = low / (high / low) ** 0.03, high * (high / low) ** 0.03
    # An edge lies on the threshold: no bar may have images of both sides in it.
    step = math.log(high / low) / BINS
    first = math.floor(math.log(low) / step)
    edges = [math.exp(step * number) for number in range(first, first + BINS + 2)]
    good, defective = (
        np.histogram([f for i, f in factors if i.is_defective is kind], edges)[0].tolist()
        for kind in (False, True)
    )
    tallest = max(g + d for g, d in zip(good, defective, strict=True))
    drawn = canvas((edges[0], edges[-1]), (0, max(4, tallest * 1.08)), x_is_log=True)
    drawn.axes("score, times the threshold (log)", "images", y_ticks=3)
    rows = []
    bins = zip(edges[:-1], edges[1:], good, defective, strict=True)
    for left, right, good_here, defective_here in bins:
        drawn.bar("of-good", left, right, 0, good_here)
        drawn.bar("of-defective", left, right, good_here, defective_here)
        if good_here + defective_here:
            text = f"{left:.2f} to {right:.2f}: {good_here} good, {defective_here} defective"
            drawn.mark(math.sqrt(left * right), good_here + defective_here, text)
            rows.append([f"{left:.3f} to {right:.3f}", str(good_here), str(defective_here)])
    drawn.rule("threshold", 1.0, "threshold")
    for score in category.held_out_scores:
        drawn.dot("held-out", max(score / threshold, edges[0]), 0, 1.8)
    return drawn.chart(
        "Scores",
        f"{category.missed} of {category.n_defective} defective images lie below the threshold, "
        f"{category.false_alarms} of {category.n_good} good ones above it.",
        ["score / threshold", "good", "defective"],
        rows,
        [("of-good", "good"), ("of-defective", "defective"), ("held-out", "held-out good (train)")],
    )


def draw_roc(category: CategoryContent) -> Chart | None:
    """ROC of images and of pixels, and where the threshold puts the images."""
    lines = [
        ("line-a", "images", category.curves.get((PAPER, "image", "roc"))),
        ("line-b", "pixels", category.curves.get((PAPER, "pixel", "roc"))),
    ]
    found = [(kind, name, curve) for kind, name, curve in lines if curve is not None]
    if not found:
        return None
    drawn = canvas((0, 1), (0, 1))
    drawn.axes("false positive rate", "true positive rate")
    drawn.line("chance", [(0, 0), (1, 1)])
    for kind, name, curve in reversed(found):
        drawn.line(kind, zip(curve.x, curve.y, strict=True))
        _mark_curve(drawn.mark, name, curve, 1.0)
    aurocs = [
        f"{name} {_number(category.value(PAPER, name.removesuffix('s'), 'auroc'))}"
        for _, name, _ in found
    ]
    if category.n_good and category.n_defective:
        x = category.false_alarms / category.n_good
        y = 1 - category.missed / category.n_defective
        drawn.dot("now", x, y)
        drawn.mark(x, y, f"at the threshold: {y:.3f} found, {x:.3f} false alarms")
    return drawn.chart(
        "ROC",
        f"Area under the curve: {', '.join(aurocs)}.",
        ["false positive rate", *(name for _, name, _ in found)],
        _rates([curve for *_, curve in found], RATES),
        [*((kind, name) for kind, name, _ in found), ("now", "at the threshold")],
    )


def draw_pro(category: CategoryContent) -> Chart | None:
    """Per-region overlap up to the false positive rate that AUPRO ends at."""
    lines = [
        ("line-a", "own size", category.curves.get((OFFICIAL, "pixel", "pro"))),
        ("line-b", "the papers' size", category.curves.get((PAPER, "pixel", "pro"))),
    ]
    found = [(kind, name, curve) for kind, name, curve in lines if curve is not None]
    if not found:
        return None
    drawn = canvas((0, PRO_LIMIT), (0, 1))
    drawn.axes("false positive rate", "overlap of each region, mean")
    for kind, name, curve in reversed(found):
        inside = [(x, y) for x, y in zip(curve.x, curve.y, strict=True) if x <= PRO_LIMIT]
        drawn.line(kind, [*inside, (PRO_LIMIT, curve.at(PRO_LIMIT))])
        _mark_curve(drawn.mark, name, curve, PRO_LIMIT)
    value = _number(category.value(OFFICIAL, "pixel", "aupro"))
    return drawn.chart(
        "PRO",
        f"Area up to {PRO_LIMIT}, at each image's own size: {value}.",
        ["false positive rate", *(name for _, name, _ in found)],
        _rates([curve for *_, curve in found], [rate for rate in RATES if rate <= PRO_LIMIT]),
        [(kind, f"maps at {name}") for kind, name, _ in found],
    )


def draw_training(category: CategoryContent) -> Chart | None:
    """Loss and validation map of each epoch, as shares of their first."""
    epochs = [e for e in category.history if e.loss > 0 and e.validation_map > 0]
    if len(epochs) < 2:
        return None
    shares = [
        (e, e.loss / epochs[0].loss, e.validation_map / epochs[0].validation_map) for e in epochs
    ]
    values = [value for _, loss, validation in shares for value in (loss, validation)]
    low, high = min(values), max(values)
    drawn = canvas((epochs[0].epoch, epochs[-1].epoch), (low / 1.15, high * 1.15), y_is_log=True)
    count = min(6, len(epochs))
    places = sorted({round(v) for v in np.linspace(epochs[0].epoch, epochs[-1].epoch, count)})
    drawn.axes("epoch", "share of epoch 1 (log)", x_labels=[(v, str(v)) for v in places])
    drawn.line("line-b", [(e.epoch, loss) for e, loss, _ in shares])
    drawn.line("line-a", [(e.epoch, validation) for e, _, validation in shares])
    for e, loss, validation in shares:
        numbers = f"epoch {e.epoch}: loss {e.loss:.4g}, validation map {e.validation_map:.4g}"
        drawn.mark(e.epoch, validation, numbers)
        drawn.mark(e.epoch, loss, numbers)
        if e.epoch == category.best_epoch:
            drawn.dot("now", e.epoch, validation)
    return drawn.chart(
        "Training",
        f"Epoch {category.best_epoch} of {epochs[-1].epoch} was kept: the lowest validation map.",
        ["epoch", "loss", "validation map", "learning rate"],
        [
            [str(e.epoch), f"{e.loss:.5g}", f"{e.validation_map:.5g}", f"{e.learning_rate:.3g}"]
            for e in category.history
        ],
        [
            ("line-a", "validation map, held-out good"),
            ("line-b", "loss"),
            ("now", "kept"),
        ],
    )


def draw_nights(
    nights: Sequence[Night],
    category: str,
    level: str,
    *,
    published: float | None = None,
    width: int = WIDTH,
) -> Chart | None:
    """A category's AUROC (or the mean) over the last nights, with its 95 % interval."""
    found = [
        (place, night, night.figures[category, level])
        for place, night in enumerate(nights)
        if (category, level) in night.figures
    ]
    known = [(p, night, figure) for p, night, figure in found if figure.value is not None]
    if len(known) < 2:
        return None
    ends = [end for *_, f in known for end in (f.low, f.value, f.high) if end is not None]
    ends += [published] if published is not None else []
    low, high = min(ends), max(ends)
    room = max(0.01, 0.12 * (high - low))
    drawn = canvas((0, len(nights) - 1), (max(0.0, low - room), min(1.0, high + room)), width=width)
    places = sorted({round(v) for v in np.linspace(0, len(nights) - 1, min(4, len(nights)))})
    drawn.axes("night", "AUROC", x_labels=[(p, f"{nights[p].started_at:%d %b}") for p in places])
    drawn.band(
        "band-a",
        [(p, f.low, f.high) for p, _, f in known if f.low is not None and f.high is not None],
    )
    if published is not None:
        drawn.level("published", published, f"published {published:.3f}")
    drawn.line("line-a", [(p, f.value or 0) for p, _, f in known])
    rows = []
    for place, night, figure in found:
        when, value = f"{night.started_at:%Y-%m-%d %H:%M}", figure.value
        state = "" if night.is_good else f", {night.state}"
        interval = _interval(figure.low, figure.high)
        rows.append([when, _number(value), interval, night.state])
        if value is not None:
            kind = "now" if place == len(nights) - 1 else "night" if night.is_good else "bad"
            drawn.dot(kind, place, value, 3.5 if kind != "night" else 2.2)
            shown = f" ({interval})" if interval else ""
            drawn.mark(place, value, f"{when}: {value:.4f}{shown}{state}")
    has_bad = any(not night.is_good for _, night, _ in known[:-1])
    first, last = known[0][2].value or 0, known[-1][2].value or 0
    return drawn.chart(
        f"{level.capitalize()} AUROC by night",
        f"{last:.3f} in this run; {first:.3f} in the first of the {len(known)} shown.",
        ["run", "AUROC", "95 % interval", "state"],
        rows[::-1],
        [
            ("line-a", "95 % interval shaded"),
            ("now", "this run"),
            *([("bad", "incomplete or held back")] if has_bad else []),
        ],
    )


def _mark_curve(
    mark: Callable[[float, float, str], None], name: str, curve: CurvePoints, limit: float
) -> None:
    """Corners, and places in between where corners are far apart."""
    steps = [limit * number / 40 for number in range(41)]
    for x in sorted({*steps, *(x for x in curve.x if x <= limit)}):
        mark(x, curve.at(x), f"{name}: {curve.at(x):.3f} at {x:.3f}")


def _rates(curves: Sequence[CurvePoints], rates: Sequence[float]) -> list[list[str]]:
    return [[f"{rate:g}", *(f"{curve.at(rate):.3f}" for curve in curves)] for rate in rates]


def _number(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.3f}"


def _interval(low: float | None, high: float | None) -> str:
    return "" if low is None or high is None else f"{low:.3f} to {high:.3f}"
