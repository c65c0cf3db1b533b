"""What the three drawings share: coordinates, smooth noise, edges, relief and the camera.

Lengths are in *units*: a picture is always 256 units wide, whatever its pixels, so the same scene
can be drawn at any size. Distances are signed: negative inside a shape, positive outside.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt
from PIL import Image

Field = npt.NDArray[np.float32]  # (size, size): one value per pixel
Colour = npt.NDArray[
    np.float32
]  # (3, size, size): RGB, about 0..1; channel first broadcasts faster
Picture = npt.NDArray[np.uint8]  # (size, size, 3): RGB

UNITS = 256.0

# The camera of one production line: steady, but not perfect. A student sees some forty pictures;
# much more variation than this and it has not met the good test pictures' range.
EXPOSURE = 0.025  # std of the gain
WHITE_BALANCE = 0.006  # std of each channel's gain
LIGHT_FALL_OFF = 0.06  # brightness lost from the lit side to the middle
GRAIN = 0.010  # std of the sensor's noise; the subtlest defect must stand well above it


@dataclass(frozen=True)
class Plane:
    """The picture's plane in units, the origin in the middle, x to the right, y down."""

    x: Field
    y: Field
    pixel: float  # units per pixel

    def moved(self, shift: tuple[float, float], turn: float, scale: float) -> Plane:
        """The same pixels as an object sees them that lies shifted, turned (radians) and scaled."""
        x, y = self.x - np.float32(shift[0]), self.y - np.float32(shift[1])
        cos, sin = np.float32(np.cos(turn) / scale), np.float32(np.sin(turn) / scale)
        return Plane(x * cos + y * sin, y * cos - x * sin, self.pixel)


def plane(size: int) -> Plane:
    pixel = UNITS / size
    axis = ((np.arange(size) + 0.5) * pixel - UNITS / 2).astype(np.float32)
    x, y = np.meshgrid(axis, axis)
    return Plane(x, y, pixel)


def smooth_noise(rng: np.random.Generator, size: int, cell: float) -> Field:
    """Noise with mean 0 and std about 0.7 that varies over `cell` units.

    It takes as many draws for every `size`, so what is drawn after it stays the same scene.
    """
    nodes = int(np.ceil(UNITS / cell)) + 3
    coarse = Image.fromarray(rng.standard_normal((nodes, nodes), dtype=np.float32))
    window = (1.0, 1.0, 1.0 + UNITS / cell, 1.0 + UNITS / cell)
    return np.asarray(coarse.resize((size, size), Image.Resampling.BICUBIC, box=window))


def coverage(distance: Field, softness: float) -> Field:
    """How much of each pixel a shape covers, 0..1; its edge is `softness` units wide."""
    covered: Field = np.clip(0.5 - distance / np.float32(softness), 0.0, 1.0)
    return covered


def tint(colour: tuple[float, float, float]) -> Colour:
    """(3, 1, 1): times a brightness Field it is a Colour."""
    return np.asarray(colour, np.float32)[:, None, None]


def mix(under: Colour, over: Colour | tuple[float, float, float], amount: Field) -> Colour:
    top = over if isinstance(over, np.ndarray) else tint(over)
    return under + (top - under) * amount


def slopes(height: Field, pixel: float) -> tuple[Field, Field]:
    """Rise per unit to the right, and downwards."""
    right: Field = np.gradient(height, np.float32(pixel), axis=1)
    down: Field = np.gradient(height, np.float32(pixel), axis=0)
    return right, down


def relief(height: Field, pixel: float, light: float) -> Field:
    """Brightness factor of a surface of `height` units, lit at a low angle along `light`."""
    right, down = slopes(height, pixel)
    slope = right * np.float32(np.cos(light)) + down * np.float32(np.sin(light))
    brightness: Field = np.clip(1.0 + slope, 0.3, 1.6)
    return brightness


def line_distance(at: Plane, points: npt.NDArray[np.float64]) -> Field:
    """Unsigned distance to the line through `points`, shape (n, 2) as x, y."""
    nearest = np.full_like(at.x, np.inf)
    for (x0, y0), (x1, y1) in pairwise(points):
        dx, dy = np.float32(x1 - x0), np.float32(y1 - y0)
        px, py = at.x - np.float32(x0), at.y - np.float32(y0)
        along = np.clip((px * dx + py * dy) / (dx * dx + dy * dy), 0.0, 1.0)
        nearest = np.minimum(nearest, np.hypot(px - along * dx, py - along * dy))
    return nearest


def jagged_line(
    rng: np.random.Generator,
    centre: tuple[float, float],
    angle: float,
    length: float,
    jitter: float,
) -> npt.NDArray[np.float64]:
    """A line through `centre` that wanders sideways with std `jitter`; (9, 2) points as x, y."""
    along = np.linspace(-length / 2, length / 2, 9)
    aside = rng.normal(0.0, jitter, 9)
    cos, sin = np.cos(angle), np.sin(angle)
    points = (centre[0] + along * cos - aside * sin, centre[1] + along * sin + aside * cos)
    return np.stack(points, axis=1)


def blotch_distance(
    rng: np.random.Generator,
    at: Plane,
    centre: tuple[float, float],
    radius: float,
    ragged: float = 0.12,
) -> Field:
    """Signed distance, nearly, to a round spot with an uneven rim (`ragged` of its radius)."""
    x, y = at.x - np.float32(centre[0]), at.y - np.float32(centre[1])
    angle = np.arctan2(y, x)
    rim = np.zeros_like(angle)
    for waves in (2, 3, 5, 8):
        phase, height = rng.uniform(0.0, 2 * np.pi), rng.normal(0.0, ragged / np.sqrt(waves))
        rim += np.float32(height) * np.cos(np.float32(waves) * angle + np.float32(phase))
    distance: Field = np.hypot(x, y) - np.float32(radius) * np.clip(1.0 + rim, 0.5, 1.5)
    return distance


def photograph(scene: Colour, rng: np.random.Generator, at: Plane) -> Picture:
    """The camera: uneven light, exposure, white balance and grain; 8-bit RGB."""
    side = rng.normal(-0.75 * np.pi, 0.3)  # the lamp stands at the upper left
    uneven = (at.x * np.float32(np.cos(side)) + at.y * np.float32(np.sin(side))) / (UNITS / 2)
    gain = rng.normal(1.0, EXPOSURE) * rng.normal(1.0, WHITE_BALANCE, 3)
    light = (1.0 + LIGHT_FALL_OFF * uneven) * gain.astype(np.float32)[:, None, None]
    grain = rng.standard_normal(scene.shape[1:], dtype=np.float32)
    exposed = np.clip(scene * light + GRAIN * grain, 0.0, 1.0) * 255
    return np.stack(list(np.rint(exposed).astype(np.uint8)), axis=-1)
