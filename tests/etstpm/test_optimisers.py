"""Muon against singular value decompositions, the rest against torch's, and who steps what."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.optim.lr_scheduler import OneCycleLR

from etstpm.config import StudentConfig
from etstpm.networks import random_pyramid
from etstpm.optimisers import (
    NEWTON_SCHULZ,
    SGD,
    AdamW,
    Muon,
    make_optimiser,
    one_cycle,
    orthogonalise,
)


def draw(rows: int, columns: int, seed: int = 0) -> Tensor:
    return torch.randn((rows, columns), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [(64, 147), (128, 64), (16, 16), (1, 9)], ids=str)
def test_orthogonalise_is_newton_schulz_on_the_singular_values(shape: tuple[int, int]) -> None:
    matrix = draw(*shape)
    left, values, right = np.linalg.svd(matrix.double().numpy(), full_matrices=False)
    a, b, c = NEWTON_SCHULZ
    values = values / np.linalg.norm(values)
    for _ in range(5):
        values = a * values + b * values**3 + c * values**5
    found, of_double = orthogonalise(torch.stack([matrix, 2 * matrix]))
    assert np.allclose(found.numpy(), (left * values) @ right, atol=1e-4)
    assert torch.allclose(of_double, found, atol=1e-5)
    assert values.min() > 0.6
    assert values.max() < 1.3


def test_in_bfloat16_it_stays_close_where_singular_values_span_five_decades() -> None:
    left, _, right = torch.linalg.svd(draw(64, 200), full_matrices=False)
    matrix = ((left * torch.logspace(0, -5, 64)) @ right)[None]
    exact, found = orthogonalise(matrix), orthogonalise(matrix.bfloat16())
    assert (exact.dtype, found.dtype) == (torch.float32, torch.bfloat16)
    found = found.float()
    assert torch.nn.functional.cosine_similarity(found.ravel(), exact.ravel(), dim=0) > 0.97
    assert torch.linalg.svdvals(found).max() < 1.3


def test_orthogonalise_does_not_depend_on_scale_and_keeps_zero() -> None:
    matrix = draw(8, 20)[None]
    assert torch.allclose(orthogonalise(1e-4 * matrix), orthogonalise(matrix), atol=1e-2)
    assert torch.equal(orthogonalise(torch.zeros(1, 3, 5)), torch.zeros(1, 3, 5))


def test_muon_moves_a_convolution_as_its_matrix() -> None:
    weight = torch.nn.Parameter(draw(12, 2 * 9).view(12, 2, 3, 3))
    before, gradients = weight.detach().clone(), [draw(12, 18, seed) for seed in (1, 2)]
    muon = Muon([weight], peak=0.1, momentum=0.9, weight_decay=0.5)
    expected, velocity = before.flatten(1), torch.zeros(12, 18)
    for gradient in gradients:
        weight.grad = gradient.view(12, 2, 3, 3).clone()
        with torch.no_grad():
            muon.update(0.1)
        velocity = 0.9 * velocity + gradient
        expected = 0.95 * expected - 0.1 * orthogonalise((gradient + 0.9 * velocity)[None])[0]
    assert torch.allclose(weight.flatten(1), expected, atol=1e-5)


def test_muon_makes_blocks_of_rows_orthogonal_each_by_itself() -> None:
    gradients = [draw(128, 20 * 9), draw(64, 20 * 9, 1), draw(128, 7, 2), draw(96, 20 * 9, 3)]
    shapes = [(128, 20, 3, 3), (64, 20, 3, 3), (128, 7), (96, 20, 3, 3)]
    weights = [torch.nn.Parameter(torch.zeros(shape)) for shape in shapes]
    for weight, gradient in zip(weights, gradients, strict=True):
        weight.grad = gradient.view(weight.shape).clone()
    with torch.no_grad():
        Muon(weights, peak=0.1, momentum=0.0, weight_decay=0.0, rows=64).update(0.1)
    for weight, gradient in zip(weights, gradients, strict=True):
        rows = 96 if len(gradient) == 96 else 64  # which does not go into 96
        blocks = gradient.view(-1, rows, gradient.shape[1])
        expected = orthogonalise(blocks) * max(1, rows / gradient.shape[1]) ** 0.5
        assert torch.allclose(weight.flatten(1), -0.1 * expected.flatten(0, 1), atol=1e-5)


def test_a_tall_matrix_moves_further_by_the_root_of_its_shape() -> None:
    weight = torch.nn.Parameter(torch.zeros(32, 8))
    gradient = draw(32, 8)
    weight.grad = gradient.clone()
    with torch.no_grad():
        Muon([weight], peak=0.1, momentum=0.0, weight_decay=0.0).update(0.1)
    assert torch.allclose(weight, -0.1 * 2 * orthogonalise(gradient[None])[0], atol=1e-6)


@pytest.mark.parametrize(
    ("name", "kinds"), [("sgd", [SGD]), ("adamw", [AdamW]), ("muon", [Muon, AdamW])]
)
def test_every_parameter_has_one_rule(name: str, kinds: list[type]) -> None:
    student = random_pyramid(0)
    config = StudentConfig.model_validate({"optimiser": name, "learning_rate": 0.01})
    rules = make_optimiser(student, config, steps=10).rules
    assert [type(rule) for rule in rules] == kinds
    stepped = [parameter for rule in rules for parameter in rule.parameters]
    assert len(stepped) == len({id(p) for p in stepped}) == len(list(student.parameters()))
    if name == "muon":
        assert all(parameter.ndim == 4 for parameter in rules[0].parameters)


@pytest.mark.parametrize("schedule", ["one-cycle", "constant"])
@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_it_steps_as_torch_does(name: str, schedule: str) -> None:
    """Twelve steps of a linear layer, to the bit, and the learning rates on the way."""
    values = {"optimiser": name, "learning_rate": 0.01, "weight_decay": 0.1, "schedule": schedule}
    config = StudentConfig.model_validate(values)
    ours, theirs = (torch.nn.Linear(5, 3) for _ in range(2))
    theirs.load_state_dict(ours.state_dict())
    optimiser = make_optimiser(ours, config, steps=12)
    peer: torch.optim.Optimizer
    if name == "sgd":
        peer = torch.optim.SGD(
            theirs.parameters(), 0.01, momentum=0.95, weight_decay=0.1, fused=True
        )
    else:
        peer = torch.optim.AdamW(theirs.parameters(), 0.01, weight_decay=0.1, fused=True)
    scheduler = OneCycleLR(peer, 0.01, total_steps=13, cycle_momentum=False)
    for step in range(12):
        if schedule == "constant":
            peer.param_groups[0]["lr"] = 0.01
        assert optimiser.learning_rate == pytest.approx(peer.param_groups[0]["lr"], rel=1e-12)
        for layer in (ours, theirs):
            layer(draw(4, 5, step)).square().sum().backward()
        optimiser.step()
        peer.step()
        peer.zero_grad()
        scheduler.step()
        assert all(parameter.grad is None for parameter in ours.parameters())
        for found, expected in zip(ours.parameters(), theirs.parameters(), strict=True):
            assert torch.allclose(found, expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("steps", [1, 2, 3, 7, 1000])
def test_one_cycle_is_torchs(steps: int) -> None:
    peer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], 1.0)
    scheduler = OneCycleLR(peer, 1.0, total_steps=steps + 1, cycle_momentum=False)
    for step in range(steps + 1):
        assert one_cycle(step, steps) == pytest.approx(peer.param_groups[0]["lr"], rel=1e-9)
        if step < steps:
            peer.step()
            scheduler.step()


def test_both_of_muons_rules_follow_the_schedule() -> None:
    student = random_pyramid(0)
    optimiser = make_optimiser(student, StudentConfig(learning_rate=0.02), steps=10)
    before = [parameter.detach().clone() for parameter in student.parameters()]
    moved = []
    for _ in range(10):
        sum(feature.mean() for feature in student(torch.ones(1, 3, 32, 32))).backward()
        optimiser.step()
        after = [parameter.detach().clone() for parameter in student.parameters()]
        moved.append([float((a - b).abs().max()) for a, b in zip(after, before, strict=True)])
        before = after
    assert np.all(np.array(moved[-1]) < 0.1 * np.max(moved, axis=0) + 1e-12)


def test_training_leaves_torchs_compiler_alone() -> None:
    """Its import takes 170 MB and seconds: `torch.optim.Optimizer` and torchvision cause it."""
    code = (
        "import sys, torch\n"
        "from etstpm import stages\n"
        "from etstpm.config import StudentConfig\n"
        "from etstpm.networks import random_pyramid\n"
        "from etstpm.optimisers import make_optimiser\n"
        "student = random_pyramid(0)\n"
        "optimiser = make_optimiser(student, StudentConfig(), 10)\n"
        "sum(f.mean() for f in student(torch.ones(1, 3, 32, 32))).backward()\n"
        "optimiser.step()\n"
        "sys.exit('torch._dynamo' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
