"""The student's loop: it learns its teacher's features of good images."""

import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from etstpm.compute import Compute
from etstpm.config import StudentConfig
from etstpm.errors import TrainingError
from etstpm.features import EVALUATION_BATCH, TeacherFeatures
from etstpm.images import Pixels, normalise
from etstpm.matching import distance_maps, matching_loss
from etstpm.networks import FeaturePyramid, Pyramid, normalise_features
from etstpm.optimisers import Optimiser, make_optimiser
from etstpm.progress import Bar
from etstpm.reverse import ReverseStudent
from etstpm.splits import Indices, batches, split_train_validation
from etstpm.students import Student, random_student

FALL_REQUIRED = 0.99
"""A student whose loss ends above this share of its first step's loss has learnt nothing."""
CONSTANT = 0.01
"""A student whose features vary by less than this share of its teacher's is constant."""
LEAST_GAIN = 0.05
"""Share by which `student.patience` epochs must lower the held-out map."""
SETTLED = 0.2
"""Share of its peak below which one-cycle's learning rate lets the held-out map be judged."""
SECOND_ATTEMPT = 2**32
"""Added to a run's seed, which is smaller, for a training that begins again."""


@dataclass(frozen=True)
class EpochRecord:
    """One row of a student's history."""

    epoch: int
    loss: float
    validation_map: float
    learning_rate: float
    seconds: float


@dataclass(frozen=True)
class DistilledStudent:
    """A student with the weights of its best epoch, and how it got there."""

    student: Student
    history: list[EpochRecord]
    best_epoch: int
    retried: str | None = None
    """Why a first training was thrown away, if one was."""


@dataclass(frozen=True)
class WarmStart:
    """A trained student to begin from, for so many epochs, and which images may train it now."""

    student: Student
    epochs: int
    split: tuple[Indices, Indices]
    """Rows that train and rows held out: none of the latter has trained the student."""


def distil_student(
    teacher: FeaturePyramid,
    pixels: Pixels,
    config: StudentConfig,
    *,
    seed: int,
    compute: Compute,
    name: str,
    start: WarmStart | None = None,
) -> DistilledStudent:
    """Distil a student of one category on its frozen teacher, from good images alone.

    pixels: (N, H, W, 3) uint8. The epoch with the lowest mean anomaly map over the held-out
    images is kept (Wang et al. 2021, section 4). A training that collapses is begun once more, from
    other first weights and in another order. Raises `TrainingError` if that collapses too: if the
    loss becomes NaN or infinite, or does not fall, or the student answers every image alike.
    `start`: an earlier student to begin from; should that collapse, random weights are next.
    """
    split = split_train_validation(len(pixels), config.validation_fraction, seed)
    if start is not None:
        split = start.split
    features = TeacherFeatures(teacher.to(compute.device), pixels, compute)
    try:
        return _train(features, split, config, seed=seed, compute=compute, name=name, start=start)
    except TrainingError as collapse:
        second = seed + SECOND_ATTEMPT
        distilled = _train(features, split, config, seed=second, compute=compute, name=name)
        return dataclasses.replace(distilled, retried=str(collapse))


def _train(
    features: TeacherFeatures,
    split: tuple[Indices, Indices],
    config: StudentConfig,
    *,
    seed: int,
    compute: Compute,
    name: str,
    start: WarmStart | None = None,
) -> DistilledStudent:
    training, held_out = split
    rng = np.random.default_rng([seed, 1])
    noise = torch.Generator(compute.device).manual_seed(seed)
    student = random_student(config.network, seed)
    epochs = config.epochs
    if start is not None:
        student.load_state_dict(start.student.state_dict())
        epochs = start.epochs
    student.to(memory_format=torch.channels_last).to(compute.device)
    passes, shown = config.passes(len(training)), config.shown(len(training))
    steps = epochs * -(-shown // config.batch_size)
    optimiser = make_optimiser(student, config, steps, compute.precision)

    history: list[EpochRecord] = []
    best: dict[str, Tensor] = {}
    first_loss = float("nan")
    with Bar(f"{name}: student", epochs * shown) as bar:
        for epoch in range(1, epochs + 1):
            started, learning_rate = time.perf_counter(), optimiser.learning_rate
            order = np.concatenate([rng.permutation(training) for _ in range(passes)])
            loss, first = train_epoch(student, features, order, config, optimiser, noise, bar)
            seconds = time.perf_counter() - started
            if not history:
                first_loss = first
            record = EpochRecord(
                epoch=epoch,
                loss=loss,
                validation_map=validate(student, features, held_out),
                learning_rate=learning_rate,
                seconds=seconds,
            )
            _require_finite(record, config, name)
            if not history or record.validation_map < min(r.validation_map for r in history):
                best = {key: value.clone() for key, value in student.state_dict().items()}
            history.append(record)
            bar.show(loss=record.loss, validation=record.validation_map)
            if has_levelled_off(history, config):
                break

    if start is None:
        _require_fall(first_loss, history[-1].loss, config, name)
    student.load_state_dict(best)
    student.eval().requires_grad_(False)
    if answers_alike(student, features, training):
        raise TrainingError(
            f"{name}: the student answers every image and place alike; lower "
            f"student.learning_rate (now {config.learning_rate}) or change the seed"
        )
    best_epoch = min(history, key=lambda record: record.validation_map).epoch
    return DistilledStudent(student, history, best_epoch)


def train_epoch(
    student: Student,
    features: TeacherFeatures,
    order: Indices,
    config: StudentConfig,
    optimiser: Optimiser,
    noise: torch.Generator,
    bar: Bar,
) -> tuple[float, float]:
    """One step a batch of the images in this order; their mean loss, and the first step's."""
    student.train()
    losses: list[Tensor] = []
    sizes: list[int] = []
    for batch in batches(order, config.batch_size):
        losses.append(backpropagate(student, features, batch, config, noise))
        optimiser.step()
        sizes.append(len(batch))
        bar.advance(len(batch))
    # Read now: at each step a GPU would have to wait for it.
    found = torch.stack(losses).cpu().double()
    return float(np.average(found, weights=sizes)), found[0].item()


def backpropagate(
    student: Student,
    features: TeacherFeatures,
    rows: Indices,
    config: StudentConfig,
    noise: torch.Generator,
) -> Tensor:
    """Give each parameter its gradient of a batch's loss; the loss.

    What a step holds goes with it: kept in the loop's names, it would lie beside the next step's.
    """
    taught = features.batch(rows)
    given = jitter(taught, config.jitter, noise) if config.is_jittered else taught
    output = answer_rows(student, features, rows, given)
    del given
    loss = matching_loss(taught, output, config.loss, config.hard_share)
    loss.backward()  # type: ignore[no-untyped-call]
    return loss.detach()


def jitter(features: Pyramid, length: float, noise: torch.Generator) -> Pyramid:
    """Unit vectors (N, C, H, W) with Gaussian noise of about this length on each."""
    layers: list[Tensor] = []
    for feature in features:
        places = feature.permute(0, 2, 3, 1)
        # In contiguous memory torch draws many numbers at a time, eight times as fast.
        drawn = torch.empty_like(places, memory_format=torch.contiguous_format)
        drawn.normal_(0.0, length / feature.shape[1] ** 0.5, generator=noise)
        layers.append(drawn.add_(places).permute(0, 3, 1, 2))
    layer1, layer2, layer3 = layers
    return layer1, layer2, layer3


def has_levelled_off(history: Sequence[EpochRecord], config: StudentConfig) -> bool:
    """Whether `patience` epochs have brought next to nothing and more would not either.

    While one-cycle's learning rate is high, the held-out map tells nothing of where it will end.
    """
    if config.patience is None or len(history) <= config.patience:
        return False
    before, last = history[: -config.patience], history[-config.patience :]
    rate = max(record.learning_rate for record in last)
    if config.schedule == "one-cycle" and rate > SETTLED * config.learning_rate:
        return False
    lowest = min(record.validation_map for record in before)
    return min(record.validation_map for record in last) > (1 - LEAST_GAIN) * lowest


def _require_finite(record: EpochRecord, config: StudentConfig, name: str) -> None:
    if not np.isfinite([record.loss, record.validation_map]).all():
        raise TrainingError(
            f"{name}: the student's loss is {record.loss} in epoch {record.epoch}; lower "
            f"student.learning_rate (now {config.learning_rate}) or change the seed"
        )


def _require_fall(first: float, last: float, config: StudentConfig, name: str) -> None:
    if last > FALL_REQUIRED * first:
        raise TrainingError(
            f"{name}: the student's loss did not fall ({first:.3g} in the first step, "
            f"{last:.3g} in the last epoch); lower student.learning_rate (now "
            f"{config.learning_rate}), or give it more epochs (now {config.epochs})"
        )


def answers_alike(student: Student, features: TeacherFeatures, training: Indices) -> bool:
    """Whether a layer of the student varies by less than a hundredth of what the teacher's does."""
    some = training[:EVALUATION_BATCH]
    taught = features.batch(some)
    with torch.no_grad():
        output = normalise_features(answer_rows(student, features, some, taught))
    return any(
        bool(found.var((0, 2, 3)).sum() < CONSTANT * expected.var((0, 2, 3)).sum())
        for found, expected in zip(output, taught, strict=True)
    )


def answer_rows(
    student: Student, features: TeacherFeatures, rows: Indices, taught: Pyramid
) -> Pyramid:
    """What a student answers to these images, of which this is what its teacher says."""
    compute = features.compute
    with compute.autocast():
        if isinstance(student, ReverseStudent):  # which needs no image
            return student.forward(taught)
        return student.forward(normalise(features.pixels[rows], compute.device))


def validate(student: Student, features: TeacherFeatures, held_out: Indices) -> float:
    """Mean over the held-out images and locations of the product map, at layer1's resolution."""
    student.eval()
    total = torch.zeros((), dtype=torch.float64, device=features.compute.device)
    for batch in batches(held_out, EVALUATION_BATCH):
        taught = features.batch(batch)
        with torch.no_grad():
            output = answer_rows(student, features, batch, taught)
        layers = distance_maps(taught, output)
        product = torch.ones_like(layers[0])
        for layer in layers:
            product = product * F.interpolate(
                layer[:, None], size=product.shape[-2:], mode="bilinear", align_corners=False
            ).squeeze(1)
        total += product.double().mean((1, 2)).sum()
    return total.item() / len(held_out)
