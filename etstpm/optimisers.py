"""The student's optimisers, and the schedule of their learning rates."""

from collections.abc import Callable, Iterable
from typing import Any, overload

import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, OneCycleLR

from etstpm.config import StudentConfig

ADAMW_BESIDE_MUON = 2e-3
"""Highest learning rate of what is no matrix: batch normalisation's scales and shifts."""

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
"""Coefficients of the quintic (Jordan et al. 2024): they lift small singular values fastest."""
NEWTON_SCHULZ_ROUNDS = {torch.float32: (5,), torch.bfloat16: (3, 2)}
"""Steps before the Gram matrix is taken anew. In bfloat16 five in a row blow small singular values
up; three and two come nearer to the exact result than plain Newton-Schulz in bfloat16 does."""


class Muon(Optimizer):
    """Momentum whose update is made orthogonal: every direction of a weight matrix moves as far.

    A student's gradients are of low rank, so that Adam learns a few directions early and the rest
    late; here a student needs about a third of Adam's epochs (docs/quality.md). A convolution (O,
    I, K, K) counts as a matrix (O, I K K).
    Source: Jordan et al. 2024, Muon. Deviates in computing Newton-Schulz on the Gram matrix (see
    `orthogonalise`), in `precision`. `torch.optim.Muon` takes matrices alone, and always in
    bfloat16, which many CPUs emulate.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        lr: float,
        momentum: float,
        weight_decay: float,
        precision: torch.dtype = torch.float32,
    ) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        self.precision = precision

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """One update of every parameter that has a gradient."""
        loss = closure() if closure is not None else None
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, parameter.grad, group)
        return loss

    def _update(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if not state:
            state["momentum"] = torch.zeros_like(gradient)
        velocity: Tensor = state["momentum"]
        velocity.mul_(group["momentum"]).add_(gradient)
        # The order of the columns does not matter: as (O, K K I) no copy of channels-last weights.
        rows = list(range(parameter.ndim))
        rows.append(rows.pop(1))
        nesterov = gradient.add(velocity, alpha=group["momentum"]).permute(rows)
        update = orthogonalise(nesterov.flatten(1), self.precision)
        # A tall matrix's orthogonal columns are shorter than a wide one's rows.
        scale = max(1.0, update.shape[0] / update.shape[1]) ** 0.5
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        parameter.permute(rows).add_(update.view(nesterov.shape), alpha=-group["lr"] * scale)


def orthogonalise(matrix: Tensor, precision: torch.dtype = torch.float32) -> Tensor:
    """The nearest half-orthogonal matrix, roughly: singular values come to lie in 0.7 to 1.2.

    matrix: (M, N) float32; zero stays zero. The iteration X <- aX + b(XX')X + c(XX')^2 X is a
    polynomial of X X' times X: so the polynomial is built from the small Gram matrix alone and
    applied once a round. At (256, 2304) that is 0.6 instead of 1.6 billion multiplications.
    """
    if matrix.shape[0] > matrix.shape[1]:
        return orthogonalise(matrix.T, precision).T
    a, b, c = NEWTON_SCHULZ
    matrix = matrix.to(precision)
    gram = matrix @ matrix.T
    shrink = 1 / (gram.trace().sqrt() + 1e-7)  # by the Frobenius norm, without a pass over (M, N)
    gram = gram * shrink**2
    for round_, steps in enumerate(NEWTON_SCHULZ_ROUNDS[precision]):
        if round_ > 0:
            gram = matrix @ matrix.T
        product = gram
        for step in range(steps):
            polynomial = torch.addmm(gram, gram, gram, beta=b, alpha=c)
            polynomial.diagonal().add_(a)
            product = polynomial @ product if step else polynomial
            if step + 1 < steps:
                gram = polynomial @ gram @ polynomial
        matrix = (product if round_ else product * shrink) @ matrix
    return matrix.float()


def make_optimisers(
    student: nn.Module, config: StudentConfig, steps: int, precision: torch.dtype = torch.float32
) -> list[tuple[Optimizer, LRScheduler]]:
    """The optimisers, each with its schedule counted in steps; all are stepped together.

    `precision` is that of Muon's matrix products; weights and momenta are float32.
    """
    parameters = list(student.parameters())
    if config.optimiser == "sgd":
        chosen: list[Optimizer] = [
            SGD(
                parameters,
                lr=config.learning_rate,
                momentum=config.momentum,
                weight_decay=config.weight_decay,
                fused=True,
            )
        ]
    elif config.optimiser == "adamw":
        chosen = [_adamw(parameters, config.learning_rate, config.weight_decay)]
    else:
        chosen = [
            Muon(
                [parameter for parameter in parameters if parameter.ndim > 1],
                config.learning_rate,
                config.momentum,
                config.weight_decay,
                precision,
            ),
            _adamw([p for p in parameters if p.ndim <= 1], ADAMW_BESIDE_MUON, 0.0),
        ]
    return [(optimiser, _schedule(optimiser, config, steps)) for optimiser in chosen]


def _adamw(parameters: list[nn.Parameter], rate: float, weight_decay: float) -> AdamW:
    return AdamW(parameters, lr=rate, weight_decay=weight_decay, fused=True)


def _schedule(optimiser: Optimizer, config: StudentConfig, steps: int) -> LRScheduler:
    if config.schedule == "one-cycle":
        # `cycle_momentum` swings it between 0.85 and 0.95: nothing gained over 0.9 here.
        return OneCycleLR(
            optimiser,
            [group["lr"] for group in optimiser.param_groups],
            total_steps=steps + 1,
            cycle_momentum=False,
        )
    return LambdaLR(optimiser, lambda _: 1.0)
