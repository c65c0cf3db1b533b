"""Scoring away from the pipeline: exported files beside eager, `etstpm score` beside the stage.

    python -m bench.deployed --dataset MVTEC_ROOT --weights WEIGHTS.pth --category bottle

Images a second on this machine's cores, the best of a few alternating rounds, as a Markdown table.
Decoded images go from memory to scores, in batches of 16 and one by one; PNG files go to scores,
as the pipeline's stage does it and as `etstpm score` does it, Parquet included. The student is a
random one: what it has learnt costs nothing. ONNX Runtime and OpenVINO are left out where they are
not installed. `--memory N` measures instead how memory grows from N to 10 N small images.
"""

import argparse
import os
import resource
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from etstpm.compute import choose_compute
from etstpm.config import Config
from etstpm.dataset import image_files, scan_dataset
from etstpm.decoded import ImageFile, load_pixels
from etstpm.export.formats import (
    Scored,
    open_onnx,
    open_torch_export,
    write_onnx,
    write_torch_export,
)
from etstpm.export.program import FLOAT32, trace_detector
from etstpm.images import Pixels
from etstpm.inference.detector import Detector
from etstpm.inference.new_images import score_new
from etstpm.inference.source import ImageSource
from etstpm.networks import FeaturePyramid, freeze, load_weights, random_pyramid
from etstpm.scorer import Scorer
from etstpm.storage import Artifact, file_sha256
from etstpm.tables import PAPER_SIDE

ROUNDS = 3
BATCH = 16
SINGLES = 8

Run = Callable[[Pixels], object]


def main() -> None:
    """Measure what the command line asks for and print it."""
    arguments = parse_arguments()
    if arguments.memory:
        print_memory(arguments.memory)
        return
    config = Config.model_validate({"dataset": {"image_size": PAPER_SIDE}})
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        dataset = scan_dataset(arguments.dataset, [arguments.category], PAPER_SIDE, folder)
        files = image_files(arguments.dataset, dataset.manifest, arguments.category, "test")
        pixels = load_pixels("test", files, PAPER_SIDE, folder)
        teacher = load_weights(str(arguments.weights), None, cache=folder).build()
        detector = make_detector(arguments.category, teacher, pixels[:BATCH], config)
        print_from_memory(detector, np.array(pixels[:BATCH]), folder)
        print_from_files(detector, files, arguments.dataset / arguments.category / "test")


def print_from_memory(detector: Detector, pixels: Pixels, folder: Path) -> None:
    """Decoded images to scores, each way once a round."""
    exact = replace(detector, compute=FLOAT32)
    expected = exact.score(pixels).scores
    runs = {
        "eager, float32": exact.score,
        f"eager, {detector.compute.describe()['precision']} (the pipeline here)": detector.score,
        **exported(exact, folder),
    }
    print(f"| from memory | batches of {BATCH} | one by one | largest score difference |")
    print("|---|--:|--:|--:|")
    batched: dict[str, list[float]] = {name: [] for name in runs}
    single: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():  # what is compiled or allocated at the first call
        run(pixels)
        run(pixels[:1])
    for _ in range(ROUNDS):
        for name, run in runs.items():
            batched[name].append(seconds_of(run, [pixels]) / len(pixels))
            ones = [pixels[i : i + 1] for i in range(SINGLES)]
            single[name].append(seconds_of(run, ones) / SINGLES)
    for name, run in runs.items():
        found = scores_of(run(pixels))
        difference = float(np.abs(found / expected - 1).max())
        print(
            f"| {name} | {1 / min(batched[name]):.1f} | {1 / min(single[name]):.1f} | "
            f"{difference:.1e} |"
        )


def exported(detector: Detector, folder: Path) -> dict[str, Run]:
    """The exported files, opened as their users do."""
    program = trace_detector(detector)
    runs: dict[str, Run] = {}
    path = folder / "model.pt2"
    write_torch_export(program, path, {"etstpm.image_size": str(detector.size)})
    runs["torch.export, float32"] = open_torch_export(path, file_sha256(path))
    if all(find_spec(name) for name in ("onnx", "onnxruntime", "onnxscript")):
        path = folder / "model.onnx"
        write_onnx(program, path, {})
        runs["ONNX Runtime, float32"] = open_onnx(path)
        if find_spec("openvino"):
            for precision in ("f32", "bf16"):
                runs[f"OpenVINO, {precision}"] = open_openvino(path, precision)
    return runs


def open_openvino(path: Path, precision: str) -> Run:
    """An ONNX file compiled by OpenVINO for this CPU."""
    import openvino

    model = openvino.Core().compile_model(str(path), "CPU", {"INFERENCE_PRECISION_HINT": precision})

    def run(pixels: Pixels) -> Scored:
        found = model(pixels)
        return found[0], found[1]

    return run


def print_from_files(detector: Detector, files: Sequence[ImageFile], folder: Path) -> None:
    """PNG files to scores: decoded whole and then scored, and streamed to a table."""

    def pipeline() -> None:
        with tempfile.TemporaryDirectory() as cache:
            networks = detector.teacher, detector.student
            scorer = Scorer(*networks, detector.config.scoring, detector.compute)
            pixels = load_pixels("test", files, detector.size, Path(cache))
            scorer.score(pixels, detector.calibration)

    def streamed() -> None:
        with tempfile.TemporaryDirectory() as output:
            score_new(detector, ImageSource(str(folder)), f"{output}/scores")

    seconds: dict[str, list[float]] = {"stage": [], "etstpm score": []}
    for _ in range(ROUNDS):
        for name, work in (("stage", pipeline), ("etstpm score", streamed)):
            started = time.perf_counter()
            work()
            seconds[name].append(time.perf_counter() - started)
    print("\n| from PNG files | images/s |\n|---|--:|")
    for name, taken in seconds.items():
        print(f"| {name} | {len(files) / min(taken):.1f} |")


def print_memory(count: int) -> None:
    """Peak memory of scoring `count` and then ten times as many images of 64x64 pixels."""
    pixels = np.random.default_rng(0).integers(0, 256, (BATCH, 64, 64, 3), np.uint8)
    config = Config.model_validate({"dataset": {"image_size": 64}})
    detector = make_detector("bench", freeze(random_pyramid(1)), pixels, config)
    print("| images | peak memory, MB | images/s |\n|--:|--:|--:|")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        Image.fromarray(pixels[0]).save(folder / "image.png")
        for total in (count, 10 * count):
            images = folder / str(total)
            images.mkdir()
            for number in range(total):
                os.link(folder / "image.png", images / f"{number:07}.png")
            result = score_new(detector, ImageSource(str(images)), str(folder / f"out-{total}"))
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            print(f"| {total} | {peak:.0f} | {total / result.seconds:.0f} |", flush=True)


def make_detector(category: str, teacher: FeaturePyramid, good: Pixels, config: Config) -> Detector:
    """A detector with a random student, calibrated on a few images."""
    compute = choose_compute(config)
    student = freeze(random_pyramid(0))
    calibration = Scorer(teacher, student, config.scoring, compute).calibrate(good)
    metrics = {
        "threshold": 1.0,
        "map_threshold": 1.0,
        "map_cold": 0.1,
        "held_out_scores": [1.0],
    }
    precision = compute.describe()["precision"]
    card = {"metrics": metrics, "compute": {"precision": precision}}
    return Detector(
        category=category,
        run_id="bench",
        config=config,
        teacher=teacher,
        student=student,
        calibration=calibration,
        compute=compute,
        scores=Artifact("scores/bench", card),
        keys=("teachers/bench", "students/bench"),
        dataset_key="datasets/bench",
    )


def scores_of(found: object) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    """The scores, of whatever kind of run."""
    scores = found[1] if isinstance(found, tuple) else getattr(found, "scores", None)
    return np.asarray(scores, np.float64)


def seconds_of(run: Run, batches: Sequence[Pixels]) -> float:
    """Wall seconds of running all batches."""
    started = time.perf_counter()
    for batch in batches:
        run(batch)
    return time.perf_counter() - started


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--dataset", type=Path, help="MVTec AD root")
    parser.add_argument("--weights", type=Path, help="ResNet-18 state dict")
    parser.add_argument("--category", default="bottle")
    parser.add_argument("--memory", type=int, default=0, help="images; ten times as many after")
    arguments = parser.parse_args()
    if not arguments.memory and (arguments.dataset is None or arguments.weights is None):
        parser.error("--dataset and --weights are needed, or --memory")
    return arguments


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    main()
