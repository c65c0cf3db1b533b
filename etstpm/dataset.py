"""Scan a dataset's tree into a manifest, one row an image, and explain every finding."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from etstpm.catalog import MARKER, Declaration, marked_declaration
from etstpm.config import digest_of
from etstpm.decoded import ImageFile
from etstpm.errors import DatasetError, reason_of
from etstpm.findings import Entry, Finding, Scan
from etstpm.judgement import Comparison, judge_counts
from etstpm.layouts import Layout
from etstpm.layouts.listing import GOOD
from etstpm.masks import judge_mask
from etstpm.reading import read_files
from etstpm.roots import choose_categories, open_root
from etstpm.tables import ALL, FINDINGS, MANIFEST

MINIMUM_TRAIN = 2
"""One image to train on and one to hold out."""
IDENTITY = ["image_path", "image_sha256", "mask_sha256", "mask_above", "split", "defect_type"]
"""Columns of the manifest that say which dataset it is."""


@dataclass(frozen=True)
class Dataset:
    """A validated dataset: `tables.MANIFEST` rows by category, split and path, and findings.

    left_out: categories of which nothing can be made, and why.
    """

    root: Path
    declaration: Declaration
    manifest: pa.Table
    findings: pa.Table
    digest: str
    left_out: dict[str, str]
    quarantined: dict[str, int]
    """Images that were left out, by category."""

    @property
    def schema(self) -> pa.Schema:
        """The manifest's, with the dataset's name, licence and citation in its metadata."""
        known = {
            f"etstpm.dataset.{key}": value
            for key, value in self._provenance().items()
            if isinstance(value, str)
        }
        return MANIFEST.with_metadata({**MANIFEST.metadata, **known})

    def describe(self) -> dict[str, Any]:
        """What the artifact's card says of it; `fingerprint` is of all images and masks."""
        return {
            "dataset": self._provenance(),
            "fingerprint": self.digest,
            "categories": self.manifest["category"].unique().to_pylist(),
            "images": self.manifest.num_rows,
            "findings": self.findings.num_rows,
            "quarantined": self.quarantined,
            "left_out": self.left_out,
        }

    def _provenance(self) -> dict[str, str | None]:
        keys = ("name", "title", "homepage", "licence", "licence_url", "terms", "citation")
        return {key: getattr(self.declaration, key) for key in keys}

    def require(self, on_finding: str) -> "Dataset":
        """Itself. Raises `DatasetError` where the policy does not allow what was found.

        It names the first error and counts the others.
        """
        errors = [row for row in self.findings.to_pylist() if row["severity"] == "error"]
        first = Finding(**errors[0]) if errors else None
        if first is not None and (on_finding == "fail" or not self.manifest.num_rows):
            more = f" ({len(errors) - 1} more errors: 'etstpm data validate' lists them)"
            raise DatasetError(f"{self.root}: {first}{more if len(errors) > 1 else ''}")
        return self


def scan_dataset(
    root: Path,
    categories: Sequence[str] | None,
    image_size: int,
    cache: Path,
    *,
    name: str | None = None,
    on_finding: str = "fail",
) -> Dataset:
    """Read every image and mask of the categories (all that the root holds if None).

    Each image is decoded fully, once: its hash and facts go to the manifest, its pixels at
    `image_size` to the decoded cache. `name` is the dataset's in the catalogue, or a declaration's
    file; without it the tree is recognised. Errors leave images out, and `Dataset.require` raises
    if the policy says so.
    """
    declaration, layout = open_root(root, name)
    scan = Scan(root, declaration, on_finding)
    comparison = Comparison(scan)
    _report_root(scan, layout.categories())
    tables, quarantined = [], {}
    for category in choose_categories(root, categories, name):
        before = len(scan.dropped)
        rows = _scan_category(scan, layout, comparison, category, image_size, cache)
        quarantined[category] = len(scan.dropped) - before
        tables.append(pa.Table.from_pylist(rows, schema=MANIFEST))
    manifest = pa.concat_tables(tables).unify_dictionaries()
    return Dataset(
        root,
        declaration,
        manifest,
        pa.Table.from_pylist([asdict(finding) for finding in scan.findings], schema=FINDINGS),
        digest_of([_identity(row) for row in manifest.select(IDENTITY).to_pylist()]),
        scan.left_out,
        {category: number for category, number in quarantined.items() if number},
    )


def rows_of(manifest: pa.Table, category: str, split: str) -> list[dict[str, Any]]:
    """The manifest's rows of one split of a category, in their order."""
    chosen = (pc.field("category") == category) & (pc.field("split") == split)
    rows: list[dict[str, Any]] = manifest.filter(chosen).to_pylist()
    return rows


def unsaid(row: Mapping[str, Any]) -> list[str]:
    """What an image's path does not say of it: split and defect type, but in MVTec AD's layout."""
    own = [row["split"], row["defect_type"]]
    return [] if row["image_path"].split("/")[1:-1] == own else own


def unusual_cut(row: Mapping[str, Any]) -> list[int]:
    """Above which grey value a mask marks; the usual cut goes unsaid."""
    return [] if row["mask_above"] in {None, 127} else [row["mask_above"]]


def _identity(row: Mapping[str, Any]) -> list[object]:
    hashes = row["image_sha256"], row["mask_sha256"]
    return [row["image_path"], *hashes, *unsaid(row), *unusual_cut(row)]


def image_files(root: Path, manifest: pa.Table, category: str, split: str) -> list[ImageFile]:
    """The images of one split of a category, in the manifest's order."""
    return [
        ImageFile(root / row["image_path"], row["image_sha256"])
        for row in rows_of(manifest, category, split)
    ]


def _report_root(scan: Scan, categories: Sequence[str]) -> None:
    """What lies beside the categories and belongs to none."""
    expected = {*categories, *Path(scan.declaration.split_file or "").parts[:1]}
    marker = scan.root / MARKER
    if marker.is_file() and marked_declaration(scan.root) is None:
        expected_marker = "what 'etstpm data fetch' has written"
        remedy = "it is not used; fetch the dataset again, or remove it"
        scan.report("marker-damaged", marker, expected_marker, "something else", remedy)
    folders, files = scan.listing(scan.root, categories)
    for name in (*folders, *files):
        if name not in expected:
            scan.report_foreign(scan.root / name, "categories", "something else")


def _scan_category(
    scan: Scan, layout: Layout, comparison: Comparison, category: str, size: int, cache: Path
) -> list[dict[str, Any]]:
    """The manifest's rows of a category; none if nothing can be made of it."""
    folder = scan.root / category
    if not scan.has_usable_name(folder, category):
        return []
    try:
        entries = layout.entries(scan, category)
    except OSError as error:
        scan.report(
            "unreadable-folder",
            _below(scan.root, error.filename) or folder,
            "a folder that can be read",
            error.strerror or reason_of(error),
            "check its permissions, and that nothing changes the dataset meanwhile",
            category=category,
        )
        return []
    if any(entry.defect_type == ALL for entry in entries):
        scan.report(
            "reserved-name",
            folder / "test" / ALL,
            "another name",
            repr(ALL),
            "rename the folder, and that of its masks",
            category=category,
        )
    images, masks = read_files(scan, category, entries, size, cache)
    comparison.judge(category, entries, images)
    usable = {
        entry.image: masks[entry.mask]
        for entry in entries
        if entry.mask is not None
        and entry.mask in masks
        and entry.image in images
        and judge_mask(scan, entry, images[entry.image], masks[entry.mask])
    }
    judge_counts(scan, category, entries)
    kept = [entry for entry in entries if entry.image in images and entry.image not in scan.dropped]
    _require_both_splits(scan, category, kept)
    if category in scan.left_out:
        return []
    return [
        {
            "category": category,
            "split": entry.split,
            "defect_type": entry.defect_type,
            "label": int(entry.defect_type != GOOD),
            "image_path": _name(scan, entry.image),
            "image_sha256": fact.sha256,
            "bytes": fact.bytes,
            "width": fact.width,
            "height": fact.height,
            "mode": fact.mode,
            "mask_path": _name(scan, entry.mask) if entry.mask and mask else None,
            "mask_sha256": mask.sha256 if mask else None,
            "mask_above": mask.above if mask else None,
            "format": fact.format,
            "mean": fact.mean,
            "contrast": fact.contrast,
        }
        for entry in kept
        for fact, mask in [(images[entry.image], usable.get(entry.image))]
    ]


def _require_both_splits(scan: Scan, category: str, kept: Sequence[Entry]) -> None:
    folder = scan.root / category
    train = sum(entry.split == "train" for entry in kept)
    if train < MINIMUM_TRAIN:
        scan.report(
            "no-train-good",
            folder / "train" / GOOD,
            f"at least {MINIMUM_TRAIN} good training images",
            str(train),
            "add them, or leave the category out with CATEGORIES=",
            category=category,
        )
    elif train == len(kept):
        remedy = "add them, or leave it out"
        path = folder / "test"
        scan.report("no-test", path, "test images", "none", remedy, category=category)


def _name(scan: Scan, path: Path) -> str:
    return path.relative_to(scan.root).as_posix()


def _below(root: Path, name: str | None) -> Path | None:
    """A path that an error names, if it lies in the dataset."""
    return Path(name) if name is not None and Path(name).is_relative_to(root) else None
