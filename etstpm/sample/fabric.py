"""A twill weave: a texture without any object, blue warp over ecru weft."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from etstpm.sample.drawing import (
    Colour,
    Plane,
    blotch_distance,
    coverage,
    jagged_line,
    line_distance,
    mix,
    plane,
    smooth_noise,
    tint,
)

DEFECTS = ("hole", "stain", "pulled_thread")  # from plain to subtle

PITCH = 8.0  # units from thread to thread; finer threads would alias at 128 pixels
TURN, STRETCH = 0.012, 0.01  # std: the cloth runs over a roller, nearly straight

# Defects, in units. Easier to find when raised.
HOLE_RADIUS = (8.0, 15.0)
STAIN_RADIUS = (14.0, 26.0)
STAIN_DARKNESS = 0.48
PULLED_LENGTH = (60.0, 130.0)
PULLED_WIDTH = 1.25  # of PITCH

WARP, WEFT, GAP = (0.22, 0.33, 0.50), (0.78, 0.74, 0.66), (0.08, 0.10, 0.14)
STAIN, ROLLER = (0.20, 0.13, 0.06), (0.07, 0.07, 0.08)


def draw(scene: np.random.Generator, flaw: np.random.Generator, defect: str, size: int) -> Colour:
    """One piece of cloth; `scene` decides everything but the defect, `flaw` only the defect."""
    shift = (scene.uniform(0, 4 * PITCH), scene.uniform(0, 4 * PITCH))
    at = plane(size).moved(shift, scene.normal(0.0, TURN), scene.normal(1.0, STRETCH))
    wave_x, wave_y = smooth_noise(scene, size, 70.0), smooth_noise(scene, size, 70.0)
    cloth = Plane(at.x + 0.9 * wave_x, at.y + 0.9 * wave_y, at.pixel)
    gains = scene.normal(1.0, 0.03, (2, 64))
    fold = 1.0 + 0.025 * smooth_noise(scene, size, 80.0)
    fibre = 1.0 + 0.05 * smooth_noise(scene, size, 2.5)
    weave = _weave(cloth, gains) * (fold * fibre)
    return _blemish(flaw, defect, cloth, shift, weave)


def _weave(cloth: Plane, gains: npt.NDArray[np.float64]) -> Colour:
    """2/2 twill: each thread passes over two and under two, one step further in every row.

    gains: (2, 64) brightness of single warp and weft threads.
    """
    u, v = cloth.x / np.float32(PITCH), cloth.y / np.float32(PITCH)
    column, row = np.floor(u), np.floor(v)
    along_warp, along_weft = np.mod(column + v, 4) / 2, np.mod(row + u, 4) / 2 - 1
    is_warp = along_warp < 1
    # A thread is round across and dives at both ends of each float.
    across = np.where(is_warp, u - column, v - row)
    along = np.where(is_warp, along_warp, along_weft)
    light = np.sqrt(4 * across * (1 - across)) * (0.72 + 0.28 * np.sin(np.pi * along))
    gain = np.where(is_warp, gains[0][column.astype(int) % 64], gains[1][row.astype(int) % 64])
    thread = np.where(is_warp, tint(WARP), tint(WEFT))
    gap = np.broadcast_to(tint(GAP), thread.shape)
    return mix(gap, thread * gain.astype(np.float32), light.astype(np.float32))


def _blemish(
    flaw: np.random.Generator, defect: str, cloth: Plane, shift: tuple[float, float], weave: Colour
) -> Colour:
    """A hole, an oil stain or a weft thread pulled out of the weave, away from the border."""
    centre = (flaw.uniform(-70, 70) - shift[0], flaw.uniform(-80, 80) - shift[1])
    if defect == "hole":
        distance = blotch_distance(flaw, cloth, centre, flaw.uniform(*HOLE_RADIUS), 0.2)
        frayed = coverage(np.abs(distance - np.float32(1.5)) - np.float32(2.5), 1.5)
        weave = mix(weave, (0.86, 0.83, 0.76), 0.6 * frayed)
        weave = mix(weave, ROLLER, coverage(distance, 1.5))
    if defect == "stain":
        distance = blotch_distance(flaw, cloth, centre, flaw.uniform(*STAIN_RADIUS), 0.2)
        soaked = STAIN_DARKNESS * coverage(distance, 5.0)
        weave = mix(weave, STAIN, soaked)
    if defect == "pulled_thread":
        weave = _pull(flaw, cloth, centre, weave)
    return weave


def _pull(
    flaw: np.random.Generator, cloth: Plane, centre: tuple[float, float], weave: Colour
) -> Colour:
    """One weft thread lies loose on top: it hides the warp and throws a shadow on the row below."""
    middle = (centre[0], (np.floor(centre[1] / PITCH) + 0.5) * PITCH)
    thread = jagged_line(flaw, middle, 0.0, flaw.uniform(*PULLED_LENGTH), 0.8)
    half = np.float32(PULLED_WIDTH * PITCH / 2)
    below = cloth.moved((0.0, float(half)), 0.0, 1.0)
    weave = mix(weave, GAP, 0.5 * coverage(line_distance(below, thread) - half, 3.0))
    across = line_distance(cloth, thread)
    light = np.clip(1.02 - 0.45 * np.square(across / half), 0.2, 1.0)
    twist = 1.0 + 0.06 * np.cos(np.float32(2 * np.pi / 5.0) * (cloth.x + cloth.y))
    loose = tint(WEFT) * (light * twist)
    return mix(weave, loose, coverage(across - half, 1.5))
