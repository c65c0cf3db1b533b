"""What is known of datasets: official counts, licence, published results."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Counts:
    """Images of a category in the official release."""

    train_good: int
    test_good: int
    test_defective: int


@dataclass(frozen=True)
class Published:
    """AUROCs that a paper reports, 0 to 1."""

    image_auroc: float
    pixel_auroc: float


MVTEC_AD_COUNTS = {
    "bottle": Counts(209, 20, 63),
    "cable": Counts(224, 58, 92),
    "capsule": Counts(219, 23, 109),
    "carpet": Counts(280, 28, 89),
    "grid": Counts(264, 21, 57),
    "hazelnut": Counts(391, 40, 70),
    "leather": Counts(245, 32, 92),
    "metal_nut": Counts(220, 22, 93),
    "pill": Counts(267, 26, 141),
    "screw": Counts(320, 41, 119),
    "tile": Counts(230, 33, 84),
    "toothbrush": Counts(60, 12, 30),
    "transistor": Counts(213, 60, 40),
    "wood": Counts(247, 19, 60),
    "zipper": Counts(240, 32, 119),
}
"""Source: Bergmann et al., MVTec AD, CVPR 2019, table 1."""

STPM_PUBLISHED = {
    "carpet": Published(0.964, 0.990),
    "grid": Published(0.982, 0.990),
    "leather": Published(0.951, 0.991),
    "tile": Published(0.982, 0.969),
    "wood": Published(0.996, 0.965),
    "bottle": Published(1.0, 0.988),
    "cable": Published(0.936, 0.958),
    "capsule": Published(0.893, 0.986),
    "hazelnut": Published(1.0, 0.985),
    "metal_nut": Published(0.983, 0.972),
    "pill": Published(0.951, 0.976),
    "screw": Published(0.895, 0.988),
    "toothbrush": Published(0.897, 0.990),
    "transistor": Published(0.939, 0.819),
    "zipper": Published(0.961, 0.988),
}
"""Source: the official code of Wang et al., STPM, BMVC 2021, per category."""

ET_STPM_MEAN = Published(0.971, 0.977)
"""Source: Zolfaghari and Sajedi, CSICC 2022. Over all 15 categories; none by category is public."""
