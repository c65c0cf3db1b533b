"""What steps the student's parameters, and the schedule of its learning rate.

torch's own arithmetic without `torch.optim.Optimizer`, whose first use imports torch's compiler:
170 MB and seconds of each process.
"""

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw
from torch.optim.sgd import sgd

from etstpm.config import StudentConfig

ADAMW_BESIDE_MUON = 2e-3
"""Highest learning rate of what is no matrix: batch normalisation's scales and shifts."""

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
"""Coefficients of the quintic (Jordan et al. 2024): they lift small singular values fastest."""
NEWTON_SCHULZ_ROUNDS = {torch.float32: (5,), torch.bfloat16: (3, 2)}
"""Steps before the Gram matrix is taken anew. In bfloat16 five in a row blow small singular values
up; three and two come nearer to the exact result than plain Newton-Schulz in bfloat16 does."""

WARMING = 0.3
"""Share of the steps in which one-cycle's learning rate rises, from a 25th of its peak."""


class Rule(Protocol):
    """How some of the parameters move along their gradients; `peak` is the highest rate."""

    parameters: list[nn.Parameter]
    peak: float

    def update(self, rate: float) -> None:
        """One step of every parameter; each has a gradient."""


class Optimiser:
    """Steps all parameters, each by its rule, at a rate that follows the schedule."""

    def __init__(self, rules: Sequence[Rule], schedule: str, steps: int) -> None:
        self.rules, self.schedule, self.steps = list(rules), schedule, steps
        self.taken = 0

    @property
    def learning_rate(self) -> float:
        """Of the next step, by the first rule."""
        return self.rules[0].peak * self._share

    @torch.no_grad()
    def step(self) -> None:
        """One step of every parameter; its gradient is gone then."""
        for rule in self.rules:
            rule.update(rule.peak * self._share)
            for parameter in rule.parameters:
                parameter.grad = None
        self.taken += 1

    @property
    def _share(self) -> float:
        return one_cycle(self.taken, self.steps) if self.schedule == "one-cycle" else 1.0


def one_cycle(step: int, steps: int) -> float:
    """Share of the highest learning rate at a step of so many: up and down along two cosines.

    Source: Smith and Topin 2019, in the form of torch's `OneCycleLR`, whose momentum swings beside
    it between 0.85 and 0.95: nothing gained over 0.9 here.
    """
    low, end = 1 / 25, 1 / 25e4
    top = WARMING * (steps + 1) - 1
    if step <= top:
        start, stop, way = low, 1.0, step / top
    else:
        start, stop, way = 1.0, end, (step - top) / (steps - top)
    return stop + (start - stop) / 2 * (1 + math.cos(math.pi * way))


class SGD:
    """Gradient descent with momentum: torch's."""

    def __init__(
        self, parameters: Sequence[nn.Parameter], peak: float, momentum: float, weight_decay: float
    ) -> None:
        self.parameters, self.peak = list(parameters), peak
        self.momentum, self.weight_decay = momentum, weight_decay
        self.velocities: list[Tensor | None] = [None] * len(self.parameters)

    def update(self, rate: float) -> None:
        """One step of every parameter."""
        sgd(
            list(self.parameters),
            gradients_of(self.parameters),
            self.velocities,
            fused=True,
            weight_decay=self.weight_decay,
            momentum=self.momentum,
            lr=rate,
            dampening=0.0,
            nesterov=False,
            maximize=False,
        )


class AdamW:
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019): torch's, with its betas."""

    def __init__(
        self, parameters: Sequence[nn.Parameter], peak: float, weight_decay: float
    ) -> None:
        self.parameters, self.peak, self.weight_decay = list(parameters), peak, weight_decay
        self.means = [torch.zeros_like(parameter) for parameter in parameters]
        self.squares = [torch.zeros_like(parameter) for parameter in parameters]
        self.counts = [torch.zeros((), device=parameter.device) for parameter in parameters]

    def update(self, rate: float) -> None:
        """One step of every parameter."""
        adamw(
            list(self.parameters),
            gradients_of(self.parameters),
            self.means,
            self.squares,
            [],
            self.counts,
            fused=True,
            amsgrad=False,
            beta1=0.9,
            beta2=0.999,
            lr=rate,
            weight_decay=self.weight_decay,
            eps=1e-8,
            maximize=False,
        )


class Muon:
    """Momentum whose update is made orthogonal: every direction of a weight matrix moves as far.

    A student's gradients are of low rank, so that Adam learns a few directions early and the rest
    late; here a student needs about a third of Adam's epochs (docs/quality.md). A convolution (O,
    I, K, K) counts as a matrix (O, I K K), of which `rows` at a time are made orthogonal to each
    other: with 64 of 256 that takes a third of the time, and loses nothing (docs/quality.md).
    Source: Jordan et al. 2024, Muon; blocks: Khaled et al. 2025, MuonBP, whose whole matrix every
    few steps is left out. Deviates in computing Newton-Schulz on the Gram matrix (see
    `orthogonalise`), in `precision`. `torch.optim.Muon` takes whole matrices alone, and always in
    bfloat16, which many CPUs emulate.
    """

    def __init__(
        self,
        parameters: Sequence[nn.Parameter],
        peak: float,
        momentum: float,
        weight_decay: float,
        precision: torch.dtype = torch.float32,
        rows: int = 256,
    ) -> None:
        self.parameters, self.peak = list(parameters), peak
        self.momentum, self.weight_decay, self.precision = momentum, weight_decay, precision
        self.velocities = [torch.zeros_like(parameter) for parameter in parameters]
        # Blocks of one shape are made orthogonal together.
        self._alike: dict[tuple[int, int], list[int]] = defaultdict(list)
        for number, parameter in enumerate(parameters):
            height = rows if len(parameter) % rows == 0 else len(parameter)
            self._alike[height, parameter[0].numel()].append(number)

    def update(self, rate: float) -> None:
        """One step of every parameter."""
        gradients = gradients_of(self.parameters)
        for (rows, columns), numbers in self._alike.items():
            parts = [len(self.parameters[number]) // rows for number in numbers]
            blocks = torch.empty(
                (sum(parts), rows, columns),
                dtype=self.precision,
                device=self.velocities[numbers[0]].device,
            )
            for number, part in zip(numbers, blocks.split_with_sizes(parts), strict=True):
                gradient, velocity = map(_rows_first, (gradients[number], self.velocities[number]))
                velocity.mul_(self.momentum).add_(gradient)
                nesterov = part.view(gradient.shape)
                torch.add(gradient, velocity, alpha=self.momentum, out=nesterov)
            # A tall matrix's orthogonal columns are shorter than a wide one's rows.
            scale = max(1.0, rows / columns) ** 0.5
            for number, part in zip(
                numbers, orthogonalise(blocks).split_with_sizes(parts), strict=True
            ):
                parameter = self.parameters[number]
                if self.weight_decay:  # a pass over all weights
                    parameter.mul_(1 - rate * self.weight_decay)
                matrix = _rows_first(parameter)
                matrix.add_(part.reshape(matrix.shape), alpha=-rate * scale)


def _rows_first(weight: Tensor) -> Tensor:
    """Weights (O, I, K, K) as (O, K, K, I), a view: without a copy (O, K K I) if channels last.

    The order of a matrix's columns does not matter to Muon.
    """
    order = list(range(weight.ndim))
    order.append(order.pop(1))
    return weight.permute(order)


def gradients_of(parameters: Sequence[nn.Parameter]) -> list[Tensor]:
    """Of each parameter; there must be one."""
    return [parameter.grad for parameter in parameters if parameter.grad is not None]


def orthogonalise(matrices: Tensor) -> Tensor:
    """The nearest half-orthogonal matrices, roughly: singular values come to lie in 0.7 to 1.2.

    matrices: (B, M, N), float32 or bfloat16, as is what is returned; zero stays zero. The iteration
    X <- aX + b(XX')X + c(XX')^2 X is a polynomial of X X' times X: so the polynomial is built from
    the small Gram matrix alone and applied once a round. At (256, 2304) that is 0.6 instead of 1.6
    billion multiplications.
    """
    if matrices.shape[1] > matrices.shape[2]:
        return orthogonalise(matrices.mT).mT
    a, b, c = NEWTON_SCHULZ
    gram = matrices @ matrices.mT
    # By the Frobenius norm, without a pass over (M, N).
    trace = gram.diagonal(dim1=1, dim2=2).sum(1)[:, None, None]
    shrink = 1 / (trace.sqrt() + 1e-7)
    gram = gram * shrink**2
    for round_, steps in enumerate(NEWTON_SCHULZ_ROUNDS[matrices.dtype]):
        if round_ > 0:
            gram = matrices @ matrices.mT
        product = gram
        for step in range(steps):
            polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
            polynomial.diagonal(dim1=1, dim2=2).add_(a)
            product = polynomial @ product if step else polynomial
            if step + 1 < steps:
                gram = polynomial @ gram @ polynomial
        matrices = (product if round_ else product * shrink) @ matrices
    return matrices


def make_optimiser(
    student: nn.Module, config: StudentConfig, steps: int, precision: torch.dtype = torch.float32
) -> Optimiser:
    """What trains a student in so many steps.

    `precision` is that of Muon's matrix products; weights and momenta are float32.
    """
    parameters = list(student.parameters())
    rate, decay = config.learning_rate, config.weight_decay
    rules: list[Rule]
    if config.optimiser == "sgd":
        rules = [SGD(parameters, rate, config.momentum, decay)]
    elif config.optimiser == "adamw":
        rules = [AdamW(parameters, rate, decay)]
    else:
        matrices = [parameter for parameter in parameters if parameter.ndim > 1]
        others = [parameter for parameter in parameters if parameter.ndim <= 1]
        rules = [
            Muon(matrices, rate, config.momentum, decay, precision, config.muon_rows),
            AdamW(others, ADAMW_BESIDE_MUON, 0.0),
        ]
    return Optimiser(rules, config.schedule, steps)
