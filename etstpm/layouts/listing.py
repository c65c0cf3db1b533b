"""What lies in a folder; whatever is no image there is a finding."""

import os
from collections.abc import Sequence
from pathlib import Path

from etstpm.errors import DatasetError
from etstpm.findings import Scan, is_image_name
from etstpm.paths import leads_to_folder

GOOD = "good"
"""The folder, and the defect type, of images without a defect."""


def names_in(root: Path) -> list[str]:
    """Names of the folders in a root, hidden ones too; none if it is no folder.

    Raises `DatasetError` for a root that cannot be read.
    """
    try:
        with os.scandir(root) as entries:
            return [entry.name for entry in entries if leads_to_folder(entry)]
    except NotADirectoryError:
        return []
    except OSError as error:
        raise unreadable(root, error) from None


def unreadable(root: Path, error: OSError) -> DatasetError:
    """What is said of a dataset whose root, or a category's folder, cannot be read."""
    where = "" if error.filename in {None, str(root)} else f"{error.filename} "
    return DatasetError(
        f"dataset {root}: {where}cannot be read ({error.strerror}); check the path, and that this "
        "user may read it"
    )


def folders_in(scan: Scan, folder: Path, expected: str = "folders of images") -> list[str]:
    """Names of a folder's folders, sorted; a file beside them is a finding."""
    folders, files = scan.listing(folder)
    report_files(scan, folder, files, expected)
    return folders


def images_in(scan: Scan, folder: Path) -> list[Path]:
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


def report_files(scan: Scan, folder: Path, names: Sequence[str], expected: str) -> None:
    """Files where only folders belong."""
    for name in names:
        if is_image_name(name):
            remedy = "it is not used; move it into the folder it belongs to"
            scan.report("misplaced-image", folder / name, expected, "an image beside them", remedy)
        else:
            scan.report_foreign(folder / name, expected, "another file")
