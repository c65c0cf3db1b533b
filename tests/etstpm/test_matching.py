"""The matching loss and the maps against plain loops and NumPy."""

import numpy as np
import pytest
import torch

from etstpm.matching import distance_maps, matching_loss
from etstpm.networks import Pyramid, normalise_features


def draw_features(seed: int) -> Pyramid:
    """Three layers of signed features for two images of 64x64."""
    generator = torch.Generator().manual_seed(seed)
    layer1, layer2, layer3 = (
        torch.randn((2, channels, side, side), generator=generator)
        for channels, side in ((64, 16), (128, 8), (256, 4))
    )
    return layer1, layer2, layer3


def unit(features: Pyramid) -> list[np.ndarray]:
    return [
        layer / np.linalg.norm(layer, axis=1, keepdims=True)
        for layer in (feature.double().numpy() for feature in features)
    ]


def test_l2_loss_is_a_plain_double_loop() -> None:
    teacher, student = draw_features(0), draw_features(1)
    expected = 0.0
    for target, feature in zip(unit(teacher), unit(student), strict=True):
        count, _, height, width = target.shape
        for image in range(count):
            for row in range(height):
                for column in range(width):
                    difference = feature[image, :, row, column] - target[image, :, row, column]
                    expected += 0.5 * float(difference @ difference) / (count * height * width)
    loss = matching_loss(normalise_features(teacher), student, "l2")
    assert loss.dtype is torch.float32
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_l2_loss_is_one_minus_the_cosine() -> None:
    teacher, student = draw_features(2), draw_features(3)
    cosines = [(a * b).sum(1).mean() for a, b in zip(unit(teacher), unit(student), strict=True)]
    loss = matching_loss(normalise_features(teacher), student, "l2")
    assert loss.item() == pytest.approx(sum(1 - cosine for cosine in cosines), rel=1e-5)


def test_l1_cosine_loss_is_numpys() -> None:
    teacher, student = draw_features(4), draw_features(5)
    expected = sum(
        np.abs(a - b).sum(1).mean() + 1 - (a * b).sum(1).mean()
        for a, b in zip(unit(teacher), unit(student), strict=True)
    )
    loss = matching_loss(normalise_features(teacher), student, "l1-cosine")
    assert loss.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("kind", ["l2", "l1-cosine"])
def test_hard_locations_of_each_image_make_the_loss(kind: str) -> None:
    teacher, student = draw_features(9), draw_features(10)
    expected = 0.0
    for a, b in zip(unit(teacher), unit(student), strict=True):
        distance = 1 - (a * b).sum(1)
        if kind == "l1-cosine":
            distance = distance + np.abs(a - b).sum(1)
        count = max(1, round(0.3 * distance[0].size))
        hardest = np.sort(distance.reshape(len(distance), -1), axis=1)[:, -count:]
        expected += hardest.mean()
    loss = matching_loss(normalise_features(teacher), student, kind, hard_share=0.3)
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_losses_do_not_depend_on_the_students_scale() -> None:
    teacher, student = normalise_features(draw_features(6)), draw_features(7)
    layer1, layer2, layer3 = (1000 * layer for layer in student)
    for kind in ("l2", "l1-cosine"):
        scaled = matching_loss(teacher, (layer1, layer2, layer3), kind)
        assert scaled.item() == pytest.approx(
            matching_loss(teacher, student, kind).item(), rel=1e-5
        )


@pytest.mark.parametrize("kind", ["l2", "l1-cosine"])
@pytest.mark.parametrize("is_dead", [False, True], ids=["no difference", "all features zero"])
def test_gradient_is_finite_where_a_square_root_has_none(kind: str, is_dead: bool) -> None:
    features = draw_features(8)
    layer1, layer2, layer3 = (
        (torch.zeros_like(f) if is_dead else f.clone()).requires_grad_() for f in features
    )
    loss = matching_loss(normalise_features(features), (layer1, layer2, layer3), kind)
    gradients = torch.autograd.grad(loss, (layer1, layer2, layer3))
    assert all(bool(torch.isfinite(gradient).all()) for gradient in gradients)
    if not is_dead:
        assert loss.item() == pytest.approx(0, abs=1e-5)


def test_distance_maps_are_numpys_and_reach_both_ends() -> None:
    teacher, student = draw_features(9), draw_features(10)
    maps = distance_maps(normalise_features(teacher), student)
    for found, a, b in zip(maps, unit(teacher), unit(student), strict=True):
        assert found.dtype is torch.float32
        assert np.allclose(found.numpy(), 1 - (a * b).sum(1), atol=1e-6)
    layer1, layer2, layer3 = (-layer for layer in teacher)
    opposite = distance_maps(normalise_features(teacher), (layer1, layer2, layer3))
    same = distance_maps(normalise_features(teacher), teacher)
    for far, near in zip(opposite, same, strict=True):
        assert torch.allclose(far, torch.full_like(far, 2.0), atol=1e-5)
        assert torch.equal(near, torch.zeros_like(near))
