"""A run's content as one HTML page that loads nothing.

Jinja escapes every value. The page's policy allows no script and no style but its own two, by their
hashes: a name that became HTML all the same could run nothing.
"""

import base64
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from etstpm import __version__
from etstpm.metric_rows import MEAN
from etstpm.report import charts
from etstpm.report.content import CategoryContent, Night, RunContent
from etstpm.report.drawing import WIDE, Chart
from etstpm.report.pictures import gallery
from etstpm.report.story import tell
from etstpm.tables import PAPER

PICTURE_BYTES = 13_000_000
"""Of all galleries together: with all else a page of fifteen categories stays below 15 MB."""
DETAILED = 40
"""Categories that have charts and a gallery: a page of thousands would be read by nobody."""
FINDINGS = 200
SPARKLINE = 80, 18


@dataclass(frozen=True)
class Sparkline:
    """A line of the last nights' values, and its last place."""

    line: str
    x: str
    y: str


@dataclass(frozen=True)
class Row:
    """A category's line of the table."""

    category: CategoryContent
    flags: Sequence[str]
    nights: Sparkline | None
    anchor: str | None
    """Of its section, if it has one."""


@dataclass(frozen=True)
class Section:
    """A category's charts and gallery."""

    category: CategoryContent
    anchor: str
    charts: Sequence[Chart]
    types: Sequence[str]
    gallery: Markup


def render(run: RunContent) -> str:
    """The page."""
    environment = Environment(
        loader=PackageLoader("etstpm.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    floor = _floor(run)
    environment.filters |= {
        "number": lambda value: "n/a" if value is None else f"{value:.3f}",
        "signed": lambda value: f"{value:+.3f}".replace("-", "\N{MINUS SIGN}"),
        "date": lambda time: f"{time.day} {time:%B %Y, %H:%M} UTC",
        "place": lambda value, low: f"{4 + 112 * (max(value, low) - low) / (1 - low):.1f}",
    }
    css, js = (_asset(name) for name in ("report.css", "report.js"))
    anchors = {c.name: f"category-{n}" for n, c in enumerate(_most_to_look_at(run.categories), 1)}
    return environment.get_template("page.html").render(
        run=run,
        story=tell(run),
        version=__version__,
        css=css,
        js=js,
        policy=(
            "default-src 'none'; img-src data:; base-uri 'none'; form-action 'none'; "
            f"style-src '{_hash(css)}'; script-src '{_hash(js)}'"
        ),
        floor=floor,
        rows=[_row(category, run, anchors.get(category.name)) for category in run.categories],
        trends=[
            chart
            for level in ("image", "pixel")
            if (chart := charts.draw_nights(run.nights, MEAN, level, width=WIDE)) is not None
        ],
        sections=[
            _section(category, run, anchors[category.name], PICTURE_BYTES // len(anchors))
            for category in run.categories
            if category.name in anchors
        ],
        findings_shown=FINDINGS,
        provenance=list(_provenance(run)),
        students=[
            (c.name, c.cards["student"]["key"]) for c in run.categories if "student" in c.cards
        ],
        config=json.dumps(run.config, indent=2, ensure_ascii=False),
    )


def _asset(name: str) -> Markup:
    """A file of this package's own, as it stands between its tags."""
    return Markup((resources.files("etstpm.report") / "assets" / name).read_text("utf-8"))  # noqa: S704


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _floor(run: RunContent) -> float:
    """Where the drawn intervals of the table begin: a round figure below all of them."""
    figures = [category.figure(PAPER, "image", "auroc") for category in run.categories]
    ends = [
        end
        for c, figure in zip(run.categories, figures, strict=True)
        for end in (figure.low, figure.value, c.published.image_auroc if c.published else None)
        if end is not None
    ]
    return min(0.9, int(min(ends, default=0.5) * 20 - 1e-9) / 20)


def _most_to_look_at(categories: Sequence[CategoryContent]) -> list[CategoryContent]:
    if len(categories) <= DETAILED:
        return list(categories)

    def key(category: CategoryContent) -> tuple[bool, float, int]:
        fall = category.differences.get("image")
        wrong = category.missed + category.false_alarms
        return category.failure is None, fall.value if fall else 0.0, -wrong

    return sorted(categories, key=key)[:DETAILED]


def _row(category: CategoryContent, run: RunContent, anchor: str | None) -> Row:
    image = category.value(PAPER, "image", "auroc")
    fall = category.differences.get("image")
    flags = {
        "failed": category.failure is not None,
        "wrong": category.missed + category.false_alarms > 0,
        "fell": fall is not None and fall.value < 0,
        "below": None not in (image, category.published) and image < category.published.image_auroc,  # type: ignore[operator, union-attr]
    }
    chosen = [name for name, is_set in flags.items() if is_set]
    return Row(category, chosen, _sparkline(run.nights, category.name), anchor)


def _sparkline(nights: Sequence[Night], category: str) -> Sparkline | None:
    values = [
        (place, figure.value)
        for place, night in enumerate(nights)
        if (figure := night.figures.get((category, "image"))) is not None
        and figure.value is not None
    ]
    if len(values) < 2:
        return None
    low, high = min(v for _, v in values), max(v for _, v in values)
    width, height = SPARKLINE
    # A line that hardly moves must look so: two hundredths fill the height at least.
    span = max(high - low, 0.02)
    middle = (low + high) / 2
    places = [
        (
            3 + (width - 6) * place / (len(nights) - 1),
            height / 2 - (height - 6) * (value - middle) / span,
        )
        for place, value in values
    ]
    line = "M" + " L".join(f"{x:.1f} {y:.1f}" for x, y in places)
    x, y = places[-1]
    return Sparkline(line, f"{x:.1f}", f"{y:.1f}")


def _section(category: CategoryContent, run: RunContent, anchor: str, budget: int) -> Section:
    if category.failure is not None:
        return Section(category, anchor, (), (), Markup("{}"))
    published = category.published.image_auroc if category.published else None
    drawn = [
        charts.draw_scores(category),
        charts.draw_roc(category),
        charts.draw_pro(category),
        charts.draw_training(category),
        charts.draw_nights(run.nights, category.name, "image", published=published),
    ]
    return Section(
        category,
        anchor,
        [chart for chart in drawn if chart is not None],
        sorted({image.defect_type for image in category.images}),
        _json(gallery(category, budget)),
    )


def _json(value: object) -> Markup:
    """JSON that may stand in a script element: no `<` in it ends one or opens a comment."""
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)  # noqa: S704


def _provenance(run: RunContent) -> Iterator[tuple[str, str | Mapping[str, str]]]:
    dataset, teacher = run.dataset.get("dataset") or {}, run.teacher
    yield "Run", {"code": run.run_id}
    yield "Started, published", f"{run.started_at:%Y-%m-%d %H:%M:%S}, {run.created_at:%H:%M:%S} UTC"
    yield "Seed", str(run.config["seed"])
    yield "Dataset", f"{dataset.get('title') or 'a folder'}, {run.dataset['images']} images"
    for name in ("licence", "terms", "citation", "homepage"):
        if dataset.get(name):
            yield name.capitalize(), str(dataset[name])
    yield "Teacher", f"{teacher['description']}, {teacher['summary']}"
    yield "Weights, SHA-256", {"code": str(teacher["weights"]["sha256"] or "none")}
    yield from (
        (f"{name.capitalize()} key", {"code": run.keys[name]}) for name in ("dataset", "teacher")
    )
    students = [c.cards["student"] for c in run.categories if "student" in c.cards]
    if students:
        compute = students[-1].get("compute", {})
        yield "Device", ", ".join(str(value) for value in compute.values())
        versions = students[-1]["versions"]
        yield "Versions", ", ".join(f"{name} {value}" for name, value in versions.items())
    yield "Tables", {"code": ", ".join(run.keys[name] for name in ("metrics", "image_scores"))}
