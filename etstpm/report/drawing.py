"""SVG that a person can hover, step through with the arrow keys, and read as a table.

Drawn here and not in the browser: it is there without a script, on paper too, and a chart's colours
are the page's own, in the light and in the dark. `assets/report.js` adds the pointer.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from markupsafe import Markup, escape

from etstpm.report.axes import Scale, label

WIDTH, WIDE, HEIGHT = 400, 580, 240
LEFT, RIGHT, TOP, BOTTOM = 46, 12, 12, 38

Point = tuple[float, float]


@dataclass(frozen=True)
class Chart:
    """A drawn chart and what says the same in words and numbers."""

    title: str
    svg: Markup
    summary: str
    """One sentence: what a person sees first."""
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    legend: Sequence[tuple[str, str]] = ()
    """Class of each line or bar, and what it is."""


@dataclass
class Canvas:
    """Gathers a chart's parts, in the order in which they are laid over each other."""

    x: Scale
    y: Scale
    width: int = WIDTH
    parts: list[Markup] = field(default_factory=list)
    marks: list[tuple[float, float, str]] = field(default_factory=list)
    """What the pointer finds: place and text."""

    def axes(
        self,
        x_title: str,
        y_title: str,
        *,
        x_labels: Sequence[tuple[float, str]] | None = None,
        y_ticks: int = 4,
    ) -> None:
        """Grid lines, ticks and titles. x_labels: values and texts instead of round numbers."""
        bottom, right = self.y.start, self.x.end
        for value in self.y.ticks(y_ticks):
            y = self.y(value)
            self._add('<line class="grid" x1="{}" x2="{}" y1="{}" y2="{}"/>', LEFT, right, y, y)
            self._text("tick end", LEFT - 7, y + 3.5, label(value))
        for value, text in x_labels or [(value, label(value)) for value in self.x.ticks()]:
            x = self.x(value)
            self._add(
                '<line class="axis" x1="{}" x2="{}" y1="{}" y2="{}"/>', x, x, bottom, bottom + 4
            )
            self._text("tick middle", x, bottom + 16, text)
        self._add(
            '<line class="axis" x1="{}" x2="{}" y1="{}" y2="{}"/>', LEFT, right, bottom, bottom
        )
        self._text("name end", right, HEIGHT - 4, x_title)
        self._text("name", 2, 9, y_title)

    def line(self, kind: str, points: Iterable[Point]) -> None:
        """A line through values, of a class."""
        places = " L".join(f"{self.x(x):.1f} {self.y(y):.1f}" for x, y in points)
        if places:
            self._add('<path class="line {}" d="M{}"/>', kind, places)

    def band(self, kind: str, points: Sequence[tuple[float, float, float]]) -> None:
        """The area between two values at each x."""
        above = [f"{self.x(x):.1f} {self.y(high):.1f}" for x, _, high in points]
        below = [f"{self.x(x):.1f} {self.y(low):.1f}" for x, low, _ in reversed(points)]
        if above:
            self._add('<path class="band {}" d="M{}Z"/>', kind, " L".join(above + below))

    def bar(self, kind: str, left: float, right: float, base: float, height: float) -> None:
        """A bar between two values of x; places are taken with a hair between neighbours."""
        x, end = self.x(left) + 0.5, self.x(right) - 0.5
        top, bottom = self.y(base + height), self.y(base)
        self._add(
            '<rect class="bar {}" x="{}" y="{}" width="{}" height="{}"/>',
            kind,
            x,
            top,
            max(0.5, end - x),
            max(0.0, bottom - top),
        )

    def dot(self, kind: str, x: float, y: float, radius: float = 3.5) -> None:
        """A point of its own."""
        self._add(
            '<circle class="dot {}" cx="{}" cy="{}" r="{}"/>', kind, self.x(x), self.y(y), radius
        )

    def rule(self, kind: str, x: float, text: str) -> None:
        """A vertical line at a value, named at its top."""
        place = self.x(x)
        self._add(
            '<line class="rule {}" x1="{}" x2="{}" y1="{}" y2="{}"/>',
            kind,
            place,
            place,
            self.y.end,
            self.y.start,
        )
        is_right = place > (LEFT + self.x.end) / 2
        self._text(
            f"note {'end' if is_right else ''}", place + (-4 if is_right else 4), TOP + 8, text
        )

    def level(self, kind: str, y: float, text: str) -> None:
        """A horizontal line at a value, named at its left."""
        place = self.y(y)
        self._add(
            '<line class="rule {}" x1="{}" x2="{}" y1="{}" y2="{}"/>',
            kind,
            LEFT,
            self.x.end,
            place,
            place,
        )
        is_high = place < TOP + 14
        self._text("note", LEFT + 4, place + (12 if is_high else -4), text)

    def mark(self, x: float, y: float, text: str) -> None:
        """What the pointer says near this place."""
        self.marks.append((round(self.x(x), 1), round(self.y(y), 1), text))

    def chart(
        self,
        title: str,
        summary: str,
        columns: Sequence[str],
        rows: Sequence[Sequence[str]],
        legend: Sequence[tuple[str, str]] = (),
    ) -> Chart:
        """The whole, with its words."""
        svg = Markup(
            '<svg class="chart" viewBox="0 0 {} {}" role="img" tabindex="0" aria-label="{}" '
            'data-marks="{}">{}</svg>'
        ).format(
            self.width,
            HEIGHT,
            f"{title}. {summary}",
            json.dumps(self.marks, separators=(",", ":"), ensure_ascii=False),
            Markup("").join(self.parts),
        )
        return Chart(title, svg, summary, columns, rows, legend)

    def _add(self, template: str, *values: float | str) -> None:
        shown = [f"{v:.1f}".removesuffix(".0") if isinstance(v, float) else v for v in values]
        self.parts.append(Markup(template).format(*shown))  # noqa: S704 (constants of this file)

    def _text(self, kind: str, x: float, y: float, text: str) -> None:
        self._add('<text class="{}" x="{}" y="{}">{}</text>', kind, x, y, escape(text))


def canvas(
    x: tuple[float, float],
    y: tuple[float, float],
    *,
    x_is_log: bool = False,
    y_is_log: bool = False,
    width: int = WIDTH,
) -> Canvas:
    """An empty chart whose axes span these values."""
    return Canvas(
        Scale(*x, LEFT, width - RIGHT, x_is_log),
        Scale(*y, HEIGHT - BOTTOM, TOP + 8, y_is_log),
        width,
    )
