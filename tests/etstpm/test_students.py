"""The student that goes its teacher's way back, and how the two kinds are told apart."""

import numpy as np
import pytest
import torch
from torch import Tensor

from etstpm.compute import Compute
from etstpm.config import Config, ScoringConfig
from etstpm.distillation import jitter
from etstpm.errors import ConfigError
from etstpm.networks import FeaturePyramid, Pyramid, freeze, random_pyramid
from etstpm.reverse import ReverseStudent
from etstpm.scorer import Scorer
from etstpm.students import answer, random_student, restore_student

CPU = Compute(torch.device("cpu"), torch.float32)


def features_of(side: int, count: int = 2) -> Pyramid:
    generator = torch.Generator().manual_seed(side)
    layer1, layer2, layer3 = (
        torch.rand((count, channels, side // stride, side // stride), generator=generator)
        for channels, stride in ((64, 4), (128, 8), (256, 16))
    )
    return layer1, layer2, layer3


def reversed_student(seed: int = 0) -> ReverseStudent:
    student = random_student("reverse", seed)
    assert isinstance(student, ReverseStudent)
    return student


@pytest.mark.parametrize("side", [48, 64, 80, 336])
def test_the_way_back_ends_at_the_shapes_that_it_began_with(side: int) -> None:
    taught = features_of(side)
    found = freeze(reversed_student())(taught)
    assert [layer.shape for layer in found] == [layer.shape for layer in taught]
    assert all(bool((layer >= 0).all()) for layer in found), "as its teacher's, after a ReLU"


def test_the_smallest_image_trains_alone() -> None:
    found = reversed_student().train()(features_of(48, count=1))
    sum(layer.sum() for layer in found).backward()


def test_all_that_passes_goes_through_the_neck() -> None:
    student = freeze(reversed_student())
    with torch.no_grad():
        for parameter in student.neck.parameters():
            parameter.zero_()
    first, second = student(features_of(64)), student(features_of(80))
    for one, other in zip(first, second, strict=True):
        of_places = one.flatten(2)
        assert torch.allclose(of_places.amax(), other.flatten(2).amax())


def test_how_strong_its_teachers_features_are_does_not_matter() -> None:
    student, taught = freeze(reversed_student()), features_of(64)
    stronger = (taught[0] * 3, taught[1] * 0.5, taught[2] * 7)
    for one, other in zip(student(taught), student(stronger), strict=True):
        assert torch.allclose(one, other, rtol=1e-3, atol=1e-3)


def test_it_depends_on_its_seed_alone() -> None:
    torch.manual_seed(1)
    first = reversed_student(5).state_dict()
    torch.manual_seed(2)
    second, other = reversed_student(5).state_dict(), reversed_student(6).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["neck.0.conv1.weight"], other["neck.0.conv1.weight"])


@pytest.mark.parametrize("network", ["forward", "reverse"])
def test_a_student_is_restored_by_the_names_of_its_tensors(network: str) -> None:
    student = random_student(network, 3)
    restored = restore_student(student.state_dict())
    assert type(restored) is type(student)
    before, after = student.state_dict(), restored.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


class Unseeing(ReverseStudent):
    def forward(self, taught: Pyramid) -> Pyramid:
        assert not isinstance(taught, Tensor)
        return super().forward(taught)


def test_one_kind_gets_the_image_and_the_other_what_is_taught() -> None:
    images = torch.from_numpy(np.random.default_rng(0).random((2, 3, 64, 64), np.float32))
    teacher, forward = freeze(random_pyramid(1)), freeze(random_pyramid(2))
    reverse = freeze(Unseeing())
    taught = teacher(images)
    for student, expected in ((forward, forward(images)), (reverse, reverse(taught))):
        found = answer(student, images, taught)
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
        errors = Scorer(teacher, student, ScoringConfig(), CPU).errors(images)
        assert [error.shape for error in errors] == [layer.shape for layer in taught]


def test_noise_has_the_length_that_is_asked_for_and_its_seed_alone_decides_it() -> None:
    def noisy(seed: int) -> Pyramid:
        return jitter(
            taught,  # type: ignore[arg-type]
            0.3,
            torch.Generator().manual_seed(seed),
        )

    taught = tuple(layer.to(memory_format=torch.channels_last) for layer in features_of(64))
    for before, after, again, other in zip(taught, noisy(1), noisy(1), noisy(2), strict=True):
        difference = after - before
        assert difference.norm(dim=1).mean().item() == pytest.approx(0.3, rel=0.02)
        assert difference.mean((0, 2, 3)).norm().item() < 0.1
        assert torch.equal(after, again)
        assert not torch.equal(after, other)
        assert after.is_contiguous(memory_format=torch.channels_last)


def test_an_image_too_small_for_the_neck_is_refused_before_anything_starts() -> None:
    with pytest.raises(ConfigError) as caught:
        Config.load("default", ["dataset.image_size=32"])
    assert str(caught.value) == (
        "default: dataset.image_size = 32 leaves a single place in the neck of student.network "
        "'reverse'; give 48 or more, or student.network=forward"
    )
    forward = Config.load("default", ["dataset.image_size=32", "student.network=forward"])
    assert forward.dataset.image_size == 32


def test_a_forward_student_keeps_the_address_it_had() -> None:
    forward = Config.load("stpm").student
    assert forward.network == "forward"
    assert "network" not in forward.identity()
    assert Config.load("default").student.identity()["network"] == "reverse"


def test_kinds_are_as_the_papers_have_them() -> None:
    assert isinstance(random_student("forward", 0), FeaturePyramid)
    count = sum(parameter.numel() for parameter in reversed_student().parameters())
    assert 4e6 < count < 8e6
