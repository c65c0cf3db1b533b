"""Anomaly maps against a plain NumPy rebuild; scores, thresholds and what must not matter."""

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from etstpm.calibration import Calibration
from etstpm.compute import Compute
from etstpm.config import ScoringConfig
from etstpm.images import Pixels, normalise
from etstpm.matching import distance_maps
from etstpm.networks import FeaturePyramid, Pyramid, freeze, normalise_features, random_pyramid
from etstpm.scorer import FOLDS, Scorer
from etstpm.scoring import (
    ScoredImages,
    anomaly_maps,
    decision_threshold,
    image_scores,
    map_threshold,
    resize_map,
)

CPU = Compute(torch.device("cpu"), torch.float32)
SIZE = 32
Array = npt.NDArray[np.float64]


def draw_features(seed: int) -> Pyramid:
    generator = torch.Generator().manual_seed(seed)
    layer1, layer2, layer3 = (
        torch.randn((2, channels, side, side), generator=generator)
        for channels, side in ((6, 8), (10, 4), (14, 2))
    )
    return layer1, layer2, layer3


def upsample(image: Array, height: int, width: int) -> Array:
    """Bilinear with half-pixel centres: between the centres of pixels, constant beyond the last."""
    for size in (height, width):  # columns, then rows
        side = len(image)
        position = np.clip((np.arange(size) + 0.5) * side / size - 0.5, 0, side - 1)
        low = np.floor(position).astype(int)
        high = np.minimum(low + 1, side - 1)
        weight = (position - low)[:, None]
        image = (image[low] * (1 - weight) + image[high] * weight).T
    return image


def smooth(image: Array, sigma: float, radius: int) -> Array:
    """A Gaussian over columns, then over rows, the border mirrored."""
    kernel = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    kernel /= kernel.sum()
    for _ in range(2):
        padded = np.pad(image, ((radius, radius), (0, 0)), mode="reflect")
        image = sum(k * padded[i : i + len(image)] for i, k in enumerate(kernel)).T
    return image


def rebuild(
    teacher: Pyramid, student: Pyramid, fusion: str, chosen: tuple[int, ...] = (1, 2, 3)
) -> Array:
    """Wang et al. 2021, eq. 1, 2 and 4, image by image."""
    maps = []
    for number in range(len(teacher[0])):
        layers = []
        for target, feature in zip(teacher, student, strict=True):
            a, b = target[number].double().numpy(), feature[number].double().numpy()
            a, b = a / np.linalg.norm(a, axis=0), b / np.linalg.norm(b, axis=0)
            layers.append(upsample(0.5 * ((a - b) ** 2).sum(0), SIZE, SIZE))
        layers = [layers[number - 1] for number in chosen]
        maps.append(np.prod(layers, axis=0) if fusion == "product" else np.sum(layers, axis=0))
    return np.stack(maps)


@pytest.mark.parametrize("chosen", [(1, 2, 3), (2, 3), (1,)])
@pytest.mark.parametrize("fusion", ["product", "sum"])
def test_anomaly_maps_are_numpys(fusion: str, chosen: tuple[int, ...]) -> None:
    teacher, student = draw_features(0), draw_features(1)
    config = ScoringConfig.model_validate({"fusion": fusion, "smoothing_sigma": 0})
    layers = distance_maps(normalise_features(teacher), student)
    maps = anomaly_maps(layers, SIZE, config, chosen)
    assert maps.shape == (2, SIZE, SIZE)
    assert maps.dtype is torch.float32
    assert np.allclose(maps.numpy(), rebuild(teacher, student, fusion, chosen), rtol=1e-4)


def test_quantile_sum_brings_each_layer_to_one_scale_and_adds() -> None:
    layers = distance_maps(normalise_features(draw_features(0)), draw_features(1))
    config = ScoringConfig(fusion="quantile-sum", smoothing_sigma=0)
    quantiles = [(0.5, 1.0), (0.25, 0.75), (0.125, 2.125)]
    maps = anomaly_maps(layers, SIZE, config, (1, 3), quantiles)
    plain = [upsample(layer[0].double().numpy(), SIZE, SIZE) for layer in (layers[0], layers[2])]
    expected = 0.1 * (plain[0] - 0.5) / 0.5 + 0.1 * (plain[1] - 0.125) / 2
    assert np.allclose(maps[0].numpy(), expected, rtol=1e-4, atol=1e-6)
    with pytest.raises(ValueError, match="quantiles"):
        anomaly_maps(layers, SIZE, config)


@pytest.mark.parametrize(("sigma", "radius"), [(1.5, 4), (0.4, 1), (4.0, 12)])
def test_smoothing_is_a_gaussian_to_three_sigma(sigma: float, radius: int) -> None:
    teacher, student = draw_features(2), draw_features(3)
    config = ScoringConfig(fusion="product", smoothing_sigma=sigma)
    maps = anomaly_maps(distance_maps(normalise_features(teacher), student), SIZE, config)
    for found, plain in zip(maps.numpy(), rebuild(teacher, student, "product"), strict=True):
        assert np.allclose(found, smooth(plain, sigma, radius), rtol=1e-4)
        assert not np.allclose(found, plain, rtol=1e-4)


def test_smoothing_wider_than_the_image_ends_at_its_border() -> None:
    teacher, student = draw_features(2), draw_features(3)
    config = ScoringConfig(fusion="product", smoothing_sigma=32)
    maps = anomaly_maps(distance_maps(normalise_features(teacher), student), SIZE, config)
    plain = rebuild(teacher, student, "product")
    assert np.allclose(maps[0].numpy(), smooth(plain[0], 32, SIZE - 1), rtol=1e-4)


def test_image_score_is_the_largest_value() -> None:
    maps = torch.zeros(3, 4, 5)
    maps[0, 3, 4], maps[1, 0, 0], maps[1, 1, 1] = 2e-12, 3e-12, 1e-12
    assert torch.equal(image_scores(maps), torch.tensor([2e-12, 3e-12, 0]))


def test_image_score_is_the_mean_of_the_largest_share() -> None:
    maps = torch.arange(40.0).view(2, 4, 5)
    assert image_scores(maps, 0.1).tolist() == [18.5, 38.5]  # two of twenty pixels
    assert image_scores(maps, 0.001).tolist() == [19, 39]  # one at the least


@pytest.mark.parametrize(
    ("shape", "height", "width"),
    [
        ((64, 64), 80, 96),
        ((64, 64), 257, 71),
        ((5, 7), 5, 7),
        ((7, 5), 3, 40),  # an image may be smaller than the map
        ((4, 4), 1, 9),
        ((4, 4), 1, 1),
    ],
)
def test_a_map_at_the_images_own_size_is_numpys(
    shape: tuple[int, int], height: int, width: int
) -> None:
    raw = 1e-12 * np.exp(2 * np.random.default_rng(0).normal(size=shape))
    anomaly_map = raw.astype(np.float32)
    before = anomaly_map.copy()
    found = resize_map(anomaly_map, height, width)
    assert found.shape == (height, width)
    assert found.dtype == np.float32
    assert np.allclose(found, upsample(raw, height, width), rtol=1e-4, atol=0)
    assert np.array_equal(anomaly_map, before)


@pytest.fixture(scope="module")
def networks() -> tuple[FeaturePyramid, FeaturePyramid]:
    return freeze(random_pyramid(1)), freeze(random_pyramid(2))


def draw_images(count: int) -> Pixels:
    return np.random.default_rng(0).integers(0, 256, (count, 48, 48, 3), dtype=np.uint8)


def score(
    networks: tuple[FeaturePyramid, FeaturePyramid], images: Pixels, batch_size: int = 16
) -> ScoredImages:
    config = ScoringConfig(batch_size=batch_size, image_layers=(1, 2, 3), top_share=0)
    return Scorer(*networks, config, CPU).score(images)


def test_batches_do_not_matter_and_order_is_kept(
    networks: tuple[FeaturePyramid, FeaturePyramid],
) -> None:
    images = draw_images(5)
    whole = score(networks, images)
    assert whole.maps.shape == (5, 48, 48)
    assert whole.maps.dtype == np.float32
    assert whole.scores.dtype == np.float64
    assert np.array_equal(whole.scores, whole.maps.max((1, 2)))
    assert np.unique(whole.scores).size == 5
    for batch_size in (1, 2):
        parts = score(networks, images, batch_size)
        assert np.allclose(parts.maps, whole.maps, rtol=1e-3, atol=1e-9)
        assert np.allclose(parts.scores, whole.scores, rtol=1e-4)
    order = np.array([3, 0, 4, 2, 1])
    assert np.allclose(score(networks, images[order]).scores, whole.scores[order], rtol=1e-4)


def test_a_student_equal_to_its_teacher_finds_nothing(
    networks: tuple[FeaturePyramid, FeaturePyramid],
) -> None:
    scored = score((networks[0], networks[0]), draw_images(2))
    assert not scored.maps.any()
    assert not scored.scores.any()


@given(
    st.lists(st.floats(0, 1), min_size=1, max_size=60)
    | st.lists(st.sampled_from([0.0, 1e-12, 2e-12]), min_size=1, max_size=60),
    st.floats(0.001, 0.999),
)
def test_threshold_is_the_smallest_score_that_few_enough_exceed(
    scores: list[float], rate: float
) -> None:
    good = np.array(scores)
    threshold = decision_threshold(good, rate)
    assert threshold in scores
    assert np.mean(good > threshold) <= rate
    assert all(np.mean(good > lower) > rate for lower in good[good < threshold])


def test_threshold_by_hand() -> None:
    twenty = np.random.default_rng(0).permutation(np.arange(1.0, 21.0))
    assert decision_threshold(twenty, 0.05) == 19.0  # one of twenty is called defective
    assert decision_threshold(twenty, 0.1) == 18.0
    assert decision_threshold(twenty, 0.049) == 20.0  # below 1/n: the maximum
    assert decision_threshold(np.array([3e-12]), 0.5) == 3e-12


def test_calibration_gives_what_the_config_asks_for(
    networks: tuple[FeaturePyramid, FeaturePyramid],
) -> None:
    images = draw_images(3)

    def calibrated(**changes: object) -> Calibration:
        config = ScoringConfig.model_validate({"batch_size": 2, **changes})
        return Scorer(*networks, config, CPU).calibrate(images)

    assert calibrated(calibration="none") == Calibration()
    with torch.no_grad():
        teacher, student = (network(normalise(images, CPU.device)) for network in networks)
    layers = distance_maps(normalise_features(teacher), student)
    quantiles = calibrated(calibration="none", fusion="quantile-sum").quantiles
    assert quantiles is not None
    for (low, high), layer in zip(quantiles, layers, strict=True):
        assert low == pytest.approx(np.quantile(layer.numpy(), 0.9), rel=1e-4)
        assert high == pytest.approx(np.quantile(layer.numpy(), 0.995), rel=1e-4)
    both = calibrated(fusion="quantile-sum")
    assert both.quantiles is not None
    assert both.whitening is not None
    assert calibrated(calibration="variance").quantiles is None
    errors = [b - a for a, b in zip(*map(normalise_features, (teacher, student)), strict=True)]
    for whitening, error in zip(both.whitening, errors, strict=True):
        assert 0 < whitening.distances(error).mean().item() <= 1.0001


def test_an_image_unlike_the_calibrations_stands_out_more_than_without(
    networks: tuple[FeaturePyramid, FeaturePyramid],
) -> None:
    images, config = draw_images(4), ScoringConfig()
    images[3] = 255 - images[3] // 4
    scorer = Scorer(*networks, config, CPU)
    calibration = scorer.calibrate(images[:2])
    calibrated, plain = scorer.score(images, calibration), scorer.score(images)
    ratios = [scored.scores[3] / scored.scores[:3].max() for scored in (calibrated, plain)]
    assert ratios[0] > 1.8 * ratios[1]


def test_image_scores_come_from_the_image_layers_and_maps_from_theirs(
    networks: tuple[FeaturePyramid, FeaturePyramid],
) -> None:
    images = draw_images(2)

    def scored(**changes: object) -> ScoredImages:
        config = ScoringConfig.model_validate(changes)
        return Scorer(*networks, config, CPU).score(images)

    both = scored(image_layers=(3, 2), top_share=0)
    alike = scored(image_layers=(1, 2, 3), top_share=0)
    assert np.array_equal(both.maps, alike.maps)
    assert np.array_equal(alike.scores, alike.maps.max((1, 2)))
    assert np.array_equal(both.scores, scored(map_layers=(2, 3)).maps.max((1, 2)))
    assert not np.array_equal(both.scores, alike.scores)


def test_maps_have_the_images_threshold_where_both_are_of_the_same_layers(
    networks: tuple[FeaturePyramid, FeaturePyramid],
) -> None:
    images = draw_images(5)
    for layers in ((1, 2, 3), (2, 3)):
        config = ScoringConfig.model_validate({"image_layers": layers, "false_alarm_rate": 0.2})
        scored = Scorer(*networks, config, CPU).score(images)
        of_images = decision_threshold(scored.scores, 0.2)
        is_same = map_threshold(scored.maps, config) == pytest.approx(of_images, rel=1e-6)
        assert is_same == (layers == config.map_layers)


def test_held_out_scores_are_those_of_new_images() -> None:
    """Scored by the calibration that they made themselves, all new good images look defective."""
    pixels = np.random.default_rng(0).integers(0, 256, (60, SIZE, SIZE, 3), np.uint8)
    held_out, new = pixels[:12], pixels[12:]
    networks = freeze(random_pyramid(0)), freeze(random_pyramid(1))
    scorer = Scorer(*networks, ScoringConfig(), CPU)
    calibration, cross_fitted = scorer.cross_fit(held_out)

    def false_alarms(good_scores: Array) -> float:
        threshold = decision_threshold(good_scores, scorer.config.false_alarm_rate)
        return float(np.mean(scorer.score(new, calibration).scores > threshold))

    own = scorer.score(held_out, calibration)
    assert cross_fitted.maps.shape == own.maps.shape
    assert false_alarms(own.scores) > 0.9
    assert false_alarms(cross_fitted.scores) < 0.2


@pytest.mark.parametrize("fusion", ["sum", "quantile-sum"])
@pytest.mark.parametrize("calibration", ["covariance", "variance"])
def test_cross_fitting_is_the_calibration_of_all_others(calibration: str, fusion: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (13, SIZE, SIZE, 3), np.uint8)
    networks = freeze(random_pyramid(0)), freeze(random_pyramid(1))
    config = ScoringConfig.model_validate({"calibration": calibration, "fusion": fusion})
    scorer = Scorer(*networks, config, CPU)
    whole, found = scorer.cross_fit(pixels)
    expected = scorer.score(pixels, scorer.calibrate(pixels))
    assert np.allclose(scorer.score(pixels, whole).maps, expected.maps, rtol=1e-3, atol=1e-3)
    for fold in (0, 7):
        mine = np.arange(13) % FOLDS == fold
        expected = scorer.score(pixels[mine], scorer.calibrate(pixels[~mine]))
        assert np.allclose(found.scores[mine], expected.scores, rtol=1e-3, atol=1e-4)
        assert np.allclose(found.maps[mine], expected.maps, rtol=1e-3, atol=1e-4)


def test_without_calibration_cross_fitting_changes_nothing_and_one_image_is_enough() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, SIZE, SIZE, 3), np.uint8)
    networks = freeze(random_pyramid(0)), freeze(random_pyramid(1))
    config = ScoringConfig(calibration="none", batch_size=1)
    expected = Scorer(*networks, config, CPU).score(pixels)
    calibration, found = Scorer(*networks, config, CPU).cross_fit(pixels)
    assert calibration == Calibration()
    assert np.array_equal(found.scores, expected.scores)
    assert np.array_equal(found.maps, expected.maps)
    _, alone = Scorer(*networks, ScoringConfig(), CPU).cross_fit(pixels[:1])
    assert np.isfinite(alone.scores).all()
