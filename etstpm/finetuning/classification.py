"""Category classification, the enhanced teacher of ET-STPM."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from etstpm.compute import Compute
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
from etstpm.networks import Pyramid, TeacherWeights


class CategoryClassification(Objective):
    """Cross-entropy of the category; logits from layer4, or from the pooled pyramid without it.

    Where the weights file has no layer4, the logits come from layer1 to layer3, each averaged over
    its locations and all joined: each layer that is matched later is tuned directly.
    Source: Zolfaghari and Sajedi 2022. layer4's batch statistics stay frozen: at 32x32 a last
    batch of one image has none.
    """

    def __init__(
        self,
        weights: TeacherWeights,
        images: GoodImages,
        label_smoothing: float,
        *,
        seed: int,
        compute: Compute,
    ) -> None:
        self.has_layer4 = weights.layer4 is not None
        head = "layer4" if self.has_layer4 else "the pooled pyramid: the weights have no layer4"
        super().__init__(
            images,
            goal=f"to tell {len(images.names)} categories apart (head on {head})",
            counted="of the held-out good images right",
        )
        self.label_smoothing, self.compute = label_smoothing, compute
        if self.has_layer4:
            self.pretrained = weights.build_layer4()
        channels = 512 if self.has_layer4 else sum(CHANNELS)
        self.head = seeded_linear(channels, len(images.names), std=0.01, seed=seed)

    def draw(self, rows: Rows, rng: np.random.Generator) -> tuple[Pixels, Targets]:  # noqa: ARG002
        """Images (N, H, W, 3) as they are; the numbers of their categories (N,)."""
        return self.images.take(rows), rows[:, 0]

    def forward(self, features: Pyramid, targets: Tensor) -> Measured:
        layers: tuple[Tensor, ...] = features
        if self.has_layer4:
            with self.compute.autocast():
                layers = (self.pretrained(features[2]),)
        logits = self.head(torch.cat([layer.float().mean((2, 3)) for layer in layers], dim=1))
        loss = F.cross_entropy(logits, targets, label_smoothing=self.label_smoothing)
        right = (logits.argmax(1) == targets)[None].sum(1)
        return Measured(loss, right, torch.full_like(right, len(targets)))
