"""Classes of shapes, drawn by formulas: how much of each pixel is covered.

A class is a family and its parameters, an instance a slightly other draw; generators as in
`textures`. Sources: Kataoka et al., Pre-training without Natural Images, ACCV 2020 (fractals);
Kataoka et al., Replacing Labeled Real-image Datasets with Auto-generated Contours, CVPR 2022
(nested polygons); Takashima et al., Visual Atoms, CVPR 2023 (orbits of sines).
"""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from bench.formula.textures import Field, Grey, Rng

Points = npt.NDArray[np.float64]
Family = Callable[[Rng, Rng, int], Field]

SHAPES = 2
DRAWN_LARGER = 2
"""Sides are drawn so many times larger and averaged: smooth edges."""
CORNERS = 180
"""Points of a closed curve."""


def draw_shape(seed: int, number: int, instance: int, size: int) -> Grey:
    """Instance of a class of shapes: (size, size) uint8, 255 where it covers a pixel whole."""
    kind = np.random.default_rng([seed, SHAPES, number])
    rng = np.random.default_rng([seed, SHAPES, number, instance])
    field = FAMILIES[number % len(FAMILIES)](kind, rng, size)
    covered: Grey = (field * 255).clip(0, 255).astype(np.uint8)
    return covered


def draw_orbits(kind: Rng, rng: Rng, size: int) -> Field:
    """Rings whose radius is a sum of two sines, as lines or filled."""
    angle = np.linspace(0, 2 * np.pi, CORNERS, endpoint=False)
    waves = kind.integers(1, 12, 2)
    heights = kind.uniform(0, 0.3, 2) * rng.uniform(0.9, 1.1, 2)
    phases = kind.uniform(0, 2 * np.pi, 2)
    radius = 1 + sum(
        h * np.sin(w * angle + p) for h, w, p in zip(heights, waves, phases, strict=True)
    )
    ratio = kind.uniform(0.5, 1)
    unit = np.stack([np.cos(angle) * ratio, np.sin(angle)], -1) * radius[:, None] / radius.max()
    return _draw_nested(kind, rng, unit, size)


def draw_polygons(kind: Rng, rng: Rng, size: int) -> Field:
    """A polygon of three to nine corners within itself, more or less ragged."""
    corners = int(kind.integers(3, 10))
    angle = (np.arange(corners) + kind.uniform(-0.3, 0.3, corners)) * 2 * np.pi / corners
    radius = kind.uniform(0.5, 1, corners) * rng.uniform(0.95, 1.05, corners)
    points = np.stack([np.cos(angle), np.sin(angle)], -1) * radius[:, None]
    at = np.linspace(0, corners, CORNERS, endpoint=False)
    closed = np.vstack([points, points[:1]])
    unit = np.stack([np.interp(at, np.arange(corners + 1), column) for column in closed.T], -1)
    unit *= 1 + kind.choice([0.0, kind.uniform(0, 0.08)]) * rng.standard_normal((CORNERS, 1))
    return _draw_nested(kind, rng, unit / np.abs(unit).max(), size)


def draw_superformula(kind: Rng, rng: Rng, size: int) -> Field:
    """Gielis' curve (2003): stars, flowers, rounded polygons."""
    angle = np.linspace(0, 2 * np.pi, CORNERS, endpoint=False)
    waves = int(kind.integers(2, 13))
    first, second, third = np.exp(kind.uniform(-1, 2.5, 3)) * rng.uniform(0.95, 1.05, 3)
    sum_ = np.abs(np.cos(waves * angle / 4)) ** second + np.abs(np.sin(waves * angle / 4)) ** third
    radius = np.maximum(sum_, 1e-6) ** (-1 / first)
    radius = np.clip(radius / np.percentile(radius, 95), 0.05, 1)
    return _draw_nested(
        kind, rng, np.stack([np.cos(angle), np.sin(angle)], -1) * radius[:, None], size
    )


def draw_fractal(kind: Rng, rng: Rng, size: int) -> Field:
    """An iterated function system's attractor, by the chaos game with many points at once."""
    maps = int(kind.integers(2, 6))
    matrices, weights = [], []
    for _ in range(maps):
        # Singular values below one: it contracts, whatever the turns (Anderson and Farrell 2022).
        turns = kind.uniform(0, 2 * np.pi, 2)
        stretch = np.diag(kind.uniform(0.2, 0.85, 2) * kind.choice([-1, 1], 2))
        matrix = _rotation(turns[0]) @ stretch @ _rotation(turns[1])
        matrices.append(np.column_stack([matrix, kind.uniform(-1, 1, 2)]))
        weights.append(abs(np.linalg.det(matrix)) + 0.02)
    functions = np.array(matrices) * rng.uniform(0.93, 1.07, (maps, 2, 3))
    points = np.zeros((1500, 2))
    share = np.array(weights) / np.sum(weights)
    kept = []
    for step in range(45):
        chosen = functions[rng.choice(maps, len(points), p=share)]
        points = np.einsum("nij,nj->ni", chosen[:, :, :2], points) + chosen[:, :, 2]
        if step >= 12:
            kept.append(points)
    attractor = np.concatenate(kept)
    low, high = np.percentile(attractor, (1, 99), axis=0)
    scaled = (attractor - (low + high) / 2) / max((high - low).max(), 1e-6) * 0.9 + 0.5
    density, _, _ = np.histogram2d(scaled[:, 0], scaled[:, 1], bins=size, range=((0, 1), (0, 1)))
    covered: Field = np.minimum(density / 3, 1)
    return covered


def draw_glyph(kind: Rng, rng: Rng, size: int) -> Field:
    """Strokes between places of a coarse grid, as in letters and signs."""
    picture, draw = _canvas(size)
    side = picture.width
    places = kind.integers(0, 4, (int(kind.integers(3, 8)), 2)) / 3 * 0.8 + 0.1
    places = places + rng.normal(0, 0.02, places.shape)
    width = max(2, round(side * kind.uniform(0.03, 0.14) * rng.uniform(0.9, 1.1)))
    skip = kind.random(len(places)) < 0.2
    for start, end, skipped in zip(places[:-1], places[1:], skip[1:], strict=True):
        if skipped:
            box = [*(np.minimum(start, end) * side), *(np.maximum(start, end) * side + width)]
            draw.ellipse(box, outline=255, width=width)
        else:
            draw.line([*(start * side), *(end * side)], fill=255, width=width)
            for x, y in (start * side, end * side):
                draw.ellipse([x - width / 2, y - width / 2, x + width / 2, y + width / 2], fill=255)
    return _reduce(picture, size)


def draw_part(kind: Rng, rng: Rng, size: int) -> Field:
    """Discs, plates and slots added and cut out, as in stamped and turned parts."""
    picture, draw = _canvas(size)
    side = picture.width
    for number in range(int(kind.integers(2, 7))):
        reach = kind.uniform(0.25, 0.45, 2) if number == 0 else kind.uniform(0.05, 0.25, 2)
        middle = np.array([0.5, 0.5]) if number == 0 else kind.uniform(0.2, 0.8, 2)
        middle = middle + rng.normal(0, 0.01, 2)
        reach = reach * rng.uniform(0.95, 1.05, 2)
        if kind.random() < 0.5:
            reach[1] = reach[0]
        fill = 255 if number == 0 or kind.random() < 0.4 else 0
        box = [*((middle - reach) * side), *((middle + reach) * side)]
        outline = kind.integers(3)
        if outline == 0:
            draw.ellipse(box, fill=fill)
        elif outline == 1:
            draw.rounded_rectangle(box, radius=kind.uniform(0, 0.5) * reach.min() * side, fill=fill)
        else:
            corners = int(kind.integers(3, 9))
            circle = (*(middle * side), float(reach[0]) * side)
            draw.regular_polygon(circle, corners, rotation=float(kind.uniform(0, 360)), fill=fill)
    return _reduce(picture, size)


FAMILIES: tuple[Family, ...] = (
    draw_orbits,
    draw_polygons,
    draw_superformula,
    draw_fractal,
    draw_glyph,
    draw_part,
)


def _draw_nested(kind: Rng, rng: Rng, unit: Points, size: int) -> Field:
    """A closed curve within the unit circle: filled, with a hole, or as lines one in another."""
    picture, draw = _canvas(size)
    side = picture.width
    count = int(kind.integers(1, 6))
    is_filled, shrink = kind.random() < 0.5, kind.uniform(0.6, 0.9)
    width = max(2, round(side * kind.uniform(0.01, 0.04)))
    for number in range(count):
        scale = 0.45 * shrink**number * rng.uniform(0.98, 1.02)
        points = [tuple(point) for point in (unit * scale + 0.5) * side]
        if is_filled:
            draw.polygon(points, fill=255 if number % 2 == 0 else 0)
        else:
            draw.line([*points, points[0]], fill=255, width=width, joint="curve")
    return _reduce(picture, size)


def _canvas(size: int) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    picture = Image.new("L", (DRAWN_LARGER * size, DRAWN_LARGER * size))
    return picture, ImageDraw.Draw(picture)


def _reduce(picture: Image.Image, size: int) -> Field:
    small = np.asarray(picture.reduce(DRAWN_LARGER), dtype=np.float64)
    return small[:size, :size] / 255


def _rotation(angle: float) -> Points:
    return np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
