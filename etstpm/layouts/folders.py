"""MVTec AD's layout:

CATEGORY/train/good/000.png
CATEGORY/test/good/000.png
CATEGORY/test/DEFECT_TYPE/000.png
CATEGORY/ground_truth/DEFECT_TYPE/000_mask.png
"""

from dataclasses import dataclass
from pathlib import Path

from etstpm.findings import Entry, Scan, is_system_name
from etstpm.layouts.listing import (
    GOOD,
    folders_in,
    images_in,
    names_in,
    report_files,
    unreadable,
)
from etstpm.layouts.pairing import Masks


@dataclass(frozen=True)
class Folders:
    """MVTec AD's layout."""

    root: Path

    def categories(self) -> list[str]:
        """Folders that hold train/ or test/. Raises `DatasetError` for one that cannot be read."""
        try:
            return sorted(
                name
                for name in names_in(self.root)
                if not is_system_name(name)
                and ((self.root / name / "train").is_dir() or (self.root / name / "test").is_dir())
            )
        except OSError as error:
            raise unreadable(self.root, error) from None

    def entries(self, scan: Scan, category: str) -> list[Entry]:
        """Of train/good, and of every folder of test/ with its masks."""
        folder = scan.root / category
        self._report_others(scan, folder)
        entries = [
            Entry("train", GOOD, path)
            for name in folders_in(scan, folder / "train")
            for path in self._train_images(scan, folder / "train" / name)
        ]
        types = folders_in(scan, folder / "test")
        masks = Masks(scan, folder)
        for name in types:
            images = images_in(scan, folder / "test" / name)
            if not images:
                remedy = "add them, or remove the folder"
                path = folder / "test" / name
                scan.report("empty-folder", path, "images of this defect type", "none", remedy)
            entries += [Entry("test", name, path, masks.of(path)) for path in images]
        masks.report_left_over()
        return entries

    @staticmethod
    def _report_others(scan: Scan, folder: Path) -> None:
        folders, files = scan.listing(folder)
        for name in folders:
            if name not in {"train", "test", "ground_truth"}:
                expected = "train, test and ground_truth"
                scan.report_foreign(folder / name, expected, "another folder")
        report_files(scan, folder, files, "train/good or test/DEFECT_TYPE")

    @staticmethod
    def _train_images(scan: Scan, folder: Path) -> list[Path]:
        if folder.name == GOOD:
            return images_in(scan, folder)
        scan.report(
            "train-not-good",
            folder,
            "train/good alone",
            "another training folder",
            "it is not used: training sees good images only; remove it",
        )
        return []
