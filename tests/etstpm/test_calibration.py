"""Whitening and quantiles of a student's errors, against NumPy and SciPy."""

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.spatial.distance import mahalanobis
from sklearn.covariance import oas
from torch import Tensor

from etstpm.calibration import (
    SHRINKAGE,
    UNCALIBRATED,
    Calibration,
    distances,
    fit_quantiles,
    fit_whitening,
    measure,
    shrink,
    zones,
)
from etstpm.networks import Pyramid


def draw_errors(seed: int, images: int = 4) -> Pyramid:
    """Errors with a mean, correlated channels and unequal variances."""
    generator = torch.Generator().manual_seed(seed)

    def layer(channels: int, side: int) -> Tensor:
        white = torch.randn((images, channels, side, side), generator=generator)
        mix = torch.randn((channels, channels), generator=torch.Generator().manual_seed(channels))
        scale = torch.linspace(0.01, 1, channels)[:, None]
        return torch.einsum("dc,nchw->ndhw", scale * mix, white) + 0.3

    return layer(6, 12), layer(8, 10), layer(10, 8)


def rows_of(errors: Tensor) -> np.ndarray:
    return errors.permute(0, 2, 3, 1).flatten(0, 2).double().numpy()


def test_distances_are_scipys_mahalanobis_distances() -> None:
    fitted, seen = draw_errors(0), draw_errors(1)
    whitening = fit_whitening(measure([fitted]), is_diagonal=False, is_levelled=False)
    for error, known, found in zip(seen, fitted, distances(seen, whitening), strict=True):
        rows = rows_of(known)
        covariance = np.cov(rows.T, bias=True)
        share = max(SHRINKAGE, oas(rows)[1])
        identity = np.diag(covariance).mean() * np.eye(len(covariance))
        covariance = (1 - share) * covariance + share * identity
        precision, mean = np.linalg.inv(covariance), rows.mean(0)
        expected = [mahalanobis(row, mean, precision) ** 2 / len(mean) for row in rows_of(error)]
        assert np.allclose(found.flatten().numpy(), expected, rtol=1e-3)


@pytest.mark.parametrize("count", [2, 9, 60, 4000])
def test_shrinkage_is_scikit_learns_but_for_its_least_share(count: int) -> None:
    rows = np.random.default_rng(count).normal(size=(count, 12)) * np.geomspace(0.01, 3, 12)
    expected, share = oas(rows)
    found = shrink(torch.from_numpy(np.cov(rows.T, bias=True)), count).numpy()
    if share < SHRINKAGE:
        expected = (1 - SHRINKAGE) * np.cov(rows.T, bias=True)
        expected += SHRINKAGE * np.diag(np.full(12, rows.var(0).mean()))
    assert np.allclose(found, expected, rtol=1e-6)
    assert (share > SHRINKAGE) == (count < 60)


def test_variance_weighs_each_channel_by_itself() -> None:
    fitted, seen = draw_errors(0), draw_errors(1)
    whitening = fit_whitening(measure([fitted]), is_diagonal=True, is_levelled=False)
    for error, known, found in zip(seen, fitted, distances(seen, whitening), strict=True):
        rows = rows_of(known)
        drawn = shrink(torch.from_numpy(np.diag(rows.var(0))), len(rows))
        variance = drawn.diagonal().numpy()
        expected = ((rows_of(error) - rows.mean(0)) ** 2 / variance).mean(1)
        assert np.allclose(found.flatten().numpy(), expected, rtol=1e-3)


@pytest.mark.parametrize("is_diagonal", [False, True])
def test_good_images_are_one_unit_off_whatever_the_batches(is_diagonal: bool) -> None:
    errors = draw_errors(2)
    whole = fit_whitening(measure([errors]), is_diagonal=is_diagonal, is_levelled=False)
    single = [tuple(layer[i : i + 1] for layer in errors) for i in range(4)]
    parts = fit_whitening(measure(single), is_diagonal=is_diagonal, is_levelled=False)  # type: ignore[arg-type]
    for one, other, found in zip(whole, parts, distances(errors, whole), strict=True):
        assert torch.allclose(one.matrix, other.matrix, rtol=1e-3, atol=1e-3)
        assert 0.5 < found.mean().item() <= 1.0001  # 1, less what shrinkage takes


def test_one_image_with_fewer_locations_than_channels_is_enough() -> None:
    generator = torch.Generator().manual_seed(0)
    errors = tuple(torch.randn((1, 64, 2, 2), generator=generator) for _ in range(3))
    whitening = fit_whitening(measure([errors]), is_diagonal=False, is_levelled=False)  # type: ignore[list-item]
    for found in distances(errors, whitening):  # type: ignore[arg-type]
        assert bool(torch.isfinite(found).all())


def test_a_student_that_errs_nowhere_does_not_divide_by_zero() -> None:
    errors = tuple(torch.zeros((2, 4, 3, 3)) for _ in range(3))
    whitening = fit_whitening(measure([errors]), is_diagonal=False, is_levelled=False)  # type: ignore[list-item]
    for found in distances(errors, whitening):  # type: ignore[arg-type]
        assert bool((found == 0).all())


@pytest.mark.parametrize("side", [1, 3, 4, 9, 20])
def test_every_place_is_in_the_zone_of_its_distance_to_the_border(side: int) -> None:
    found = zones(side, side, min(2, side // 4)).tolist()
    for row in range(side):
        for column in range(side):
            away = min(row, column, side - 1 - row, side - 1 - column)
            expected = {9: [0, 1, 2, 2, 3], 20: [0, 1, 2, 2] + 6 * [3], 4: [0, 1]}.get(side)
            assert found[row][column] == (expected[away] if expected else 1)


def scale_border(errors: Pyramid, width: int, factor: float) -> None:
    """Errors of mean 0 along the border times a factor."""
    for error in errors:
        error.sub_(0.3)
        inner = error[..., width:-width, width:-width].clone()
        error.mul_(factor)
        error[..., width:-width, width:-width] = inner


def test_a_border_that_errs_more_on_good_images_is_levelled_and_nothing_else() -> None:
    good, seen = draw_errors(8, images=40), draw_errors(9, images=40)
    for errors in (good, seen):
        scale_border(errors, 1, 3)
    as_is, levelled = (
        distances(seen, fit_whitening(measure([good]), is_diagonal=False, is_levelled=chosen))
        for chosen in (False, True)
    )
    for before, after in zip(as_is, levelled, strict=True):
        assert torch.equal(before[:, 3:-3, 3:-3], after[:, 3:-3, 3:-3])
        zone = zones(len(before[0]), len(before[0]), len(before[0]) // 4)
        border, next_to_it = zone == 0, zone == before.shape[1] // 4
        assert before[:, border].mean() > 2 * before[:, next_to_it].mean()
        expected = after[:, next_to_it].mean().item()
        assert after[:, border].mean().item() == pytest.approx(expected, rel=0.2)


def test_a_border_that_errs_less_stays_as_it_is() -> None:
    errors = draw_errors(8, images=20)
    scale_border(errors, 1, 0.2)
    for layer in fit_whitening(measure([errors]), is_diagonal=False, is_levelled=True):
        assert layer.border[0] == 1


@pytest.mark.parametrize("is_diagonal", [False, True])
def test_a_mean_distance_by_moments_is_the_mean_of_the_distances(is_diagonal: bool) -> None:
    errors = draw_errors(10)
    parts = measure([errors])
    whitening = fit_whitening(parts, is_diagonal=is_diagonal, is_levelled=False)
    for layer, error, moments in zip(whitening, errors, parts, strict=True):
        found = layer.distances(error)
        zone = zones(found.shape[1], found.shape[2], len(moments) - 2)
        for number, part in enumerate(moments[:-1]):  # small layers have no rest
            mean = part.distance(layer.mean.double(), layer.matrix.double())
            assert mean == pytest.approx(found[:, zone == number].mean().item(), rel=1e-3)


def test_without_a_whitening_it_is_half_the_squared_distance() -> None:
    errors = draw_errors(3)
    for error, found in zip(errors, distances(errors, None), strict=True):
        expected = 0.5 * (error.double().numpy() ** 2).sum(1)
        assert np.allclose(found.numpy(), expected, rtol=1e-5)


def test_quantiles_are_numpys_over_all_batches() -> None:
    one, other = (distances(draw_errors(seed), None) for seed in (4, 5))
    found = fit_quantiles([one, other])
    for (low, high), a, b in zip(found, one, other, strict=True):
        both = np.concatenate([a.numpy().ravel(), b.numpy().ravel()])
        assert (low, high) == pytest.approx(tuple(np.quantile(both, (0.9, 0.995))), rel=1e-6)


def test_a_saved_calibration_comes_back_to_the_bit(tmp_path: Path) -> None:
    fitted, seen = draw_errors(6), draw_errors(7)
    whitening = fit_whitening(measure([fitted]), is_diagonal=False, is_levelled=False)
    saved = Calibration(whitening, fit_quantiles([distances(fitted, whitening)]))
    saved.save(tmp_path / "calibration.safetensors")

    loaded = Calibration.load(tmp_path / "calibration.safetensors", torch.device("cpu"))

    assert loaded.quantiles == saved.quantiles
    for one, other in zip(
        distances(seen, whitening), distances(seen, loaded.whitening), strict=True
    ):
        assert torch.equal(one, other)


def test_a_calibration_that_was_not_asked_for_is_saved_as_none(tmp_path: Path) -> None:
    UNCALIBRATED.save(tmp_path / "calibration.safetensors")

    assert (
        Calibration.load(tmp_path / "calibration.safetensors", torch.device("cpu")) == UNCALIBRATED
    )
