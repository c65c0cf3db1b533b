"""Measure anomalib's STFPM (ResNet-18, layer1-3, 256x256) on the CPU, as its users run it.

Runs in an environment of its own and imports nothing of etstpm:

    python -m venv PEER && PEER/bin/pip install -r bench/peer-requirements.txt
    PEER/bin/python bench/peer_anomalib.py train --dataset MVTEC_ROOT --weights WEIGHTS.pth \
        --category bottle --steps 28 --output result.json

`train` fits the student and then times prediction and test; `test` leaves the student untrained,
which costs the same per image; `metrics` times anomalib's AUPRO and torchmetrics' AUROC on maps and
masks made elsewhere;
`curve` fits for 100 epochs (an hour or more) and takes the test images' AUROC on the way:

    PEER/bin/python bench/peer_anomalib.py curve --dataset MVTEC_ROOT --weights WEIGHTS.pth \
        --category bottle --epochs 100 --bfloat16 --output bench/peer_curves/bottle.json

In float32 that takes 35 minutes of CPU time; `--bfloat16` computes the convolutions alone in
bfloat16, as etstpm does, in a third of it. No time is taken from a curve.

In the peer's favour: Lightning runs barebones (no logger, checkpoint or progress bar), no images
are drawn, and anomalib's validation on the test images after each epoch is off during the fit.
"""

import argparse
import json
import os
import platform
import resource
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import torch
from anomalib.data import ImageBatch, MVTecAD
from anomalib.engine import Engine
from anomalib.metrics import AUPRO
from anomalib.models import Stfpm
from anomalib.models.components import TimmFeatureExtractor
from anomalib.models.image.stfpm import torch_model
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from sklearn.metrics import roc_auc_score
from torchmetrics.functional.classification import binary_auroc

IMAGE_SIZE = (256, 256)
LAYERS = ["layer1", "layer2", "layer3"]


class UntrainedExtractor(TimmFeatureExtractor):
    """anomalib's feature extractor without the download its STFPM always asks for."""

    def __init__(
        self, backbone: str, layers: list[str], pre_trained: bool, requires_grad: bool = False
    ) -> None:
        super().__init__(backbone, layers, pre_trained=False, requires_grad=requires_grad)


class StepClock(Callback):
    """Notes when each training step ended (seconds: wall and CPU), its images and its loss."""

    def __init__(self) -> None:
        self.ended_at: list[float] = []
        self.cpu_ended_at: list[float] = []
        self.images: list[int] = []
        self.losses: list[float] = []

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: dict[str, torch.Tensor],
        batch: ImageBatch,
        batch_idx: int,
    ) -> None:
        self.ended_at.append(time.perf_counter())
        self.cpu_ended_at.append(time.process_time())
        self.images.append(len(batch.image))
        self.losses.append(outputs["loss"].item())


class AurocCurve(Callback):
    """Image and pixel AUROC of the test images after some of the epochs, written as they come.

    Of the raw scores and maps, at the model's 256x256, by scikit-learn: anomalib's post-processor
    cuts them to [0, 1] at the validation images' extremes, and what is cut is tied.
    """

    def __init__(self, datamodule: MVTecAD, epochs: int, write: Callable[[Any], None]) -> None:
        self.datamodule, self.write = datamodule, write
        self.epochs = {1, 2, 3, 5, 10, 15} | set(range(20, epochs, 10)) | {epochs}
        self.points: list[dict[str, float]] = []

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        epoch = trainer.current_epoch + 1
        if epoch in self.epochs:
            self.points.append({"epoch": epoch} | auroc_of_test_images(pl_module, self.datamodule))
            self.write(self.points)


def auroc_of_test_images(model: LightningModule, datamodule: MVTecAD) -> dict[str, float]:
    """Both AUROCs of the model as it stands; its modules' modes are left as they were."""
    was_training = {module: module.training for module in model.modules()}
    model.eval()
    labels, scores, masks, maps = [], [], [], []
    with torch.no_grad():
        for batch in datamodule.test_dataloader():
            images, mask = model.pre_processor.transform(batch.image, batch.gt_mask)
            predicted = model.model(images)
            labels.append(batch.gt_label.numpy())
            scores.append(predicted.pred_score.numpy().ravel())
            masks.append(mask.numpy().astype(bool).ravel())
            maps.append(predicted.anomaly_map.numpy().ravel())
    for module, flag in was_training.items():
        module.training = flag
    return {
        "image_auroc": float(roc_auc_score(np.concatenate(labels), np.concatenate(scores))),
        "pixel_auroc": float(roc_auc_score(np.concatenate(masks), np.concatenate(maps))),
    }


def compute_in_bfloat16(extractor: TimmFeatureExtractor) -> None:
    """Its convolutions alone: the features it returns are float32, and so is the loss of them."""
    forward = extractor.forward

    def wrapped(images: torch.Tensor) -> dict[str, torch.Tensor]:
        with torch.autocast("cpu", torch.bfloat16):
            features = forward(images)
        return {name: feature.float() for name, feature in features.items()}

    extractor.forward = wrapped


def record_curve(
    model: Stfpm, datamodule: MVTecAD, epochs: int, write: Callable[[Any], None], results: Path
) -> None:
    """Fit for so many epochs; `write` gets the curve's points so far each time one is added.

    In channels_last, which is faster and moves results by rounding alone.
    """
    model.model.to(memory_format=torch.channels_last)
    datamodule.setup("fit")
    steps = epochs * len(datamodule.train_dataloader())
    curve = AurocCurve(datamodule, epochs, write)
    engine = build_engine(results, max_steps=steps, limit_val_batches=0, callbacks=[curve])
    engine.fit(model, datamodule=datamodule)


def build_model(weights: Path) -> Stfpm:
    """Build STFPM with `weights` (torchvision key names, conv1 to layer3) in its teacher."""
    with mock.patch.object(torch_model, "TimmFeatureExtractor", UntrainedExtractor):
        model = Stfpm(
            backbone="resnet18",
            layers=LAYERS,
            pre_processor=Stfpm.configure_pre_processor(image_size=IMAGE_SIZE),
            visualizer=False,
        )
    state = torch.load(weights, map_location="cpu", weights_only=True)
    model.model.teacher_model.feature_extractor.load_state_dict(state)
    return model


def build_datamodule(arguments: argparse.Namespace) -> MVTecAD:
    """Build anomalib's own datamodule; its default validation set, the test images, is kept."""
    return MVTecAD(
        root=arguments.dataset,
        category=arguments.category,
        train_batch_size=arguments.batch_size,
        eval_batch_size=arguments.batch_size,
        num_workers=arguments.num_workers,
    )


def build_engine(
    results: Path,
    max_steps: int = -1,
    limit_val_batches: float = 1.0,
    callbacks: list[Callback] | None = None,
) -> Engine:
    """Build anomalib's Engine on the CPU; `barebones` is its only way to write no checkpoint."""
    return Engine(
        default_root_dir=results,
        accelerator="cpu",
        devices=1,
        barebones=True,
        max_steps=max_steps,
        limit_val_batches=limit_val_batches,
        callbacks=callbacks,
    )


def peak_rss_mb() -> dict[str, float]:
    """Peak resident memory so far, in MB of 10^6 bytes: this process, and its largest child.

    Pages that a forked loader worker shares with this process are counted in both. Without workers
    the child is a short-lived fork of an import.
    """
    kilobyte = 1 if sys.platform == "darwin" else 1024
    return {
        "main": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * kilobyte / 1e6,
        "largest_child": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * kilobyte / 1e6,
    }


def measure_training(
    model: Stfpm, datamodule: MVTecAD, steps: int, results: Path
) -> dict[str, Any]:
    """Fit for `steps` steps; the rate counts from the end of the first epoch to the last step.

    Wall time holds everything between the steps, the loader included. `cpu_seconds`, of this
    process alone, shows how much of the machine it got.

    Raises: ValueError when `steps` does not reach past the first epoch.
    """
    clock = StepClock()
    engine = build_engine(results, max_steps=steps, limit_val_batches=0, callbacks=[clock])
    engine.fit(model, datamodule=datamodule)
    warmup_steps = int(engine.trainer.num_training_batches)
    if steps <= warmup_steps:
        raise ValueError(f"--steps {steps}: the first epoch, {warmup_steps} steps, is warm-up")
    marks = clock.ended_at[warmup_steps - 1 :]
    seconds = marks[-1] - marks[0]
    images = sum(clock.images[warmup_steps:])
    return {
        "warmup_steps": warmup_steps,
        "steps": len(clock.ended_at) - warmup_steps,
        "images": images,
        "seconds": seconds,
        "cpu_seconds": clock.cpu_ended_at[-1] - clock.cpu_ended_at[warmup_steps - 1],
        "images_per_second": images / seconds,
        "step_seconds": [after - before for before, after in pairwise(marks)],
        "loss_per_image_first": clock.losses[0] / clock.images[0],
        "loss_per_image_last": clock.losses[-1] / clock.images[-1],
        "peak_rss_mb": peak_rss_mb(),
    }


def measure_evaluation(model: Stfpm, datamodule: MVTecAD, results: Path) -> dict[str, Any]:
    """Time the test images from PNG file to score and map, without and with anomalib's metrics.

    The validation pass sets the post-processor's ranges and thresholds and is not timed.
    """
    engine = build_engine(results)
    engine.validate(model, datamodule=datamodule)

    started = time.perf_counter()
    predictions = engine.predict(model, datamodule=datamodule)
    predict_seconds = time.perf_counter() - started
    images = sum(len(batch.pred_score) for batch in predictions)
    del predictions

    started = time.perf_counter()
    metrics = engine.test(model, datamodule=datamodule, verbose=False)[0]
    test_seconds = time.perf_counter() - started
    return {
        "images": images,
        "predict_seconds": predict_seconds,
        "predict_images_per_second": images / predict_seconds,
        "test_seconds": test_seconds,
        "test_images_per_second": images / test_seconds,
        "metrics": metrics,
        "peak_rss_mb": peak_rss_mb(),
    }


def measure_metrics(maps_and_masks: Path) -> dict[str, Any]:
    """Time anomalib's AUPRO (FPR limit 0.3) and torchmetrics' AUROC on an .npz.

    It holds `maps`, float32, and `masks`, bool, both (images, height, width). torchmetrics applies
    a sigmoid to scores outside [0, 1], which would tie the largest: they are scaled first.
    """
    with np.load(maps_and_masks) as archive:
        maps = torch.from_numpy(archive["maps"])
        masks = torch.from_numpy(archive["masks"])
    metric = AUPRO(fields=["anomaly_map", "gt_mask"])
    started = time.perf_counter()
    metric.update(SimpleNamespace(anomaly_map=maps, gt_mask=masks))
    value = metric.compute().item()
    aupro = {"value": value, "seconds": time.perf_counter() - started}
    del metric
    scaled, labels = (maps / maps.max()).flatten(), masks.flatten().long()
    started = time.perf_counter()
    value = binary_auroc(scaled, labels).item()
    auroc = {"value": value, "seconds": time.perf_counter() - started}
    return {
        "shape": list(maps.shape),
        "aupro": aupro,
        "torchmetrics_auroc": auroc,
        "peak_rss_mb": peak_rss_mb(),
    }


def describe_run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Versions, options, threads, and the load (1 and 5 minutes) once imports are done."""
    packages = ["anomalib", "torch", "torchvision", "timm", "lightning"]
    return {
        "mode": arguments.mode,
        "options": {
            name: value
            for name, value in vars(arguments).items()
            if isinstance(value, int) or name == "category"
        },
        "versions": {package: version(package) for package in packages}
        | {"python": platform.python_version()},
        "threads": torch.get_num_threads(),
        "load_at_start": os.getloadavg()[:2],
    }


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    modes = parser.add_subparsers(dest="mode", required=True)
    for mode in ("train", "test", "curve"):
        options = modes.add_parser(mode)
        options.add_argument("--dataset", type=Path, required=True, help="MVTec AD root")
        options.add_argument("--weights", type=Path, required=True, help="ResNet-18 state dict")
        options.add_argument("--category", default="bottle")
        options.add_argument("--batch-size", type=int, default=32, help="images")
        options.add_argument("--num-workers", type=int, default=0, help="loader processes")
        options.add_argument("--seed", type=int, default=0)
        options.add_argument("--output", type=Path, required=True, help="JSON file to write")
        if mode == "train":
            options.add_argument("--steps", type=int, default=28, help="with the warm-up epoch")
        if mode == "curve":
            options.add_argument("--epochs", type=int, default=100)
            options.add_argument("--bfloat16", action="store_true", help="convolutions alone")
    options = modes.add_parser("metrics")
    options.add_argument("--maps", type=Path, required=True, help=".npz with `maps` and `masks`")
    options.add_argument("--output", type=Path, required=True, help="JSON file to write")
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    warnings.filterwarnings("ignore")
    result = describe_run(arguments)
    if arguments.mode == "metrics":
        result |= measure_metrics(arguments.maps)
    else:
        seed_everything(arguments.seed, verbose=False)
        model = build_model(arguments.weights)
        datamodule = build_datamodule(arguments)
        with tempfile.TemporaryDirectory() as folder:
            results = Path(folder)
            if arguments.mode == "curve":

                def write(points: list[dict[str, float]]) -> None:
                    text = json.dumps(result | {"curve": points}, indent=1)
                    arguments.output.write_text(text + "\n")

                if arguments.bfloat16:
                    compute_in_bfloat16(model.model.teacher_model)
                    compute_in_bfloat16(model.model.student_model)
                record_curve(model, datamodule, arguments.epochs, write, results)
                return
            if arguments.mode == "train":
                result["training"] = measure_training(model, datamodule, arguments.steps, results)
            result["evaluation"] = measure_evaluation(model, datamodule, results)
    result["load_at_end"] = os.getloadavg()[:2]
    text = json.dumps(result, indent=2)
    arguments.output.write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
