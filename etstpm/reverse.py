"""A student that goes the teacher's way back: from its features through a neck to them again.

The neck is too narrow for more than what all normal images have in common. What it has never seen
it cannot pass on, least of all a wrong shape of the right texture, which a student that looks at
the image itself imitates place by place.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from etstpm.networks import Pyramid, normalise_features
from etstpm.resnet import BasicBlock, stage

NECK = 256
"""Channels at half of layer3's resolution, which itself has as many."""


class ReverseStudent(nn.Module):
    """Fusion of the teacher's layers, a neck at 1/32 of the image's side, and a decoder.

    Takes the teacher's features (N, C, H, W) of layers 1 to 3, normalised or not, and returns what
    it expects them to be, each of the same shape. It never sees the image.
    Source: Deng and Li 2022, Anomaly Detection via Reverse Distillation from One-Class Embedding
    (section 3.3: multi-scale feature fusion and one-class embedding). Deviates in taking normalised
    features, which are what is matched, and in a neck of 256 channels instead of 512.
    """

    def __init__(self) -> None:
        super().__init__()
        self.fuse1 = nn.Sequential(_halve(64, 128), _halve(128, 256))
        self.fuse2 = _halve(128, 256)
        self.neck = stage(3 * 256, NECK, 2)
        self.decode3 = _double(NECK, 256)
        self.decode2 = _double(256, 128)
        self.decode1 = _double(128, 64)

    def forward(self, taught: Pyramid) -> Pyramid:
        # Of unit vectors each component is small; times the root of their number it is about 1.
        layers = [layer * layer.shape[1] ** 0.5 for layer in normalise_features(taught)]
        fused = torch.cat([self.fuse1(layers[0]), self.fuse2(layers[1]), layers[2]], 1)
        # Of an odd number of places the neck has half, rounded up.
        height, width = layers[2].shape[-2:]
        layer3 = self.decode3(self.neck(fused))[..., :height, :width]
        layer2 = self.decode2(layer3)
        return self.decode1(layer2), layer2, layer3


class DoublingBlock(nn.Module):
    """ResNet's block with transposed convolutions: half the channels, twice the resolution."""

    def __init__(self, channels_in: int, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.ConvTranspose2d(channels_in, channels, 2, stride=2, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.upsample = nn.Sequential(
            nn.ConvTranspose2d(channels_in, channels, 2, stride=2, bias=False),
            nn.BatchNorm2d(channels),
        )

    def forward(self, features: Tensor) -> Tensor:
        inner = F.relu(self.bn1(self.conv1(features)), inplace=True)
        return F.relu(self.bn2(self.conv2(inner)) + self.upsample(features), inplace=True)


def _halve(channels_in: int, channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels_in, channels, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU(inplace=True),
    )


def _double(channels_in: int, channels: int) -> nn.Sequential:
    return nn.Sequential(DoublingBlock(channels_in, channels), BasicBlock(channels, channels, 1))
