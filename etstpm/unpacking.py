"""Unpack an archive that nobody vouches for: tar (plain, xz, gzip, bzip2) and zip.

tarfile's data filter is the second line of defence; the first looks at names alone, refuses what a
folder of images has no use for, and says why. Nothing is put right silently: an archive with one
hostile name is not to be trusted with its others.
"""

import errno
import lzma
import os
import shutil
import stat
import tarfile
import zipfile
import zlib
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from etstpm.errors import DatasetError, reason_of
from etstpm.findings import printable
from etstpm.progress import Bar

LARGEST_TREE = 2**38  # bytes: 256 GiB
MOST_MEMBERS = 5_000_000
LONGEST_HEADER = 2**20
"""Bytes that one read of a tar's header may ask for: an extended header may claim gigabytes."""
ZIP = b"PK\x03\x04"
PACKED = {b"\xfd7zXZ\x00": "xz", b"\x1f\x8b": "gz", b"BZh": "bz2"}
DISK = {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EACCES}
DAMAGED = (
    EOFError,
    OSError,
    RuntimeError,
    ValueError,
    lzma.LZMAError,
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
    NotImplementedError,
)


class RefusedArchiveError(DatasetError):
    """The archive is hostile or damaged: on no disk will it ever be unpacked."""


@dataclass
class Ceiling:
    """What may be unpacked at the most, and what has been."""

    archive: Path
    bytes: int = LARGEST_TREE
    members: int = MOST_MEMBERS
    names: set[PurePosixPath] = field(default_factory=set)
    links: set[PurePosixPath] = field(default_factory=set)
    seen_bytes: int = 0

    def admit(self, name: str, size: int, *, is_folder: bool) -> PurePosixPath:
        """The path of a member that may be unpacked. Raises `DatasetError` for any other."""
        path = PurePosixPath(name)
        if path.is_absolute() or name[:1] in {"/", "\\"} or name[1:2] == ":":
            raise self.refusal(name, "has an absolute name")
        if ".." in path.parts:
            raise self.refusal(name, "leads out of the folder ('..')")
        if "\\" in name or not name.isprintable():
            raise self.refusal(name, "has a backslash or control codes in its name")
        if any(parent in self.links for parent in (path, *path.parents)):
            raise self.refusal(name, "lies behind a link of the archive")
        if not is_folder:
            if path in self.names:
                raise self.refusal(name, "is there twice")
            self.names.add(path)
        self.seen_bytes += size
        if self.seen_bytes > self.bytes:
            raise self.refusal(name, f"makes it more than {self.bytes} bytes")
        if len(self.names) > self.members:
            raise self.refusal(name, f"makes it more than {self.members} files")
        return path

    def refusal(self, name: str, fault: str) -> RefusedArchiveError:
        """Why an archive is not unpacked."""
        return RefusedArchiveError(
            f"archive {self.archive}: member '{printable(name)[:200]}' {fault}; nothing of it was "
            "kept: get the archive from a source that you trust"
        )


def unpack(archive: Path, folder: Path, ceiling: Ceiling | None = None) -> int:
    """Unpack into a new folder; the number of files. Nothing is left there after a fault.

    Raises `DatasetError` for a member that is refused, a damaged archive, a full disk.
    """
    ceiling = ceiling or Ceiling(archive)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        with archive.open("rb") as file, Bar("unpack", None, in_bytes=True) as bar:
            start = file.read(8)
            file.seek(0)
            if start.startswith(ZIP):
                _unpack_zip(file, folder, ceiling, bar)
            else:
                kind = next((kind for magic, kind in PACKED.items() if start.startswith(magic)), "")
                with tarfile.open(fileobj=file, mode=f"r:{kind}", tarinfo=_Member) as tar:  # type: ignore[call-overload]
                    _unpack_tar(tar, file, folder, ceiling, bar)
    except DatasetError:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    except DAMAGED as error:
        shutil.rmtree(folder, ignore_errors=True)
        is_disk = isinstance(error, OSError) and error.errno in DISK
        remedy = "make room, or unpack to another disk" if is_disk else "get it again"
        raise (DatasetError if is_disk else RefusedArchiveError)(
            f"archive {archive} cannot be unpacked ({printable(reason_of(error))}); {remedy}"
        ) from None
    return len(ceiling.names)


class _Member(tarfile.TarInfo):
    """A member whose extended header is no larger than any name needs: it is read whole."""

    def _proc_member(self, archive: tarfile.TarFile) -> tarfile.TarInfo:
        if (
            not self.isreg()
            and self.type not in tarfile.REGULAR_TYPES
            and self.size > LONGEST_HEADER
        ):
            raise tarfile.ReadError(f"a header of {self.size} bytes")
        member: tarfile.TarInfo = super()._proc_member(archive)  # type: ignore[misc]
        return member


def _unpack_tar(
    tar: tarfile.TarFile, file: BinaryIO, folder: Path, ceiling: Ceiling, bar: Bar
) -> None:
    bar.expect(os.fstat(file.fileno()).st_size)
    done = 0
    while (member := tar.next()) is not None:
        tar.members = []  # type: ignore[attr-defined]  # it would keep them all
        name = member.name.removeprefix("./")
        if name in {"", "."}:
            continue
        if not (member.isfile() or member.isdir() or member.issym() or member.islnk()):
            raise ceiling.refusal(member.name, "is a device or pipe")
        path = ceiling.admit(name, member.size, is_folder=member.isdir())
        if member.issym() or member.islnk():
            _check_link(path, member, ceiling)
        tar.extract(member, folder, filter="data")
        bar.advance(file.tell() - done)
        done = file.tell()
    # tarfile takes a header that is cut off for the end; a whole tar says itself where that is.
    tar.fileobj.seek(tar.offset)
    if tar.fileobj.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        raise tarfile.ReadError("it is cut off")


def _check_link(path: PurePosixPath, member: tarfile.TarInfo, ceiling: Ceiling) -> None:
    """A link must stay inside, and not lead through another: then no path needs to be resolved."""
    start = PurePosixPath() if member.islnk() else path.parent
    target = PurePosixPath(os.path.normpath(start / member.linkname))
    if PurePosixPath(member.linkname).is_absolute() or target.parts[:1] == ("..",):
        raise ceiling.refusal(member.name, f"links out of the folder ({member.linkname[:80]!r})")
    if any(parent in ceiling.links for parent in (target, *target.parents)):
        raise ceiling.refusal(member.name, "links to a link")
    ceiling.links.add(path)


def _unpack_zip(file: BinaryIO, folder: Path, ceiling: Ceiling, bar: Bar) -> None:
    with zipfile.ZipFile(file) as archive:
        members = archive.infolist()
        bar.expect(sum(member.file_size for member in members))
        for member in members:
            kind = stat.S_IFMT(member.external_attr >> 16)
            if kind not in {0, stat.S_IFREG, stat.S_IFDIR}:
                raise ceiling.refusal(member.filename, "is a link, device or pipe")
            if member.flag_bits & 1:
                raise ceiling.refusal(member.filename, "is encrypted")
            # Of the central directory: `filename` has been cut at a NUL and its slashes turned.
            ceiling.admit(member.orig_filename, member.file_size, is_folder=member.is_dir())
        for member in members:  # only when each of them may
            archive.extract(member, folder)
            bar.advance(member.file_size)
