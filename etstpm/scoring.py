"""What anomaly maps, image scores and thresholds are: from features alone, without a network."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from etstpm.calibration import Calibration, distances
from etstpm.config import ScoringConfig
from etstpm.networks import Pyramid, normalise_features

Maps = npt.NDArray[np.float32]
"""Anomaly maps (N, H, W), float32, at least 0; products of distances can be as small as 1e-12."""


@dataclass(frozen=True)
class ScoredImages:
    """Maps (N, H, W) float32 and scores (N,) float64, in the order of the images."""

    maps: Maps
    scores: npt.NDArray[np.float64]


def anomaly_maps(
    layers: Sequence[Tensor],
    size: int,
    config: ScoringConfig,
    chosen: Sequence[int] = (1, 2, 3),
    quantiles: Sequence[tuple[float, float]] | None = None,
) -> Tensor:
    """Anomaly maps (N, size, size), float32: one number a pixel, higher where less normal.

    layers: the three layers' distances (N, H, W), of which those numbered in `chosen` are upsampled
    bilinearly (corners not aligned) and fused. quantiles: of each layer's distances on good images
    (see `fit_quantiles`), for the fusion "quantile-sum".
    Source: Wang et al. 2021, eq. 4; smoothing is not in the paper.
    """
    maps = [
        F.interpolate(
            layers[number - 1][:, None], size=(size, size), mode="bilinear", align_corners=False
        )
        for number in chosen
    ]
    if config.fusion == "quantile-sum":
        if quantiles is None:
            raise ValueError("the fusion 'quantile-sum' needs the quantiles of the layers")
        ends = [quantiles[number - 1] for number in chosen]
        maps = [
            0.1 * (layer - low) / (high - low)
            for layer, (low, high) in zip(maps, ends, strict=True)
        ]
    fused = maps[0]
    for layer in maps[1:]:
        fused = fused * layer if config.fusion == "product" else fused + layer
    if config.smoothing_sigma > 0:
        fused = smooth(fused, config.smoothing_sigma)
    return fused.squeeze(1)


def smooth(maps: Tensor, sigma: float) -> Tensor:
    """Maps (N, 1, H, W) under a Gaussian of `sigma` pixels, cut at three of them; mirrored borders.

    Ours because torchvision's brings torch's compiler with it: 170 MB of each process.
    """
    # A mirror shows no more than the map itself.
    radius = min(max(1, round(3 * sigma)), min(maps.shape[-2:]) - 1)
    offsets = torch.arange(-radius, radius + 1, device=maps.device, dtype=maps.dtype)
    kernel = torch.exp(-0.5 * (offsets / sigma) ** 2)
    kernel = kernel / kernel.sum()
    padded = F.pad(maps, [radius] * 4, mode="reflect")
    return F.conv2d(F.conv2d(padded, kernel[None, None, :, None]), kernel[None, None, None, :])


def image_scores(maps: Tensor, top_share: float = 0.0) -> Tensor:
    """Mean of each map's largest values: (N, H, W) to (N,).

    `top_share` of the pixels are taken, at least one: 0 is the maximum. Source: Wang et al. 2021,
    section 3 (the maximum).
    """
    pixels = maps.flatten(1)
    return pixels.topk(max(1, round(top_share * pixels.shape[1]))).values.mean(1)


def resize_map(
    anomaly_map: npt.NDArray[np.float32], height: int, width: int
) -> npt.NDArray[np.float32]:
    """A map (H, W) at another size, bilinear: MVTec's evaluation compares at the image's own."""
    resized = F.interpolate(
        torch.from_numpy(anomaly_map)[None, None],
        size=(height, width),
        mode="bilinear",
        align_corners=False,
    )
    values: npt.NDArray[np.float32] = resized[0, 0].numpy()
    return values


@dataclass(frozen=True)
class ResizedMaps:
    """Maps (N, H, W), each at a size of its own when it is asked for: all would fill gigabytes.

    sizes: (height, width) of each.
    """

    maps: Maps
    sizes: Sequence[tuple[int, int]]

    def __len__(self) -> int:
        return len(self.maps)

    def __getitem__(self, index: int) -> npt.NDArray[np.float32]:
        return resize_map(self.maps[index], *self.sizes[index])


def score_errors(
    errors: Pyramid, size: int, config: ScoringConfig, calibration: Calibration
) -> tuple[Tensor, Tensor]:
    """A batch's anomaly maps (N, size, size) and image scores (N,), float32, from its errors."""
    layers = distances(errors, calibration.whitening)
    maps = anomaly_maps(layers, size, config, config.map_layers, calibration.quantiles)
    judged = maps
    if config.image_layers != config.map_layers:
        judged = anomaly_maps(layers, size, config, config.image_layers, calibration.quantiles)
    return maps, image_scores(judged, config.top_share)


def feature_errors(target: Pyramid, output: Pyramid) -> Pyramid:
    """Student less teacher, both normalised here: three (N, C, H, W), float32."""
    layer1, layer2, layer3 = (
        found - expected
        for found, expected in zip(
            normalise_features(output), normalise_features(target), strict=True
        )
    )
    return layer1, layer2, layer3


def decision_threshold(good_scores: npt.NDArray[np.float64], false_alarm_rate: float) -> float:
    """The score above which an image is called defective, from held-out good images alone.

    The smallest observed score that at most `false_alarm_rate` of these n images exceed: k of them.
    Of images just like them (k + 1) / (n + 1) will, so that with few a stated 5 % is nearer to 9;
    cross-fitted scores lie higher than new ones, which outweighs it (docs/quality.md). A rate below
    1/n cannot be resolved: then it is their maximum.
    """
    ordered = np.sort(good_scores)
    above = ordered.size - np.searchsorted(ordered, ordered, side="right")
    return float(ordered[above / ordered.size <= false_alarm_rate][0])


def map_threshold(maps: Maps, config: ScoringConfig) -> float:
    """What `decision_threshold` is of image scores, on the scale of the maps (N, H, W).

    The two are the same unless the image scores are taken of other layers than the maps. For
    pictures: no image is judged by it.
    """
    peaks = image_scores(torch.from_numpy(maps), config.top_share)
    return decision_threshold(peaks.double().numpy(), config.false_alarm_rate)
