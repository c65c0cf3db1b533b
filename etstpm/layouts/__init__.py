"""How a tree is read: which images it holds, and which mask belongs to which."""

from pathlib import Path
from typing import Protocol

from etstpm.catalog import Declaration
from etstpm.findings import Entry, Scan
from etstpm.layouts.folders import Folders
from etstpm.layouts.split_file import SplitFile

TREE = "CATEGORY/train/good/*.png"


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
