"""What the pyramid learns: at every place the texture and the look, and the shape of the whole."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.formula.scenes import UNASKED
from etstpm.networks import FeaturePyramid, normalise_features, random_pyramid

CHANNELS = (64, 128, 256)
FAR_FROM_STUDENTS = 2**31
"""Added to the seed: a run's seed is smaller, so that no student begins where its teacher did."""
BLURS = (1, 2, 4)
"""Pixels over which an image is averaged before its gradients are taken."""
DIRECTIONS = 4
LOOKS = 3 + len(BLURS) * DIRECTIONS
"""Numbers that describe a cell."""
FAINTEST = 0.02
"""Of a gradient, where 1 is from black to white: what is fainter is grain."""


@dataclass(frozen=True)
class Answers:
    """The loss, and how good layer3's answers are: three shares, 0 to 1.

    textures, shapes: of right answers; looks: of the variance that is explained.
    """

    loss: Tensor
    textures: Tensor
    looks: Tensor
    shapes: Tensor


class Pretraining(nn.Module):
    """The pyramid with the heads that are thrown away after."""

    def __init__(
        self,
        classes: int,
        texture_weights: tuple[float, ...],
        look_weight: float,
        shape_weight: float,
        seed: int,
    ) -> None:
        super().__init__()
        self.texture_weights = texture_weights
        self.look_weight, self.shape_weight = look_weight, shape_weight
        self.pyramid: FeaturePyramid = random_pyramid(seed + FAR_FROM_STUDENTS)
        self.texture_heads = nn.ModuleList(make_head(n, classes) for n in CHANNELS)
        self.look_heads = nn.ModuleList(make_head(n, LOOKS) for n in CHANNELS)
        self.shape_head = make_head(CHANNELS[-1], classes)
        generator = torch.Generator().manual_seed(seed)
        for heads in (self.texture_heads, self.look_heads, self.shape_head):
            for module in heads.modules():
                if isinstance(module, nn.Linear):
                    nn.init.normal_(module.weight, std=0.01, generator=generator)
                    nn.init.zeros_(module.bias)

    def forward(
        self, images: Tensor, looks: list[Tensor], textures: Tensor, shapes: Tensor
    ) -> Answers:
        """images: normalised (N, 3, H, W); looks: `describe`'s; textures: (N, H/16, W/16) and
        shapes: (N,), int64, a class or UNASKED."""
        features = normalise_features(self.pyramid(images))
        loss = torch.zeros((), device=images.device)
        known = explained = loss
        # A texture is the same in low contrast, and students see unit vectors too.
        for number, (feature, look) in enumerate(zip(features, looks, strict=True)):
            cells = _places(F.adaptive_avg_pool2d(feature, textures.shape[1]))
            logits, asked = self.texture_heads[number](cells), textures.flatten()
            loss = loss + self.texture_weights[number] * _cross_entropy(logits, asked)
            known = _accuracy(logits, asked)
            error = F.mse_loss(self.look_heads[number](_places(feature)).float(), look)
            loss = loss + self.look_weight * error
            explained = 1 - error.detach()
        logits = self.shape_head(features[-1].mean((2, 3)))
        loss = loss + self.shape_weight * _cross_entropy(logits, shapes)
        return Answers(loss, known, explained, _accuracy(logits, shapes))


def describe(images: Tensor) -> list[Tensor]:
    """How each cell of layer1, layer2, layer3 looks: (cells, LOOKS), of mean 0 and variance 1.

    images: (N, H, W, 3) uint8. The cell's mean colour, and how strong its gradients are in each
    direction at each blur: histograms of oriented gradients, which Wei et al. ask for too (Masked
    Feature Prediction, CVPR 2022).
    """
    colours = images.permute(0, 3, 1, 2).float() / 255
    grey = colours.mean(1, keepdim=True)
    maps = [colours]
    for blur in BLURS:
        soft = F.avg_pool2d(F.pad(grey, (0, blur - 1, 0, blur - 1), mode="replicate"), blur, 1)
        wide = F.pad(soft, (blur, blur, blur, blur), mode="replicate")
        across = (wide[..., 2 * blur :] - wide[..., : -2 * blur])[:, :, blur:-blur]
        down = (wide[:, :, 2 * blur :] - wide[:, :, : -2 * blur])[..., blur:-blur]
        for direction in range(DIRECTIONS):
            angle = torch.tensor(torch.pi * direction / DIRECTIONS)
            maps.append((across * angle.cos() + down * angle.sin()).abs())
    stacked = torch.cat(maps, 1)
    looks = []
    for side in (4, 8, 16):
        cells = _places(F.avg_pool2d(stacked, side))
        cells[:, 3:] = (cells[:, 3:] + FAINTEST).log()
        looks.append((cells - cells.mean(0)) / (cells.std(0) + 1e-6))
    return looks


def make_head(channels: int, answers: int) -> nn.Sequential:
    """A linear layer on features of mean 0: the ReLU's own mean, times AdamW's first steps for
    classes that a batch lacks, would drown what is to be learnt."""
    return nn.Sequential(nn.BatchNorm1d(channels, affine=False), nn.Linear(channels, answers))


def _places(feature: Tensor) -> Tensor:
    """(N, C, h, w) as (N h w, C)."""
    return feature.permute(0, 2, 3, 1).flatten(0, 2)


def _cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(logits.float(), labels, ignore_index=UNASKED)


def _accuracy(logits: Tensor, labels: Tensor) -> Tensor:
    is_asked = labels != UNASKED
    return ((logits.argmax(1) == labels) & is_asked).sum() / is_asked.sum().clamp(min=1)
