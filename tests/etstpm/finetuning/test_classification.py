import math

import numpy as np
import pytest
import torch
from torchvision.models import resnet18

from etstpm.finetuning.classification import CategoryClassification
from etstpm.finetuning.objective import GoodImages
from tests.etstpm.finetuning.toys import CPU, IMAGES, finetune, make_config, make_weights

ROWS = np.array([[0, 0], [1, 3], [0, 7]])


def make_objective(*, has_layer4: bool = False, smoothing: float = 0.0) -> CategoryClassification:
    weights = make_weights(has_layer4=has_layer4)
    return CategoryClassification(weights, GoodImages(IMAGES), smoothing, seed=0, compute=CPU)


def test_two_clearly_different_categories_are_told_apart() -> None:
    tuned = finetune(make_config())
    last = tuned.history[-1]
    assert last.validation_accuracy == 1.0
    assert last.validation_loss < 0.5 * math.log(2)
    losses = [record.loss for record in tuned.history]
    assert losses == sorted(losses, reverse=True)
    assert "2 categories apart (head on the pooled pyramid: the weights have no l" in tuned.summary
    assert "100.0% of the held-out good images right" in tuned.summary
    before, after = make_weights().tensors, tuned.pyramid.state_dict()
    for layer in ("layer1", "layer2", "layer3"):
        name = f"{layer}.0.conv1.weight"
        assert not torch.equal(after[name], before[name])


@pytest.mark.parametrize("has_layer4", [True, False])
def test_an_untrained_head_guesses(has_layer4: bool) -> None:
    objective = make_objective(has_layer4=has_layer4)
    images, labels = objective.draw(ROWS, np.random.default_rng(0))
    assert labels.tolist() == [0, 1, 0]
    assert np.array_equal(images[1], IMAGES["red"][3])  # blue comes before red
    pyramid = make_weights().build()
    with torch.no_grad():
        measured = objective(
            pyramid(torch.from_numpy(images).movedim(3, 1) / 255.0), torch.as_tensor(labels)
        )
    assert measured.total.tolist() == [3]
    assert measured.loss.item() == pytest.approx(math.log(2), abs=0.3)


def test_the_head_stands_on_torchvisions_own_layer4() -> None:
    weights = make_weights(has_layer4=True)
    assert weights.layer4 is not None
    objective = make_objective(has_layer4=True)
    full = resnet18(weights=None, num_classes=2).eval()
    layer4 = {f"layer4.{name}": tensor for name, tensor in weights.layer4.items()}
    head = {f"fc.{name}": tensor for name, tensor in objective.head.state_dict().items()}
    full.load_state_dict({**weights.tensors, **layer4, **head})
    images = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 1, 1, 0])
    with torch.no_grad():
        logits, measured = full(images), objective(weights.build()(images), labels)
    expected = torch.nn.functional.cross_entropy(logits, labels)
    assert measured.loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert measured.right.tolist() == [int((logits.argmax(1) == labels).sum())]


def test_layer4_is_used_where_the_weights_have_it_and_left_behind() -> None:
    # Last batches of one image at 32x32, whose layer4 is 1x1: there are no statistics of that.
    weights = make_weights(is_folded=False, has_layer4=True)
    assert weights.layer4 is not None
    before = {name: tensor.clone() for name, tensor in weights.layer4.items()}
    tuned = finetune(make_config(batch_size=11), weights=weights)
    assert "2 categories apart (head on layer4)" in tuned.summary
    assert [r.loss for r in tuned.history] == sorted((r.loss for r in tuned.history), reverse=True)
    assert not any(name.startswith("layer4") for name in tuned.pyramid.state_dict())
    assert not torch.equal(tuned.pyramid.conv1.weight, weights.tensors["conv1.weight"])
    assert all(torch.equal(weights.layer4[name], before[name]) for name in before)


def test_label_smoothing_is_of_the_loss() -> None:
    objective = make_objective(smoothing=0.1)
    with torch.no_grad():
        weight, bias = objective.head.parameters()
        weight.zero_()
        bias.copy_(torch.tensor([3.0, 0.0]))
    features = tuple(torch.zeros(1, channels, 2, 2) for channels in (64, 128, 256))
    first, second = torch.tensor([3.0, 0.0]).log_softmax(0).neg().tolist()
    # Szegedy et al. 2016, eq. 7: a tenth of the weight is shared by all categories alike.
    measured = objective(features, torch.tensor([0]))
    assert measured.loss.item() == pytest.approx(0.95 * first + 0.05 * second)
    assert measured.right.tolist() == [1]
