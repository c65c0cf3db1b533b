"""How a tree is read: which images it holds, and which mask belongs to which.

`Folders` is MVTec AD's layout:

    CATEGORY/train/good/000.png
    CATEGORY/test/good/000.png
    CATEGORY/test/DEFECT_TYPE/000.png
    CATEGORY/ground_truth/DEFECT_TYPE/000_mask.png

`SplitFile` is VisA's: a table names each image, its split, its label and its mask.
"""

import csv
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Protocol

from etstpm.catalog import Declaration
from etstpm.errors import DatasetError
from etstpm.findings import Entry, Scan, is_image_name, is_system_name, printable

GOOD = "good"
TREE = "CATEGORY/train/good/*.png"
COLUMNS = ("object", "split", "label", "image", "mask")
NORMAL = "normal"
"""What a split file calls a good image."""
LARGEST_SPLIT_FILE = 2**28  # bytes


class Layout(Protocol):
    """How the images of a root are found."""

    def categories(self) -> list[str]:
        """All that the root holds, sorted."""

    def entries(self, scan: Scan, category: str) -> list[Entry]:
        """A category's images, by split and path; what else lies there is a finding."""


def open_layout(root: Path, declaration: Declaration) -> Layout:
    """Raises `DatasetError` for a root that is not there, or whose split file cannot be read."""
    if declaration.split_file is not None:
        return SplitFile(root, root / declaration.split_file)
    return Folders(root)


@dataclass(frozen=True)
class Folders:
    """MVTec AD's layout."""

    root: Path

    def categories(self) -> list[str]:
        """Folders that hold train/ or test/."""
        return sorted(
            name
            for name in _names(self.root)
            if not is_system_name(name)
            and ((self.root / name / "train").is_dir() or (self.root / name / "test").is_dir())
        )

    def entries(self, scan: Scan, category: str) -> list[Entry]:
        """Of train/good, and of every folder of test/ with its masks."""
        folder = scan.root / category
        self._report_others(scan, folder)
        entries = [
            Entry("train", GOOD, path)
            for name in _defect_types(scan, folder / "train")
            for path in self._train_images(scan, folder / "train" / name)
        ]
        types = _defect_types(scan, folder / "test")
        masks = _Masks(scan, folder)
        for name in types:
            images = _images(scan, folder / "test" / name)
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
        _report_files(scan, folder, files, "train/good or test/DEFECT_TYPE")

    @staticmethod
    def _train_images(scan: Scan, folder: Path) -> list[Path]:
        if folder.name == GOOD:
            return _images(scan, folder)
        scan.report(
            "train-not-good",
            folder,
            "train/good alone",
            "another training folder",
            "it is not used: training sees good images only; remove it",
        )
        return []


class _Masks:
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
        for name in _defect_types(scan, self.ground_truth, "folders of masks"):
            if name == GOOD:
                path, remedy = self.ground_truth / GOOD, "remove them"
                scan.report("mask-of-good", path, "no masks of good images", "a folder", remedy)
                continue
            for path in _images(scan, self.ground_truth / name):
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


class SplitFile:
    """VisA's layout. `object,split,label,image,mask`, the paths relative to the root."""

    def __init__(self, root: Path, path: Path) -> None:
        self.root, self.path = root, path
        self.rows: dict[str, list[tuple[int, dict[str, str]]]] = {}
        for number, row in self._read():
            self.rows.setdefault(row["object"], []).append((number, row))

    def _read(self) -> Iterable[tuple[int, dict[str, str]]]:
        remedy = "restore it from the dataset's archive"
        try:
            if self.path.stat().st_size > LARGEST_SPLIT_FILE:
                raise DatasetError(f"split file {self.path}: too large for a table; {remedy}")
            text = self.path.read_text("utf-8-sig")
            rows = csv.DictReader(text.splitlines(), strict=True)
            header = tuple(rows.fieldnames or ())
            if header != COLUMNS:
                raise DatasetError(
                    f"split file {self.path}: expected the columns {','.join(COLUMNS)}, found "
                    f"{printable(','.join(header)[:80])}; {remedy}"
                )
            # A short row lacks values, a long one has them under None.
            return [
                (rows.line_num, {name: row.get(name) or "" for name in COLUMNS}) for row in rows
            ]
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            reason = getattr(error, "strerror", None) or "not a CSV in UTF-8"
            raise DatasetError(
                f"split file {self.path} cannot be read ({reason}); {remedy}"
            ) from None

    def categories(self) -> list[str]:
        """Objects of the table whose folder is there."""
        return sorted(set(self.rows) & set(_names(self.root)))

    def entries(self, scan: Scan, category: str) -> list[Entry]:
        """The rows of an object."""
        entries: dict[Path, Entry] = {}
        missing: list[Path] = []
        for number, row in self.rows.get(category, []):
            entry = self._entry(scan, number, row)
            if entry is None:
                continue
            lacking = [p for p in (entry.image, entry.mask) if p and not os.path.lexists(p)]
            missing += lacking
            if entry.image in entries:
                found, remedy = f"a second in line {number}", "remove one of them"
                scan.report(
                    "listed-twice", entry.image, "one row", found, remedy, images=[entry.image]
                )
            elif not lacking:
                entries[entry.image] = entry
        if missing:
            scan.report(
                "listed-but-missing",
                missing[0],
                f"every file that {scan.relative(self.path)} names",
                f"{len(missing)} not there, this the first",
                "restore them from the dataset's archive",
            )
        self._report_unlisted(scan, category, entries.values())
        return sorted(entries.values(), key=lambda e: (e.split != "train", e.image.as_posix()))

    def _entry(self, scan: Scan, number: int, row: dict[str, str]) -> Entry | None:
        is_normal = row["label"] == NORMAL
        fault = (
            f"split {row['split']!r}"
            if row["split"] not in {"train", "test"}
            else f"label {row['label']!r}"
            if not row["label"].isprintable() or row["label"] in {"", GOOD} or "/" in row["label"]
            else "a training image that is not normal"
            if row["split"] == "train" and not is_normal
            else "an anomaly without a mask"
            if not is_normal and not row["mask"] and scan.declaration.masks == "required"
            else "no image"
            if not row["image"]
            else None
        )
        if fault is not None:
            expected = f"object, train or test, {NORMAL} or a defect, image, mask"
            found = f"{fault} in line {number}"
            scan.report("split-row", self.path, expected, found, "correct the row")
            return None
        paths = [self._inside(scan, number, row[name]) for name in ("image", "mask") if row[name]]
        if None in paths:
            return None
        image, mask = (*paths, None)[:2]
        if image is None:
            return None
        return Entry(row["split"], GOOD if is_normal else row["label"], image, mask)

    def _inside(self, scan: Scan, number: int, name: str) -> Path | None:
        parts = PurePosixPath(name).parts
        if name.startswith("/") or ".." in parts or not name.isprintable():
            found = f"{name!r} in line {number}"
            remedy = "correct the row; is this file from where you think?"
            scan.report("path-outside", self.path, "paths below the root", found, remedy)
            return None
        return self.root.joinpath(*parts)

    def _report_unlisted(self, scan: Scan, category: str, entries: Iterable[Entry]) -> None:
        listed = {path for entry in entries for path in (entry.image, entry.mask)}
        unlisted = []
        folders = [self.root / category]
        while folders:
            folder = folders.pop()
            names, files = scan.listing(folder)
            folders += [folder / name for name in names if not (folder / name).is_symlink()]
            paths = [folder / name for name in files if is_image_name(name)]
            unlisted += [path for path in paths if path not in listed and path not in scan.dropped]
        if unlisted:
            scan.report(
                "not-listed",
                min(unlisted),
                f"a row in {scan.relative(self.path)}",
                f"{len(unlisted)} images without one, this the first",
                "they are not used",
            )


def _names(root: Path) -> list[str]:
    try:
        with os.scandir(root) as entries:
            return [entry.name for entry in entries if entry.is_dir()]
    except NotADirectoryError:
        return []


def _defect_types(scan: Scan, folder: Path, expected: str = "folders of images") -> list[str]:
    folders, files = scan.listing(folder)
    _report_files(scan, folder, files, expected)
    return folders


def _images(scan: Scan, folder: Path) -> list[Path]:
    """A folder's image files; whatever else stands there is a finding."""
    folders, files = scan.listing(folder)
    for name in folders:
        if is_image_name(name):
            remedy = "remove it"
            scan.report("not-a-file", folder / name, "an image file", "a folder", remedy)
        else:
            scan.report_foreign(folder / name, "images only", "a folder")
    for name in files:
        if not is_image_name(name):
            scan.report_foreign(folder / name, "images only", "another file")
    return [folder / name for name in files if is_image_name(name)]


def _report_files(scan: Scan, folder: Path, names: Sequence[str], expected: str) -> None:
    for name in names:
        if is_image_name(name):
            remedy = "it is not used; move it into the folder it belongs to"
            scan.report("misplaced-image", folder / name, expected, "an image beside them", remedy)
        else:
            scan.report_foreign(folder / name, expected, "another file")
