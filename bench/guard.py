"""The quick guard of `make check`: our loops beside plain ones, in this process, in half a minute.

Ratios only, the best of a few rounds, with room for a busy machine: a ratio twice below its floor
(exit code 1) means that something was put into a loop which does not belong there.
`make bench` measures for the record.
"""

import sys
import time
from collections.abc import Callable

import numpy as np
import torch

from bench.metrics_memory import draw
from bench.metrics_speed import sort_and_label
from etstpm.compute import choose_compute
from etstpm.config import Config, ScoringConfig, StudentConfig
from etstpm.distillation import distil_student
from etstpm.features import TeacherFeatures
from etstpm.images import normalise
from etstpm.matching import matching_loss
from etstpm.metrics import pixel_metrics
from etstpm.networks import freeze, random_pyramid
from etstpm.optimisers import make_optimiser
from etstpm.scorer import Scorer
from etstpm.splits import count_held_out
from etstpm.students import answer, random_student

ROUNDS = 3
IMAGES, SIZE, EPOCHS = 24, 128, 4


def main() -> None:
    """Print each ratio and its floor; exit code 1 if one lies below."""
    checks = {
        "training, of a plain loop's rate": (training, 0.75),
        "scoring, of two bare forwards' rate": (scoring, 0.55),
        "pixel metrics, of one sort's rate": (metrics, 0.2),
    }
    has_failed = False
    for name, (measure, floor) in checks.items():
        ratio = measure()
        if ratio < floor:  # what is slow stays slow; a busy machine's other work may have gone
            ratio = max(ratio, measure())
        print(f"{name}: {ratio:.2f} (at least {floor:g})")
        has_failed |= ratio < floor
    sys.exit(has_failed)


def training() -> float:
    """An epoch of `distil_student` beside forward, loss, backward and step over the same images."""
    compute, config = choose_compute(Config()), StudentConfig(epochs=EPOCHS, least_images=0)
    teacher, pixels = freeze(random_pyramid(1)), draw_pixels()
    rows = np.arange(config.batch_size)
    target = TeacherFeatures(teacher, pixels[rows], compute).batch(rows)
    batch = normalise(pixels[rows], compute.device)
    student = random_student(config.network, 0).train()
    student.to(memory_format=torch.channels_last)
    optimiser = make_optimiser(student, config, 1000, compute.precision)

    def step() -> None:
        with compute.autocast():
            output = answer(student, batch, target)
        loss = matching_loss(target, output, config.loss, config.hard_share)
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()

    trained = IMAGES - count_held_out(IMAGES, config.validation_fraction)
    ours, plain = [], []
    for seed in range(ROUNDS):
        distilled = distil_student(teacher, pixels, config, seed=seed, compute=compute, name="")
        ours.append(min(record.seconds for record in distilled.history) / trained)
        plain.append(best_of(step) / len(rows))
    return min(plain) / min(ours)


def scoring() -> float:
    """Scoring decoded images beside the two networks' forward alone."""
    compute, config = choose_compute(Config()), ScoringConfig()
    teacher, pixels = freeze(random_pyramid(1)), draw_pixels()
    student = freeze(random_student(StudentConfig().network, 0))
    scorer = Scorer(teacher, student, config, compute)
    calibration = scorer.calibrate(pixels)
    batch = normalise(pixels[: config.batch_size], compute.device)

    def score() -> None:
        scorer.score(pixels, calibration)

    def forward() -> None:
        with torch.inference_mode(), compute.autocast():
            answer(student, batch, teacher(batch))

    return (best_of(forward) / len(batch)) / (best_of(score) / IMAGES)


def metrics() -> float:
    """Every pixel metric beside one sort of all scores and the search for the masks' regions.

    Not beside scikit-learn, whose stable sort is another: NumPy's fast one is several times slower
    where AVX-512 stores compressed vectors by microcode (Zen 4: numpy/x86-simd-sort#6), and the
    ratio would fall with it.
    """
    _, masks, upsampled = draw(64, 256)
    maps = [upsampled[number] for number in range(len(masks))]
    scores = np.stack(maps)
    least = best_of(lambda: sort_and_label(masks, scores))
    return least / best_of(lambda: pixel_metrics(masks, maps))


def draw_pixels() -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """Images (N, H, W, 3) of noise: what they show costs nothing."""
    return np.random.default_rng(0).integers(0, 256, (IMAGES, SIZE, SIZE, 3), np.uint8)


def best_of(work: Callable[[], object]) -> float:
    """Seconds of the fastest of a few calls."""
    seconds = []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - started)
    return min(seconds)


if __name__ == "__main__":
    main()
