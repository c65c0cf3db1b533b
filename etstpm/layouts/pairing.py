"""Which mask belongs to which image of MVTec AD's layout."""

from pathlib import Path

from etstpm.findings import Scan
from etstpm.layouts.listing import GOOD, folders_in, images_in


class Masks:
    """The masks of a category: each belongs to its image by path.

    Never by sort order: one stray file would shift every mask after it.
    """

    def __init__(self, scan: Scan, folder: Path) -> None:
        self.scan, self.folder = scan, folder
        self.ground_truth = folder / "ground_truth"
        self.is_there = self.ground_truth.is_dir()
        self.found: dict[tuple[str, str], list[Path]] = {}
        """By defect type and the image's stem."""
        self.used: dict[tuple[str, str], Path] = {}
        self.has_reported_none = False
        for name in folders_in(scan, self.ground_truth, "folders of masks"):
            if name == GOOD:
                path, remedy = self.ground_truth / GOOD, "remove them"
                scan.report("mask-of-good", path, "no masks of good images", "a folder", remedy)
                continue
            for path in images_in(scan, self.ground_truth / name):
                key = name, path.stem.removesuffix("_mask")
                self.found.setdefault(key, []).append(path)

    def of(self, image: Path) -> Path | None:
        """The mask of a test image; that there is none, or not one alone, is a finding."""
        if image.parent.name == GOOD:
            return None
        key = image.parent.name, image.stem
        other = self.used.setdefault(key, image)
        masks = self.found.get(key, [])
        name = self.scan.relative(mask_path_of(image))
        if other != image:
            self.scan.report(
                "same-stem",
                image,
                "one image for each mask",
                f"{self.scan.relative(other)} beside it",
                "rename one of them, and its mask",
                images=[image, other],
            )
            return None
        if len(masks) == 1:
            return masks[0]
        if len(masks) > 1:
            found = " and ".join(path.name for path in masks)
            remedy = "remove the wrong one"
            self.scan.report("two-masks", image, "one mask", found, remedy, images=[image])
        elif not self.is_there and self.scan.declaration.masks == "optional":
            self._report_no_masks()
        else:
            self.scan.report(
                "image-without-mask",
                image,
                f"a mask at {name}",
                "none",
                "restore the mask, or remove the image",
                images=[image],
            )
        return None

    def _report_no_masks(self) -> None:
        if not self.has_reported_none:
            self.has_reported_none = True
            self.scan.report(
                "no-masks",
                self.ground_truth,
                "masks of the defective images",
                "none",
                "pixel metrics will be null; add masks for them",
            )

    def report_left_over(self) -> None:
        """Masks that belong to no image."""
        for key in self.found.keys() - self.used.keys():
            image = self.folder / "test" / key[0] / f"{key[1]}.png"
            for path in self.found[key]:
                self.scan.report(
                    "mask-without-image",
                    path,
                    f"an image {self.scan.relative(image)}",
                    "none",
                    "restore the image, or remove the mask",
                )


def mask_path_of(image: Path) -> Path:
    """CATEGORY/test/DEFECT/000.png to CATEGORY/ground_truth/DEFECT/000_mask.png."""
    category = image.parents[2]
    return category / "ground_truth" / image.parent.name / f"{image.stem}_mask.png"
