"""What is not as it should be in a dataset's tree, gathered while it is scanned."""

from dataclasses import dataclass, field
from pathlib import Path

IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff"}

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


@dataclass
class Scan:
    """What a scan has gathered so far."""

    root: Path
    size: int
    cache: Path
    rows: list[Row] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)

    def report(
        self, severity: str, code: str, path: Path, expected: str, found: str, remedy: str
    ) -> None:
        """Keep a finding; `path` lies below the root."""
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

    def folders(self, folder: Path) -> list[Path]:
        """Its folders, hidden ones left out; any other file is a finding."""
        entries = self.entries(folder)
        for entry in entries:
            if not entry.is_dir() and not entry.name.startswith("."):
                self._report_foreign(entry, "folders", "a file")
        return [entry for entry in entries if entry.is_dir() and not entry.name.startswith(".")]

    def images(self, folder: Path) -> list[Path]:
        """Its image files; whatever else stands there is a finding."""
        images = []
        for entry in self.entries(folder):
            if entry.suffix.lower() in IMAGE_SUFFIXES and not entry.name.startswith("."):
                images.append(entry)
            else:
                found = "another file" if entry.is_file() else "a folder"
                self._report_foreign(entry, "images only", found)
        return images

    def _report_foreign(self, path: Path, expected: str, found: str) -> None:
        remedy = "it is not used; remove it"
        self.report("warning", "foreign-file", path, expected, found, remedy)


def _printable(name: str) -> str:
    """A file's name as UTF-8 can hold it."""
    return name.encode("utf-8", "backslashreplace").decode()
