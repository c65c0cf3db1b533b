"""Two kinds of student: one looks at the image, the other at its teacher's features of it."""

from collections.abc import Mapping

from torch import Tensor

from etstpm.networks import FeaturePyramid, Pyramid, random_pyramid, randomise
from etstpm.reverse import ReverseStudent

Student = FeaturePyramid | ReverseStudent


def random_student(network: str, seed: int) -> Student:
    """An untrained student: "forward" (Wang et al. 2021) or "reverse" (Deng and Li 2022)."""
    return randomise(ReverseStudent(), seed) if network == "reverse" else random_pyramid(seed)


def restore_student(tensors: Mapping[str, Tensor]) -> Student:
    """The student that these tensors were saved of, as their names tell."""
    is_reverse = any(name.startswith("neck.") for name in tensors)
    student: Student = ReverseStudent() if is_reverse else FeaturePyramid()
    student.load_state_dict(tensors)
    return student


def answer(student: Student, images: Tensor, taught: Pyramid) -> Pyramid:
    """What a student says of normalised images (N, 3, H, W), of which its teacher says `taught`."""
    pyramid: Pyramid = student(taught if isinstance(student, ReverseStudent) else images)
    return pyramid
