"""What is not as it should be in a dataset's tree, gathered while it is scanned."""

import os
import unicodedata
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from etstpm.catalog import MARKER, Declaration
from etstpm.paths import leads_to_folder
from etstpm.wording import count_of

IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff"}

SYSTEM_NAMES = {"thumbs.db", "ehthumbs.db", "desktop.ini", "__macosx", "@eadir", "$recycle.bin"}
"""What operating systems and file servers leave in folders; hidden names are such, too."""

Row = dict[str, object]


@dataclass(frozen=True)
class Kind:
    """A kind of finding. What an error touches is left out; the policy 'warn' keeps what it can."""

    severity: str
    meaning: str
    is_usable: bool = True


def _unusable(meaning: str) -> Kind:
    return Kind("error", meaning, is_usable=False)


KINDS = {
    # of a file
    "empty-file": _unusable("an image file of no bytes"),
    "unknown-format": _unusable("neither PNG, JPEG, BMP nor TIFF inside, whatever its name says"),
    "damaged-image": _unusable("cut off, a wrong checksum, or not to be decoded"),
    "unreadable-image": _unusable("the system cannot read the file"),
    "not-a-file": _unusable("a folder, pipe or device with an image's name"),
    "too-large": _unusable("a file beyond 1 GiB"),
    "too-many-pixels": _unusable("beyond 400 megapixels: a decompression bomb"),
    "too-many-bits": _unusable("32-bit grey values, of which none is known to be white"),
    "name-not-utf8": _unusable("a name that no table can hold"),
    "name-control": Kind("error", "line breaks or terminal codes in a name"),
    "format-mismatch": Kind("warning", "the name says another format than the contents"),
    "several-pictures": Kind("warning", "more than one picture in a file: the first is used"),
    "turned-by-exif": Kind("warning", "turned by EXIF: used as stored, as its mask is"),
    "transparent": Kind("warning", "transparent pixels: the colours below them are used"),
    "blank-image": Kind("warning", "one grey value everywhere"),
    "small-image": Kind("warning", "a side below 32 pixels"),
    # of images beside each other
    "leak": Kind("error", "a training image that is a test image, too"),
    "label-conflict": Kind("error", "one image, labelled good and defective"),
    "duplicate": Kind("warning", "the same bytes twice in a split"),
    "in-two-categories": Kind("warning", "the same bytes in two categories"),
    "mode": Kind("warning", "another colour mode than in the official release"),
    "mixed-modes": Kind("warning", "several colour modes in a category"),
    "mixed-sizes": Kind("warning", "several image sizes in a category"),
    "names-differ-in-case": Kind("warning", "names that are one on Windows and macOS"),
    "name-not-ascii": Kind("warning", "names that other systems may write in another way"),
    # of masks
    "image-without-mask": Kind("error", "a defective image whose mask is not there"),
    "mask-without-image": Kind("error", "a mask to which no image belongs"),
    "two-masks": Kind("error", "two masks for one image"),
    "same-stem": Kind("error", "two images for one mask"),
    "unreadable-mask": Kind("error", "a mask that is no whole image file"),
    "mask-size": Kind("error", "a mask of another size than its image"),
    "mask-empty": Kind("error", "a mask without a defective pixel"),
    "mask-full": Kind("warning", "a mask without a good pixel"),
    "mask-not-binary": Kind("warning", "grey values beside 0 and the highest"),
    "mask-of-good": Kind("warning", "masks of good images: not used"),
    "no-masks": Kind("warning", "no masks at all: pixel metrics will be null"),
    # of categories
    "no-train-good": _unusable("fewer than two good training images"),
    "no-test": _unusable("no test images"),
    "reserved-name": _unusable("a defect type with the tables' name for all of them"),
    "unreadable-folder": _unusable("the system cannot list a folder"),
    "count": Kind("warning", "another number of images than in the official release"),
    "one-class": Kind("warning", "only good or only defective test images: no AUROC"),
    "unknown-category": Kind("warning", "a category that the official release does not have"),
    # of the tree
    "system-file": Kind("warning", "hidden files and what operating systems leave behind"),
    "foreign-file": Kind("warning", "a file or folder that does not belong there"),
    "misplaced-image": Kind("warning", "an image beside the folders it should be in"),
    "train-not-good": Kind("warning", "a training folder other than good: not used"),
    "empty-folder": Kind("warning", "a defect type without images"),
    "marker-damaged": Kind("warning", "what fetch has left there cannot be read"),
    # of a split file
    "split-row": Kind("error", "a row that cannot be understood"),
    "path-outside": Kind("error", "a row that leads out of the dataset's folder"),
    "listed-twice": Kind("error", "an image in two rows"),
    "listed-but-missing": Kind("error", "rows whose files are not there"),
    "not-listed": Kind("warning", "images in no row: not used"),
}
"""Every code that `findings.parquet` may hold."""


@dataclass(frozen=True)
class Finding:
    """Something in the tree that is not as it should be."""

    severity: str
    code: str
    path: str
    expected: str
    found: str
    remedy: str
    quarantined: int = 0
    """Images that were left out because of it, those not counted that were out already."""

    def __str__(self) -> str:
        return f"{self.path}: expected {self.expected}, found {self.found}; {self.remedy}"


@dataclass(frozen=True)
class Entry:
    """An image of the tree, and where its mask lies if it has one."""

    split: str
    defect_type: str
    image: Path
    mask: Path | None = None


@dataclass
class Scan:
    """What a scan has gathered so far."""

    root: Path
    declaration: Declaration
    on_finding: str
    findings: list[Finding] = field(default_factory=list)
    dropped: set[Path] = field(default_factory=set)
    """Images that no row may be made of."""
    left_out: dict[str, str] = field(default_factory=dict)
    """Categories that nothing can be made of, and why."""

    def report(
        self,
        code: str,
        path: Path,
        expected: str,
        found: str,
        remedy: str,
        *,
        images: Iterable[Path] = (),
        category: str | None = None,
    ) -> None:
        """Keep a finding; `path` lies below the root. It touches these images, or a category."""
        kind = KINDS[code]
        is_error = kind.severity == "error"
        is_left_out = is_error and not (kind.is_usable and self.on_finding == "warn")
        new = set(images) - self.dropped if is_left_out else set()
        self.dropped |= new
        name = printable(path.relative_to(self.root).as_posix())
        finding = Finding(kind.severity, code, name, expected, printable(found), remedy, len(new))
        self.findings.append(finding)
        if category is not None and is_left_out:
            self.left_out.setdefault(printable(category), str(finding))

    def relative(self, path: Path) -> str:
        """A path as findings name it."""
        return printable(path.relative_to(self.root).as_posix())

    def listing(self, folder: Path, known: Collection[str] = ()) -> tuple[list[str], list[str]]:
        """Names of the folders and of the other entries of a folder; none if it is not there.

        Without those that no table can hold and those of operating systems, which are findings:
        of a name that is `known`, somebody else's.
        """
        try:
            with os.scandir(folder) as entries:
                found = sorted((entry.name, leads_to_folder(entry)) for entry in entries)
        except FileNotFoundError:
            return [], []
        kept = []
        for name, is_folder in found:
            if is_system_name(name):
                if name != MARKER:
                    self._report_system(folder / name)
            elif name in known or self.has_usable_name(folder / name):
                kept.append((name, is_folder))
        self._report_names(folder, [name for name, _ in kept])
        return [n for n, is_folder in kept if is_folder], [
            n for n, is_folder in kept if not is_folder
        ]

    def has_usable_name(self, path: Path, category: str | None = None) -> bool:
        """Whether tables can hold the name and a terminal can show it; if not, an error."""
        name, remedy = path.name, "rename it"
        if name.isascii() and name.isprintable():
            return True
        kinds = {unicodedata.category(letter) for letter in name}
        if "Cs" in kinds:
            expected, found = "a name in UTF-8", "other bytes"
            self.report("name-not-utf8", path, expected, found, remedy, category=category)
            return False
        if "Cc" in kinds:
            expected, found = "a name in one line", "control codes"
            self.report("name-control", path, expected, found, remedy, category=category)
            return self.on_finding == "warn"
        return True

    def _report_names(self, folder: Path, names: Sequence[str]) -> None:
        foreign = [name for name in names if not name.isascii()]
        if foreign:
            self.report(
                "name-not-ascii",
                folder / foreign[0],
                "names in ASCII",
                count_of(len(foreign), "other name"),
                "they are used as they are; rename them if the data is to travel",
            )
        if len({_folded(name) for name in names}) == len(names):
            return
        seen: dict[str, str] = {}
        for name in names:
            first = seen.setdefault(_folded(name), name)
            if first != name:
                self.report(
                    "names-differ-in-case",
                    folder / name,
                    "a name of its own",
                    f"{first!r} beside it",
                    "rename one: on Windows and macOS they are one file",
                )

    def _report_system(self, path: Path) -> None:
        self.report(
            "system-file",
            path,
            "images only",
            "a folder" if path.is_dir() else "a file of the operating system",
            "it is not used; remove it",
        )

    def report_foreign(self, path: Path, expected: str, found: str) -> None:
        """A file or folder that nothing is made of, unless the dataset's release has it."""
        documents = {name.lower() for name in self.declaration.documents}
        if path.name.lower() not in documents:
            self.report("foreign-file", path, expected, found, "it is not used; remove it")


def is_image_name(name: str) -> bool:
    """Whether a file's name says that it is an image."""
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES  # noqa: PTH122 - of many names


def is_system_name(name: str) -> bool:
    """Whether a name is hidden, or one of those that operating systems give."""
    return name.startswith(".") or name.lower() in SYSTEM_NAMES


def printable(text: str) -> str:
    """A file's name as a table can hold it and a terminal may show it: in one line, no codes."""
    if text.isascii() and text.isprintable():
        return text
    escaped = text.encode("utf-8", "backslashreplace").decode()
    return "".join(
        letter
        if unicodedata.category(letter) not in {"Cc", "Cf", "Zl", "Zp"}
        else ascii(letter)[1:-1]
        for letter in escaped
    )


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()
