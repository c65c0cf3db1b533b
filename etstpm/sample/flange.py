"""A turned steel flange: a round part in a fixture, under a light that plays on its lathe marks."""

from __future__ import annotations

import numpy as np

from etstpm.sample.drawing import (
    Colour,
    Field,
    Plane,
    blotch_distance,
    coverage,
    jagged_line,
    line_distance,
    mix,
    plane,
    slopes,
    smooth_noise,
    tint,
)

DEFECTS = ("chipped", "rust", "scratch")  # from plain to subtle

# The fixture holds the part; what varies is the light's direction and strength.
SHIFT, TURN = 1.5, 0.03  # std: units, radians
LATHE_MARKS = 0.028  # std of the rings' brightness: strong ones look like a scratch
GLINT_TURN, GLINT = 0.10, (0.17, 0.21)  # std in radians; brightness of the two bright fans

OUTER, INNER, BORE_CIRCLE, BOLT = 104.0, 38.0, 72.0, 9.5  # radii
BOLTS = 6

# Defects, in units. Easier to find when raised.
CHIP_RADIUS = (14.0, 22.0)
RUST_RADIUS = (11.0, 17.0)
RUST_DENSITY = 0.85
SCRATCH_LENGTH = (50.0, 75.0)
SCRATCH_WIDTH = 4.0  # a thinner one (2.4) was lost on a briefly trained student at 128 pixels
SCRATCH_CONTRAST, SCRATCH_BURR = 0.55, 0.30  # the dark groove, its bright edges

TABLE, STEEL, RUST = (0.30, 0.31, 0.33), (0.60, 0.62, 0.64), (0.46, 0.22, 0.08)


def draw(scene: np.random.Generator, flaw: np.random.Generator, defect: str, size: int) -> Colour:
    """One flange; `scene` decides everything but the defect, `flaw` only the defect."""
    table = plane(size)
    shift = (scene.normal(0.0, SHIFT), scene.normal(0.0, SHIFT))
    at = table.moved(shift, scene.normal(0.0, TURN), 1.0)
    outline = _outline(at)
    steel = _steel(scene, at, outline)
    bench = _bench(scene, table, shift, size)
    steel = _blemish(flaw, defect, at, steel)
    if defect == "chipped":
        outline = np.maximum(outline, -_chip(flaw, at))
    return mix(bench, steel, coverage(outline, at.pixel))


def _outline(at: Plane) -> Field:
    """Signed distance to the part: a disc less its bore and bolt holes."""
    radius, angle = np.hypot(at.x, at.y), np.arctan2(at.y, at.x)
    step = np.float32(2 * np.pi / BOLTS)
    fold = angle - step * np.round(angle / step)
    bolt = np.hypot(radius * np.cos(fold) - BORE_CIRCLE, radius * np.sin(fold)) - BOLT
    outline: Field = np.maximum(np.maximum(radius - OUTER, INNER - radius), -bolt)
    return outline


def _steel(scene: np.random.Generator, at: Plane, outline: Field) -> Colour:
    """Lathe marks (rings), two opposite bright fans, and a chamfer lit from the upper left."""
    radius = np.hypot(at.x, at.y)
    rings = np.interp(radius, np.arange(0, 192, 1.5), scene.standard_normal(128)).astype(np.float32)
    glint = -0.25 * np.pi + scene.normal(0.0, GLINT_TURN)
    facing = (at.x * np.float32(np.cos(glint)) + at.y * np.float32(np.sin(glint))) / radius
    fan = np.square(np.square(facing)) * np.square(facing) * scene.uniform(*GLINT)
    bright = 1.0 + fan + LATHE_MARKS * rings + 0.02 * np.sin(np.float32(2 * np.pi / 12.0) * radius)
    chamfer = coverage(-outline - np.float32(5.0), 1.5)
    right, down = slopes(outline, at.pixel)
    bright = bright * (1.0 - 0.28 * chamfer * (down + right)) - 0.10 * chamfer
    steel: Colour = tint(STEEL) * bright.astype(np.float32)
    return steel


def _bench(
    scene: np.random.Generator, table: Plane, shift: tuple[float, float], size: int
) -> Colour:
    """A matt grey bench with the part's soft shadow."""
    under = np.hypot(table.x - np.float32(shift[0] + 5), table.y - np.float32(shift[1] + 5))
    shadow = coverage(np.maximum(under - OUTER, INNER - under), 16.0)
    shade = 1.0 + 0.03 * smooth_noise(scene, size, 3.0) + 0.03 * smooth_noise(scene, size, 50.0)
    bench: Colour = tint(TABLE) * (shade * (1.0 - 0.5 * shadow))
    return bench


def _blemish(flaw: np.random.Generator, defect: str, at: Plane, steel: Colour) -> Colour:
    """A patch of rust or a scratch on the face, between the bore and the rim."""
    # Half way between two bolt holes, where there is steel enough for the whole defect.
    gap = (flaw.integers(BOLTS) + 0.5) * 2 * np.pi / BOLTS
    radius, angle = flaw.uniform(INNER + 20, OUTER - 22), gap + flaw.uniform(-0.15, 0.15)
    centre = (radius * np.cos(angle), radius * np.sin(angle))
    if defect == "rust":
        patch = coverage(blotch_distance(flaw, at, centre, flaw.uniform(*RUST_RADIUS), 0.18), 6.0)
        pits = 0.75 + 0.35 * smooth_noise(flaw, at.x.shape[0], 3.0)
        steel = mix(steel, RUST, np.clip(RUST_DENSITY * patch * pits, 0.0, 1.0))
    if defect == "scratch":
        # Across the lathe marks: along them it would be one more mark.
        way, length = angle + flaw.uniform(-0.9, 0.9), flaw.uniform(*SCRATCH_LENGTH)
        line = line_distance(at, jagged_line(flaw, centre, way, length, 0.5))
        groove = coverage(line - np.float32(SCRATCH_WIDTH / 2), max(1.2, at.pixel))
        burr = coverage(line - np.float32(0.9 * SCRATCH_WIDTH), max(1.2, at.pixel))
        steel = steel * (1.0 + SCRATCH_BURR * (burr - groove) - SCRATCH_CONTRAST * groove)
    return steel


def _chip(flaw: np.random.Generator, at: Plane) -> Field:
    """Signed distance to a bite out of the outer rim."""
    angle = flaw.uniform(0, 2 * np.pi)
    centre = ((OUTER - 1) * np.cos(angle), (OUTER - 1) * np.sin(angle))
    return blotch_distance(flaw, at, centre, flaw.uniform(*CHIP_RADIUS), 0.12)
