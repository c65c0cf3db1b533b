"""A butter biscuit on a conveyor belt: a rigid object that lies a little differently each time."""

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
    relief,
    smooth_noise,
    tint,
)

DEFECTS = ("broken", "burnt", "crack")  # from plain to subtle

# How the biscuits lie: a guide rail holds them, so that a pose is never new to the student.
SHIFT, TURN, SCALE = 3.0, 0.045, 0.012  # std: units, radians (2.6 degrees), factor

HALF_WIDTH, HALF_HEIGHT, SCALLOP = 84.0, 64.0, 12.0  # SCALLOP: units from tooth to tooth
SHADOW = (6.0, 6.0)  # where the shadow lies, in units

# Defects, in units. Easier to find when raised.
BROKEN_CUT = (22.0, 40.0)  # depth of the missing corner, measured along the diagonal
CRUMB_WIDTH = 4.0  # the pale inside that a break shows
BURNT_RADIUS = (13.0, 22.0)
BURNT_DARKNESS = 0.72
CRACK_LENGTH = (50.0, 90.0)
CRACK_WIDTH = 3.2

DOUGH, CRUST, CRUMB = (0.84, 0.64, 0.36), (0.62, 0.38, 0.16), (0.90, 0.76, 0.52)
BURNT, BELT = (0.16, 0.09, 0.05), (0.20, 0.24, 0.27)


def draw(scene: np.random.Generator, flaw: np.random.Generator, defect: str, size: int) -> Colour:
    """One biscuit; `scene` decides everything but the defect, `flaw` only the defect."""
    table = plane(size)
    shift = (scene.normal(0.0, SHIFT), scene.normal(0.0, SHIFT))
    at = table.moved(shift, scene.normal(0.0, TURN), scene.normal(1.0, SCALE))
    outline = _outline(at)
    height, colour = _surface(scene, at, outline, size)
    height, colour = _blemish(flaw, defect, at, height, colour)
    colour = colour * relief(height, at.pixel, np.pi / 4)
    # A broken biscuit keeps the shadow of the whole one: the mask is then just the missing piece.
    belt = _belt(scene, table, at.moved(SHADOW, 0.0, 1.0), size)
    if defect == "broken":
        cut = _break(flaw, at)
        colour = mix(colour, CRUMB, coverage(-cut - np.float32(CRUMB_WIDTH), 2.0))
        outline = np.maximum(outline, cut)
    return mix(belt, colour, coverage(outline, at.pixel))


def _outline(at: Plane) -> Field:
    """Signed distance to the rim: a rounded box with a row of round teeth on each side."""
    x, y = np.abs(at.x), np.abs(at.y)
    tooth_y = at.y - SCALLOP * np.clip(np.round(at.y / SCALLOP), -5, 5)
    tooth_x = at.x - SCALLOP * np.clip(np.round(at.x / SCALLOP), -6, 6)
    teeth = np.minimum(np.hypot(x - HALF_WIDTH, tooth_y), np.hypot(tooth_x, y - HALF_HEIGHT))
    return np.minimum(_box(at, 10.0), teeth - np.float32(0.5 * SCALLOP)).astype(np.float32)


def _box(at: Plane, rounding: float) -> Field:
    dx = np.abs(at.x) - np.float32(HALF_WIDTH - rounding)
    dy = np.abs(at.y) - np.float32(HALF_HEIGHT - rounding)
    outside = np.hypot(np.maximum(dx, 0), np.maximum(dy, 0))
    return outside + np.minimum(np.maximum(dx, dy), 0) - np.float32(rounding)


def _surface(
    scene: np.random.Generator, at: Plane, outline: Field, size: int
) -> tuple[Field, Colour]:
    """Height (units) and colour: domed rim, pressed frame, 5 x 4 holes, browner to the edge."""
    inward = np.minimum(outline, np.float32(0.0))
    height = (5.0 * (1.0 - np.exp(inward / np.float32(7.0)))).astype(np.float32)
    height -= 1.5 * np.exp(-(((outline + 17.0) / 1.8) ** 2))
    hole_x = at.x - 27.0 * np.clip(np.round(at.x / 27.0), -2, 2)
    row = np.clip(np.round(at.y / 22.0 - 0.5), -2, 1) + 0.5
    hole = np.square(hole_x) + np.square(at.y - 22.0 * row)
    holes = np.exp(-np.square(hole / np.float32(3.2**2)))
    crumb = smooth_noise(scene, size, 3.5)
    height += 0.28 * crumb + 0.5 * smooth_noise(scene, size, 14.0) - 3.0 * holes
    oven = scene.normal(0.0, 0.04) + 0.10 * smooth_noise(scene, size, 60.0)
    edge = np.exp(inward / np.float32(13.0)).astype(np.float32)
    baked = np.clip(0.25 + 0.85 * edge + oven + 0.05 * crumb, 0.0, 1.0).astype(np.float32)
    colour = mix(np.broadcast_to(tint(DOUGH), (3, size, size)), CRUST, baked)
    return height, mix(colour, BURNT, 0.75 * holes.astype(np.float32))


def _belt(scene: np.random.Generator, table: Plane, shaded: Plane, size: int) -> Colour:
    """The ribbed rubber belt, with the biscuit's soft shadow to its lower right."""
    ribs = 0.5 + 0.5 * np.cos(
        2 * np.pi / 8.0 * (table.x + table.y + np.float32(scene.uniform(0, 8)))
    )
    shade = 0.90 + 0.12 * ribs + 0.03 * smooth_noise(scene, size, 5.0)
    shade = shade * (1.0 - 0.50 * coverage(_box(shaded, 16.0), 26.0))
    belt: Colour = tint(BELT) * shade.astype(np.float32)
    return belt


def _blemish(
    flaw: np.random.Generator, defect: str, at: Plane, height: Field, colour: Colour
) -> tuple[Field, Colour]:
    """A burnt spot or a crack, somewhere on the biscuit's face."""
    centre = (flaw.uniform(-0.6, 0.6) * HALF_WIDTH, flaw.uniform(-0.5, 0.5) * HALF_HEIGHT)
    if defect == "burnt":
        spot = coverage(blotch_distance(flaw, at, centre, flaw.uniform(*BURNT_RADIUS)), 9.0)
        colour = mix(colour, BURNT, BURNT_DARKNESS * spot)
    if defect == "crack":
        way, length = flaw.uniform(0.0, np.pi), flaw.uniform(*CRACK_LENGTH)
        line = line_distance(
            at, jagged_line(flaw, (0.5 * centre[0], 0.5 * centre[1]), way, length, 2.2)
        )
        inside = coverage(line - np.float32(CRACK_WIDTH / 2), max(1.2, at.pixel))
        height, colour = height - 1.5 * inside, mix(colour, BURNT, 0.8 * inside)
    return height, colour


def _break(flaw: np.random.Generator, at: Plane) -> Field:
    """Signed distance to a ragged cut that takes one corner off."""
    side_x, side_y = np.float32(flaw.choice((-1, 1))), np.float32(flaw.choice((-1, 1)))
    lean = flaw.uniform(0.55, 1.0)
    cos, sin = np.float32(np.cos(lean)), np.float32(np.sin(lean))
    across = side_x * at.x * cos + side_y * at.y * sin
    along = side_x * at.x * sin - side_y * at.y * cos
    corner = HALF_WIDTH * cos + HALF_HEIGHT * sin
    ragged = np.interp(along, np.arange(-200, 201, 5.0), flaw.normal(0.0, 1.6, 81)).astype(
        np.float32
    )
    return across - np.float32(corner - flaw.uniform(*BROKEN_CUT)) + ragged
