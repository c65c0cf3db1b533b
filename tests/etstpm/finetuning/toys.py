"""Two toy categories that differ in colour alone, and weights for them."""

import numpy as np
import torch
from torchvision.models import resnet18

from etstpm.compute import Compute
from etstpm.config import TeacherConfig
from etstpm.finetuning import FinetunedTeacher, finetune_teacher
from etstpm.images import Pixels
from etstpm.networks import TeacherWeights, random_pyramid

CPU = Compute(torch.device("cpu"), torch.float32)
MODES = ("classification", "synthetic", "metric")


def draw_category(seed: int, hue: tuple[int, int, int]) -> Pixels:
    rng = np.random.default_rng(seed)
    return (np.array(hue) + rng.integers(-30, 30, (8, 32, 32, 3))).astype(np.uint8)


RED, BLUE = draw_category(0, (200, 60, 60)), draw_category(1, (60, 60, 200))
IMAGES = {"red": RED, "blue": BLUE}


def make_config(mode: str = "classification", **changes: object) -> TeacherConfig:
    values = {"mode": mode, "epochs": 3, "batch_size": 4, "validation_fraction": 0.25}
    return TeacherConfig.model_validate(values | changes)


def make_weights(*, is_folded: bool = True, has_layer4: bool = False) -> TeacherWeights:
    layer4 = None
    if has_layer4:
        with torch.random.fork_rng():
            torch.manual_seed(5)
            layer4 = resnet18(weights=None).layer4.state_dict()
    tensors = random_pyramid(3).state_dict()
    return TeacherWeights(tensors, "test", "", "random", is_folded=is_folded, layer4=layer4)


def finetune(
    config: TeacherConfig,
    *,
    seed: int = 0,
    images: dict[str, Pixels] = IMAGES,
    weights: TeacherWeights | None = None,
) -> FinetunedTeacher:
    weights = weights or make_weights()
    return finetune_teacher(weights, images, config, seed=seed, compute=CPU)


def are_equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return set(one) == set(other) and all(torch.equal(one[name], other[name]) for name in one)
