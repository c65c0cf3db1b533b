"""Anomaly maps and image scores."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms.v2.functional import gaussian_blur

from etstpm.compute import Compute
from etstpm.config import ScoringConfig
from etstpm.distillation import batches, distance_maps
from etstpm.images import Pixels, normalise
from etstpm.networks import FeaturePyramid, Pyramid, normalise_features
from etstpm.progress import Bar

Maps = npt.NDArray[np.float32]
"""Anomaly maps (N, H, W), float32, at least 0; products of distances can be as small as 1e-12."""


@dataclass(frozen=True)
class ScoredImages:
    """Maps (N, H, W) float32 and scores (N,) float64, in the order of the images."""

    maps: Maps
    scores: npt.NDArray[np.float64]


def anomaly_maps(teacher: Pyramid, student: Pyramid, size: int, config: ScoringConfig) -> Tensor:
    """Anomaly maps (N, size, size), float32: one number a pixel, higher where less normal.

    `teacher` is normalised already, `student` is not. Each layer's distance map is upsampled
    bilinearly (corners not aligned) and the three are multiplied or added.
    Source: Wang et al. 2021, eq. 4; smoothing is not in the paper.
    """
    layer1, layer2, layer3 = (
        F.interpolate(layer[:, None], size=(size, size), mode="bilinear", align_corners=False)
        for layer in distance_maps(teacher, student)
    )
    is_product = config.fusion == "product"
    fused = layer1 * layer2 * layer3 if is_product else layer1 + layer2 + layer3
    if config.smoothing_sigma > 0:
        # The border is mirrored, and a mirror shows no more than the map itself.
        radius = min(max(1, round(3 * config.smoothing_sigma)), size - 1)
        fused = gaussian_blur(fused, [2 * radius + 1] * 2, [config.smoothing_sigma] * 2)
    return fused.squeeze(1)


def image_scores(maps: Tensor) -> Tensor:
    """The largest value of each map: (N, H, W) to (N,). Source: Wang et al. 2021, section 3."""
    return maps.amax((1, 2))


def upsample_map(
    anomaly_map: npt.NDArray[np.float32], height: int, width: int
) -> npt.NDArray[np.float32]:
    """A map (H, W) at an image's own size, bilinear: what MVTec's evaluation compares."""
    upsampled = F.interpolate(
        torch.from_numpy(anomaly_map)[None, None],
        size=(height, width),
        mode="bilinear",
        align_corners=False,
    )
    values: npt.NDArray[np.float32] = upsampled[0, 0].numpy()
    return values


@dataclass(frozen=True)
class UpsampledMaps:
    """Maps (N, H, W), each at its image's own size when it is asked for: all would fill gigabytes.

    sizes: (height, width) of each.
    """

    maps: Maps
    sizes: Sequence[tuple[int, int]]

    def __len__(self) -> int:
        return len(self.maps)

    def __getitem__(self, index: int) -> npt.NDArray[np.float32]:
        return upsample_map(self.maps[index], *self.sizes[index])


def score_images(
    teacher: FeaturePyramid,
    student: FeaturePyramid,
    pixels: Pixels,
    config: ScoringConfig,
    *,
    compute: Compute,
    name: str,
) -> ScoredImages:
    """Score images (N, H, W, 3) uint8 with a frozen teacher and a trained student."""
    teacher, student = teacher.to(compute.device), student.to(compute.device)
    maps = np.empty(pixels.shape[:3], np.float32)
    scores = np.empty(len(pixels), np.float64)
    with Bar(name, len(pixels)) as bar, torch.inference_mode():
        for batch in batches(np.arange(len(pixels)), config.batch_size):
            images = normalise(pixels[batch], compute.device)
            with compute.autocast():
                target, output = teacher(images), student(images)
            batch_maps = anomaly_maps(normalise_features(target), output, pixels.shape[1], config)
            maps[batch] = batch_maps.cpu().numpy()
            scores[batch] = image_scores(batch_maps).double().cpu().numpy()
            bar.advance(len(batch))
    return ScoredImages(maps, scores)


def decision_threshold(good_scores: npt.NDArray[np.float64], false_alarm_rate: float) -> float:
    """The score above which an image is called defective, from held-out good images alone.

    The smallest observed score that at most `false_alarm_rate` of the good images exceed. With n
    images a rate below 1/n cannot be resolved: then it is their maximum.
    """
    ordered = np.sort(good_scores)
    above = ordered.size - np.searchsorted(ordered, ordered, side="right")
    return float(ordered[above / ordered.size <= false_alarm_rate][0])
