import numpy as np
import pytest

from etstpm.finetuning import anomalies
from etstpm.finetuning.anomalies import (
    VISIBLE,
    blend_perlin,
    change_texture,
    cut_paste,
    damage,
    draw_texture,
    perlin_noise,
)
from etstpm.images import Pixels


def draw_image(size: int, seed: int = 0) -> Pixels:
    return np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)


@pytest.mark.parametrize("size", [32, 48, 64, 256])
def test_a_mask_says_exactly_where_the_image_visibly_changed(size: int) -> None:
    image, texture, rng = draw_image(size), draw_image(size, 1), np.random.default_rng(2)
    before = image.copy()
    areas = []
    for _ in range(40):
        damaged, mask = damage(image, texture, rng)
        assert damaged.dtype == np.uint8
        change = np.abs(damaged.astype(int) - image).max(axis=2)
        assert np.array_equal(mask, change > VISIBLE)
        areas.append(mask.mean())
    assert np.array_equal(image, before)
    assert 0 < min(areas) < 0.02  # scars are small
    assert max(areas) <= 0.17
    assert len(set(areas)) > 20


def test_a_seed_gives_the_same_anomaly() -> None:
    image, texture = draw_image(64), draw_image(64, 1)
    first, again, other = (
        damage(image, texture, np.random.default_rng(seed)) for seed in (5, 5, 6)
    )
    assert np.array_equal(first[0], again[0])
    assert np.array_equal(first[1], again[1])
    assert not np.array_equal(first[0], other[0])


def test_background_on_background_is_drawn_again() -> None:
    flat, rng = np.full((32, 32, 3), 50, np.uint8), np.random.default_rng(0)
    pasted = cut_paste(flat, rng, is_scar=False)
    assert np.abs(pasted.astype(int) - 50).max() <= VISIBLE
    # Of three kinds only the blend shows.
    shown = [damage(flat, draw_image(32), rng)[1].any() for _ in range(40)]
    assert np.mean(shown) > 0.8


def test_an_image_on_which_nothing_shows_stays_good(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(anomalies, "VISIBLE", 255)
    image = draw_image(32)
    damaged, mask = damage(image, image, np.random.default_rng(0))
    assert np.array_equal(damaged, image)
    assert mask.shape == (32, 32)
    assert not mask.any()


def test_cut_paste_takes_the_images_own_content() -> None:
    """Black on the left, white on the right: what is pasted is almost one or the other."""
    image = np.zeros((64, 64, 3), np.uint8)
    image[:, 32:] = 255
    for seed in range(30):
        pasted = cut_paste(image, np.random.default_rng(seed), is_scar=False)
        values = np.unique(pasted)
        assert ((values < 60) | (values > 195)).all()
        changed = (pasted != image).any(axis=2)
        assert changed.mean() <= 0.16
        rows, columns = np.flatnonzero(changed.any(1)), np.flatnonzero(changed.any(0))
        if len(rows):  # one rectangle: no piece comes back in at the other side
            assert np.ptp(rows) < 64 * 0.75
            assert np.ptp(columns) < 64 * 0.75


def test_a_scar_is_thin_and_turned() -> None:
    image = draw_image(256)
    areas, boxes = [], []
    for seed in range(40):
        pasted = cut_paste(image, np.random.default_rng(seed), is_scar=True)
        changed = (pasted != image).any(axis=2)
        rows, columns = np.flatnonzero(changed.any(1)), np.flatnonzero(changed.any(0))
        areas.append(changed.sum())
        boxes.append((np.ptp(rows) + 1) * (np.ptp(columns) + 1))
    assert 10 <= min(areas) <= max(areas) <= 16 * 25 * 1.1
    # A turned rectangle does not fill its box.
    assert np.mean(np.array(areas) / np.array(boxes)) < 0.8


def test_a_blend_lays_texture_over_a_share_of_the_image() -> None:
    image = np.full((64, 64, 3), 128, np.uint8)
    shares = []
    for seed in range(60):
        rng = np.random.default_rng(seed)
        shares.append((blend_perlin(image, draw_image(64), rng) != image).any(axis=2).mean())
    assert 0.005 < min(shares) < 0.03
    assert 0.10 < max(shares) <= 0.15


@pytest.mark.parametrize("size", [32, 48, 256])
def test_perlin_noise_is_smooth_bounded_and_never_the_same(size: int) -> None:
    rng = np.random.default_rng(0)
    noises = np.stack([perlin_noise(size, rng) for _ in range(50)])
    assert noises.shape == (50, size, size)
    assert np.abs(noises).max() <= 1
    assert 0.2 < noises.std() < 0.45
    assert abs(noises.mean()) < 0.1
    assert min(noise.std() for noise in noises) > 0.05
    # A cell is eight pixels or more: from one pixel to the next the noise cannot jump.
    assert max(np.abs(np.diff(noises, axis=axis)).max() for axis in (1, 2)) < 0.5


def test_perlin_noise_vanishes_at_its_lattice() -> None:
    """Gradient noise is 0 at each point of the lattice: at the middle of the image, always."""
    noises = [perlin_noise(256, np.random.default_rng(seed)) for seed in range(30)]
    middles = np.array([np.abs(noise[127:129, 127:129]).max() for noise in noises])
    assert (middles < 0.2).all()
    assert middles.mean() < 0.25 * np.mean([noise.std() for noise in noises])


def test_textures_are_images() -> None:
    rng = np.random.default_rng(1)
    clouds = [draw_texture(48, rng) for _ in range(20)]
    assert all(cloud.shape == (48, 48, 3) and cloud.dtype == np.uint8 for cloud in clouds)
    assert np.std([cloud.mean() for cloud in clouds]) > 10
    image = draw_image(48)
    changed = change_texture(image, rng)
    assert not np.array_equal(changed, image)
    values = {tuple(np.sort(picture.ravel())[:9]) for picture in (image, 255 - image)}
    assert tuple(np.sort(changed.ravel())[:9]) in values
