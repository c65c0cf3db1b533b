"""Classes of textures, drawn by formulas: grey, stationary, in pixels as a camera has them.

A class is a family and its parameters; an instance is another draw of the same class. Every family
takes two generators: `kind`, seeded by the class, draws the parameters; `rng`, seeded by class and
instance, draws the rest. Sources: Baradad et al., Learning to See by Looking at Noise, NeurIPS 2021
(spectra, random networks); Perlin 1985 (marble); Worley 1996 (cells); van Wijk 1991 (spot noise).
"""

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from scipy.spatial import cKDTree

Field = npt.NDArray[np.float64]
Grey = npt.NDArray[np.uint8]
Rng = np.random.Generator
Family = Callable[[Rng, Rng, int], Field]

TEXTURES = 1
"""Distinguishes the seeds of textures from those of shapes and scenes."""


def draw_texture(seed: int, number: int, instance: int, size: int) -> Grey:
    """Instance of a class of textures: (size, size) uint8, its contrast stretched to the full."""
    kind = np.random.default_rng([seed, TEXTURES, number])
    rng = np.random.default_rng([seed, TEXTURES, number, instance])
    field = FAMILIES[number % len(FAMILIES)](kind, rng, size)
    low, high = np.percentile(field, (1, 99))
    stretched: Grey = ((field - low) / max(high - low, 1e-9) * 255).clip(0, 255).astype(np.uint8)
    return stretched


def draw_spectrum(kind: Rng, rng: Rng, size: int) -> Field:
    """Noise with a power law's spectrum or a band's, more or less oriented."""
    frequency, angle = _frequencies(size)
    if kind.random() < 0.5:
        amplitude = frequency ** -kind.uniform(0.4, 2.2)
    else:
        octaves = np.log2(frequency / _between(kind, 1 / 32, 1 / 3))
        amplitude = np.exp(-0.5 * (octaves / kind.uniform(0.15, 0.8)) ** 2)
    direction, sharpness = kind.uniform(0, np.pi), kind.choice([0.0, kind.uniform(0.5, 8.0)])
    amplitude *= np.exp(sharpness * (np.cos(2 * (angle - direction)) - 1))
    return _filter(rng.standard_normal((size, size)), amplitude)


def draw_grating(kind: Rng, rng: Rng, size: int) -> Field:
    """One wave or two crossing ones: stripes, checks, weaves, more or less straight."""
    x, y = _warped(rng, size, kind.choice([0.0, kind.uniform(0.5, 4.0)]))
    angle = kind.uniform(0, np.pi)
    waves = []
    for _ in range(2):
        period = _between(kind, 4, 32) * np.exp(rng.normal(0, 0.03))
        phase = (x * np.cos(angle) + y * np.sin(angle)) / period + rng.random()
        waves.append(_profile(kind, phase))
        angle += kind.uniform(np.pi / 4, 3 * np.pi / 4)
    first, second = waves
    joined: list[Field] = [
        first,
        first + second,
        first * second,
        np.maximum(first, second),
        np.where(first > 0, second, -second),
        np.abs(first - second),
    ]
    return joined[kind.integers(len(joined))]


def draw_cells(kind: Rng, rng: Rng, size: int) -> Field:
    """Voronoi cells of scattered or jittered points: their greys, edges or distances."""
    spacing, jitter = _between(kind, 6, 32), kind.uniform(0.1, 1.0)
    stretch, angle = _between(kind, 1, 2.5), kind.uniform(0, np.pi)
    side = int(np.ceil(size * stretch / spacing)) + 4
    grid = np.stack(np.meshgrid(np.arange(side), np.arange(side)), -1).reshape(-1, 2).astype(float)
    points = (grid + jitter * rng.uniform(-0.5, 0.5, grid.shape) + rng.random(2)) * spacing
    x, y = _warped(rng, size, 0.0)
    turned = _turned(x - size / 2, y - size / 2, angle)
    at = np.stack([turned[0] * stretch, turned[1]], -1) + side * spacing / 2
    distance, nearest = cKDTree(points).query(at, k=2, workers=1)
    edge = (distance[..., 1] - distance[..., 0]) / spacing
    grey = rng.random(len(points))[nearest[..., 0]]
    joined: list[Field] = [
        distance[..., 0],
        edge,
        np.minimum(edge, kind.uniform(0.05, 0.3)),
        grey,
        grey * (edge > kind.uniform(0.05, 0.2)),
    ]
    return joined[kind.integers(len(joined))]


def draw_spots(kind: Rng, rng: Rng, size: int) -> Field:
    """Spot noise: grains, rings, fibres, scratches, strewn or on a lattice."""
    radius = _between(kind, 1.5, 12)
    outline = kind.integers(5)
    direction, spread = kind.uniform(0, np.pi), kind.choice([0.0, kind.uniform(0.05, np.pi / 2)])
    share = _between(kind, 0.1, 1.5) * size**2 / (np.pi * radius**2)
    count = int(share) + 1
    is_lattice = kind.random() < 0.3
    has_signs = kind.random() < 0.5
    offset = ((np.arange(size) + size // 2) % size - size // 2).astype(np.float64)
    total = np.zeros((size, size))
    for _ in range(4):  # orientations
        if is_lattice:
            step = max(4.0, (size**2 / count) ** 0.5)
            axis = np.arange(0, size, step)
            places = np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2) + rng.random(2) * step
            places = places[rng.random(len(places)) < 0.3]
        else:
            places = rng.uniform(0, size, (count // 4 + 1, 2))
        impulses = np.zeros((size, size))
        rows, columns = places.astype(int).T % size
        heights = rng.uniform(0.4, 1, len(places))
        np.add.at(
            impulses,
            (rows, columns),
            heights * np.where(has_signs & (rng.random(len(places)) < 0.5), -1, 1),
        )
        angle = direction + rng.uniform(-spread, spread)
        u, v = _turned(*np.meshgrid(offset, offset), angle)
        total += _convolve(impulses, _spot(int(outline), u / radius, v / radius))
    return np.tanh(total)


def draw_marble(kind: Rng, rng: Rng, size: int) -> Field:
    """Fractal noise bent through a wave, a ridge or steps; its plane warped by other noise."""
    frequency, angle = _frequencies(size)
    amplitude = (frequency**2 + _between(kind, 1 / 64, 1 / 12) ** 2) ** (
        -kind.uniform(1.2, 2.2) / 2
    )
    amplitude *= np.exp(kind.uniform(0, 2) * (np.cos(2 * (angle - kind.uniform(0, np.pi))) - 1))
    noise = _unit(_filter(rng.standard_normal((size, size)), amplitude))
    wave = kind.uniform(1, 8)
    x, y = _warped(rng, size, 0.0)
    slope = (x * np.cos(wave) + y * np.sin(wave)) / _between(kind, 6, 64)
    bent: list[Field] = [
        np.sin(wave * noise),
        np.abs(noise),
        np.round(noise * kind.uniform(0.7, 2.0)),
        np.sin(slope + kind.uniform(0.5, 3.0) * noise),
        np.maximum(noise, kind.uniform(-0.5, 0.8)),
    ]
    return bent[kind.integers(len(bent))]


def draw_network(kind: Rng, rng: Rng, size: int) -> Field:
    """White noise through a small random convolutional network, at a random scale."""
    scale = int(kind.choice([1, 2, 3, 5]))
    side = -(-size // scale) + 12
    noise = rng.standard_normal((1, 4, side, side), dtype=np.float32)
    channels = (4, 8, 8, 1)
    values = torch.from_numpy(noise)
    with torch.no_grad():
        for wide, narrow in pairwise(channels):
            weight = kind.standard_normal((narrow, wide, 5, 5), dtype=np.float32)
            weight *= np.exp(-kind.uniform(0.05, 0.5) * _radii(5) ** 2)
            weight /= np.sqrt((weight**2).sum((1, 2, 3), keepdims=True))
            values = F.conv2d(values, torch.from_numpy(weight.astype(np.float32)))
            values = torch.sin(2 * values) if kind.random() < 0.5 else F.leaky_relu(values, 0.1)
    enlarged = F.interpolate(values, scale_factor=scale, mode="bicubic")[0, 0, :size, :size]
    grey: Field = enlarged.double().numpy()
    return grey


def draw_tiles(kind: Rng, rng: Rng, size: int) -> Field:
    """Bricks, squares and slats with joints, each with its own grey."""
    x, y = _warped(rng, size, kind.choice([0.0, kind.uniform(0.3, 2.0)]))
    u, v = _turned(x, y, kind.uniform(0, np.pi))
    width, height = _between(kind, 8, 48), _between(kind, 6, 32)
    row = np.floor(v / height + rng.random())
    along = u / width + row * kind.choice([0.0, 0.5, 1 / 3]) + rng.random()
    column = np.floor(along)
    across = v / height - row
    across -= np.floor(across)
    inset = np.minimum(
        np.minimum(along - column, 1 - along + column) * width,
        np.minimum(across, 1 - across) * height,
    )
    joint = np.clip(inset / kind.uniform(0.7, 4.0) - 0.3, 0, 1)
    greys = rng.uniform(1 - kind.uniform(0.05, 0.9), 1, (64, 64))
    tiled: Field = joint * greys[row.astype(int) % 64, column.astype(int) % 64]
    return tiled


FAMILIES: tuple[Family, ...] = (
    draw_spectrum,
    draw_grating,
    draw_cells,
    draw_spots,
    draw_marble,
    draw_network,
    draw_tiles,
)


def _between(rng: Rng, low: float, high: float) -> float:
    """Between the two, each octave as likely."""
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


def _frequencies(size: int) -> tuple[Field, Field]:
    """Radius, in cycles a pixel (never 0), and angle of each frequency of an FFT."""
    axis = np.fft.fftfreq(size)
    x, y = np.meshgrid(axis, axis)
    return np.maximum(np.hypot(x, y), 1 / size), np.arctan2(y, x)


def _filter(values: Field, amplitude: Field) -> Field:
    filtered: Field = np.fft.ifft2(np.fft.fft2(values) * amplitude).real
    return filtered


def _convolve(values: Field, kernel: Field) -> Field:
    convolved: Field = np.fft.ifft2(np.fft.fft2(values) * np.fft.fft2(kernel)).real
    return convolved


def _unit(values: Field) -> Field:
    scaled: Field = (values - values.mean()) / (values.std() + 1e-12)
    return scaled


def _warped(rng: Rng, size: int, pixels: float) -> tuple[Field, Field]:
    """Coordinates of the pixels, each moved smoothly by about so many pixels."""
    x, y = np.meshgrid(np.arange(size, dtype=float), np.arange(size, dtype=float))
    if pixels == 0:
        return x, y
    amplitude = np.exp(-((_frequencies(size)[0] * 40) ** 2))
    dx, dy = (_unit(_filter(rng.standard_normal((size, size)), amplitude)) for _ in range(2))
    return x + pixels * dx, y + pixels * dy


def _turned(x: Field, y: Field, angle: float) -> tuple[Field, Field]:
    cos, sin = np.cos(angle), np.sin(angle)
    return x * cos + y * sin, y * cos - x * sin


def _profile(kind: Rng, phase: Field) -> Field:
    """A wave of period 1 between -1 and 1: sine, rectangle, saw or thin lines."""
    sine = np.sin(2 * np.pi * phase)
    share = phase - np.floor(phase)
    profiles: list[Field] = [
        sine,
        np.tanh(kind.uniform(2, 8) * (sine - kind.uniform(-0.7, 0.7))),
        2 * share - 1,
        2 * np.abs(sine) ** kind.uniform(0.2, 0.6) - 1,
    ]
    return profiles[kind.integers(len(profiles))]


def _radii(side: int) -> Field:
    axis = np.arange(side) - (side - 1) / 2
    radii: Field = np.hypot(*np.meshgrid(axis, axis))
    return radii


def _spot(outline: int, u: Field, v: Field) -> Field:
    """One spot's height in its own coordinates (1: its radius)."""
    radius = np.hypot(u, v)
    spots: list[Field] = [
        np.clip(3 * (1 - radius), 0, 1),
        np.exp(-(((radius - 0.8) / 0.25) ** 2)),
        np.exp(-((u / 2.5) ** 4) - (v / 0.25) ** 2),
        np.exp(-(radius**2)) * np.cos(4 * u),
        np.clip(3 * (1 - np.maximum(np.abs(u), 2 * np.abs(v))), 0, 1),
    ]
    return spots[outline]
