"""Archives with every kind of malice, built here; none leaves a byte outside, or half a tree."""

import gzip
import io
import lzma
import os
import shutil
import stat
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from etstpm.errors import DatasetError
from etstpm.unpacking import Ceiling, unpack

FILES = {"bottle/train/good/000.png": b"one", "bottle/test/good/000.png": b"two" * 1000}


def tar_of(path: Path, *members: tuple[str, bytes], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def special(path: Path, name: str, kind: bytes, target: str = "", *after: str) -> Path:
    """A member of another type between two good ones."""
    with tarfile.open(path, "w") as tar:
        for place in ("a.txt", "", *after):
            info = tarfile.TarInfo(place or name)
            if not place:
                info.type, info.linkname = kind, target
            tar.addfile(info, io.BytesIO())
    return path


def zip_of(path: Path, *members: tuple[str | zipfile.ZipInfo, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members:
            archive.writestr(name, content)
    return path


@pytest.mark.parametrize("suffix", ["tar", "tar.xz", "tar.gz", "tar.bz2", "zip"])
def test_whatever_it_is_packed_with(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    if suffix == "zip":
        zip_of(path, *FILES.items())
    else:
        tar_of(path, *FILES.items(), mode=f"w:{suffix.partition('.')[2]}")
    assert unpack(path, tmp_path / "tree") == 2
    for name, content in FILES.items():
        assert (tmp_path / "tree" / name).read_bytes() == content


def test_a_tar_with_folders_and_dots(tmp_path: Path) -> None:
    source = tmp_path / "source"
    for name, content in FILES.items():
        (source / name).parent.mkdir(parents=True)
        (source / name).write_bytes(content)
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        tar.add(source, ".")
    assert unpack(tmp_path / "a.tar", tmp_path / "tree") == 2
    assert (tmp_path / "tree/bottle/train/good/000.png").read_bytes() == b"one"


def test_links_inside_are_kept(tmp_path: Path) -> None:
    path = special(tmp_path / "a.tar", "folder/link", tarfile.SYMTYPE, "../a.txt")
    unpack(path, tmp_path / "tree")
    assert (tmp_path / "tree/folder/link").resolve() == (tmp_path / "tree/a.txt").resolve()
    path = special(tmp_path / "b.tar", "folder/link", tarfile.LNKTYPE, "a.txt")
    unpack(path, tmp_path / "tree")
    assert (tmp_path / "tree/folder/link").is_file()


def written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def symlink_in_zip(path: Path) -> Path:
    info = zipfile.ZipInfo("link")
    info.create_system, info.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
    return zip_of(path, (info, b"/etc"))


def encrypted_zip(path: Path) -> Path:
    zip_of(path, ("a.txt", b"secret"))
    content = bytearray(path.read_bytes())
    for magic, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        content[content.index(magic) + offset] |= 1
    path.write_bytes(content)
    return path


def renamed_in_zip(path: Path, name: str) -> Path:
    """The name as it is written, which Python's own writer would put right."""
    zip_of(path, ("x" * len(name), b"x"))
    path.write_bytes(path.read_bytes().replace(b"x" * len(name), name.encode()))
    return path


def huge_header(path: Path) -> Path:
    """An extended header that claims a gigabyte."""
    info = tarfile.TarInfo("pax")
    info.type, info.size = tarfile.XHDTYPE, 2**30
    path.write_bytes(info.tobuf(tarfile.USTAR_FORMAT) + bytes(1024))
    return path


def sparse(path: Path) -> Path:
    """A file of 2 TiB in a few bytes, as GNU tar writes a sparse one."""
    info = tarfile.TarInfo("sparse")
    info.type = tarfile.GNUTYPE_SPARSE
    buffer = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    buffer[483:495] = b"\x80" + (2**41).to_bytes(11, "big")  # the size, in base 256
    buffer[148:156] = b" " * 8
    buffer[148:156] = f"{sum(buffer):06o}\0 ".encode()
    path.write_bytes(bytes(buffer) + bytes(1024))
    return path


MALICE: dict[str, tuple[Callable[[Path], Path], str]] = {
    "an absolute name": (lambda p: tar_of(p, ("/etc/x", b"")), "has an absolute name"),
    "a drive": (lambda p: tar_of(p, ("C:/x", b"")), "has an absolute name"),
    "dots": (lambda p: tar_of(p, ("a/../../x", b"")), "leads out of the folder ('..')"),
    "dots that come back": (lambda p: tar_of(p, ("a/../x", b"")), "leads out of the folder"),
    "backslashes": (lambda p: tar_of(p, ("a\\..\\x", b"")), "has a backslash"),
    "terminal codes": (lambda p: tar_of(p, ("\x1b[31mred", b"")), r"'\x1b[31mred' has a back"),
    "one name twice": (lambda p: tar_of(p, ("x", b"1"), ("./x", b"2")), "is there twice"),
    "a device": (lambda p: special(p, "x", tarfile.CHRTYPE), "is a device or pipe"),
    "a pipe": (lambda p: special(p, "x", tarfile.FIFOTYPE), "is a device or pipe"),
    "a link to /etc": (
        lambda p: special(p, "x", tarfile.SYMTYPE, "/etc"),
        "links out of the folder ('/etc')",
    ),
    "a link to the folder above": (
        lambda p: special(p, "x", tarfile.SYMTYPE, "a/../.."),
        "links out of the folder",
    ),
    "a hard link to outside": (
        lambda p: special(p, "x", tarfile.LNKTYPE, "../x"),
        "links out of the folder",
    ),
    "a file behind a link": (
        lambda p: special(p, "x", tarfile.SYMTYPE, ".", "x/y"),
        "'x/y' lies behind a link",
    ),
    "a file in place of a link": (
        lambda p: special(p, "x", tarfile.SYMTYPE, "a.txt", "x"),
        "'x' lies behind a link",
    ),
    "a sparse file of terabytes": (sparse, "makes it more than 274877906944 bytes"),
    "a header of a gigabyte": (huge_header, "a header of 1073741824 bytes"),
    "no archive": (lambda p: written(p, b"<html>404</html>"), "cannot be unpacked"),
    "an empty file": (lambda p: written(p, b""), "cannot be unpacked (empty file"),
    "zip: absolute": (lambda p: renamed_in_zip(p, "/etc/x"), "has an absolute name"),
    "zip: dots": (lambda p: renamed_in_zip(p, "../x"), "leads out of the folder"),
    "zip: backslashes": (lambda p: renamed_in_zip(p, "..\\x"), "leads out of the fol|backslash"),
    "zip: a link": (symlink_in_zip, "is a link, device or pipe"),
    "zip: encrypted": (encrypted_zip, "is encrypted"),
}


@pytest.mark.parametrize("name", MALICE)
def test_malice_leaves_nothing(tmp_path: Path, name: str) -> None:
    build, message = MALICE[name]
    (tmp_path / "inside").mkdir()
    path = build(tmp_path / "a.archive")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(DatasetError) as caught:
        unpack(path, tmp_path / "inside" / "tree")
    assert any(part in str(caught.value) for part in message.split("|")), str(caught.value)
    assert str(caught.value).isprintable()
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("compress", [lzma.compress, gzip.compress])
def test_a_bomb_is_stopped_by_the_ceiling(
    tmp_path: Path, compress: Callable[[bytes], bytes]
) -> None:
    plain = tar_of(tmp_path / "a.tar", *((f"{i}.png", bytes(10**6)) for i in range(20)))
    path = tmp_path / "a.tar.z"
    path.write_bytes(compress(plain.read_bytes()))
    assert path.stat().st_size < 10**5
    with pytest.raises(DatasetError, match=r"'10.png' makes it more than 10000000 bytes"):
        unpack(path, tmp_path / "tree", Ceiling(path, bytes=10**7))
    with pytest.raises(DatasetError, match=r"'5.png' makes it more than 5 files"):
        unpack(path, tmp_path / "tree", Ceiling(path, members=5))
    assert not (tmp_path / "tree").exists()


def test_a_zip_bomb_is_stopped_before_a_byte_is_written(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.png", bytes(10**7))
    with pytest.raises(DatasetError, match="makes it more than 1000 bytes"):
        unpack(path, tmp_path / "tree", Ceiling(path, bytes=1000))


@pytest.mark.parametrize("suffix", ["tar", "tar.xz", "tar.gz", "tar.bz2", "zip"])
def test_cut_off_anywhere_it_is_refused(tmp_path: Path, suffix: str) -> None:
    content = {f"{i}.png": os.urandom(3000) for i in range(5)}
    path = tmp_path / f"a.{suffix}"
    if suffix == "zip":
        zip_of(path, *content.items())
    else:
        tar_of(path, *content.items(), mode=f"w:{suffix.partition('.')[2]}")
    whole = path.read_bytes()
    for share in (0.001, 0.2, 0.5, 0.7):
        path.write_bytes(whole[: int(share * len(whole))])
        with pytest.raises(DatasetError, match="cannot be unpacked"):
            unpack(path, tmp_path / "tree")
        assert not (tmp_path / "tree").exists()


def test_a_damaged_zip_member_is_refused(tmp_path: Path) -> None:
    path = zip_of(tmp_path / "a.zip", ("a.png", b"0" * 5000))
    content = bytearray(path.read_bytes())
    content[2000] ^= 1
    path.write_bytes(content)
    with pytest.raises(DatasetError, match="Bad CRC-32"):
        unpack(path, tmp_path / "tree")


def test_a_full_disk_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tar_of(tmp_path / "a.tar", *FILES.items())

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tarfile.TarFile, "makefile", full)
    with pytest.raises(DatasetError, match=r"No space left on device\); make room"):
        unpack(path, tmp_path / "tree")
    assert not (tmp_path / "tree").exists()


def test_what_an_earlier_process_left_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "tree/bottle").mkdir(parents=True)
    (tmp_path / "tree/bottle/half.png").touch()
    unpack(tar_of(tmp_path / "a.tar", *FILES.items()), tmp_path / "tree")
    assert not (tmp_path / "tree/bottle/half.png").exists()
    shutil.rmtree(tmp_path / "tree")
