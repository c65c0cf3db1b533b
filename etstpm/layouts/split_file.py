"""VisA's layout: a table names each image, its split, its label and its mask."""

import csv
import os
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from etstpm.errors import DatasetError
from etstpm.findings import Entry, Scan, is_image_name, printable
from etstpm.layouts.listing import GOOD, names_in

COLUMNS = ("object", "split", "label", "image", "mask")
NORMAL = "normal"
"""What a split file calls a good image."""
LARGEST_SPLIT_FILE = 2**28  # bytes


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
        return sorted(set(self.rows) & set(names_in(self.root)))

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
        if is_normal and mask is not None:
            found, remedy = f"one in line {number}", "it is not used; remove it"
            scan.report("mask-of-good", image, "no mask of a good image", found, remedy)
            mask = None
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
                f"a row of each image in {scan.relative(self.path)}",
                f"{len(unlisted)} without one, this the first",
                "they are not used",
            )
