"""The student's loop on tiny images."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from etstpm.compute import Compute
from etstpm.config import StudentConfig
from etstpm.distillation import (
    SECOND_ATTEMPT,
    DistilledStudent,
    EpochRecord,
    WarmStart,
    answers_alike,
    distil_student,
    has_levelled_off,
    validate,
)
from etstpm.errors import TrainingError
from etstpm.features import TeacherFeatures
from etstpm.images import Pixels
from etstpm.networks import FeaturePyramid, Pyramid, freeze, random_pyramid
from etstpm.settings import settings
from etstpm.splits import Indices, split_train_validation
from etstpm.students import Student, random_student

CPU = Compute(torch.device("cpu"), torch.float32)
SHORT = StudentConfig(
    network="forward", epochs=3, least_images=0, batch_size=2, learning_rate=0.02, hard_share=1.0
)
STEADY = StudentConfig(
    network="forward",
    least_images=0,
    batch_size=1,
    hard_share=1.0,
    optimiser="adamw",
    learning_rate=0.02,
    schedule="constant",
)
"""Its held-out map does not owe its fall to the schedule's end."""


def draw_images(seed: int, count: int = 6) -> Pixels:
    """Smooth blotches of one hue, slightly different in each image."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(60, 200, (1, 8, 8, 3)) + rng.integers(-25, 25, (count, 8, 8, 3))
    return coarse.repeat(8, axis=1).repeat(8, axis=2).astype(np.uint8)


@pytest.fixture(scope="module")
def teacher() -> FeaturePyramid:
    return freeze(random_pyramid(100))


def state_of(network: Student) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


def numbers_of(distilled: DistilledStudent) -> list[tuple[float, float, float]]:
    """The history without the time it took."""
    return [(r.loss, r.validation_map, r.learning_rate) for r in distilled.history]


def are_equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def test_a_student_learns_without_the_feature_cache_too(
    teacher: FeaturePyramid, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ETSTPM_FEATURE_CACHE_GIB", "0")
    settings.cache_clear()
    images = draw_images(0)
    distilled = distil_student(teacher, images, SHORT, seed=0, compute=CPU, name="bottle")
    assert distilled.history[-1].loss < distilled.history[0].loss


def test_an_epoch_passes_a_small_category_several_times(
    teacher: FeaturePyramid, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[list[int]] = []
    batch = TeacherFeatures.batch

    def record(features: TeacherFeatures, indices: Indices) -> Pyramid:
        shown.append(indices.tolist())
        return batch(features, indices)

    monkeypatch.setattr(TeacherFeatures, "batch", record)
    training, held_out = split_train_validation(6, SHORT.validation_fraction, 0)
    config = SHORT.model_copy(update={"least_images": 11})
    distilled = distil_student(teacher, draw_images(0), config, seed=0, compute=CPU, name="bottle")
    epoch = 5 * 2 // 2  # batches of two images
    for start in range(0, 3 * (epoch + 1), epoch + 1):
        *steps, validation = shown[start : start + epoch + 1]
        assert sorted(row for step in steps for row in step) == sorted([*training, *training])
        assert validation == held_out.tolist()
    assert distilled.history[0].loss < 2.9, "a mean over what was shown: three layers, at most 2"


def test_the_loss_falls_and_every_epoch_is_recorded(teacher: FeaturePyramid) -> None:
    distilled = distil_student(teacher, draw_images(0), SHORT, seed=0, compute=CPU, name="bottle")
    losses = [record.loss for record in distilled.history]
    assert losses == sorted(losses, reverse=True)
    assert [record.epoch for record in distilled.history] == [1, 2, 3]
    assert max(record.learning_rate for record in distilled.history) <= SHORT.learning_rate
    assert not distilled.student.training
    assert not any(p.requires_grad for p in distilled.student.parameters())


@pytest.mark.parametrize(
    "changes",
    [
        {"optimiser": "sgd", "learning_rate": 0.05},
        {"optimiser": "adamw", "learning_rate": 2e-3},
        {"loss": "l1-cosine"},
        {"hard_share": 0.1, "epochs": 6},
        {"schedule": "constant"},
        {"network": "reverse"},
    ],
    ids=str,
)
def test_every_named_choice_learns(teacher: FeaturePyramid, changes: dict[str, object]) -> None:
    config = StudentConfig.model_validate({**SHORT.model_dump(), **changes})
    distilled = distil_student(teacher, draw_images(0), config, seed=0, compute=CPU, name="bottle")
    assert distilled.history[-1].loss < 0.9 * distilled.history[0].loss


@pytest.mark.parametrize("network", ["forward", "reverse"])
def test_same_seed_gives_the_same_bits_whatever_ran_between(
    teacher: FeaturePyramid, network: str
) -> None:
    images, config = draw_images(0), SHORT.model_copy(update={"network": network})
    torch.manual_seed(1)
    first = distil_student(teacher, images, config, seed=0, compute=CPU, name="bottle")
    torch.manual_seed(2)
    other = distil_student(teacher, draw_images(1), config, seed=5, compute=CPU, name="screw")
    again = distil_student(teacher, images, config, seed=0, compute=CPU, name="bottle")
    assert numbers_of(again) == numbers_of(first)
    assert are_equal(state_of(again.student), state_of(first.student))
    assert not are_equal(state_of(other.student), state_of(first.student))


def test_another_seed_gives_another_student(teacher: FeaturePyramid) -> None:
    images = draw_images(0)
    students = [
        distil_student(teacher, images, SHORT, seed=seed, compute=CPU, name="bottle")
        for seed in (0, 1)
    ]
    one, other = (numbers_of(student) for student in students)
    assert all(a[:2] != b[:2] for a, b in zip(one, other, strict=True))


def test_the_best_epochs_weights_are_returned(teacher: FeaturePyramid) -> None:
    # The held-out image is noise and unlike the others: in the end it gets worse, not better.
    config = STEADY.model_copy(update={"epochs": 8})
    for seed in range(8):
        images = draw_images(0)[:, :32, :32].copy()
        _, held_out = split_train_validation(len(images), config.validation_fraction, seed)
        images[held_out] = np.random.default_rng(9).integers(0, 255, (1, 32, 32, 3))
        distilled = distil_student(teacher, images, config, seed=seed, compute=CPU, name="bottle")
        values = [record.validation_map for record in distilled.history]
        if values[-1] != min(values):
            break
    else:
        pytest.fail("no seed has its best epoch before the last")
    assert distilled.best_epoch == int(np.argmin(values)) + 1
    features = TeacherFeatures(teacher, images, CPU)
    assert validate(distilled.student, features, held_out) == min(values)


def test_validation_is_the_mean_product_map(teacher: FeaturePyramid) -> None:
    images, student = draw_images(0), freeze(random_pyramid(1))
    features = TeacherFeatures(teacher, images, CPU)
    held_out = np.array([1, 4])
    alone = [validate(student, features, held_out[i : i + 1]) for i in range(2)]
    assert validate(student, features, held_out) == pytest.approx(np.mean(alone), rel=1e-5)
    assert 0 < alone[0] <= 1  # features after a ReLU have cosines of at least 0
    same = freeze(random_pyramid(100))
    assert validate(same, features, held_out) < 1e-12


def test_the_teacher_is_left_as_it_was(teacher: FeaturePyramid) -> None:
    before = state_of(teacher)
    assert any("running_mean" in name for name in before)
    distil_student(teacher, draw_images(0), SHORT, seed=0, compute=CPU, name="bottle")
    assert are_equal(state_of(teacher), before)
    assert not any(module.training for module in teacher.modules())
    assert all(p.grad is None and not p.requires_grad for p in teacher.parameters())


def test_a_loss_that_is_not_finite_is_an_error_by_name(teacher: FeaturePyramid) -> None:
    config = StudentConfig(
        epochs=2, least_images=0, batch_size=2, learning_rate=1e38, schedule="constant"
    )
    with pytest.raises(TrainingError) as caught:
        distil_student(teacher, draw_images(0), config, seed=0, compute=CPU, name="bottle")
    message = str(caught.value)
    assert message.startswith("bottle: ")
    assert "loss is nan in epoch 1" in message
    assert "lower student.learning_rate (now 1e+38)" in message


def test_a_loss_that_does_not_fall_is_an_error_by_name(teacher: FeaturePyramid) -> None:
    config = StudentConfig(epochs=2, least_images=0, learning_rate=1e-12)
    with pytest.raises(TrainingError) as caught:
        distil_student(teacher, draw_images(0), config, seed=0, compute=CPU, name="screw")
    message = str(caught.value)
    assert message.startswith("screw: the student's loss did not fall (")
    assert "student.learning_rate (now 1e-12)" in message
    assert "epochs (now 2)" in message


def test_a_collapsed_training_is_begun_again_from_other_weights(
    teacher: FeaturePyramid, monkeypatch: pytest.MonkeyPatch
) -> None:
    seeds: list[int] = []

    def collapse_at_first(network: str, seed: int) -> Student:
        seeds.append(seed)
        student = random_student(network, seed)
        if len(seeds) == 1:
            with torch.no_grad():
                next(student.parameters()).fill_(float("nan"))
        return student

    monkeypatch.setattr("etstpm.distillation.random_student", collapse_at_first)
    images = draw_images(0)
    distilled = distil_student(teacher, images, SHORT, seed=3, compute=CPU, name="bottle")
    assert seeds == [3, 3 + SECOND_ATTEMPT]
    assert distilled.retried is not None
    assert distilled.retried.startswith("bottle: the student's loss is nan in epoch 1")
    assert distilled.history[-1].loss < distilled.history[0].loss
    monkeypatch.undo()
    assert (
        distil_student(teacher, images, SHORT, seed=3, compute=CPU, name="bottle").retried is None
    )


def test_a_student_that_answers_everything_alike_has_collapsed(teacher: FeaturePyramid) -> None:
    features, images = TeacherFeatures(teacher, draw_images(0), CPU), np.arange(4)
    healthy, constant = freeze(random_pyramid(1)), freeze(random_pyramid(1))
    with torch.no_grad():
        constant.get_parameter("layer3.1.bn2.weight").zero_()
        # It drowns what the shortcut brings.
        constant.get_parameter("layer3.1.bn2.bias").fill_(100.0)
    assert answers_alike(constant, features, images)
    assert not answers_alike(healthy, features, images)


def history_of(values: Sequence[float], rates: Sequence[float]) -> list[EpochRecord]:
    return [
        EpochRecord(epoch, 1.0, value, rate, 1.0)
        for epoch, (value, rate) in enumerate(zip(values, rates, strict=True), 1)
    ]


def stops_after(config: StudentConfig, values: Sequence[float], rates: Sequence[float]) -> int:
    """The epoch after which training ends."""
    for count in range(1, len(values)):
        if has_levelled_off(history_of(values[:count], rates[:count]), config):
            return count
    return len(values)


def test_patience_waits_for_the_learning_rate_to_fall() -> None:
    rates = [0.001, 0.01, 0.02, 0.018, 0.012, 0.006, 0.003, 0.001]
    stalls_high = [1.0, 0.5, 0.5, 0.5, 0.3, 0.2, 0.1, 0.099]
    one_cycle = StudentConfig(patience=1, learning_rate=0.02)
    assert stops_after(one_cycle, stalls_high, rates) == 8
    assert stops_after(one_cycle, [1.0, 0.5, 0.4, 0.3, 0.2, 0.1, 0.097, 0.09], rates) == 7
    assert stops_after(StudentConfig(learning_rate=0.02), stalls_high, rates) == 8, "off"


def test_patience_counts_epochs_in_a_row_under_a_constant_rate() -> None:
    config = StudentConfig(patience=2, schedule="constant", learning_rate=0.4)
    values = [1.0, 0.5, 0.6, 0.4, 0.5, 0.39, 0.2, 0.1]
    assert stops_after(config, values, [0.4] * 8) == 6


def test_training_ends_where_the_held_out_map_has_levelled_off(teacher: FeaturePyramid) -> None:
    config = STEADY.model_copy(update={"epochs": 20})
    images = draw_images(0)[:, :32, :32].copy()
    patient = config.model_copy(update={"patience": 1})
    short = distil_student(teacher, images, patient, seed=0, compute=CPU, name="bottle")
    assert len(short.history) < 20
    assert has_levelled_off(short.history, patient)
    assert not has_levelled_off(short.history[:-1], patient)


def test_a_warm_start_begins_where_the_earlier_student_ended(teacher: FeaturePyramid) -> None:
    images = draw_images(0)
    cold = distil_student(teacher, images, SHORT, seed=0, compute=CPU, name="bottle")
    split = split_train_validation(len(images), SHORT.validation_fraction, 0)
    start = WarmStart(cold.student, 1, split)
    before = state_of(cold.student)
    warm = distil_student(teacher, images, SHORT, seed=0, compute=CPU, name="bottle", start=start)
    assert len(warm.history) == 1
    assert warm.history[0].loss < cold.history[0].loss
    assert are_equal(state_of(cold.student), before), "the earlier student is left as it was"


def test_a_warm_start_that_collapses_begins_from_random_weights(teacher: FeaturePyramid) -> None:
    broken = random_pyramid(0)
    with torch.no_grad():
        broken.conv1.weight.fill_(float("nan"))
    images = draw_images(0)
    start = WarmStart(broken, 1, split_train_validation(len(images), 0.1, 0))
    distilled = distil_student(
        teacher, images, SHORT, seed=0, compute=CPU, name="bottle", start=start
    )
    assert distilled.retried is not None
    assert len(distilled.history) == SHORT.epochs
