"""The teacher's loop: ImageNet's pyramid learns to tell the categories apart."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import AdamW

from etstpm.compute import Compute
from etstpm.config import TeacherConfig
from etstpm.distillation import EVALUATION_BATCH, batches, split_train_validation
from etstpm.errors import TrainingError
from etstpm.images import Pixels, normalise
from etstpm.networks import FeaturePyramid, Pyramid, TeacherWeights, freeze
from etstpm.progress import Bar

Rows = npt.NDArray[np.int64]
"""Images as rows (number of the category, number of the image)."""

CHANNELS = 64 + 128 + 256


@dataclass(frozen=True)
class TeacherEpoch:
    """One row of a teacher's history; losses are cross-entropies in nats."""

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


class PooledPyramidHead(nn.Module):
    """Category logits (N, categories) from the three layers, averaged over their locations.

    The paper's head stands on layer4, which the pyramid does not have; so each layer that is
    matched later is tuned directly.
    """

    def __init__(self, categories: int, seed: int) -> None:
        super().__init__()
        self.linear = nn.Linear(CHANNELS, categories)
        generator = torch.Generator().manual_seed(seed)
        nn.init.normal_(self.linear.weight, std=0.01, generator=generator)
        nn.init.zeros_(self.linear.bias)

    def forward(self, features: Pyramid) -> Tensor:
        pooled = torch.cat([feature.float().mean((2, 3)) for feature in features], dim=1)
        logits: Tensor = self.linear(pooled)
        return logits


def finetune_teacher(
    weights: TeacherWeights,
    pixels: Mapping[str, Pixels],
    config: TeacherConfig,
    *,
    seed: int,
    compute: Compute,
) -> FinetunedTeacher:
    """Fine-tune the teacher by category classification, on train/good alone.

    pixels: for each category its good images (N, H, W, 3) uint8. The epoch with the lowest
    cross-entropy on held-out good images is kept, before the first epoch included.
    With one category there is nothing to tell apart, and the teacher stays as it was.
    Source: Zolfaghari and Sajedi 2022; deviates in the head (see `PooledPyramidHead`) and in
    batch normalisation, which stays frozen where the weights have it folded.
    """
    pyramid = weights.build()
    if len(pixels) < 2:
        return FinetunedTeacher(
            pyramid, [], "one category: nothing to tell apart, weights left as they are"
        )
    samples, held_out = _split(pixels, config.validation_fraction, seed)
    names = sorted(pixels)
    pyramid = pyramid.requires_grad_(True).to(compute.device)
    head = PooledPyramidHead(len(names), seed).to(compute.device)
    optimiser = AdamW(
        [
            {"params": pyramid.parameters(), "lr": config.learning_rate},
            {"params": head.parameters(), "lr": 10 * config.learning_rate},
        ]
    )

    def forward(rows: Rows) -> tuple[Tensor, Tensor]:
        images = np.stack([pixels[names[category]][index] for category, index in rows])
        with compute.autocast():
            features = pyramid(normalise(images, compute.device))
        labels = torch.as_tensor(rows[:, 0], device=compute.device)
        return head(features), labels

    def evaluate() -> tuple[float, float]:
        pyramid.eval()
        loss = hits = 0.0
        with torch.no_grad():
            for batch in batches(held_out, EVALUATION_BATCH):
                logits, labels = forward(batch)
                loss += F.cross_entropy(logits, labels, reduction="sum").item()
                hits += int((logits.argmax(1) == labels).sum())
        return loss / len(held_out), hits / len(held_out)

    rng = np.random.default_rng([seed, 2])
    (best_loss, accuracy), best = evaluate(), copy.deepcopy(pyramid.state_dict())
    history: list[TeacherEpoch] = []
    with Bar("teacher: categories", config.epochs * len(samples)) as bar:
        for epoch in range(1, config.epochs + 1):
            pyramid.train(not weights.is_folded)
            total = 0.0
            for batch in batches(rng.permutation(samples), config.batch_size):
                loss = F.cross_entropy(*forward(batch))
                loss.backward()  # type: ignore[no-untyped-call]
                optimiser.step()
                optimiser.zero_grad()
                total += loss.item() * len(batch)
                bar.advance(len(batch))
            record = TeacherEpoch(epoch, total / len(samples), *evaluate())
            history.append(record)
            bar.show(loss=record.loss, accuracy=record.validation_accuracy)
            if not np.isfinite(record.loss):
                raise TrainingError(
                    f"teacher: its loss is {record.loss} in epoch {epoch}; lower "
                    f"teacher.learning_rate (now {config.learning_rate})"
                )
            if record.validation_loss < best_loss:
                best_loss, accuracy = record.validation_loss, record.validation_accuracy
                best = copy.deepcopy(pyramid.state_dict())
    pyramid.load_state_dict(best)
    return FinetunedTeacher(
        freeze(pyramid),
        history,
        f"fine-tuned to tell {len(names)} categories apart: {accuracy:.1%} of the held-out good "
        "images right",
    )


def _split(pixels: Mapping[str, Pixels], fraction: float, seed: int) -> tuple[Rows, Rows]:
    """Rows (category, image) that train and that are held out, each category by its share."""
    training: list[Rows] = []
    held_out: list[Rows] = []
    for number, name in enumerate(sorted(pixels)):
        parts = split_train_validation(len(pixels[name]), fraction, seed)
        for rows, indices in zip((training, held_out), parts, strict=True):
            rows.append(np.stack([np.full_like(indices, number), indices], axis=1))
    return np.concatenate(training), np.concatenate(held_out)
