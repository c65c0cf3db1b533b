"""Pre-train the ResNet-18 pyramid on drawn scenes, from nothing to the weights of the package.

    python -m bench.formula.pretrain --folder FOLDER

Cut it at any time: the same command goes on from there. See docs/formula-teacher.md.
"""

import argparse
import hashlib
import json
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim import AdamW
from torch.utils.data import DataLoader

from bench.formula.bank import Bank, draw_bank
from bench.formula.objective import Pretraining, describe
from bench.formula.scenes import Scenes
from etstpm.compute import Compute, choose_compute
from etstpm.config import Config
from etstpm.errors import ConfigError
from etstpm.images import normalise
from etstpm.networks import FeaturePyramid

STEPS = 1400
SMALL = ((64, 64), (64, 64), (64, 64), (32, 96))
"""Scenes a step and their side in pixels, in turn; a step costs the same with each."""
LARGE = ((16, 128), (32, 96))
"""Likewise while the learning rate falls: nearer to the 256 pixels that teachers see."""
TEXTURE_WEIGHTS = (0.25, 0.5, 1.0)
LOOK_WEIGHT, SHAPE_WEIGHT = 1.0, 0.5
LEARNING_RATE, WEIGHT_DECAY = 2e-3, 0.01
"""AdamW's. Muon, which is best for students, learnt nothing in 100 steps at the rate that they take
(these gradients are mostly noise, and it moves as far along that), and no faster at a quarter."""
WARMUP = 50
"""Steps in which the learning rate rises."""
FALL = 0.25
"""Share of the steps, the last ones, in which it falls to 0. Until then nothing depends on how many
steps there will be, so that a training can be made longer or shorter while it runs."""
CHECKPOINT_STEPS = 50
STATISTICS = ((16, 256),) * 12
"""Scenes of the size that teachers see, from which batch normalisation takes its statistics: at 64
pixels the border's zeros are most of what layer3 sees."""


def main() -> None:
    """Draw, train, publish into the folder."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--folder", type=Path, required=True, help="bank, checkpoint, weights")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=2, help="that draw the bank")
    arguments = parser.parse_args()
    bank = draw_bank(arguments.folder, arguments.seed, processes=arguments.processes)
    pyramid = pretrain(bank, arguments.folder, arguments.steps, arguments.seed)
    path = arguments.folder / "resnet18-formula.safetensors"
    save_file(compress(pyramid), path)
    print(hashlib.sha256(path.read_bytes()).hexdigest(), path)


def pretrain(bank: Bank, folder: Path, steps: int, seed: int) -> FeaturePyramid:
    """Train for so many steps, from `checkpoint.pt` on where the folder has one."""
    compute = choose_compute(Config())
    model = Pretraining(bank.classes, TEXTURE_WEIGHTS, LOOK_WEIGHT, SHAPE_WEIGHT, seed)
    model.to(compute.device).to(memory_format=torch.channels_last)
    optimiser = AdamW(model.parameters(), LEARNING_RATE, weight_decay=WEIGHT_DECAY, fused=True)
    scenes, checkpoint = Scenes(bank, plan_steps(steps), seed), folder / "checkpoint.pt"
    start = load(checkpoint, steps, model, optimiser)
    loader = DataLoader(
        scenes, batch_size=None, sampler=range(start, len(scenes)), num_workers=1, prefetch_factor=4
    )
    model.train()
    sums, since = [0.0] * 4, time.perf_counter()
    for step, (images, textures, shapes) in enumerate(loader, start + 1):
        for group in optimiser.param_groups:
            group["lr"] = LEARNING_RATE * rate_at(step, steps)
        with compute.autocast():
            answers = model(
                normalise(images.numpy(), compute.device),
                describe(images.to(compute.device)),
                textures.to(compute.device),
                shapes.to(compute.device),
            )
        answers.loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        found = (answers.loss, answers.textures, answers.looks, answers.shapes)
        sums = [total + value.item() for total, value in zip(sums, found, strict=True)]
        if step % CHECKPOINT_STEPS == 0 or step == steps:
            save(checkpoint, step, steps, model, optimiser)
            count = (step - 1) % CHECKPOINT_STEPS + 1
            names = ("loss", "textures", "looks", "shapes")
            line: dict[str, Any] = dict(
                zip(names, (round(total / count, 4) for total in sums), strict=True)
            )
            line |= {"step": step, "seconds": round(time.perf_counter() - since, 1)}
            print(json.dumps(line), flush=True)
            sums, since = [0.0] * 4, time.perf_counter()
    measure_statistics(model.pyramid, bank, seed, compute)
    return model.pyramid


def plan_steps(steps: int) -> list[tuple[int, int]]:
    """Scenes and side of each step."""
    falling = falls_from(steps)
    return [
        SMALL[step % len(SMALL)] if step < falling else LARGE[step % len(LARGE)]
        for step in range(steps)
    ]


def falls_from(steps: int) -> int:
    """The last step of the highest learning rate."""
    return steps - round(FALL * steps)


def rate_at(step: int, steps: int) -> float:
    """Share of the highest learning rate in this step of `steps`, counted from 1."""
    return min(step / WARMUP, 1.0, (steps - step + 1) / (steps - falls_from(steps) + 1))


def measure_statistics(pyramid: FeaturePyramid, bank: Bank, seed: int, compute: Compute) -> None:
    """Batch normalisation's means and variances, over scenes of the teachers' size."""
    norms = [module for module in pyramid.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain mean over the batches
    pyramid.train()
    scenes = Scenes(bank, STATISTICS, seed + 1)
    with torch.no_grad():
        for step in range(len(scenes)):
            pyramid(normalise(scenes[step][0].numpy(), compute.device))
    pyramid.eval()


def compress(pyramid: FeaturePyramid) -> dict[str, Tensor]:
    """Convolutions in half precision; batch normalisation is small and stays float32."""
    return {
        name: tensor.cpu().to(torch.float16 if tensor.ndim == 4 else torch.float32).contiguous()
        for name, tensor in pyramid.state_dict().items()
        if "num_batches" not in name
    }


def save(path: Path, step: int, steps: int, model: nn.Module, optimiser: AdamW) -> None:
    """A checkpoint, whole or not at all."""
    unfinished = path.with_suffix(".unfinished")
    states = {"model": model.state_dict(), "optimiser": optimiser.state_dict()}
    state = {"step": step, "steps": steps, **states}
    torch.save(state, unfinished)
    unfinished.replace(path)


def load(path: Path, steps: int, model: nn.Module, optimiser: AdamW) -> int:
    """Steps that the checkpoint has behind it; 0 without one.

    Raises `ConfigError` if its learning rate fell already, or should have, for another number.
    """
    if not path.exists():
        return 0
    state = torch.load(path, map_location="cpu", weights_only=True)
    if state["steps"] != steps and state["step"] > falls_from(min(steps, state["steps"])):
        raise ConfigError(
            f"{path}: at step {state['step']} of {state['steps']} it cannot become a training of "
            f"{steps}: the learning rate falls from step {falls_from(min(steps, state['steps']))}; "
            "give --steps as it was, or a new folder"
        )
    model.load_state_dict(state["model"])
    optimiser.load_state_dict(state["optimiser"])
    return int(state["step"])


if __name__ == "__main__":
    main()
