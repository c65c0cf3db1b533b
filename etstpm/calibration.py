"""What is normal of a student's errors: learnt from held-out good images, used in scoring.

A student never matches its teacher in all channels alike. An error in a channel, or in a mixture of
channels, in which it always errs says little; the same error where it never errs says much.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from etstpm.networks import Pyramid

SHRINKAGE = 0.01
"""Share of the mean variance added to each: a few held-out images do not span every direction."""

QUANTILES = (0.9, 0.995)
"""Of good images' distances; they become 0 and 0.1 (Batzner et al. 2024, EfficientAD)."""


@dataclass(frozen=True)
class Whitening:
    """Makes one layer's errors on good images uncorrelated and of variance 1."""

    mean: Tensor
    """(C,)"""
    matrix: Tensor
    """(C, C): an error e becomes (e - mean) @ matrix."""

    def distances(self, errors: Tensor) -> Tensor:
        """Squared Mahalanobis distances over C: (N, C, H, W) to (N, H, W), on good images about 1.

        Source: Rippel et al. 2020 and Defard et al. 2021 (PaDiM) measure features so; here it is
        the student's error, and one distribution for all locations.
        """
        centred = errors.permute(0, 2, 3, 1) - self.mean
        return (centred @ self.matrix).square().mean(-1)


@dataclass(frozen=True)
class Calibration:
    """What scoring takes from held-out good images; each part is None where it is not asked for."""

    whitening: Sequence[Whitening] | None = None
    """Of each layer."""
    quantiles: Sequence[tuple[float, float]] | None = None
    """Of each layer's distances, at `QUANTILES`."""

    def save(self, path: Path) -> None:
        """Write a safetensors file: `layerN.mean`, `layerN.matrix`, `quantiles`, to the last bit.

        A part that is None has no tensor in it.
        """
        tensors = {}
        for number, layer in enumerate(self.whitening or (), 1):
            tensors[f"layer{number}.mean"] = layer.mean.cpu().contiguous()
            tensors[f"layer{number}.matrix"] = layer.matrix.cpu().contiguous()
        if self.quantiles is not None:
            tensors["quantiles"] = torch.tensor(self.quantiles, dtype=torch.float64)
        save_file(tensors, path)

    @classmethod
    def load(cls, path: Path, device: torch.device) -> "Calibration":
        """What `save` has written, on the device that scores."""
        tensors = load_file(path, device=str(device))
        whitening = [
            Whitening(tensors[f"layer{number}.mean"], tensors[f"layer{number}.matrix"])
            for number in (1, 2, 3)
            if f"layer{number}.mean" in tensors
        ]
        quantiles = tensors["quantiles"].tolist() if "quantiles" in tensors else None
        return cls(whitening or None, quantiles and [(low, high) for low, high in quantiles])


UNCALIBRATED = Calibration()


def distances(errors: Pyramid, whitening: Sequence[Whitening] | None) -> Pyramid:
    """How far each location is off, for each layer: (N, H, W), float32, at least 0.

    errors: student less teacher, both normalised, (N, C, H, W). Without a whitening it is half the
    squared distance (Wang et al. 2021, eq. 2).
    """
    if whitening is None:
        layer1, layer2, layer3 = (0.5 * error.square().sum(1) for error in errors)
    else:
        layer1, layer2, layer3 = (
            layer.distances(error) for layer, error in zip(whitening, errors, strict=True)
        )
    return layer1, layer2, layer3


@dataclass(frozen=True)
class Moments:
    """Of one layer's errors over some images and all locations; those of more images add up."""

    count: int
    total: Tensor
    """(C,) float64"""
    products: Tensor
    """(C, C) float64: the sum of each location's outer product."""

    def __add__(self, other: "Moments") -> "Moments":
        return Moments(
            self.count + other.count, self.total + other.total, self.products + other.products
        )


def measure(batches: Iterable[Pyramid]) -> list[Moments]:
    """Each layer's moments over batches of errors (N, C, H, W), one at least, in one pass."""
    return add_up(
        [_moments(error.permute(0, 2, 3, 1).flatten(0, 2).double()) for error in errors]
        for errors in batches
    )


def add_up(parts: Iterable[list[Moments]]) -> list[Moments]:
    """Layer by layer; of many parts two are in memory."""
    return reduce(_add, parts)


def _add(one: list[Moments], other: list[Moments]) -> list[Moments]:
    return [mine + yours for mine, yours in zip(one, other, strict=True)]


def _moments(rows: Tensor) -> Moments:
    return Moments(len(rows), rows.sum(0), rows.T @ rows)


def fit_whitening(layers: Iterable[Moments], *, is_diagonal: bool) -> list[Whitening]:
    """By the mean and covariance of each layer's errors.

    is_diagonal: variances alone, each channel by itself.
    """
    whitening = []
    for moments in layers:
        mean = moments.total / moments.count
        covariance = moments.products / moments.count - torch.outer(mean, mean)
        if is_diagonal:
            covariance = covariance.diagonal().diag()
        tiny = torch.finfo(torch.float32).tiny  # a student without any error
        floor = SHRINKAGE * covariance.diagonal().mean() + tiny
        covariance = covariance + floor * torch.eye(len(mean), device=mean.device)
        # L L' is the precision, so that |(e - mean) L|^2 is the Mahalanobis distance.
        matrix = torch.linalg.cholesky(torch.linalg.inv(covariance))
        # Row-major, as a file gives it back: a product's last bits go by the layout too.
        whitening.append(Whitening(mean.float(), matrix.float().contiguous()))
    return whitening


def fit_quantiles(batches: Iterable[Pyramid]) -> list[tuple[float, float]]:
    """Two quantiles of each layer's distances (N, H, W) over all images and locations.

    Source: Batzner et al. 2024, EfficientAD, section 3.4. Deviates in taking them before the maps
    are upsampled.
    """
    layers = zip(*batches, strict=True)
    low, high = QUANTILES
    return [
        (float(np.quantile(values, low)), float(np.quantile(values, high)))
        for values in (torch.cat(layer).cpu().numpy() for layer in layers)
    ]
