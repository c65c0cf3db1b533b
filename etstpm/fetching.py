"""From an address or a file to a dataset's folder, that is there whole or not at all.

Beside the folder, while it is made: `.NAME.fetch/` with the archive, as far as it has come, and the
tree that is being unpacked. A killed process leaves it, and the next one goes on.
"""

import json
import shutil
import sys
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from etstpm.catalog import MARKER, Archive, Declaration
from etstpm.download import Expected, Partial, download, shown
from etstpm.errors import DatasetError
from etstpm.layouts import open_layout
from etstpm.locks import locked
from etstpm.paths import local_path
from etstpm.progress import Bar
from etstpm.unpacking import RefusedArchiveError, unpack

UNPACKED_SHARE = 1.1
"""Of an archive's size, where its contents' size is not known: images hardly compress."""


@dataclass(frozen=True)
class Fetched:
    """Where a dataset lies now, and whether it lay there before."""

    root: Path
    files: int
    was_there: bool
    is_proven: bool
    """Whether there was a hash to hold the archive against."""


def local_folder(name: str) -> Path:
    """The folder that `--to` names, `file://` or not. Raises `DatasetError` for a bucket.

    Images are decoded from files that the system can map and stamp: a run reads its dataset from a
    local or shared disk, and a tree in a bucket would be of no use to it.
    """
    scheme, separator, path = name.partition("://")
    if not separator:
        return Path(name)
    if scheme == "file":
        return Path(unquote(path))
    raise DatasetError(
        f"--to {shown(name)}: a dataset is read from a folder, on a local or shared disk, not from "
        f"a bucket; give a folder (the archive itself may lie there: --from {scheme}://...)"
    )


def fetch(
    declaration: Declaration, target: Path, *, source: str | None = None, sha256: str | None = None
) -> Fetched:
    """Download or take an archive, prove it, unpack it, and give the folder its name.

    source: a local archive or an fsspec URI instead of the declared addresses. sha256: what it must
    have where the declaration does not say. Two processes at once: the second waits, and finds it
    there. Raises `DatasetError`; what has arrived is kept for the same command again.
    """
    archive = _archive_of(declaration, source, sha256)
    target = local_path(target)
    if target.name in {"", ".."}:  # the root, or '.'
        raise DatasetError(f"--to {target} names no new folder; give one, as in --to data/mvtec_ad")
    work = target.with_name(f".{target.name}.fetch")
    lock = work.with_name(f"{work.name}.lock")
    try:
        with locked(lock, f"fetching {target}"):
            try:
                found = _already_there(target, archive)
                if found is None:
                    found = _fetch(declaration, archive, source, target, work)
                shutil.rmtree(work, ignore_errors=True)
            finally:  # a waiter sees that its file is gone, and takes a new one
                lock.unlink(missing_ok=True)
    except OSError as error:
        raise DatasetError(
            f"{error.filename or target} cannot be written ({error.strerror}); give another "
            "folder with --to"
        ) from None
    return found


def _archive_of(declaration: Declaration, source: str | None, sha256: str | None) -> Archive | None:
    """What must arrive; None for a local archive of which nothing is known."""
    declared = declaration.archive
    if declared is not None and sha256 not in {None, declared.sha256}:
        raise DatasetError(
            f"{declaration.title}: its archive has the SHA-256 {declared.sha256}, not the one "
            "given; leave --sha256 out"
        )
    if source is None and declared is None:
        raise DatasetError(
            f"{declaration.title}: nothing to fetch, its declaration has no [archive]; give one "
            "with --from FILE or URI"
        )
    if source is None or declared is not None:
        return declared
    if sha256 is not None:
        return Archive(urls=(source,), sha256=sha256)
    if "://" in source:
        raise DatasetError(f"{shown(source)}: nothing says what it should hold; give its --sha256")
    return None


def _already_there(target: Path, archive: Archive | None) -> Fetched | None:
    if not target.exists():
        return None
    if target.is_dir() and not any(target.iterdir()):
        target.rmdir()
        return None
    marker: dict[str, Any] = {}
    with suppress(OSError, ValueError):
        marker = json.loads((target / MARKER).read_text("utf-8"))
    if archive is not None and isinstance(marker, dict) and marker.get("sha256") == archive.sha256:
        return Fetched(target, int(marker.get("files", 0)), was_there=True, is_proven=True)
    raise DatasetError(
        f"{target} is there already, and is not what would be fetched; remove it, or give another "
        "folder with --to"
    )


def _fetch(
    declaration: Declaration,
    archive: Archive | None,
    source: str | None,
    target: Path,
    work: Path,
) -> Fetched:
    work.mkdir(parents=True, exist_ok=True)
    path = _obtain(archive, source, work)
    size = path.stat().st_size
    unpacked = (archive.unpacked_bytes if archive else None) or int(size * UNPACKED_SHARE)
    _require_room(work, unpacked, "unpack it")
    tree = work / "tree"
    try:
        files = unpack(path, tree)
    except RefusedArchiveError:
        (work / "archive").unlink(missing_ok=True)
        raise
    root = _root_in(tree, declaration)
    marker = {
        "declaration": declaration.model_dump(mode="json", exclude_defaults=True),
        "source": shown(source or (archive.urls[0] if archive else "")),
        "sha256": archive.sha256 if archive else None,
        "files": files,
        "fetched_at": datetime.now(UTC).isoformat(),
    }
    (root / MARKER).write_text(json.dumps(marker, indent=1) + "\n", "utf-8")
    root.rename(target)
    return Fetched(target, files, was_there=False, is_proven=archive is not None)


def _obtain(archive: Archive | None, source: str | None, work: Path) -> Path:
    """The archive's file, proven where its hash is known."""
    if source is not None and "://" not in source:
        path = local_path(source)
        if not path.is_file():
            what = "a folder: use it as it is" if path.is_dir() else "not there"
            raise DatasetError(f"archive {path} is {what}; give a tar or zip, or leave --from out")
        if archive is not None:
            _prove(path, archive)
        return path
    if archive is None:
        raise DatasetError("nothing says what should arrive; give --sha256")
    urls = [source] if source is not None else list(archive.urls)
    part, whole = work / "archive.part", work / "archive"
    if whole.exists() and _sha256_of(whole) != archive.sha256:
        whole.unlink()  # an earlier fetch's, of another archive
    if not whole.exists():
        held = part.stat().st_size if part.exists() else 0
        unpacked = archive.unpacked_bytes or int((archive.bytes or 0) * UNPACKED_SHARE)
        _require_room(work, (archive.bytes or 0) - held + unpacked, "download and unpack it")
        if held:
            sys.stderr.write(f"note: going on from byte {held}, where an earlier fetch stopped\n")
        download(urls, part, Expected(archive.sha256, archive.bytes))
        part.rename(whole)
    return whole


def _prove(path: Path, archive: Archive) -> None:
    found = _sha256_of(path)
    if found != archive.sha256:
        raise DatasetError(
            f"archive {path}: expected SHA-256 {archive.sha256}, found {found}; "
            "it is damaged or another one: get it again, or leave --from out"
        )


def _sha256_of(path: Path) -> str:
    with Bar(f"verify {path.name}", path.stat().st_size, in_bytes=True) as bar:
        held = Partial(path)
        held.resume(bar)
    return held.sha256.hexdigest()


def _require_room(folder: Path, needed: int, what_for: str) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise DatasetError(
            f"disk of {folder.parent}: {needed / 1e9:.1f} GB are needed to {what_for}, "
            f"{free / 1e9:.1f} GB are free; make room, or give another folder with --to"
        )


def _root_in(tree: Path, declaration: Declaration) -> Path:
    """The dataset's root: the tree, or the single folder in it that archives like to have."""
    root = tree
    while True:
        if declaration.split_file is not None:
            is_found = (root / declaration.split_file).is_file()
        else:
            is_found = bool(open_layout(root, declaration).categories())
        if is_found:
            return root
        inside = [path for path in root.iterdir() if not path.name.startswith(".")]
        folders = [path for path in inside if path.is_dir() and not path.is_symlink()]
        if len(folders) != 1:
            expected = declaration.split_file or "CATEGORY/train/good/*.png"
            found = ", ".join(sorted(path.name for path in inside)[:5]) or "nothing"
            raise DatasetError(
                f"archive of {declaration.title}: expected {expected} in it, found {found!r}; is "
                "it the right archive?"
            )
        (root,) = folders
