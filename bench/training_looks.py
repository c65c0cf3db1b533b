"""A look at what was left out of the student's training: rotated images, averaged weights.

    python -m bench.training_looks --dataset MVTEC_ROOT --weights WEIGHTS.pth --category screw \
        --look rotations

`plain` is the default's loop without its choice of an epoch, for comparison in the same process
environment. `rotations`: each image is turned by a quarter as often as chance has it, and its
teacher's features are computed anew, a second forward a step. `average`: an exponential moving
average of the weights, of about the last 200 steps, beside the last weights.
"""

import argparse
import copy
import tempfile
from pathlib import Path

import numpy as np
import torch

from etstpm.compute import choose_compute
from etstpm.config import Config
from etstpm.dataset import image_files, rows_of, scan_dataset
from etstpm.decoded import load_pixels
from etstpm.images import Pixels, normalise
from etstpm.inputs import own_mask
from etstpm.matching import matching_loss
from etstpm.metrics import auroc, pixel_metrics
from etstpm.networks import (
    FeaturePyramid,
    freeze,
    load_weights,
    normalise_features,
    random_pyramid,
)
from etstpm.optimisers import make_optimiser
from etstpm.scoring import ResizedMaps, calibrate, score_images
from etstpm.splits import Indices, batches, split_train_validation

KEPT = 0.995
"""Of the average's weights, at every step after the first two hundred."""


def main() -> None:
    """Train one student and print what it and its average find."""
    arguments = parse_arguments()
    config, category = Config.load("default", arguments.set), arguments.category
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
            calibration = calibrate(
                teacher, student, train[held_out], config.scoring, compute=compute, name=""
            )
            found = score_images(
                *(teacher, student, test, config.scoring),
                compute=compute,
                name="",
                calibration=calibration,
            )
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
    order, turns = (np.random.default_rng([config.seed, number]) for number in (1, 2))
    student = random_pyramid(config.seed).to(memory_format=torch.channels_last).train()
    average = copy.deepcopy(student) if look == "average" else None
    steps = options.epochs * -(-len(training) // options.batch_size)
    optimiser = make_optimiser(student, options, steps, compute.precision)
    step = 0
    for _ in range(options.epochs):
        for batch in batches(order.permutation(training), options.batch_size):
            chosen = pixels[batch]
            if look == "rotations":
                chosen = np.stack([np.rot90(image, int(turns.integers(4))) for image in chosen])
            images = normalise(chosen, compute.device)
            with torch.no_grad(), compute.autocast():
                features = teacher(images)
            with compute.autocast():
                output = student(images)
            loss = matching_loss(
                normalise_features(features), output, options.loss, options.hard_share
            )
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            step += 1
            if average is not None:
                follow(average, student, min(KEPT, step / (step + 10)))
    found = {"last weights": freeze(student)}
    return found if average is None else found | {"average": freeze(average)}


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
    parser.add_argument("--look", choices=("plain", "rotations", "average"), default="plain")
    parser.add_argument("--set", nargs="*", default=[], help="section.key=value")
    return parser.parse_args()


if __name__ == "__main__":
    main()
