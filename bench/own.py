"""Measure etstpm's student training and scoring, as bench/peer_anomalib.py measures the peer's.

    python -m bench.own --dataset MVTEC_ROOT --weights WEIGHTS.pth --category bottle \
        --epochs 2 --output result.json

Training counts whole steps after the first epoch; the teacher's features, computed once for a
whole training, are timed apart. Scoring goes from PNG files, none of them decoded before, to maps
and scores. The limits: the same network's forward and backward over a batch that stays in memory;
both networks' forward over such a batch; Pillow's decode of the same files, on all cores.
"""

import argparse
import json
import os
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from etstpm.compute import Compute, choose_compute
from etstpm.config import Config, ScoringConfig, StudentConfig
from etstpm.dataset import image_files, scan_dataset
from etstpm.decoded import ImageFile, load_pixels
from etstpm.distillation import distil_student
from etstpm.features import TeacherFeatures
from etstpm.images import Pixels, normalise
from etstpm.matching import matching_loss
from etstpm.networks import FeaturePyramid, freeze, load_weights
from etstpm.scorer import Scorer
from etstpm.settings import settings
from etstpm.splits import count_held_out
from etstpm.students import answer, random_student
from etstpm.tables import PAPER_SIDE

ROUNDS = 3
LIMIT_STEPS = 6


def main() -> None:
    """Run both measurements and write them as JSON."""
    arguments = parse_arguments()
    load_at_start = os.getloadavg()[0]
    compute = choose_compute(Config())
    with tempfile.TemporaryDirectory() as folder:
        cache = Path(folder)
        dataset = scan_dataset(arguments.dataset, [arguments.category], PAPER_SIDE, cache)
        teacher = load_weights(str(arguments.weights), None, cache=cache).build()
        files = {
            split: image_files(arguments.dataset, dataset.manifest, arguments.category, split)
            for split in ("train", "test")
        }
        pixels = load_pixels("train", files["train"], PAPER_SIDE, cache / "train")
        # Each image once an epoch: the steps are the same, and there are enough of them.
        given = Config.load(arguments.preset).student
        forward, reverse = (
            given.model_copy(
                update={"epochs": arguments.epochs, "network": network, "least_images": 0}
            )
            for network in ("forward", "reverse")
        )
        bare_step(teacher, pixels, reverse, compute)()
        limit_rss_mb = peak_rss_mb()
        training = measure_training(teacher, pixels, reverse, compute)
        training_forward = measure_training(teacher, pixels, forward, compute)
        decoding = measure_decoding(files["test"])
        scoring = measure_scoring(teacher, pixels[:16], files["test"], compute)
    scoring["limit_images_per_second_from_png"] = 1 / (
        1 / scoring["limit_images_per_second"] + 1 / decoding["limit_images_per_second"]
    )
    result = {
        "training": training,
        "training_forward": training_forward,
        "decoding": decoding,
        "scoring": scoring,
        "limit_rss_mb": limit_rss_mb,
        "peak_rss_mb": peak_rss_mb(),
        "load_at_start": load_at_start,
        "compute": compute.describe(),
    }
    arguments.output.write_text(json.dumps(result, indent=1) + "\n")


def measure_training(
    teacher: FeaturePyramid, pixels: Pixels, config: StudentConfig, compute: Compute
) -> dict[str, float]:
    """Images per second of the student's loop, of its limit, and of the teacher's one pass.

    Loop and limit in turn: a machine that others share is a tenth faster one minute than the next.
    """
    training = len(pixels) - count_held_out(len(pixels), config.validation_fraction)
    images = config.shown(training)
    step = bare_step(teacher, pixels, config, compute)
    rates, limits = [], []
    for _ in range(ROUNDS):
        distilled = distil_student(teacher, pixels, config, seed=0, compute=compute, name="bench")
        seconds = statistics.median(record.seconds for record in distilled.history[1:])
        rates.append(images / seconds)
        step()
        seconds = statistics.median(seconds_of(step) for _ in range(LIMIT_STEPS))
        limits.append(config.batch_size / seconds)
    return {
        "images_per_second": statistics.median(rates),
        "limit_images_per_second": statistics.median(limits),
        "teacher_pass_images_per_second": len(pixels)
        / seconds_of(lambda: TeacherFeatures(teacher, pixels, compute)),
    }


def bare_step(
    teacher: FeaturePyramid, pixels: Pixels, config: StudentConfig, compute: Compute
) -> Callable[[], None]:
    """Forward, loss and backward of a student over one batch that stays in memory."""
    pixels = pixels[: config.batch_size]
    batch = normalise(pixels, compute.device)
    target = TeacherFeatures(teacher, pixels, compute).batch(np.arange(len(pixels)))
    student = random_student(config.network, 0)
    student.to(memory_format=torch.channels_last)

    def step() -> None:
        with compute.autocast():
            output = answer(student, batch, target)
        loss = matching_loss(target, output, config.loss, config.hard_share)
        loss.backward()  # type: ignore[no-untyped-call]
        student.zero_grad()

    return step


def measure_decoding(files: Sequence[ImageFile]) -> dict[str, float]:
    """Images per second from PNG files into a new cache, and of Pillow's decode alone."""

    def decode(file: ImageFile) -> None:
        with Image.open(file.path) as image:
            image.load()

    def decode_all() -> None:
        with ThreadPoolExecutor(settings().threads) as pool:
            list(pool.map(decode, files))

    def fill_cache() -> None:
        with tempfile.TemporaryDirectory() as folder:
            load_pixels("test", files, PAPER_SIDE, Path(folder))

    decode_all()
    filled, decoded = in_turn(fill_cache, decode_all)
    return {
        "images_per_second": len(files) / filled,
        "limit_images_per_second": len(files) / decoded,
    }


def measure_scoring(
    teacher: FeaturePyramid, good: Pixels, files: Sequence[ImageFile], compute: Compute
) -> dict[str, float]:
    """Images per second to maps and scores, from PNG files and from pixels decoded before.

    The limit is both networks' forward over a batch that stays in memory, as often as the images
    have batches.
    """
    config, student = ScoringConfig(), freeze(random_student(StudentConfig().network, 0))
    scorer = Scorer(teacher, student, config, compute)
    score = partial(scorer.score, calibration=scorer.calibrate(good))
    decoded = load_pixels("test", files, PAPER_SIDE, Path(tempfile.mkdtemp()))
    batch = normalise(decoded[: config.batch_size], compute.device)
    count = len(files) // len(batch)

    def from_files() -> None:
        with tempfile.TemporaryDirectory() as folder:
            score(pixels=load_pixels("test", files, PAPER_SIDE, Path(folder)))

    def forward() -> None:
        with torch.inference_mode(), compute.autocast():
            for _ in range(count):
                answer(student, batch, teacher(batch))

    from_files()
    decoding, cached, bare = in_turn(from_files, partial(score, pixels=decoded), forward)
    return {
        "images_per_second": len(files) / decoding,
        "cached_images_per_second": len(files) / cached,
        "limit_images_per_second": count * len(batch) / bare,
    }


def in_turn(*works: Callable[[], object]) -> list[float]:
    """Median seconds of each, one after the other and all over again: see `measure_training`."""
    rounds = [[seconds_of(work) for work in works] for _ in range(ROUNDS)]
    return [statistics.median(seconds) for seconds in zip(*rounds, strict=True)]


def peak_rss_mb() -> float:
    """This process's peak so far, in MB of 10^6 bytes."""
    kilobyte = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * kilobyte / 1e6


def seconds_of(work: Callable[[], object]) -> float:
    """Wall seconds of one call."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--dataset", type=Path, required=True, help="MVTec AD root")
    parser.add_argument("--weights", type=Path, required=True, help="ResNet-18 state dict")
    parser.add_argument("--category", default="bottle")
    parser.add_argument("--preset", default="default", help="whose student is trained")
    parser.add_argument("--epochs", type=int, default=2, help="the first one warms up")
    parser.add_argument("--output", type=Path, required=True, help="JSON file to write")
    return parser.parse_args()


if __name__ == "__main__":
    main()
