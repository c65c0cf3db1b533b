"""Synthetic anomalies on good images: CutPaste and Perlin-noise blends, drawn with NumPy alone."""

import numpy as np
import numpy.typing as npt

from etstpm.images import Pixels

Mask = npt.NDArray[np.bool_]
Values = npt.NDArray[np.float64]

VISIBLE = 10
"""Grey levels of 255 by which a pixel must change, in one channel, to be anomalous: a piece of the
background pasted onto the background is good as before."""
ATTEMPTS = 10
"""Draws after which an image on which nothing shows stays good."""


def damage(image: Pixels, texture: Pixels, rng: np.random.Generator) -> tuple[Pixels, Mask]:
    """A square good image (H, W, 3) with one synthetic anomaly, and where it shows (H, W).

    One of CutPaste, CutPaste scar and Perlin-noise blend, each as likely; `texture` is another
    good image, which the blend may use.
    """
    for _ in range(ATTEMPTS):
        kind = rng.choice(["patch", "scar", "blend"])
        if kind == "blend":
            damaged = blend_perlin(image, texture, rng)
        else:
            damaged = cut_paste(image, rng, is_scar=kind == "scar")
        change = np.abs(damaged.astype(np.int16) - image).max(axis=2)
        mask: Mask = change > VISIBLE
        if mask.any():
            return damaged, mask
    return image, np.zeros(image.shape[:2], bool)


def cut_paste(image: Pixels, rng: np.random.Generator, *, is_scar: bool) -> Pixels:
    """A rectangle of the image, its colours jittered, pasted somewhere else in it.

    Source: Li et al., CutPaste, CVPR 2021, section 2.1: 2 to 15 % of the area, aspect ratio from
    0.3 to 3.3; a scar is 2-16 x 10-25 pixels of 256, turned by up to 45 degrees. Deviates: of a
    scar the outline is turned and not its content; the jitter is of brightness and contrast, 10 %.
    """
    size = len(image)
    if is_scar:
        sides = size / 256 * np.array([rng.uniform(10, 25), rng.uniform(2, 16)])
        angle = rng.uniform(-np.pi / 4, np.pi / 4)
    else:
        root_of_aspect = np.exp(rng.uniform(np.log(0.3), np.log(3.3)) / 2)
        side = size * rng.uniform(0.02, 0.15) ** 0.5
        sides, angle = side * np.array([root_of_aspect, 1 / root_of_aspect]), 0.0
    # A pixel is the least that shows.
    sides = np.maximum(sides, 1.0)
    cos, sin = abs(np.cos(angle)), abs(np.sin(angle))
    reach = np.ceil([sides[0] * cos + sides[1] * sin, sides[0] * sin + sides[1] * cos]) / 2
    target, origin = (rng.uniform(reach, size - reach) for _ in range(2))
    y, x = np.indices((size, size)) + 0.5 - target[:, None, None]
    inside = (np.abs(y * np.cos(angle) + x * np.sin(angle)) <= sides[0] / 2) & (
        np.abs(x * np.cos(angle) - y * np.sin(angle)) <= sides[1] / 2
    )
    shift = np.rint(target - origin).astype(int)
    piece = np.roll(image, shift, (0, 1))[inside].astype(np.float64)
    mean = piece.mean()
    contrast, brightness = rng.uniform(0.9, 1.1, 2)
    pasted = image.copy()
    pasted[inside] = _to_uint8((mean + (piece - mean) * contrast) * brightness)
    return pasted


def blend_perlin(image: Pixels, texture: Pixels, rng: np.random.Generator) -> Pixels:
    """A texture laid over the image, more or less opaque, where Perlin noise is high.

    Source: Zavrtanik et al., DRAEM, ICCV 2021, section 3.2: opacity from 0.1 to 1, noise turned by
    any angle. Deviates: the mask is a share of the image, 1 to 15 %, instead of all noise above a
    half, so that it is never empty; the texture is another good image, changed, or drawn noise,
    since no outside data is used.
    """
    size = len(image)
    noise = perlin_noise(size, rng)
    share = np.exp(rng.uniform(np.log(0.01), np.log(0.15)))
    mask = noise > np.quantile(noise, 1 - share)
    opacity = rng.uniform(0.1, 1.0)
    overlay = draw_texture(size, rng) if rng.random() < 0.5 else change_texture(texture, rng)
    blended = image.copy()
    blended[mask] = _to_uint8((1 - opacity) * image[mask] + opacity * overlay[mask])
    return blended


def change_texture(texture: Pixels, rng: np.random.Generator) -> Pixels:
    """A good image (H, W, 3), turned, shifted and half of the time inverted.

    Otherwise it would put the same things in the same places onto an image of its category.
    """
    shift = rng.integers(len(texture), size=2)
    turned = np.roll(np.rot90(texture, int(rng.integers(4))), shift, (0, 1))
    changed: Pixels = 255 - turned if rng.random() < 0.5 else turned
    return changed


def draw_texture(size: int, rng: np.random.Generator) -> Pixels:
    """Clouds (size, size, 3) between two colours: Perlin noise, and half as much of another."""
    clouds = 0.5 + 0.5 * (perlin_noise(size, rng) + 0.5 * perlin_noise(size, rng)) / 1.5
    first, second = rng.uniform(0, 255, (2, 3))
    return _to_uint8(first + clouds[..., None] * (second - first))


def perlin_noise(size: int, rng: np.random.Generator) -> Values:
    """Gradient noise (size, size), within -1 and 1, turned by any angle.

    Its lattice has 1, 2, 4, ... cells to the side, each axis its own number, down to cells of 8
    pixels. Source: Perlin, Improving Noise, 2002; the numbers of cells as in DRAEM's code.
    """
    cells = 2 ** rng.integers(int(np.log2(size // 8)) + 1, size=2)
    angle = rng.uniform(0, 2 * np.pi)
    axis = (np.arange(size) + 0.5) / size - 0.5
    x, y = axis, axis[:, None]
    lattice_y = cells[0] * (y * np.cos(angle) - x * np.sin(angle))
    lattice_x = cells[1] * (y * np.sin(angle) + x * np.cos(angle))
    # Turned, the image reaches half a diagonal from the lattice's middle.
    reach = np.ceil(cells * 2**-0.5).astype(int)
    directions = rng.uniform(0, 2 * np.pi, 2 * reach + 2)
    slopes_y, slopes_x = np.sin(directions), np.cos(directions)
    row, column = np.floor(lattice_y).astype(int), np.floor(lattice_x).astype(int)
    dy, dx = lattice_y - row, lattice_x - column

    def corner(down: int, right: int) -> Values:
        at = row + reach[0] + down, column + reach[1] + right
        height: Values = slopes_y[at] * (dy - down) + slopes_x[at] * (dx - right)
        return height

    fade_y, fade_x = _fade(dy), _fade(dx)
    upper = (1 - fade_x) * corner(0, 0) + fade_x * corner(0, 1)
    lower = (1 - fade_x) * corner(1, 0) + fade_x * corner(1, 1)
    # Gradients of length one reach sqrt(1/2) at the most.
    noise: Values = 2**0.5 * (upper + fade_y * (lower - upper))
    return noise


def _fade(t: Values) -> Values:
    faded: Values = t**3 * (t * (6 * t - 15) + 10)
    return faded


def _to_uint8(values: Values) -> Pixels:
    rounded: Pixels = np.rint(values).clip(0, 255).astype(np.uint8)
    return rounded
