"""Muon against singular value decompositions, and which optimiser steps what."""

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.optim import SGD, AdamW

from etstpm.config import StudentConfig
from etstpm.networks import random_pyramid
from etstpm.optimisers import NEWTON_SCHULZ, Muon, make_optimisers, orthogonalise


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
    found = orthogonalise(matrix)
    assert np.allclose(found.numpy(), (left * values) @ right, atol=1e-4)
    assert values.min() > 0.6
    assert values.max() < 1.3


def test_in_bfloat16_it_stays_close_where_singular_values_span_five_decades() -> None:
    left, _, right = torch.linalg.svd(draw(64, 200), full_matrices=False)
    matrix = (left * torch.logspace(0, -5, 64)) @ right
    exact, found = orthogonalise(matrix), orthogonalise(matrix, torch.bfloat16)
    assert found.dtype == torch.float32
    assert torch.nn.functional.cosine_similarity(found.ravel(), exact.ravel(), dim=0) > 0.97
    assert torch.linalg.svdvals(found).max() < 1.3


def test_orthogonalise_does_not_depend_on_scale_and_keeps_zero() -> None:
    matrix = draw(8, 20)
    assert torch.allclose(orthogonalise(1e-4 * matrix), orthogonalise(matrix), atol=1e-2)
    assert torch.equal(orthogonalise(torch.zeros(3, 5)), torch.zeros(3, 5))


def test_muon_moves_a_convolution_as_its_matrix() -> None:
    weight = torch.nn.Parameter(draw(12, 2 * 9).view(12, 2, 3, 3))
    before, gradients = weight.detach().clone(), [draw(12, 18, seed) for seed in (1, 2)]
    muon = Muon([weight], lr=0.1, momentum=0.9, weight_decay=0.5)
    expected, velocity = before.flatten(1), torch.zeros(12, 18)
    for gradient in gradients:
        weight.grad = gradient.view(12, 2, 3, 3).clone()
        muon.step()
        velocity = 0.9 * velocity + gradient
        expected = 0.95 * expected - 0.1 * orthogonalise(gradient + 0.9 * velocity)
    assert torch.allclose(weight.flatten(1), expected, atol=1e-5)


def test_a_tall_matrix_moves_further_by_the_root_of_its_shape() -> None:
    weight = torch.nn.Parameter(torch.zeros(32, 8))
    gradient = draw(32, 8)
    weight.grad = gradient.clone()
    Muon([weight], lr=0.1, momentum=0.0, weight_decay=0.0).step()
    assert torch.allclose(weight, -0.1 * 2 * orthogonalise(gradient), atol=1e-6)


@pytest.mark.parametrize(
    ("name", "kinds"), [("sgd", [SGD]), ("adamw", [AdamW]), ("muon", [Muon, AdamW])]
)
def test_every_parameter_has_one_optimiser(name: str, kinds: list[type]) -> None:
    student = random_pyramid(0)
    config = StudentConfig.model_validate({"optimiser": name, "learning_rate": 0.01})
    optimisers = [optimiser for optimiser, _ in make_optimisers(student, config, steps=10)]
    assert [type(optimiser) for optimiser in optimisers] == kinds
    stepped = [p for o in optimisers for group in o.param_groups for p in group["params"]]
    assert len(stepped) == len({id(p) for p in stepped}) == len(list(student.parameters()))
    if name == "muon":
        assert all(p.ndim == 4 for group in optimisers[0].param_groups for p in group["params"])


def test_one_cycle_ends_low_and_both_of_muons_optimisers_follow_it() -> None:
    config = StudentConfig(learning_rate=0.02)
    pairs = make_optimisers(random_pyramid(0), config, steps=10)
    rates: list[list[float]] = []
    for _ in range(10):
        rates.append([optimiser.param_groups[0]["lr"] for optimiser, _ in pairs])
        for optimiser, schedule in pairs:
            optimiser.step()
            schedule.step()
    assert np.max(rates, axis=0) == pytest.approx([0.02, 2e-3], rel=0.03)
    assert np.all(np.array(rates[-1]) < 0.1 * np.max(rates, axis=0))
