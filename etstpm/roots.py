"""Which dataset lies in a folder, and which of its categories are meant.

Looks at names alone and imports nothing of torch's: what is wrong here is said at once.
"""

import re
from collections.abc import Sequence
from pathlib import Path

from etstpm.catalog import Declaration, load_declaration, recognise
from etstpm.errors import DatasetError
from etstpm.layouts import TREE, Layout, open_layout
from etstpm.layouts.listing import unreadable

RESERVED = "mean"
"""The tables' name for what is averaged over the categories."""


def open_root(root: Path, name: str | None = None) -> tuple[Declaration, Layout]:
    """Which dataset lies there, and how to read it.

    Raises `DatasetError` for no such root, or one that cannot be read.
    """
    try:
        return _open(root, name)
    except OSError as error:  # a name that is too long, a folder that may not be read
        raise unreadable(root, error) from None


def _open(root: Path, name: str | None) -> tuple[Declaration, Layout]:
    if not root.is_dir():
        uri = re.match(r"([A-Za-z][A-Za-z0-9+.-]+):/+(.*)", str(root))  # a path has lost a slash
        if uri is not None:
            raise DatasetError(
                f"dataset {uri[1]}://{uri[2]}: images are read from a folder of this machine; "
                "copy them there ('etstpm data fetch NAME --from URI --to FOLDER' takes an archive)"
            )
        raise DatasetError(
            f"dataset {root}: no such folder; give a root in MVTec AD layout ({TREE}), "
            "as in make run DATASET=/data/mvtec_ad"
        )
    declaration = recognise(root) if name is None else load_declaration(name)
    return declaration, open_layout(root, declaration)


def choose_categories(
    root: Path, categories: Sequence[str] | None, name: str | None = None
) -> list[str]:
    """The categories to run, sorted: those asked for, else all that the root holds.

    Reads folder names alone. Raises `DatasetError` for a root or a category that is not there, and
    for one whose name no table can hold beside its own.
    """
    _, layout = open_root(root, name)
    found = layout.categories()
    if not found:
        is_category = (root / "train").is_dir()
        remedy = "give the folder above it" if is_category else "check the path"
        raise DatasetError(f"dataset {root}: no category in it, expected {TREE}; {remedy}")
    unknown = [category for category in categories or () if category not in found]
    if unknown:
        raise DatasetError(
            f"dataset {root}: no category {unknown[0]!r}; it holds {', '.join(found)}"
        )
    chosen = sorted(set(categories)) if categories else found
    if RESERVED in chosen:
        raise DatasetError(
            f"dataset {root}: a category is called {RESERVED!r}, as the tables call what is "
            "averaged over all; rename its folder, or leave it out with CATEGORIES="
        )
    return chosen
