import math

import numpy as np
import pytest
import torch

from etstpm.finetuning.metric import (
    BRIGHTNESS,
    CategoryMetric,
    draw_view,
    nearest_other,
    supervised_contrastive,
)
from etstpm.finetuning.objective import GoodImages
from tests.etstpm.finetuning.toys import IMAGES, RED, finetune, make_config


def test_the_loss_is_khoslas_equation_2() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(6, 6, generator=generator)
    labels = [0, 1, 0, 0, 1, 0]
    total = 0.0
    for anchor in range(6):
        others = [i for i in range(6) if i != anchor]
        positives = [i for i in others if labels[i] == labels[anchor]]
        everything = sum(math.exp(logits[anchor, i]) for i in others)
        shares = [math.exp(logits[anchor, i]) / everything for i in positives]
        total -= sum(math.log(share) for share in shares) / len(positives)
    loss = supervised_contrastive(logits, torch.tensor(labels))
    assert loss.item() == pytest.approx(total / 6, rel=1e-5)


def test_the_loss_has_a_finite_gradient_and_a_floor() -> None:
    labels = torch.tensor([0, 0, 0, 1, 1, 1])
    logits = (100.0 * (labels[:, None] == labels)).requires_grad_()
    loss = supervised_contrastive(logits, labels)
    assert loss.item() == pytest.approx(math.log(2))  # two positives share the weight of one
    loss.backward()  # type: ignore[no-untyped-call]
    assert logits.grad is not None
    assert bool(logits.grad.isfinite().all())


def test_the_nearest_view_is_of_another_image_where_the_category_has_one() -> None:
    # Views of images 0, 1, 2, then their twins; images 0 and 1 are of one category.
    labels = torch.tensor([0, 0, 1, 0, 0, 1])
    similarity = torch.eye(6) + torch.eye(6).roll(3, 0)  # itself and its twin are the most similar
    similarity[0, 2], similarity[0, 4] = 0.3, 0.2
    similarity[1, 0] = 0.1
    nearest = nearest_other(similarity, labels)
    assert nearest[0] == 2  # not itself, not its twin 3: an image of the other category
    assert nearest[1] == 0
    assert nearest[2] == 5  # alone of its category: its twin may stand for it


def test_a_batch_is_two_different_views_of_each_image() -> None:
    objective = CategoryMetric(GoodImages(IMAGES), 0.1, seed=0)
    rows = np.array([[0, 1], [1, 2], [1, 5]])
    views, labels = objective.draw(rows, np.random.default_rng(4))
    assert views.shape == (6, 32, 32, 3)
    assert views.dtype == np.uint8
    assert labels.tolist() == [0, 1, 1, 0, 1, 1]
    assert not np.array_equal(views[:3], views[3:])
    # Noise of 30 grey levels and light views: a category keeps its colour.
    assert (views[labels == 1, ..., 0].mean((1, 2)) > 150).all()
    again, _ = objective.draw(rows, np.random.default_rng(4))
    assert np.array_equal(views, again)


def test_a_view_is_light() -> None:
    rng = np.random.default_rng(0)
    flat = np.full((64, 64, 3), 100, np.uint8)
    values = np.array([draw_view(flat, rng)[0, 0, 0] for _ in range(200)]) / 100
    assert values.min() >= 1 - BRIGHTNESS - 0.01
    assert values.max() <= 1 + BRIGHTNESS + 0.01
    assert values.std() > 0.03
    white = np.full((64, 64, 3), 255, np.uint8)
    assert min(draw_view(white, rng).min() for _ in range(50)) > 200  # nothing wraps around
    # A ramp over the width shows which part of it a view keeps.
    ramp = np.repeat(np.linspace(0, 200, 64)[None, :, None], 64, 0).repeat(3, 2).astype(np.uint8)
    spans = [np.ptp(draw_view(ramp, rng)[32, :, 0].astype(int)) / 200 for _ in range(100)]
    assert 0.65 < min(spans) < 0.85
    assert max(spans) < 1.1


def test_categories_are_drawn_together_and_apart() -> None:
    tuned = finetune(make_config("metric", epochs=2))
    # Eight views of four held-out images, three positives each: ln 3 is the least there is.
    assert math.log(3) - 1e-4 <= tuned.history[-1].validation_loss < math.log(3) + 0.05
    assert tuned.history[-1].loss < tuned.history[0].loss
    assert tuned.history[-1].validation_accuracy == 1.0
    assert "each of 2 categories together" in tuned.summary
    assert len(RED) == 8
