"""Synthetic anomalies: the pyramid learns to tell their locations from good ones."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from etstpm.finetuning.anomalies import damage
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
from etstpm.wording import count_of


class SyntheticAnomalies(Objective):
    """Binary cross-entropy at each location of each layer: anomalous or good.

    Both weigh alike, or the head's bias would learn that anomalies are rare and look like progress.
    One 1x1 convolution a layer, on the normalised features that the student will be matched to, so
    that each layer is tuned directly and by nothing that normalisation throws away. A location is
    anomalous where any of its pixels is.
    Source: CutPaste (Li et al. 2021) and DRAEM (Zavrtanik et al. 2021) for the anomalies; the
    head is this project's: both papers train their networks from other losses.
    """

    head: nn.ModuleList
    held_out_draws = 4  # a small category holds out six images: three anomalies would tell little

    def __init__(self, images: GoodImages, textures: Rows, *, seed: int) -> None:
        super().__init__(
            images,
            goal="to find synthetic anomalies in good images of "
            f"{count_of(len(images.names), 'category')}",
            counted="of the held-out locations right (mean of good and anomalous ones)",
        )
        self.textures = textures
        self.head = nn.ModuleList(
            seeded_linear(channels, 1, std=0.01, seed=seed) for channels in CHANNELS
        )

    def draw(self, rows: Rows, rng: np.random.Generator) -> tuple[Pixels, Targets]:
        """Half of the images damaged, rounded up (N, H, W, 3); where, (N, H, W) bool.

        Blends may lay any training image over a good one, held-out ones too.
        """
        images = self.images.take(rows)
        masks = np.zeros(images.shape[:3], bool)
        for index in rng.permutation(len(rows))[: -(-len(rows) // 2)]:
            texture = self.images.take(rng.choice(self.textures, 1))[0]
            images[index], masks[index] = damage(images[index], texture, rng)
        return images, masks

    def forward(self, features: Pyramid, targets: Tensor) -> Measured:
        losses: list[Tensor] = []
        right = total = torch.zeros(2, dtype=torch.long, device=targets.device)
        for layer, feature in zip(self.head, normalise_features(features), strict=True):
            # Of unit length over C channels: components of about 1, whatever C.
            scaled = feature.movedim(1, -1) * feature.shape[1] ** 0.5
            logits = layer(scaled).squeeze(-1)
            stride = targets.shape[-1] // feature.shape[-1]
            anomalous = F.max_pool2d(targets[:, None].float(), stride).squeeze(1)
            entropies = F.binary_cross_entropy_with_logits(logits, anomalous, reduction="none")
            is_right = (logits > 0) == (anomalous > 0)
            classes = [anomalous == 0, anomalous > 0]
            losses += [entropies[locations].mean() for locations in classes if locations.any()]
            right = right + torch.stack([is_right[locations].sum() for locations in classes])
            total = total + torch.stack([locations.sum() for locations in classes])
        return Measured(torch.stack(losses).mean(), right, total)
