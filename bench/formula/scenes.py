"""Scenes: textured, coloured, lit shapes on textured grounds, and what is where in them.

Composed anew for every step from the bank's pictures, so that no scene comes twice. The step's
number seeds all of it: a training that goes on where it stopped sees what it would have seen.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from bench.formula.bank import Bank, pick
from bench.formula.textures import Rng

SCENES = 3
CELL = 16
"""Pixels of a side of layer3's cells: what a location is asked about."""
MAJORITY = 0.6
"""Share of a cell that one texture must fill for the cell to be asked about."""
UNASKED = -1
PRESENT = (0.6, 0.6, 0.95)
"""How often a scene has its first and second leaf, and its main shape on top."""


@dataclass(frozen=True)
class Scene:
    """A batch: images (N, H, W, 3) uint8, each cell's texture (N, H/16, W/16), each shape (N,)."""

    images: Tensor
    textures: Tensor
    shapes: Tensor


class Scenes(Dataset[tuple[Tensor, Tensor, Tensor]]):
    """A step's scenes: how many of which side is said by `plan`."""

    def __init__(self, bank: Bank, plan: Sequence[tuple[int, int]], seed: int) -> None:
        self.bank, self.plan, self.seed = bank, plan, seed

    def __len__(self) -> int:
        return len(self.plan)

    def __getitem__(self, step: int) -> tuple[Tensor, Tensor, Tensor]:
        count, size = self.plan[step]
        scene = compose(self.bank, count, size, np.random.default_rng([self.seed, SCENES, step]))
        return scene.images, scene.textures, scene.shapes


def compose(bank: Bank, count: int, size: int, rng: Rng) -> Scene:
    """Draw `count` scenes of `size` x `size` pixels, a multiple of 16."""
    canvas = torch.zeros(count, 3, size, size)
    owner = torch.full((count, size, size), UNASKED, dtype=torch.int64)
    shapes = torch.full((count,), UNASKED, dtype=torch.int64)
    light = rng.uniform(0, 2 * np.pi, count)
    for layer in range(1 + len(PRESENT)):
        texture, pictures = pick(bank.textures, count, rng)
        scale = np.exp(rng.uniform(np.log(0.75), np.log(1.4), count)) * size
        angle = rng.uniform(-0.25, 0.25, count)
        reach = pictures.shape[1] / 2 - scale * 0.65
        centre = rng.uniform(-1, 1, (count, 2)) * np.maximum(reach, 0)[:, None]
        grey = _sample(pictures, centre, scale, angle, size)
        is_flat = rng.random(count) < (0.1 if layer == 0 else 0.3)
        coloured = _colour(grey, is_flat, rng)
        owned = torch.from_numpy(np.where(is_flat, UNASKED, texture))
        if layer == 0:
            canvas, owner = coloured, owner * 0 + owned[:, None, None]
            continue
        is_main = layer == len(PRESENT)
        shape, pictures = pick(bank.shapes, count, rng)
        side = pictures.shape[1]
        share = rng.uniform(0.55, 1.1, count) if is_main else rng.uniform(0.3, 1.6, count)
        wander = 0.15 if is_main else 0.5
        centre = rng.uniform(-wander, wander, (count, 2)) * (side / share)[:, None]
        angle = rng.uniform(-0.5, 0.5, count) if is_main else rng.uniform(-np.pi, np.pi, count)
        cover = _sample(pictures, centre, side / share, angle, size)
        is_present = torch.from_numpy(rng.random(count) < PRESENT[layer - 1])
        cover *= is_present[:, None, None, None]
        canvas = torch.lerp(canvas, coloured, cover) * _bevel(cover, light, rng)
        owner = torch.where(cover[:, 0] > 0.5, owned[:, None, None], owner)
        if is_main:
            shown = is_present & (cover.mean((1, 2, 3)) > 0.02)
            shapes = torch.where(shown, torch.from_numpy(shape), UNASKED)
    return Scene(_photograph(canvas, rng), name_cells(owner), shapes)


def _sample(
    pictures: npt.NDArray[np.uint8],
    centre: npt.NDArray[np.float64],
    scale: npt.NDArray[np.float64],
    angle: npt.NDArray[np.float64],
    size: int,
) -> Tensor:
    """Turned windows of the pictures, `scale` pixels wide around `centre` (from the middle).

    Returns (N, 1, size, size), 0 to 1; beyond a picture's edge it is 0.
    """
    half = pictures.shape[1] / 2
    cos, sin = np.cos(angle) * scale / 2 / half, np.sin(angle) * scale / 2 / half
    rows = [[cos, -sin, centre[:, 0] / half], [sin, cos, centre[:, 1] / half]]
    transforms = torch.from_numpy(np.array(rows, dtype=np.float32)).permute(2, 0, 1)
    grid = F.affine_grid(transforms, [len(pictures), 1, size, size], align_corners=False)
    values = torch.from_numpy(pictures)[:, None].float() / 255
    return F.grid_sample(values, grid, align_corners=False)


def _colour(grey: Tensor, is_flat: npt.NDArray[np.bool_], rng: Rng) -> Tensor:
    """Greys (N, 1, H, W) between two colours each: (N, 3, H, W). Flat ones hardly vary."""
    count = len(grey)
    base = rng.uniform(0.05, 0.95, (count, 1)) + rng.normal(0, 1, (count, 3)) * rng.choice(
        [0.02, 0.2], (count, 1)
    )
    brighter = rng.choice([-1, 1], (count, 1)) * rng.uniform(0.25, 0.8, (count, 1))
    brighter = brighter + rng.normal(0, 1, (count, 3)) * rng.choice([0.02, 0.15], (count, 1))
    contrast = np.where(is_flat[:, None], 0.03, 1) * brighter
    low, span = (torch.from_numpy(v.astype(np.float32))[:, :, None, None] for v in (base, contrast))
    gamma = torch.from_numpy(np.exp(rng.normal(0, 0.3, count)).astype(np.float32))
    return (low + span * (grey.pow(gamma[:, None, None, None]) - 0.5)).clamp(0, 1)


def _bevel(cover: Tensor, light: npt.NDArray[np.float64], rng: Rng) -> Tensor:
    """Factor of brightness along a shape's edge, as if it stood out of its ground."""
    count = len(cover)
    soft = F.avg_pool2d(cover, 5, 1, 2, count_include_pad=False)
    down = F.pad(soft[:, :, 2:] - soft[:, :, :-2], (0, 0, 1, 1))
    right = F.pad(soft[..., 2:] - soft[..., :-2], (1, 1, 0, 0))
    depth = rng.choice([0, 1], count) * rng.uniform(0.2, 1.2, count)
    x, y = (
        torch.from_numpy((depth * turn(light)).astype(np.float32))[:, None, None, None]
        for turn in (np.cos, np.sin)
    )
    return (1 + x * right + y * down).clamp(0.3, 1.7)


def _photograph(canvas: Tensor, rng: Rng) -> Tensor:
    """Uneven light, blur and grain; (N, H, W, 3), uint8."""
    count, _, size, _ = canvas.shape

    def each(values: npt.NDArray[np.float64]) -> Tensor:
        return torch.from_numpy(values.astype(np.float32))[:, None, None, None]

    axis = torch.linspace(-1, 1, size)
    slope = rng.uniform(-0.25, 0.25, (2, count))
    lit = canvas * (1 + each(slope[0]) * axis + each(slope[1]) * axis[:, None])
    blurred = F.avg_pool2d(lit, 3, 1, 1, count_include_pad=False)
    soft = torch.lerp(lit, blurred, each(rng.choice([0, 1], count) * rng.uniform(0, 1, count)))
    grain = torch.from_numpy(rng.standard_normal((count, 1, size, size), dtype=np.float32))
    noisy = soft + grain * each(rng.uniform(0, 0.02, count))
    return (noisy * 255).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def name_cells(owner: Tensor) -> Tensor:
    """The texture that fills most of each cell, or UNASKED."""
    count, size, _ = owner.shape
    cells = owner.view(count, size // CELL, CELL, size // CELL, CELL).permute(0, 1, 3, 2, 4)
    cells = cells.flatten(3)
    middle = cells[..., CELL * CELL // 2 + CELL // 2]
    share = (cells == middle[..., None]).float().mean(-1)
    return torch.where(share >= MAJORITY, middle, UNASKED)
