"""A look at what was left out of a forward student's training.

    python -m bench.training_looks --dataset MVTEC_ROOT --weights WEIGHTS.pth --category screw \
        --look rotations

The config is that of the experiment `forward` (bench/ablation.toml). `plain` is its loop without
the choice of an epoch, for comparison. `rotations`: each
image is turned by a quarter as often as chance has it, its teacher's features with it. `noise`: the
student sees Gaussian noise on its images, its teacher does not (a fifth of the standard deviation
of ImageNet's pixels). `denoising`: half of the student's images have a synthetic anomaly, its
teacher's have none (after Zhang et al. 2023, DeSTSeg). `discrepancy`: two more images a step with a
synthetic anomaly each, where the student is to stay away from its teacher (after Cao et al. 2023,
CDO). `average`: an exponential moving average of the weights, of about the last 200 steps, beside
the last weights.
"""

import argparse
import copy
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from bench.experiments import load_ablation
from etstpm.compute import choose_compute
from etstpm.config import Config, StudentConfig
from etstpm.dataset import image_files, rows_of, scan_dataset
from etstpm.decoded import load_pixels
from etstpm.finetuning.anomalies import Mask, damage
from etstpm.images import Pixels, normalise
from etstpm.inputs import own_mask
from etstpm.matching import distance_maps, matching_loss
from etstpm.metrics import auroc, pixel_metrics
from etstpm.networks import (
    FeaturePyramid,
    Pyramid,
    freeze,
    load_weights,
    normalise_features,
    random_pyramid,
)
from etstpm.optimisers import make_optimiser
from etstpm.scorer import Scorer
from etstpm.scoring import ResizedMaps
from etstpm.splits import Indices, batches, split_train_validation

EXPERIMENTS = Path(__file__).with_name("ablation.toml")
LOOKS = ("plain", "rotations", "noise", "denoising", "discrepancy", "average")
KEPT = 0.995
"""Of the average's weights, at every step after the first two hundred."""
NOISE = 0.2
DAMAGED = 2
"""Images a step of the look `discrepancy`."""
MARGIN, MARGIN_WEIGHT = 0.5, 0.1
"""How far from its teacher the student is to stay where an image is damaged, and what that counts
beside the loss of good images."""


def main() -> None:
    """Train one student and print what it and its average find."""
    arguments = parse_arguments()
    experiments = {row.name: row for row in load_ablation(EXPERIMENTS).experiment}
    config = Config.load("default", [*experiments["forward"].changes, *arguments.set])
    category = arguments.category
    compute, size = choose_compute(config), config.dataset.image_size
    with tempfile.TemporaryDirectory() as folder:
        cache = Path(folder)
        dataset = scan_dataset(arguments.dataset, [category], size, cache)
        train, test = (
            load_pixels(
                split,
                image_files(arguments.dataset, dataset.manifest, category, split),
                size,
                cache,
            )
            for split in ("train", "test")
        )
        teacher = load_weights(str(arguments.weights), None, cache=cache).build()
        rows = rows_of(dataset.manifest, category, "test")
        masks = [own_mask(arguments.dataset, row) for row in rows]
        training, held_out = split_train_validation(
            len(train), config.student.validation_fraction, config.seed
        )
        students = train_student(teacher, train, training, config, arguments.look)
        labels = np.array([row["label"] == 1 for row in rows])
        for name, student in students.items():
            scorer = Scorer(teacher, student, config.scoring, compute)
            found = scorer.score(test, scorer.calibrate(train[held_out]))
            own = ResizedMaps(found.maps, [mask.shape for mask in masks])
            pixel = pixel_metrics(masks, own)
            image = "n/a" if labels.all() else f"{auroc(labels, found.scores):.4f}"
            print(
                f"{category}, {arguments.look}, {name}, seed {config.seed}: image AUROC {image}, "
                f"pixel AUROC {pixel['auroc']:.4f}, AUPRO {pixel['aupro']:.4f}",
                flush=True,
            )


def train_student(
    teacher: FeaturePyramid, pixels: Pixels, training: Indices, config: Config, look: str
) -> dict[str, FeaturePyramid]:
    """The last weights of a student, and their average if the look asks for it."""
    options, compute = config.student, choose_compute(config)
    order, chance = (np.random.default_rng([config.seed, number]) for number in (1, 2))
    noise = torch.Generator().manual_seed(config.seed)
    student = random_pyramid(config.seed).to(memory_format=torch.channels_last).train()
    average = copy.deepcopy(student) if look == "average" else None
    steps = options.epochs * -(-len(training) // options.batch_size)
    optimiser = make_optimiser(student, options, steps, compute.precision)

    def damaged(image: Pixels) -> tuple[Pixels, Mask]:
        return damage(image, pixels[chance.choice(training)], chance)

    rows = (
        batch
        for _ in range(options.epochs)
        for batch in batches(order.permutation(training), options.batch_size)
    )
    for step, batch in enumerate(rows):
        good = pixels[batch]
        seen, masks = good, list[Mask]()
        if look == "rotations":
            good = seen = np.stack([np.rot90(image, int(chance.integers(4))) for image in good])
        elif look == "denoising":
            seen = np.stack([damaged(i)[0] if chance.random() < 0.5 else i for i in good])
        elif look == "discrepancy":
            more = [damaged(image) for image in pixels[chance.choice(training, DAMAGED)]]
            masks = [mask for _, mask in more]
            good = seen = np.concatenate([good, [image for image, _ in more]])
        inputs = normalise(seen, compute.device)
        if look == "noise":
            inputs = inputs + NOISE * torch.randn(inputs.shape, generator=noise)
        with torch.no_grad(), compute.autocast():
            target = normalise_features(teacher(normalise(good, compute.device)))
        with compute.autocast():
            output = student(inputs)
        loss = student_loss(target, output, options, masks)
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        if average is not None:
            follow(average, student, min(KEPT, (step + 1) / (step + 11)))
    found = {"last weights": freeze(student)}
    return found if average is None else found | {"average": freeze(average)}


def student_loss(
    target: Pyramid, output: Pyramid, options: StudentConfig, masks: Sequence[Mask]
) -> Tensor:
    """The matching loss; of the last images, those with masks, a margin where they are damaged."""
    count = len(target[0]) - len(masks)
    loss = matching_loss(
        first(target, count), first(output, count), options.loss, options.hard_share
    )
    if masks:
        damaged = torch.from_numpy(np.stack(masks))[:, None].float()
        for distance in distance_maps(target, output):
            share = F.avg_pool2d(damaged, damaged.shape[-1] // distance.shape[-1]).squeeze(1)
            near = (MARGIN - distance[count:][share > 0.5]).clamp_min(0)
            if len(near):
                loss = loss + MARGIN_WEIGHT * near.mean()
    return loss


def first(pyramid: Pyramid, count: int) -> Pyramid:
    """Of the first so many images."""
    layer1, layer2, layer3 = (layer[:count] for layer in pyramid)
    return layer1, layer2, layer3


@torch.no_grad()
def follow(average: FeaturePyramid, student: FeaturePyramid, kept: float) -> None:
    """Move the average a little towards the student, batch statistics too."""
    for mean, value in zip(
        average.state_dict().values(), student.state_dict().values(), strict=True
    ):
        if mean.is_floating_point():
            mean.lerp_(value, 1 - kept)


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--dataset", type=Path, required=True, help="MVTec AD root")
    parser.add_argument("--weights", type=Path, required=True, help="ResNet-18 state dict")
    parser.add_argument("--category", default="screw")
    parser.add_argument("--look", choices=LOOKS, default="plain")
    parser.add_argument("--set", nargs="*", default=[], help="section.key=value")
    return parser.parse_args()


if __name__ == "__main__":
    main()
