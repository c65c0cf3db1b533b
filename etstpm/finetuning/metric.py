"""Metric learning between the categories: supervised contrastive, on two light views."""

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from etstpm.finetuning.objective import (
    CHANNELS,
    GoodImages,
    Measured,
    Objective,
    Rows,
    Targets,
    seeded_linear,
)
from etstpm.images import Pixels
from etstpm.networks import Pyramid, normalise_features

PROJECTION = 128
"""Dimensions that are compared (Khosla et al. 2020, section 3.1)."""
SMALLEST_CROP = 0.8
"""Share of the side that a view shows at least: a defect detector must not forget where and how
large things are, so views are lighter than those for classification (area from 0.08)."""
BRIGHTNESS = 0.1
"""Greatest relative change of a view's brightness."""


class CategoryMetric(Objective):
    """Supervised contrastive loss between the views of a batch.

    A view's features are normalised as the student will see them, averaged over the locations of
    each layer, joined, and projected by one linear layer (both forms stand in the paper).
    Source: Khosla et al. 2020, eq. 2, with temperature 0.1; deviates in its lighter views.
    """

    def __init__(self, images: GoodImages, temperature: float, *, seed: int) -> None:
        super().__init__(
            images,
            goal=f"to draw each of {len(images.names)} categories together and apart from the rest",
            counted="of the held-out views nearest to their own category",
        )
        self.temperature = temperature
        channels = sum(CHANNELS)
        self.head = seeded_linear(channels, PROJECTION, std=channels**-0.5, seed=seed)

    def draw(self, rows: Rows, rng: np.random.Generator) -> tuple[Pixels, Targets]:
        """Two views of each image (2N, H, W, 3), all first ones first; their categories (2N,)."""
        twice = np.tile(rows, (2, 1))
        return np.stack([draw_view(i, rng) for i in self.images.take(twice)]), twice[:, 0]

    def forward(self, features: Pyramid, targets: Tensor) -> Measured:
        pooled = [feature.mean((2, 3)) for feature in normalise_features(features)]
        projected = F.normalize(self.head(torch.cat(pooled, dim=1)))
        similarity = projected @ projected.T
        nearest = nearest_other(similarity.detach(), targets)
        right = (targets[nearest] == targets)[None].sum(1)
        loss = supervised_contrastive(similarity / self.temperature, targets)
        return Measured(loss, right, torch.full_like(right, len(targets)))


def draw_view(image: Pixels, rng: np.random.Generator) -> Pixels:
    """A light view of a square image (H, W, 3): a crop, resized to H x W, and its brightness."""
    size = len(image)
    side = size * rng.uniform(SMALLEST_CROP, 1.0)
    left, top = rng.uniform(0.0, size - side, 2)
    box = (left, top, left + side, top + side)
    view = Image.fromarray(image).resize((size, size), Image.Resampling.BILINEAR, box)
    brightness = rng.uniform(1.0 - BRIGHTNESS, 1.0 + BRIGHTNESS)
    return np.rint(np.asarray(view) * brightness).clip(0, 255).astype(np.uint8)


def supervised_contrastive(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean over the anchors of their cross-entropies with each positive; a scalar, in nats.

    logits: similarities over the temperature (N, N); each label occurs twice or more.
    Source: Khosla et al. 2020, eq. 2 (the sum over the positives stands outside the logarithm).
    """
    itself = torch.eye(len(labels), dtype=torch.bool, device=logits.device)
    positive = (labels[:, None] == labels) & ~itself
    log_share = logits.masked_fill(itself, -torch.inf).log_softmax(1)
    return -(log_share.masked_fill(~positive, 0.0).sum(1) / positive.sum(1)).mean()


def nearest_other(similarity: Tensor, labels: Tensor) -> Tensor:
    """For each of two views of N images (2N, 2N) the most similar view of another image: (2N,).

    An image that is alone of its category in the batch is compared with its own other view, too.
    """
    count = len(labels)
    itself = torch.eye(count, dtype=torch.bool, device=similarity.device)
    twin = itself.roll(count // 2, dims=0)
    has_other = ((labels[:, None] == labels) & ~itself & ~twin).any(1)
    barred = itself | (twin & has_other[:, None])
    return similarity.masked_fill(barred, -torch.inf).argmax(1)
