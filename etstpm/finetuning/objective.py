"""What every objective of fine-tuning offers its loop, and the good images that they draw from."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from etstpm.images import Pixels
from etstpm.networks import Pyramid
from etstpm.splits import split_train_validation

Rows = npt.NDArray[np.int64]
"""Good images as rows (number of the category, number of the image)."""

Targets = npt.NDArray[np.generic]

CHANNELS = (64, 128, 256)
"""Of layer1, layer2, layer3."""


class GoodImages:
    """The good images of all categories, which are numbered in the order of their names.

    pixels: for each category (N, H, W, 3) uint8, of one size.
    """

    def __init__(self, pixels: Mapping[str, Pixels]) -> None:
        self.names = sorted(pixels)
        self._pixels = [pixels[name] for name in self.names]

    def take(self, rows: Rows) -> Pixels:
        """The images of these rows: (N, H, W, 3) uint8."""
        return np.stack([self._pixels[category][index] for category, index in rows])

    def split(self, fraction: float, seed: int) -> tuple[Rows, Rows]:
        """Rows that train and rows that are held out, each category by its share."""
        training: list[Rows] = []
        held_out: list[Rows] = []
        for number, images in enumerate(self._pixels):
            parts = split_train_validation(len(images), fraction, seed)
            for rows, indices in zip((training, held_out), parts, strict=True):
                rows.append(np.stack([np.full_like(indices, number), indices], axis=1))
        return np.concatenate(training), np.concatenate(held_out)


@dataclass(frozen=True)
class Measured:
    """What the features of a batch have shown."""

    loss: Tensor
    """Mean cross-entropy in nats, a float32 scalar with gradients."""
    right: Tensor
    """How many were told right, of each class that counts alike: (classes,)."""
    total: Tensor
    """Of how many: (classes,)."""


class Objective(nn.Module, ABC):
    """What the pyramid learns: which images and targets it sees, and how well it does on them.

    goal, counted: what it learns and what its accuracy counts, in words for people.
    """

    head: nn.Module
    """Starts from nothing, and learns ten times faster than the pyramid."""
    held_out_draws = 1
    """How often each held-out image is drawn to evaluate an epoch."""

    def __init__(self, images: GoodImages, goal: str, counted: str) -> None:
        super().__init__()
        self.images, self.goal, self.counted = images, goal, counted
        self.pretrained: nn.Module = nn.Identity()
        """What else of the weights file is tuned, and then left behind."""

    @abstractmethod
    def draw(self, rows: Rows, rng: np.random.Generator) -> tuple[Pixels, Targets]:
        """The images that the pyramid is to see for these rows, and what it is to tell of them."""

    @abstractmethod
    def forward(self, features: Pyramid, targets: Tensor) -> Measured:
        """How well the pyramid's features of the drawn images tell their targets."""


def accuracy_of(right: Tensor, total: Tensor) -> float:
    """Mean over the classes of the share told right, 0 to 1; classes that did not occur apart."""
    shares = right.double()[total > 0] / total[total > 0]
    return shares.mean().item()


def seeded_linear(inputs: int, outputs: int, *, std: float, seed: int) -> nn.Linear:
    """A linear layer with normal weights from a generator of its own, and no bias at first."""
    linear = nn.Linear(inputs, outputs)
    nn.init.normal_(linear.weight, std=std, generator=torch.Generator().manual_seed(seed))
    nn.init.zeros_(linear.bias)
    return linear
