"""The teacher's loop on two toy categories that differ in colour alone."""

import math

import numpy as np
import pytest
import torch
from torch.nn import BatchNorm2d

from etstpm.compute import Compute
from etstpm.config import TeacherConfig
from etstpm.distillation import split_train_validation
from etstpm.errors import TrainingError
from etstpm.finetuning import FinetunedTeacher, PooledPyramidHead, finetune_teacher
from etstpm.images import Pixels
from etstpm.networks import TeacherWeights, random_pyramid

CPU = Compute(torch.device("cpu"), torch.float32)
CONFIG = TeacherConfig(mode="classification", epochs=3, batch_size=4, validation_fraction=0.25)


def draw_category(seed: int, hue: tuple[int, int, int]) -> Pixels:
    rng = np.random.default_rng(seed)
    return (np.array(hue) + rng.integers(-30, 30, (8, 32, 32, 3))).astype(np.uint8)


RED, BLUE = draw_category(0, (200, 60, 60)), draw_category(1, (60, 60, 200))
IMAGES = {"red": RED, "blue": BLUE}


def make_weights(is_folded: bool) -> TeacherWeights:
    tensors = random_pyramid(3).state_dict()
    return TeacherWeights(tensors, "test", "", "random", is_folded=is_folded)


def finetune(
    config: TeacherConfig = CONFIG, *, seed: int = 0, is_folded: bool = True
) -> FinetunedTeacher:
    return finetune_teacher(make_weights(is_folded), IMAGES, config, seed=seed, compute=CPU)


@pytest.fixture(scope="module")
def tuned() -> FinetunedTeacher:
    return finetune()


def are_equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)


def test_two_clearly_different_categories_are_told_apart(tuned: FinetunedTeacher) -> None:
    untrained = PooledPyramidHead(2, seed=0)
    assert untrained.linear.weight.abs().max() < 0.1  # a guess: ln 2 nats, half of them right
    last = tuned.history[-1]
    assert last.validation_accuracy == 1.0
    assert last.validation_loss < 0.5 * math.log(2)
    losses = [record.loss for record in tuned.history]
    assert losses == sorted(losses, reverse=True)
    assert "2 categories" in tuned.summary
    assert "100.0%" in tuned.summary


def test_the_teacher_comes_back_frozen_changed_and_finite(tuned: FinetunedTeacher) -> None:
    before, after = make_weights(True).tensors, tuned.pyramid.state_dict()
    assert not any(module.training for module in tuned.pyramid.modules())
    assert not any(p.requires_grad for p in tuned.pyramid.parameters())
    assert all(bool(torch.isfinite(tensor).all()) for tensor in after.values())
    for layer in ("layer1", "layer2", "layer3"):
        name = f"{layer}.0.conv1.weight"
        assert not torch.equal(after[name], before[name])


@pytest.mark.parametrize("is_folded", [True, False])
def test_running_statistics_stay_where_batch_normalisation_is_folded(is_folded: bool) -> None:
    weights = make_weights(is_folded)
    before = {name: tensor.clone() for name, tensor in weights.tensors.items()}
    config = CONFIG.model_copy(update={"epochs": 1})
    tuned = finetune_teacher(weights, IMAGES, config, seed=0, compute=CPU)
    assert are_equal(weights.tensors, before)  # what was given is not changed
    norms = [module for module in tuned.pyramid.modules() if isinstance(module, BatchNorm2d)]
    assert len(norms) == 15
    for norm in norms:
        mean, variance = norm.running_mean, norm.running_var
        assert mean is not None
        assert variance is not None
        is_untouched = bool((mean == 0).all() and (variance == 1).all())
        assert is_untouched == is_folded


def test_one_category_leaves_the_weights_alone_and_says_so() -> None:
    weights = make_weights(False)
    tuned = finetune_teacher(weights, {"red": RED}, CONFIG, seed=0, compute=CPU)
    assert tuned.history == []
    assert tuned.summary == "one category: nothing to tell apart, weights left as they are"
    assert are_equal(tuned.pyramid.state_dict(), weights.tensors)
    assert not tuned.pyramid.training


def test_same_seed_gives_the_same_bits_in_whatever_order_categories_come(
    tuned: FinetunedTeacher,
) -> None:
    torch.manual_seed(2)
    turned = dict(reversed(IMAGES.items()))
    again = finetune_teacher(make_weights(True), turned, CONFIG, seed=0, compute=CPU)
    assert again.history == tuned.history
    assert are_equal(again.pyramid.state_dict(), tuned.pyramid.state_dict())
    short = CONFIG.model_copy(update={"epochs": 1})
    assert finetune(short, seed=1).history[0] != tuned.history[0]


def swap_held_out(config: TeacherConfig, count: int) -> dict[str, Pixels]:
    """Both categories, `count` of their held-out images in the wrong one."""
    _, held_out = split_train_validation(len(RED), config.validation_fraction, 0)
    red, blue = RED.copy(), BLUE.copy()
    red[held_out[:count]], blue[held_out[:count]] = BLUE[held_out[:count]], RED[held_out[:count]]
    return {"red": red, "blue": blue}


def test_the_epoch_with_the_lowest_held_out_loss_is_kept() -> None:
    # One of four held-out images is in the wrong category: the surer the teacher gets, the dearer.
    config = CONFIG.model_copy(
        update={"epochs": 6, "validation_fraction": 0.5, "learning_rate": 3e-4}
    )
    images, weights = swap_held_out(config, 1), make_weights(True)
    tuned = finetune_teacher(weights, images, config, seed=0, compute=CPU)
    losses = [record.validation_loss for record in tuned.history]
    best = int(np.argmin(losses)) + 1
    assert best < config.epochs
    assert min(losses) < math.log(2)
    # There is no schedule: training for that many epochs alone gives the same weights.
    config = config.model_copy(update={"epochs": best})
    short = finetune_teacher(weights, images, config, seed=0, compute=CPU)
    assert are_equal(tuned.pyramid.state_dict(), short.pyramid.state_dict())
    assert f"{tuned.history[best - 1].validation_accuracy:.1%} of the held-out" in tuned.summary


def test_a_teacher_that_only_got_worse_is_left_as_it_was() -> None:
    config = CONFIG.model_copy(update={"epochs": 2, "learning_rate": 3e-4})
    images, weights = swap_held_out(config, 2), make_weights(True)
    tuned = finetune_teacher(weights, images, config, seed=0, compute=CPU)
    assert [record.validation_accuracy for record in tuned.history] == [0.0, 0.0]
    assert are_equal(tuned.pyramid.state_dict(), weights.tensors)
    # What is said is true of the weights that are kept: the head knew nothing, and guessed.
    assert "50.0% of the held-out" in tuned.summary


def test_a_loss_that_is_not_finite_is_an_error_with_its_remedy() -> None:
    config = CONFIG.model_copy(update={"epochs": 1, "learning_rate": 1e36})
    with pytest.raises(
        TrainingError, match=r"teacher: .*lower teacher\.learning_rate \(now 1e\+36"
    ):
        finetune(config)
