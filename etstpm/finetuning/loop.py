"""The teacher's loop: ImageNet's pyramid learns from good images, and is then frozen."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.optim import AdamW

from etstpm.compute import Compute
from etstpm.config import TeacherConfig
from etstpm.errors import TrainingError
from etstpm.finetuning.classification import CategoryClassification
from etstpm.finetuning.metric import CategoryMetric
from etstpm.finetuning.objective import GoodImages, Measured, Objective, Rows, accuracy_of
from etstpm.finetuning.parallel import agree, average_gradients, distribute, features_of
from etstpm.finetuning.synthetic import SyntheticAnomalies
from etstpm.images import Pixels
from etstpm.networks import FeaturePyramid, TeacherWeights, freeze
from etstpm.progress import Bar
from etstpm.splits import batches

State = dict[str, Tensor]


@dataclass(frozen=True)
class TeacherEpoch:
    """One row of a teacher's history; see `tables.TEACHER_HISTORY`."""

    epoch: int
    loss: float
    validation_loss: float
    validation_accuracy: float


@dataclass(frozen=True)
class FinetunedTeacher:
    """A frozen teacher, how it got there, and what was done in words."""

    pyramid: FeaturePyramid
    history: list[TeacherEpoch]
    summary: str


def finetune_teacher(
    weights: TeacherWeights,
    pixels: Mapping[str, Pixels],
    config: TeacherConfig,
    *,
    seed: int,
    compute: Compute,
) -> FinetunedTeacher:
    """Fine-tune the teacher as `config.mode` says, on train/good alone.

    pixels: for each category its good images (N, H, W, 3) uint8, two or more. The epoch with the
    lowest loss on held-out good images is kept, before the first epoch included; `config.patience`
    epochs without a lower one end the training. Modes that compare categories leave the weights
    as they are where there is one alone. Batch normalisation stays frozen where the weights have
    it folded. Raises `TrainingError` if the loss becomes NaN or infinite.
    """
    pyramid = weights.build()
    if len(pixels) < 2 and config.mode != "synthetic":
        return FinetunedTeacher(
            pyramid,
            [],
            "one category: nothing to tell apart, weights left as they are; "
            "teacher.mode = 'synthetic' would tune them",
        )
    images = GoodImages(pixels)
    training, held_out = images.split(config.validation_fraction, seed)
    objective = make_objective(weights, images, training, config, seed=seed, compute=compute)
    tuning = Tuning(pyramid, objective, config, compute, is_folded=weights.is_folded)

    rng = np.random.default_rng([seed, 2])
    (best_loss, accuracy), best_epoch = agree(*tuning.evaluate(held_out, seed)), 0
    best = copy.deepcopy(pyramid.state_dict())
    history: list[TeacherEpoch] = []
    with Bar(f"teacher: {config.mode}", config.epochs * len(training)) as bar:
        for epoch in range(1, config.epochs + 1):
            loss = tuning.train_epoch(rng.permutation(training), rng, bar)
            record = TeacherEpoch(epoch, *agree(loss, *tuning.evaluate(held_out, seed)))
            history.append(record)
            bar.show(loss=record.loss, accuracy=record.validation_accuracy)
            if not np.isfinite([record.loss, record.validation_loss]).all():
                raise TrainingError(
                    f"teacher: its loss is {record.loss} in epoch {epoch} and "
                    f"{record.validation_loss} on held-out images; lower "
                    f"teacher.learning_rate (now {config.learning_rate})"
                )
            if record.validation_loss < best_loss:
                best_loss, accuracy = record.validation_loss, record.validation_accuracy
                best, best_epoch = copy.deepcopy(pyramid.state_dict()), epoch
            elif epoch - best_epoch >= config.patience:
                break
    pyramid.load_state_dict(mix(weights.tensors, best, config.mixture))
    summary = _describe(objective, accuracy, best_epoch, len(history), config.mixture)
    return FinetunedTeacher(freeze(pyramid), history, summary)


class Tuning:
    """A pyramid and its objective on the device, what steps both, and how well they do."""

    def __init__(
        self,
        pyramid: FeaturePyramid,
        objective: Objective,
        config: TeacherConfig,
        compute: Compute,
        *,
        is_folded: bool,
    ) -> None:
        self.pyramid = pyramid.requires_grad_(True).to(compute.device)
        self.objective = objective.to(compute.device)
        self.compute, self.batch_size, self.is_folded = compute, config.batch_size, is_folded
        self._network = distribute(pyramid, compute, is_folded=is_folded)
        tuned = [*pyramid.parameters(), *objective.pretrained.parameters()]
        self._optimiser = AdamW(
            [
                {"params": tuned, "lr": config.learning_rate},
                {"params": objective.head.parameters(), "lr": 10 * config.learning_rate},
            ]
        )

    def train_epoch(self, order: Rows, rng: np.random.Generator, bar: Bar) -> float:
        """One step a batch of the images in this order; their mean loss."""
        self.pyramid.train(not self.is_folded)
        total = torch.zeros((), dtype=torch.float32, device=self.compute.device)
        for batch in batches(order, self.batch_size):
            loss = self._measure(batch, rng).loss
            loss.backward()  # type: ignore[no-untyped-call]
            average_gradients(self.objective.parameters())
            self._optimiser.step()
            self._optimiser.zero_grad()
            total += loss.detach() * len(batch)
            bar.advance(len(batch))
        return total.item() / len(order)  # read now: at each step a GPU would have to wait

    @torch.no_grad()
    def evaluate(self, held_out: Rows, seed: int) -> tuple[float, float]:
        """Mean loss and accuracy on held-out images, in one order and one draw for all epochs."""
        rng = np.random.default_rng([seed, 3])
        self.pyramid.eval()
        order = rng.permutation(np.tile(held_out, (self.objective.held_out_draws, 1)))
        parts = [(len(b), self._measure(b, rng)) for b in batches(order, self.batch_size)]
        loss = sum(count * part.loss.item() for count, part in parts) / len(order)
        right = torch.stack([part.right for _, part in parts]).sum(0)
        total = torch.stack([part.total for _, part in parts]).sum(0)
        return loss, accuracy_of(right, total)

    def _measure(self, rows: Rows, rng: np.random.Generator) -> Measured:
        drawn, targets = self.objective.draw(rows, rng)
        features = features_of(self._network, drawn, self.compute)
        measured: Measured = self.objective(
            features, torch.as_tensor(targets, device=self.compute.device)
        )
        return measured


def make_objective(
    weights: TeacherWeights,
    images: GoodImages,
    training: Rows,
    config: TeacherConfig,
    *,
    seed: int,
    compute: Compute,
) -> Objective:
    """What the pyramid is to learn."""
    if config.mode == "synthetic":
        return SyntheticAnomalies(images, training, seed=seed)
    if config.mode == "metric":
        return CategoryMetric(images, config.temperature, seed=seed)
    return CategoryClassification(
        weights, images, config.label_smoothing, seed=seed, compute=compute
    )


def mix(original: State, tuned: State, mixture: float) -> State:
    """Tensor by tensor (1 - mixture) x original + mixture x tuned; at 0 and 1 exactly the one.

    Source: Wortsman et al., WiSE-FT, CVPR 2022, section 3. Where batch normalisation is not
    folded, its running statistics are mixed like any other tensor; the paper's networks have none.
    """
    return {
        name: torch.lerp(tensor.double(), tuned[name].cpu().double(), mixture).to(tensor.dtype)
        for name, tensor in original.items()
    }


def _describe(
    objective: Objective, accuracy: float, best_epoch: int, epochs: int, mixture: float
) -> str:
    if best_epoch == 0:
        return (
            f"weights left as they were: none of {epochs} epochs {objective.goal} was better on "
            "held-out images"
        )
    mixed = "" if mixture == 1.0 else f", mixed {mixture:.0%} into the original weights"
    return (
        f"fine-tuned {objective.goal}: {accuracy:.1%} {objective.counted}; epoch {best_epoch} of "
        f"{epochs} kept{mixed}"
    )
