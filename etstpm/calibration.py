"""What is normal of a student's errors: learnt from held-out good images, used in scoring.

A student never matches its teacher in all channels alike. An error in a channel, or in a mixture of
channels, in which it always errs says little; the same error where it never errs says much.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from etstpm.networks import Pyramid

SHRINKAGE = 0.1
"""Least share of a covariance that is replaced by its mean variance (see `shrink`)."""

BORDER = (8, 4, 2)
"""Places along the border of each layer's features that are levelled: 32 pixels of the image."""

QUANTILES = (0.9, 0.995)
"""Of good images' distances; they become 0 and 0.1 (Batzner et al. 2024, EfficientAD)."""


@dataclass(frozen=True)
class Whitening:
    """Makes one layer's errors on good images uncorrelated and of variance 1."""

    mean: Tensor
    """(C,)"""
    matrix: Tensor
    """(C, C): an error e becomes (e - mean) @ matrix."""
    border: Tensor
    """(D,): what distances at the border, a place from it, and so on are divided by, 1 or more."""

    def distances(self, errors: Tensor) -> Tensor:
        """Squared Mahalanobis distances over C: (N, C, H, W) to (N, H, W), on good images about 1.

        Source: Rippel et al. 2020 and Defard et al. 2021 (PaDiM) measure features so; here it is
        the student's error, and one distribution for all locations but those at the border.
        """
        centred = errors.permute(0, 2, 3, 1) - self.mean
        found = (centred @ self.matrix).square().mean(-1)
        depth = len(self.border)
        inside = self.border.new_ones(1)
        ring = to_border(*found.shape[1:]).clamp(max=depth).to(found.device)
        return found / torch.cat([self.border, inside])[ring]


@dataclass(frozen=True)
class Calibration:
    """What scoring takes from held-out good images; each part is None where it is not asked for."""

    whitening: Sequence[Whitening] | None = None
    """Of each layer."""
    quantiles: Sequence[tuple[float, float]] | None = None
    """Of each layer's distances, at `QUANTILES`."""

    def save(self, path: Path) -> None:
        """Write a safetensors file: `layerN.mean`, `.matrix`, `.border`, `quantiles`, to the bit.

        A part that is None has no tensor in it.
        """
        tensors = {}
        for number, layer in enumerate(self.whitening or (), 1):
            tensors[f"layer{number}.mean"] = layer.mean.cpu().contiguous()
            tensors[f"layer{number}.matrix"] = layer.matrix.cpu().contiguous()
            tensors[f"layer{number}.border"] = layer.border.cpu()
        if self.quantiles is not None:
            tensors["quantiles"] = torch.tensor(self.quantiles, dtype=torch.float64)
        save_file(tensors, path)

    @classmethod
    def load(cls, path: Path, device: torch.device) -> "Calibration":
        """What `save` has written, on the device that scores."""
        tensors = load_file(path, device=str(device))
        whitening = [
            Whitening(
                tensors[f"layer{number}.mean"],
                tensors[f"layer{number}.matrix"],
                tensors.get(f"layer{number}.border", torch.ones(0, device=device)),
            )
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
    """Of errors over some images and places; those of more add up."""

    count: int
    total: Tensor
    """(C,) float64"""
    products: Tensor
    """(C, C) float64: the sum of each place's outer product."""

    def __add__(self, other: "Moments") -> "Moments":
        return Moments(
            self.count + other.count, self.total + other.total, self.products + other.products
        )

    def distance(self, mean: Tensor, matrix: Tensor) -> float:
        """Their mean squared Mahalanobis distance over C: no place need be looked at again."""
        outer = torch.outer(mean, self.total)
        centred = self.products - outer - outer.T + self.count * torch.outer(mean, mean)
        return float((centred @ matrix * matrix).sum()) / (self.count * len(mean))


Parts = list[list[Moments]]
"""Of each layer and, in it, each of its `zones`: the border's, one place further in, and so on."""


def measure(batches: Iterable[Pyramid]) -> Parts:
    """Each layer's moments over batches of errors (N, C, H, W), one at least, in one pass."""
    return add_up(
        [_moments(error, depth) for error, depth in zip(errors, BORDER, strict=True)]
        for errors in batches
    )


def add_up(parts: Iterable[Parts]) -> Parts:
    """Layer by layer and zone by zone; of many parts two are in memory."""
    return reduce(_add, parts)


def _add(one: Parts, other: Parts) -> Parts:
    return [
        [mine + yours for mine, yours in zip(*layers, strict=True)]
        for layers in zip(one, other, strict=True)
    ]


def _moments(errors: Tensor, depth: int) -> list[Moments]:
    height, width = errors.shape[2:]
    depth = min(depth, height // 4, width // 4)  # of small layers the inside must be left
    zone_of = zones(height, width, depth).to(errors.device)
    by_place = errors.permute(0, 2, 3, 1)
    rows_of_zones = (
        by_place[:, zone_of == zone].flatten(0, 1).double() for zone in range(depth + 2)
    )
    return [Moments(len(rows), rows.sum(0), rows.T @ rows) for rows in rows_of_zones]


def to_border(height: int, width: int) -> Tensor:
    """(H, W) int64: how many places lie between each place and the border nearest to it."""
    rows, columns = torch.arange(height), torch.arange(width)
    rows, columns = torch.minimum(rows, rows.flip(0)), torch.minimum(columns, columns.flip(0))
    return torch.minimum(rows[:, None], columns)


def zones(height: int, width: int, depth: int) -> Tensor:
    """(H, W) int64: 0 at the border, 1 a place from it, to D - 1; D as deep again; then D + 1."""
    distance = to_border(height, width)
    further = torch.where(distance < 2 * depth, depth, depth + 1)
    return torch.where(distance < depth, distance, further)


def fit_whitening(
    layers: Iterable[Sequence[Moments]], *, is_diagonal: bool, is_levelled: bool
) -> list[Whitening]:
    """By the mean and covariance of each layer's errors.

    is_diagonal: variances alone, each channel by itself. is_levelled: distances at the border are
    divided by what they exceed those further inside by: the convolutions' padding, not a defect.
    """
    whitening = []
    for parts in layers:
        moments = reduce(add, parts)
        mean = moments.total / moments.count
        covariance = moments.products / moments.count - torch.outer(mean, mean)
        if is_diagonal:
            covariance = covariance.diagonal().diag()
        covariance = shrink(covariance, moments.count)
        # L L' is the precision, so that |(e - mean) L|^2 is the Mahalanobis distance.
        matrix = torch.linalg.cholesky(torch.linalg.inv(covariance))
        border = _excess(parts, mean, matrix) if is_levelled else mean.new_ones(0)
        # Row-major, as a file gives it back: a product's last bits go by the layout too.
        whitening.append(Whitening(mean.float(), matrix.float().contiguous(), border.float()))
    return whitening


def shrink(covariance: Tensor, count: int) -> Tensor:
    """A covariance (C, C) of so many rows, drawn to a multiple of the identity.

    Few held-out images do not span every direction; where they do not, each new image is far off.
    Source: Chen, Wiesel, Eldar and Hero 2010, oracle approximating shrinkage, in the form of
    scikit-learn's `oas`. Deviates in a least share: neighbouring places say nearly the same, so
    that there are fewer rows than it counts.
    """
    channels = len(covariance)
    tiny = torch.finfo(torch.float32).tiny  # a student without any error
    mean = covariance.trace() / channels + tiny
    squares = covariance.square().sum() / channels
    spread = (squares - mean.square()).clamp(min=tiny)
    share = (squares + channels * mean.square()) / ((count + 1) * spread)
    share = share.clamp(SHRINKAGE, 1)
    identity = torch.eye(channels, device=covariance.device)
    return (1 - share) * covariance + share * mean * identity


def _excess(parts: Sequence[Moments], mean: Tensor, matrix: Tensor) -> Tensor:
    """How many times as far off places at the border are as those further inside: (D,), 1 at least.

    The last two parts are those further inside, as deep as the border, and all the rest.
    """
    *border, next_to_it, _ = parts
    if not border:
        return mean.new_ones(0)
    usual = max(next_to_it.distance(mean, matrix), torch.finfo(torch.float64).tiny)
    return mean.new_tensor([max(1.0, part.distance(mean, matrix) / usual) for part in border])


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
