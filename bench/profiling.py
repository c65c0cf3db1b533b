"""Where the time goes: a training step, a scored batch and a whole run, as stacked bars.

    python -m bench.profiling --dataset MVTEC_ROOT --weights WEIGHTS.pth --picture docs/profile.svg

torch.profiler's own time of each operator, added up by what the operator does; both threads of a
convolution count as the one that waits for them. The run's bar is from the last `make bench`.
"""

import argparse
import tempfile
from collections.abc import Callable, Mapping
from html import escape
from pathlib import Path

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile

from bench.cases import median_of
from bench.compare import read_results
from etstpm.compute import Compute, choose_compute
from etstpm.config import Config
from etstpm.dataset import image_files, scan_dataset
from etstpm.decoded import load_pixels
from etstpm.distillation import answer_rows
from etstpm.features import TeacherFeatures
from etstpm.images import Pixels
from etstpm.matching import matching_loss
from etstpm.networks import FeaturePyramid, freeze, load_weights
from etstpm.optimisers import make_optimiser
from etstpm.scorer import Scorer
from etstpm.students import random_student
from etstpm.tables import PAPER_SIDE

STEPS = 8
KINDS = {
    "convolutions, forward": ("convolution", "conv2d", "_convolution", "mkldnn_convolution"),
    "convolutions, backward": ("convolution_backward", "mkldnn_convolution_backward"),
    "batch normalisation": ("batch_norm", "native_batch_norm", "native_batch_norm_backward"),
    "ReLU, addition, pooling": (
        *("relu", "relu_", "threshold_backward", "add_", "clamp_min_"),
        *("max_pool2d_with_indices", "max_pool2d_with_indices_backward"),
    ),
    "products of matrices": ("mm", "addmm", "addmm_", "bmm", "baddbmm", "matmul"),
    "casts and copies": ("copy_", "_to_copy", "clone", "contiguous", "index", "fill_", "zero_"),
    "upsampling, highest pixels": ("upsample_bilinear2d", "topk", "sort"),
}
"""Operators by what they are for: products of matrices are Muon's in training and the whitening of
errors in scoring; the rest is arithmetic on features: normalisation, loss, maps."""
REST = "normalisation, loss, maps, steps"
COLOURS = ["#3b6fb6", "#7aa6d8", "#4f9d69", "#a8c66c", "#d98c3f", "#b9b4ab", "#8d6cab", "#d9d4cb"]
COLOUR_OF = dict(zip([*KINDS, REST], COLOURS, strict=True))
WIDTH, LEFT, BAR, GAP = 900, 150, 34, 66

Shares = Mapping[str, float]
"""Milliseconds, or seconds, by kind."""


def main() -> None:
    """Profile, print, draw."""
    arguments = parse_arguments()
    compute = choose_compute(Config())
    with tempfile.TemporaryDirectory() as folder:
        cache = Path(folder)
        manifest = scan_dataset(arguments.dataset, [arguments.category], PAPER_SIDE, cache).manifest
        files = image_files(arguments.dataset, manifest, arguments.category, "train")
        pixels = load_pixels("train", files[:32], PAPER_SIDE, cache)
        teacher = load_weights(str(arguments.weights), None, cache=cache).build()
    config = Config()
    bars = {
        f"a training step of {config.student.batch_size}": profiled(
            training_step(teacher, pixels, config, compute)
        ),
        f"scoring {config.scoring.batch_size} images": profiled(
            scoring_step(teacher, pixels, config, compute)
        ),
    }
    units = dict.fromkeys(bars, "ms")
    if run := run_seconds():
        bars["a run over bottle"] = run
        units["a run over bottle"] = "s"
    for name, shares in bars.items():
        total = sum(shares.values())
        print(f"{name}: {total:.3g} {units[name]}")
        for kind, value in shares.items():
            print(f"  {kind:<34} {value:8.2f} {value / total:6.1%}")
    where = f"{compute.describe()['device_name']}, {compute.describe()['precision']}"
    arguments.picture.write_text(draw(bars, units, where))


def training_step(
    teacher: FeaturePyramid, pixels: Pixels, config: Config, compute: Compute
) -> Callable[[], None]:
    """One step as `distil_student` does it."""
    rows = np.arange(config.student.batch_size)
    features = TeacherFeatures(teacher, pixels, compute)
    student = random_student(config.student.network, 0).train()
    student.to(memory_format=torch.channels_last)
    optimiser = make_optimiser(student, config.student, 1000, compute.precision)

    def step() -> None:
        taught = features.batch(rows)
        output = answer_rows(student, features, rows, taught)
        loss = matching_loss(taught, output, config.student.loss, config.student.hard_share)
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()

    return step


def scoring_step(
    teacher: FeaturePyramid, pixels: Pixels, config: Config, compute: Compute
) -> Callable[[], None]:
    """One batch as scoring does it, from pixels that are decoded."""
    student = freeze(random_student(config.student.network, 0))
    scorer = Scorer(teacher, student, config.scoring, compute)
    calibration = scorer.calibrate(pixels)
    batch = pixels[: config.scoring.batch_size]

    def step() -> None:
        scorer.score_batch(batch, calibration)

    return step


def profiled(step: Callable[[], None]) -> dict[str, float]:
    """Milliseconds a step by kind, after two steps that warm up."""
    for _ in range(2):
        step()
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        for _ in range(STEPS):
            step()
    shares = {**dict.fromkeys(KINDS, 0.0), REST: 0.0}
    kind_of = {f"aten::{name}": kind for kind, names in KINDS.items() for name in names}
    for event in profiler.key_averages():
        kind = kind_of.get(event.key, REST)
        shares[kind] += event.self_cpu_time_total / 1000 / STEPS
    return {kind: value for kind, value in shares.items() if value > 0}


def run_seconds() -> dict[str, float]:
    """What `make bench` has measured of a whole run; nothing if it has not."""
    results = read_results()
    if not results.get("run"):
        return {}
    total, student, scores = (
        median_of("run", key)(results) for key in ("seconds", "student_seconds", "scores_seconds")
    )
    return {
        "the student": student,
        "scores, metrics, pictures": scores,
        "Prefect, validation, tables": total - student - scores,
    }


def draw(bars: Mapping[str, Shares], units: Mapping[str, str], where: str) -> str:
    """An SVG picture: a bar each, as long as the others, its parts named below it."""
    parts = []
    for row, (name, shares) in enumerate(bars.items()):
        total, x, y = sum(shares.values()), float(LEFT), 20 + row * (BAR + GAP)
        parts.append(f'<text x="8" y="{y + 14}">{escape(name)}</text>')
        parts.append(f'<text x="8" y="{y + 30}">{total:.3g} {units[name]}</text>')
        for number, (kind, value) in enumerate(shares.items()):
            width = (WIDTH - LEFT - 10) * value / total
            colour = COLOUR_OF.get(kind) or COLOURS[number]
            label = f"{kind} {value / total:.0%}"
            parts.append(
                f'<rect x="{x:.1f}" y="{y}" width="{width:.1f}" height="{BAR}" fill="{colour}">'
                f"<title>{escape(label)}: {value:.3g} {units[name]}</title></rect>"
            )
            column, line = number % 3, number // 3
            left, top = LEFT + column * 245, y + BAR + 8 + line * 17
            parts.append(f'<rect x="{left}" y="{top}" width="10" height="10" fill="{colour}"/>')
            parts.append(f'<text x="{left + 15}" y="{top + 9}">{escape(label)}</text>')
            x += width
    height = 20 + len(bars) * (BAR + GAP) + 20
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" '
        f'viewBox="0 0 {WIDTH} {height}" font-family="sans-serif" font-size="12" role="img">'
        f'<title>Where the time goes ({escape(where)})</title><rect width="100%" height="100%" '
        f'fill="white"/>{"".join(parts)}<text x="8" y="{height - 8}" fill="#666">'
        f"{escape(where)}; torch {torch.__version__}</text></svg>\n"
    )


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--dataset", type=Path, required=True, help="MVTec AD root")
    parser.add_argument("--weights", type=Path, required=True, help="ResNet-18 state dict")
    parser.add_argument("--category", default="bottle")
    parser.add_argument("--picture", type=Path, required=True, help="SVG file to write")
    return parser.parse_args()


if __name__ == "__main__":
    main()
