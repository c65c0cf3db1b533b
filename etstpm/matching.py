"""How far a student's features lie from its teacher's: the loss and the maps (Wang et al. 2021)."""

import torch
from torch import Tensor

from etstpm.networks import Pyramid, normalise_features

NORM_FLOOR = 1e-12
"""Of a location's features, as in `torch.nn.functional.normalize`."""


def matching_loss(
    teacher: Pyramid, student: Pyramid, kind: str = "l2", hard_share: float = 1.0
) -> Tensor:
    """How far the student's features lie from the teacher's; a scalar, float32.

    `teacher` is normalised already, `student` is not. The mean is over batch and locations (of each
    image this share, the farthest), the sum over channels and layers.
    Source: "l2" is Wang et al. 2021, eq. 2 and 3: half the squared L2 distance, which of unit
    vectors is one minus the cosine; so it is computed, in a third of the passes over memory.
    "l1-cosine" is what a secondary source says of ET-STPM: the L1 norm of the difference plus one
    minus the cosine; the paper's text could not be checked. Hard locations: Batzner et al. 2024,
    EfficientAD, section 3.2. Deviates in taking locations of each image and layer, where they take
    components of a whole batch.
    """
    loss = torch.zeros((), device=teacher[0].device)
    for target, feature in zip(teacher, student, strict=True):
        unscaled = feature.float()
        norm = torch.linalg.vector_norm(unscaled, dim=1).clamp_min(NORM_FLOOR)
        distance = 1 - (unscaled * target).sum(1) / norm
        if kind == "l1-cosine":
            distance = distance + (unscaled / norm[:, None] - target).abs().sum(1)
        if hard_share < 1:
            locations = distance.flatten(1)
            count = max(1, round(hard_share * locations.shape[1]))
            distance = locations.topk(count, sorted=False).values
        loss = loss + distance.mean()
    return loss


def distance_maps(teacher: Pyramid, student: Pyramid) -> tuple[Tensor, Tensor, Tensor]:
    """Half the squared distance at each location of each layer: three (N, H, W), float32, [0, 2].

    `teacher` is normalised already, `student` is not. Source: Wang et al. 2021, eq. 2.
    """
    layer1, layer2, layer3 = (
        0.5 * (feature - target).square().sum(1)
        for target, feature in zip(teacher, normalise_features(student), strict=True)
    )
    return layer1, layer2, layer3
