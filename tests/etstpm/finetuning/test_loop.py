"""The teacher's loop, in each of its modes where a mode could differ."""

import math

import numpy as np
import pytest
import torch
from torch.nn import BatchNorm2d

from etstpm.config import TeacherConfig
from etstpm.errors import TrainingError
from etstpm.finetuning import FinetunedTeacher
from etstpm.finetuning.loop import mix
from etstpm.images import Pixels
from etstpm.splits import split_train_validation
from tests.etstpm.finetuning.toys import (
    BLUE,
    IMAGES,
    MODES,
    RED,
    are_equal,
    finetune,
    make_config,
    make_weights,
)


@pytest.fixture(scope="module", params=MODES)
def mode(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def tuned(mode: str) -> FinetunedTeacher:
    return finetune(make_config(mode, epochs=1))


def test_the_teacher_comes_back_frozen_and_finite(tuned: FinetunedTeacher) -> None:
    assert not any(module.training for module in tuned.pyramid.modules())
    assert not any(p.requires_grad for p in tuned.pyramid.parameters())
    tensors = tuned.pyramid.state_dict()
    assert set(tensors) == set(make_weights().tensors)  # no head, no layer4
    assert all(bool(torch.isfinite(tensor).all()) for tensor in tensors.values())
    assert "2 categories" in tuned.summary


def test_same_seed_gives_the_same_bits_in_whatever_order_categories_come(
    mode: str, tuned: FinetunedTeacher
) -> None:
    torch.manual_seed(2)
    np.random.seed(2)
    turned = dict(reversed(IMAGES.items()))
    again = finetune(make_config(mode, epochs=1), images=turned)
    assert again.history == tuned.history
    assert are_equal(again.pyramid.state_dict(), tuned.pyramid.state_dict())
    other = finetune(make_config(mode, epochs=1), seed=1)
    assert other.history[0].loss != tuned.history[0].loss


def test_held_out_images_are_evaluated_and_never_trained_on(
    mode: str, tuned: FinetunedTeacher
) -> None:
    _, held_out = split_train_validation(len(RED), 0.25, 0)
    red = RED.copy()
    red[held_out] = 255 - red[held_out]
    changed = finetune(make_config(mode, epochs=1), images={"red": red, "blue": BLUE})
    assert changed.history[0].loss == tuned.history[0].loss
    assert changed.history[0].validation_loss != tuned.history[0].validation_loss


@pytest.mark.parametrize("is_folded", [True, False])
def test_running_statistics_stay_where_batch_normalisation_is_folded(is_folded: bool) -> None:
    weights = make_weights(is_folded=is_folded)
    before = {name: tensor.clone() for name, tensor in weights.tensors.items()}
    tuned = finetune(make_config(epochs=1), weights=weights)
    assert are_equal(weights.tensors, before)  # what was given is not changed
    assert not torch.equal(tuned.pyramid.conv1.weight, before["conv1.weight"])
    norms = [module for module in tuned.pyramid.modules() if isinstance(module, BatchNorm2d)]
    assert len(norms) == 15
    for norm in norms:
        mean, variance = norm.running_mean, norm.running_var
        assert mean is not None
        assert variance is not None
        is_untouched = bool((mean == 0).all() and (variance == 1).all())
        assert is_untouched == is_folded


@pytest.mark.parametrize("comparing", ["classification", "metric"])
def test_modes_that_compare_leave_one_category_alone_and_say_so(comparing: str) -> None:
    weights = make_weights(is_folded=False)
    tuned = finetune(make_config(comparing), images={"red": RED}, weights=weights)
    assert tuned.history == []
    assert tuned.summary == (
        "one category: nothing to tell apart, weights left as they are; "
        "teacher.mode = 'synthetic' would tune them"
    )
    assert are_equal(tuned.pyramid.state_dict(), weights.tensors)
    assert not tuned.pyramid.training


def test_two_images_are_enough_for_any_mode(mode: str) -> None:
    """One to train on, one to hold out: the least that the dataset's validation lets through."""
    images = {name: pixels[:2] for name, pixels in IMAGES.items()}
    (record,) = finetune(make_config(mode, epochs=1), images=images).history
    assert np.isfinite([record.loss, record.validation_loss]).all()
    assert 0 <= record.validation_accuracy <= 1


def swap_held_out(config: TeacherConfig, count: int) -> dict[str, Pixels]:
    """Both categories, `count` of their held-out images in the wrong one."""
    _, held_out = split_train_validation(len(RED), config.validation_fraction, 0)
    red, blue = RED.copy(), BLUE.copy()
    red[held_out[:count]], blue[held_out[:count]] = BLUE[held_out[:count]], RED[held_out[:count]]
    return {"red": red, "blue": blue}


def test_the_best_epoch_is_kept_and_patience_ends_the_rest() -> None:
    # One of four held-out images is in the wrong category: the surer the teacher gets, the dearer.
    config = make_config(epochs=20, patience=2, validation_fraction=0.5, learning_rate=3e-4)
    images = swap_held_out(config, 1)
    tuned = finetune(config, images=images)
    losses = [record.validation_loss for record in tuned.history]
    best = int(np.argmin(losses)) + 1
    assert len(losses) == best + config.patience < config.epochs
    assert min(losses) < math.log(2)
    # There is no schedule: training for that many epochs alone gives the same weights.
    short = finetune(config.model_copy(update={"epochs": best}), images=images)
    assert are_equal(tuned.pyramid.state_dict(), short.pyramid.state_dict())
    assert f"{tuned.history[best - 1].validation_accuracy:.1%} of the held-out" in tuned.summary
    assert tuned.summary.endswith(f"epoch {best} of {len(losses)} kept")


def test_a_teacher_that_only_got_worse_is_left_as_it_was() -> None:
    config = make_config(epochs=9, patience=2, learning_rate=3e-4)
    weights = make_weights()
    tuned = finetune(config, images=swap_held_out(config, 2), weights=weights)
    assert [record.validation_accuracy for record in tuned.history] == [0.0, 0.0]
    assert are_equal(tuned.pyramid.state_dict(), weights.tensors)
    assert tuned.summary.startswith("weights left as they were: none of 2 epochs to tell 2 cat")


def test_a_mixture_lies_between_the_original_and_the_tuned_weights() -> None:
    original = make_weights().tensors
    teachers = [finetune(make_config(epochs=1, mixture=share)) for share in (0.0, 0.25, 1.0)]
    none, quarter, whole = (teacher.pyramid.state_dict() for teacher in teachers)
    assert are_equal(none, original)
    name = "layer3.1.conv2.weight"
    assert not torch.equal(whole[name], original[name])
    torch.testing.assert_close(quarter[name], 0.75 * original[name] + 0.25 * whole[name])
    assert teachers[1].summary.endswith("epoch 1 of 1 kept, mixed 25% into the original weights")
    assert teachers[2].summary.endswith("epoch 1 of 1 kept")


def test_both_ends_of_a_mixture_are_exact() -> None:
    original = {"weight": torch.tensor([0.1, -3.0, 1e-30]), "count": torch.tensor(5)}
    tuned = {"weight": torch.tensor([0.3, 1e30, -1.0]), "count": torch.tensor(9)}
    assert are_equal(mix(original, tuned, 0.0), original)
    assert are_equal(mix(original, tuned, 1.0), tuned)
    assert mix(original, tuned, 0.5)["weight"][0] == pytest.approx(0.2)


def test_a_loss_that_is_not_finite_is_an_error_with_its_remedy() -> None:
    with pytest.raises(
        TrainingError, match=r"teacher: .*lower teacher\.learning_rate \(now 1e\+36"
    ):
        finetune(make_config(epochs=1, learning_rate=1e36))
