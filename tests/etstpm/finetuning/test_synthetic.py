import math

import numpy as np
import pytest
import torch

from etstpm.finetuning.objective import GoodImages, accuracy_of
from etstpm.finetuning.synthetic import SyntheticAnomalies
from etstpm.images import normalise
from etstpm.networks import Pyramid
from tests.etstpm.finetuning.toys import CPU, IMAGES, RED, finetune, make_config, make_weights

ROWS = np.stack([np.zeros(8, int), np.arange(8)], axis=1)


def make_objective() -> SyntheticAnomalies:
    return SyntheticAnomalies(GoodImages({"red": RED}), ROWS[:4], seed=0)


def random_features() -> Pyramid:
    generator = torch.Generator().manual_seed(1)
    layer1, layer2, layer3 = (
        torch.randn(2, channels, side, side, generator=generator)
        for channels, side in ((64, 16), (128, 8), (256, 4))
    )
    return layer1, layer2, layer3


@pytest.mark.parametrize("count", [1, 4, 7])
def test_half_of_a_batch_is_damaged_and_its_mask_says_where(count: int) -> None:
    objective = make_objective()
    images, masks = objective.draw(ROWS[:count], np.random.default_rng(0))
    assert masks.shape == (count, 32, 32)
    is_damaged = masks.any((1, 2))
    assert is_damaged.sum() == -(-count // 2)
    assert np.array_equal(images[~is_damaged], RED[:count][~is_damaged])
    assert (images != RED[:count])[masks].any()
    again = objective.draw(ROWS[:count], np.random.default_rng(0))
    assert np.array_equal(again[0], images)
    assert np.array_equal(again[1], masks)


def test_a_location_is_anomalous_where_any_of_its_pixels_is() -> None:
    masks = torch.zeros(2, 64, 64, dtype=torch.bool)
    masks[1, 63, 0] = True
    measured = make_objective()(random_features(), masks)
    locations = 2 * (16**2 + 8**2 + 4**2)
    assert measured.total.tolist() == [locations - 3, 3]  # one location in each layer


def test_rare_anomalies_weigh_as_much_as_good_locations() -> None:
    masks = torch.zeros(2, 64, 64, dtype=torch.bool)
    masks[1, :5, :5] = True
    objective = make_objective()
    with torch.no_grad():
        for parameter in objective.head.parameters():
            parameter.zero_()
        assert objective(random_features(), masks).loss.item() == pytest.approx(math.log(2))
        for name, parameter in objective.head.named_parameters():
            parameter.fill_(
                -4.0 if name.endswith("bias") else 0.0
            )  # "all is good": right in nearly all places
        measured = objective(random_features(), masks)
    mean = (math.log1p(math.exp(-4)) + math.log1p(math.exp(4))) / 2
    assert measured.loss.item() == pytest.approx(mean, rel=1e-5)
    assert accuracy_of(measured.right, measured.total) == 0.5


def test_a_batch_without_anomalies_is_judged_by_its_good_locations() -> None:
    measured = make_objective()(random_features(), torch.zeros(2, 64, 64, dtype=torch.bool))
    assert bool(measured.loss.isfinite())
    assert measured.total.tolist() == [2 * (16**2 + 8**2 + 4**2), 0]
    assert accuracy_of(measured.right, measured.total) == measured.right[0] / measured.total[0]


def test_the_pyramid_can_learn_to_find_them() -> None:
    """The same draw again and again: every layer's gradient must point down."""
    objective, pyramid = make_objective(), make_weights().build().requires_grad_(True)
    images, masks = objective.draw(ROWS, np.random.default_rng(3))
    pixels, targets = normalise(images, CPU.device), torch.as_tensor(masks)
    parameters = [*pyramid.parameters(), *objective.parameters()]
    optimiser = torch.optim.AdamW(parameters, lr=1e-3)
    losses = []
    for _ in range(25):
        loss = objective(pyramid(pixels), targets).loss
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(math.log(2), abs=0.1)
    assert losses[-1] < 0.6 * losses[0]


def test_one_category_is_enough() -> None:
    tuned = finetune(make_config("synthetic", epochs=1), images={"red": RED})
    assert len(tuned.history) == 1
    assert "synthetic anomalies in good images of 1 category" in tuned.summary
    assert "of 2 categories" in finetune(make_config("synthetic", epochs=1)).summary
    assert len(IMAGES) == 2
