"""Ground-truth masks: each belongs to its image by path, and is as it should be."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from etstpm.errors import reason_of
from etstpm.facts import KnownMasks
from etstpm.findings import Scan
from etstpm.images import UNREADABLE, ImageFacts, read_grey
from etstpm.storage import file_sha256


def mask_path_of(image_path: Path) -> Path:
    """CATEGORY/test/DEFECT/000.png to CATEGORY/ground_truth/DEFECT/000_mask.png.

    By path, never by sort order: one stray file would shift every mask after it.
    """
    category = image_path.parents[2]
    return category / "ground_truth" / image_path.parent.name / f"{image_path.stem}_mask.png"


def check_mask(
    scan: Scan, image: Path, fact: ImageFacts, known: KnownMasks
) -> tuple[str, str] | None:
    """A defective image's mask: its relative path and SHA-256; None if it cannot be read."""
    path = mask_path_of(image)
    if not path.is_file():
        scan.report(
            "error",
            "image-without-mask",
            image,
            f"a mask at {path.relative_to(scan.root).as_posix()}",
            "none",
            "restore the mask, or remove the image",
        )
        return None
    name = path.relative_to(scan.root).as_posix()
    key, sha256 = known.find(path, fact)
    if sha256 is not None:
        return name, sha256
    try:
        mask = read_grey(path)
    except UNREADABLE as error:
        scan.report(
            "error",
            "unreadable-mask",
            path,
            "a whole image file",
            reason_of(error),
            "restore the file from its source",
        )
        return None
    sha256 = file_sha256(path)
    if mask.shape != (fact.height, fact.width):
        scan.report(
            "error",
            "mask-size",
            path,
            f"{fact.width}x{fact.height} as its image",
            f"{mask.shape[1]}x{mask.shape[0]}",
            "restore the mask that belongs to this image",
        )
    elif not (mask > 127).any():
        scan.report(
            "error",
            "mask-empty",
            path,
            "a defective pixel",
            "none",
            "restore the mask, or move the image to test/good",
        )
    elif not np.isin(mask, (0, 255)).all():
        scan.report(
            "warning",
            "mask-not-binary",
            path,
            "0 and 255",
            "other values",
            "above 127 is defective",
        )
    else:
        known.remember(key, sha256)
    return name, sha256


def report_masks_without_image(scan: Scan, folder: Path, test: Iterable[Path]) -> None:
    expected = {mask_path_of(path) for path in test}
    for defect in scan.folders(folder / "ground_truth"):
        for path in scan.images(defect):
            if path not in expected:
                image = f"test/{defect.name}/{path.stem.removesuffix('_mask')}"
                scan.report(
                    "error",
                    "mask-without-image",
                    path,
                    f"an image {folder.name}/{image}.png",
                    "none",
                    "restore the image, or remove the mask",
                )
