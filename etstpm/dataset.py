"""Scan a tree in MVTec AD layout into a manifest, and explain every finding.

CATEGORY/train/good/000.png
CATEGORY/test/good/000.png
CATEGORY/test/DEFECT_TYPE/000.png
CATEGORY/ground_truth/DEFECT_TYPE/000_mask.png
"""

import uuid
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from etstpm.catalog import MVTEC_AD_COUNTS
from etstpm.config import digest_of
from etstpm.errors import DatasetError
from etstpm.facts import KnownImages, KnownMasks
from etstpm.images import (
    UNREADABLE,
    ImageFacts,
    ImageFile,
    cache_path,
    new_cache_file,
    read_grey,
    read_image,
)
from etstpm.progress import track
from etstpm.settings import settings
from etstpm.storage import file_sha256
from etstpm.tables import FINDINGS, MANIFEST

IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff"}
GOOD = "good"
MINIMUM_TRAIN = 2
"""One image to train on and one to hold out."""

Row = dict[str, object]


@dataclass(frozen=True)
class Finding:
    """Something in the tree that is not as it should be."""

    severity: str
    code: str
    path: str
    expected: str
    found: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.path}: expected {self.expected}, found {self.found}; {self.remedy}"


@dataclass(frozen=True)
class Dataset:
    """A validated dataset: `tables.MANIFEST` rows in the order of their paths, and findings."""

    manifest: pa.Table
    findings: pa.Table
    digest: str


@dataclass
class _Scan:
    """What a scan has gathered so far."""

    root: Path
    size: int
    cache: Path
    rows: list[Row] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)

    def report(
        self, severity: str, code: str, path: Path, expected: str, found: str, remedy: str
    ) -> None:
        name = _printable(path.relative_to(self.root).as_posix())
        self.findings.append(Finding(severity, code, name, expected, found, remedy))

    def entries(self, folder: Path) -> list[Path]:
        """What stands in a folder, by name; nothing if there is no such folder."""
        entries = sorted(folder.iterdir()) if folder.is_dir() else []
        return [entry for entry in entries if self.has_utf8_name(entry)]

    def has_utf8_name(self, path: Path) -> bool:
        """Whether tables can hold the name; if not, that is an error."""
        if _printable(path.name) == path.name:
            return True
        self.report("error", "name-not-utf8", path, "a name in UTF-8", "other bytes", "rename it")
        return False


def scan_dataset(
    root: Path, categories: Sequence[str] | None, image_size: int, cache: Path
) -> Dataset:
    """Read every image and mask of the categories (all that the root holds if None).

    Each image is decoded fully, once: its hash and facts go to the manifest, its pixels at
    `image_size` to the decoded cache. Raises `DatasetError` that names the first error and counts
    the others; warnings are kept as findings.
    """
    scan = _Scan(root, image_size, cache)
    try:
        for category in choose_categories(root, categories):
            _scan_category(scan, category)
    except OSError as error:
        raise DatasetError(
            f"dataset {root}: {error.filename or root} cannot be read ({error.strerror}); "
            "check its permissions, and that nothing changes the dataset meanwhile"
        ) from None
    errors = [finding for finding in scan.findings if finding.severity == "error"]
    if errors:
        others = f" ({len(errors) - 1} more errors in this dataset)" if len(errors) > 1 else ""
        raise DatasetError(f"{root}: {errors[0]}{others}")
    identity = [[row["image_path"], row["image_sha256"], row["mask_sha256"]] for row in scan.rows]
    return Dataset(
        manifest=pa.Table.from_pylist(scan.rows, schema=MANIFEST),
        findings=pa.Table.from_pylist([asdict(f) for f in scan.findings], schema=FINDINGS),
        digest=digest_of(identity),
    )


def mask_path_of(image_path: Path) -> Path:
    """CATEGORY/test/DEFECT/000.png to CATEGORY/ground_truth/DEFECT/000_mask.png.

    By path, never by sort order: one stray file would shift every mask after it.
    """
    category = image_path.parents[2]
    return category / "ground_truth" / image_path.parent.name / f"{image_path.stem}_mask.png"


def rows_of(manifest: pa.Table, category: str, split: str) -> list[dict[str, Any]]:
    """The manifest's rows of one split of a category, in their order."""
    chosen = (pc.field("category") == category) & (pc.field("split") == split)
    rows: list[dict[str, Any]] = manifest.filter(chosen).to_pylist()
    return rows


def image_files(root: Path, manifest: pa.Table, category: str, split: str) -> list[ImageFile]:
    """The images of one split of a category, in the manifest's order."""
    return [
        ImageFile(root / row["image_path"], row["image_sha256"])
        for row in rows_of(manifest, category, split)
    ]


def choose_categories(root: Path, categories: Sequence[str] | None) -> list[str]:
    """The categories to run, sorted: those asked for, else all that the root holds.

    Reads folder names alone. Raises `DatasetError` for a root or a category that is not there.
    """
    layout = "CATEGORY/train/good/*.png"
    if not root.is_dir():
        raise DatasetError(
            f"dataset {root}: no such folder; give a root in MVTec AD layout ({layout}), "
            "as in make run DATASET=/data/mvtec_ad"
        )
    found = sorted(
        entry.name
        for entry in root.iterdir()
        if not entry.name.startswith(".")
        and ((entry / "train").is_dir() or (entry / "test").is_dir())
    )
    if not found:
        is_category = (root / "train").is_dir()
        remedy = "give the folder above it" if is_category else "check the path"
        raise DatasetError(f"dataset {root}: no category in it, expected {layout}; {remedy}")
    unknown = [name for name in categories or () if name not in found]
    if unknown:
        raise DatasetError(
            f"dataset {root}: no category {unknown[0]!r}; it holds {', '.join(found)}"
        )
    return sorted(set(categories)) if categories else found


def _scan_category(scan: _Scan, category: str) -> None:
    folder = scan.root / category
    if not scan.has_utf8_name(folder):
        return
    if category == "mean":
        scan.report("error", "reserved-name", folder, "another name", "'mean'", "rename the folder")
    train = _list_images(scan, folder / "train" / GOOD)
    if len(train) < MINIMUM_TRAIN:
        scan.report(
            "error",
            "no-train-good",
            folder / "train" / GOOD,
            f"at least {MINIMUM_TRAIN} good training images",
            str(len(train)),
            "add them, or leave the category out with CATEGORIES=",
        )
        return
    test = [
        path
        for defect in _list_folders(scan, folder / "test")
        for path in _list_images(scan, defect)
    ]
    if not test:
        scan.report(
            "error", "no-test", folder / "test", "test images", "none", "add them, or leave it out"
        )
        return
    _decode_split(scan, category, "train", train)
    _decode_split(scan, category, "test", test)
    _report_masks_without_image(scan, folder, test)
    _report_counts(scan, category, train, test)


def _list_folders(scan: _Scan, folder: Path) -> list[Path]:
    entries = scan.entries(folder)
    for entry in entries:
        if not entry.is_dir() and not entry.name.startswith("."):
            scan.report(
                "warning", "foreign-file", entry, "folders", "a file", "it is not used; remove it"
            )
    return [entry for entry in entries if entry.is_dir() and not entry.name.startswith(".")]


def _list_images(scan: _Scan, folder: Path) -> list[Path]:
    images = []
    for entry in scan.entries(folder):
        if entry.suffix.lower() in IMAGE_SUFFIXES and not entry.name.startswith("."):
            images.append(entry)
        else:
            scan.report(
                "warning",
                "foreign-file",
                entry,
                "images only",
                "another file" if entry.is_file() else "a folder",
                "it is not used; remove it",
            )
    return images


def _decode_split(scan: _Scan, category: str, split: str, paths: list[Path]) -> None:
    """Append the split's rows to the manifest and its pixels to the cache."""
    known = KnownImages(scan.cache, scan.root / category / split, paths)
    masks = KnownMasks(scan.cache, scan.root / category / "ground_truth")
    recalled = known.recall(
        lambda hashes: cache_path(f"{category}/{split}", scan.size, hashes, scan.cache)
    )
    facts: Sequence[ImageFacts | None] = recalled or _decode(scan, category, split, paths)
    if recalled is None:
        known.remember(facts)
    for path, fact in zip(paths, facts, strict=True):
        if fact is None:
            continue
        defect_type = path.parent.name
        mask = None if defect_type == GOOD else _check_mask(scan, path, fact, masks)
        scan.rows.append(
            {
                "category": category,
                "split": split,
                "defect_type": defect_type,
                "label": int(defect_type != GOOD),
                "image_path": path.relative_to(scan.root).as_posix(),
                "image_sha256": fact.sha256,
                "bytes": fact.bytes,
                "width": fact.width,
                "height": fact.height,
                "mode": fact.mode,
                "mask_path": None if mask is None else mask[0],
                "mask_sha256": None if mask is None else mask[1],
            }
        )
    if split == "test":
        masks.save()


def _decode(scan: _Scan, category: str, split: str, paths: list[Path]) -> list[ImageFacts | None]:
    """Decode every image of a split; None for one that cannot be, which is a finding."""
    name = f"{category}/{split}"
    temporary = cache_path(name, scan.size, [uuid.uuid4().hex], scan.cache)
    with new_cache_file(temporary, len(paths), scan.size) as pixels:

        def decode(index: int) -> ImageFacts | Exception:
            try:
                fact, pixels[index] = read_image(paths[index], scan.size)
            except UNREADABLE as error:
                return error
            return fact

        with ThreadPoolExecutor(settings().threads) as pool:
            results = list(
                track(pool.map(decode, range(len(paths))), f"{name}: decode", len(paths))
            )
    facts: list[ImageFacts | None] = []
    for path, result in zip(paths, results, strict=True):
        if isinstance(result, ImageFacts):
            facts.append(result)
            continue
        facts.append(None)
        scan.report(
            "error",
            "unreadable-image",
            path,
            "a whole image file",
            _reason(result),
            "restore the file from its source, or remove it",
        )
    whole = [fact.sha256 for fact in facts if fact is not None]
    if len(whole) == len(paths):
        temporary.replace(cache_path(name, scan.size, whole, scan.cache))
    else:
        temporary.unlink()
    return facts


def _check_mask(
    scan: _Scan, image: Path, fact: ImageFacts, known: KnownMasks
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
            _reason(error),
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


def _reason(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


def _printable(name: str) -> str:
    """A file's name as UTF-8 can hold it."""
    return name.encode("utf-8", "backslashreplace").decode()


def _report_masks_without_image(scan: _Scan, folder: Path, test: Iterable[Path]) -> None:
    expected = {mask_path_of(path) for path in test}
    for defect in _list_folders(scan, folder / "ground_truth"):
        for path in _list_images(scan, defect):
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


def _report_counts(scan: _Scan, category: str, train: Sequence[Path], test: Sequence[Path]) -> None:
    good = sum(path.parent.name == GOOD for path in test)
    official = MVTEC_AD_COUNTS.get(category)
    counts = {"train/good": len(train), "test/good": good, "test (defective)": len(test) - good}
    if official is not None:
        expected = (official.train_good, official.test_good, official.test_defective)
        for (name, found), number in zip(counts.items(), expected, strict=True):
            if found != number:
                scan.report(
                    "warning",
                    "count",
                    scan.root / category / name,
                    f"{number} images as in MVTec AD's release",
                    str(found),
                    "results are not comparable with published ones until it is complete",
                )
    elif good == 0 or good == len(test):
        lacking = "good" if good == 0 else "defective"
        scan.report(
            "warning",
            "one-class",
            scan.root / category / "test",
            f"{lacking} test images",
            "none",
            "AUROC is not defined without them and will be null",
        )
