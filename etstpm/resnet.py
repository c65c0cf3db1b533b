"""ResNet-18 by its stages, with torchvision's parameter names and, bit for bit, its results.

Ours because torchvision's import brings torch's compiler with it: 170 MB and seconds of each
process, of which a fleet starts one a category.
"""

from torch import Tensor, nn


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and the way around them (He et al. 2016, figure 2 and section 3.3)."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.downsample: nn.Module | None = None
        if stride > 1 or channels_in != channels:
            self.downsample = nn.Sequential(
                nn.Conv2d(channels_in, channels, 1, stride, bias=False), nn.BatchNorm2d(channels)
            )

    def forward(self, features: Tensor) -> Tensor:
        around = features if self.downsample is None else self.downsample(features)
        features = self.relu(self.bn1(self.conv1(features)))
        features = self.bn2(self.conv2(features))
        features += around
        activated: Tensor = self.relu(features)
        return activated


def stage(channels_in: int, channels: int, stride: int) -> nn.Sequential:
    """Two blocks, the first of which changes channels and resolution."""
    return nn.Sequential(
        BasicBlock(channels_in, channels, stride), BasicBlock(channels, channels, 1)
    )


def layer4() -> nn.Sequential:
    """The stage that no pyramid has: (N, 256, H, W) to (N, 512, H/2, W/2)."""
    return stage(256, 512, 2)
