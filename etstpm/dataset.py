"""Scan a tree in MVTec AD layout into a manifest, and explain every finding.

CATEGORY/train/good/000.png
CATEGORY/test/good/000.png
CATEGORY/test/DEFECT_TYPE/000.png
CATEGORY/ground_truth/DEFECT_TYPE/000_mask.png
"""

import uuid
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from etstpm.catalog import MVTEC_AD_COUNTS
from etstpm.config import digest_of
from etstpm.errors import DatasetError, reason_of
from etstpm.facts import KnownImages, KnownMasks
from etstpm.findings import Scan
from etstpm.images import (
    UNREADABLE,
    ImageFacts,
    ImageFile,
    cache_path,
    new_cache_file,
    read_image,
)
from etstpm.masks import check_mask, report_masks_without_image
from etstpm.progress import track
from etstpm.settings import settings
from etstpm.tables import ALL, FINDINGS, MANIFEST

GOOD = "good"
MINIMUM_TRAIN = 2
"""One image to train on and one to hold out."""


@dataclass(frozen=True)
class Dataset:
    """A validated dataset: `tables.MANIFEST` rows in the order of their paths, and findings."""

    manifest: pa.Table
    findings: pa.Table
    digest: str


def scan_dataset(
    root: Path, categories: Sequence[str] | None, image_size: int, cache: Path
) -> Dataset:
    """Read every image and mask of the categories (all that the root holds if None).

    Each image is decoded fully, once: its hash and facts go to the manifest, its pixels at
    `image_size` to the decoded cache. Raises `DatasetError` that names the first error and counts
    the others; warnings are kept as findings.
    """
    scan = Scan(root, image_size, cache)
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


def _scan_category(scan: Scan, category: str) -> None:
    folder = scan.root / category
    if not scan.has_utf8_name(folder):
        return
    if category == "mean":
        scan.report("error", "reserved-name", folder, "another name", "'mean'", "rename the folder")
    train = scan.images(folder / "train" / GOOD)
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
    types = scan.folders(folder / "test")
    if folder / "test" / ALL in types:
        scan.report(
            "error",
            "reserved-name",
            folder / "test" / ALL,
            "another name",
            f"'{ALL}'",
            "rename the folder, and that of its masks",
        )
    test = [path for defect in types for path in scan.images(defect)]
    if not test:
        scan.report(
            "error", "no-test", folder / "test", "test images", "none", "add them, or leave it out"
        )
        return
    _decode_split(scan, category, "train", train)
    _decode_split(scan, category, "test", test)
    report_masks_without_image(scan, folder, test)
    _report_counts(scan, category, train, test)


def _decode_split(scan: Scan, category: str, split: str, paths: list[Path]) -> None:
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
        mask = None if defect_type == GOOD else check_mask(scan, path, fact, masks)
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


def _decode(scan: Scan, category: str, split: str, paths: list[Path]) -> list[ImageFacts | None]:
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
            reason_of(result),
            "restore the file from its source, or remove it",
        )
    whole = [fact.sha256 for fact in facts if fact is not None]
    if len(whole) == len(paths):
        temporary.replace(cache_path(name, scan.size, whole, scan.cache))
    else:
        temporary.unlink()
    return facts


def _report_counts(scan: Scan, category: str, train: Sequence[Path], test: Sequence[Path]) -> None:
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
