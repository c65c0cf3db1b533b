"""`fetch`: an archive becomes a dataset's folder, whole or not at all, whoever is killed."""

import hashlib
import io
import json
import shutil
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from etstpm import download
from etstpm.catalog import MARKER, Archive, Declaration, load_declaration, recognise
from etstpm.cli import main
from etstpm.errors import DatasetError
from etstpm.fetching import Fetched, fetch
from etstpm.settings import settings
from tests import archive_server as server
from tests.archive_server import Site
from tests.killing import REPOSITORY, survive_kills


@pytest.fixture(scope="module")
def packed(drawn: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The drawn sample as a tar.xz, in a folder as archives like to have it."""
    path = tmp_path_factory.mktemp("packed") / "drawn.tar.xz"
    with tarfile.open(path, "w:xz", preset=0) as tar:
        tar.add(drawn, "release-1.0")
    return path


@pytest.fixture
def site(packed: Path) -> Iterator[Site]:
    with server.archive_server(packed.read_bytes()) as found:
        yield found


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "FIRST_PAUSE", 0.001)
    monkeypatch.setenv("ETSTPM_ATTEMPTS", "3")
    monkeypatch.setenv("ETSTPM_STALL_SECONDS", "5")
    settings.cache_clear()


def declare(packed: Path, *urls: str) -> Declaration:
    content = packed.read_bytes()
    archive = Archive(urls=urls, sha256=hashlib.sha256(content).hexdigest(), bytes=len(content))
    return Declaration(
        name="drawn", title="Drawn", masks="optional", citation="Nobody.", archive=archive
    )


def contents(root: Path) -> dict[str, bytes]:
    files = [path for path in root.rglob("*") if path.is_file() and path.name != MARKER]
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in files}


def assert_whole(root: Path, drawn: Path) -> None:
    assert contents(root) == contents(drawn)
    assert [path.name for path in root.parent.iterdir() if path.name.startswith(".")] == []


def test_an_address_becomes_a_folder(site: Site, packed: Path, drawn: Path, tmp_path: Path) -> None:
    declaration = declare(packed, site.url("a.tar.xz", server.cut_at_every_tenth))
    found = fetch(declaration, tmp_path / "data" / "drawn")
    assert found == Fetched(
        tmp_path / "data" / "drawn", len(contents(drawn)), was_there=False, is_proven=True
    )
    assert_whole(found.root, drawn)
    again = fetch(declaration, found.root)
    assert again == Fetched(found.root, found.files, was_there=True, is_proven=True)
    assert len(site.asked) == 10


def test_the_folder_remembers_its_terms(site: Site, packed: Path, tmp_path: Path) -> None:
    url = site.url("a.tar.xz").replace("//", "//user:hush@")
    declaration = declare(packed, url)
    root = fetch(declaration, tmp_path / "drawn").root
    marker = json.loads((root / MARKER).read_text())
    assert declaration.archive is not None
    assert marker["sha256"] == declaration.archive.sha256
    assert recognise(root).citation == "Nobody."
    assert "hush" not in marker["source"]


@pytest.mark.parametrize("kind", ["path", "file URI", "memory URI"])
def test_an_archive_of_ones_own(packed: Path, drawn: Path, tmp_path: Path, kind: str) -> None:
    import fsspec

    source = {
        "path": str(packed),
        "file URI": packed.as_uri(),
        "memory URI": "memory://own/drawn.tar.xz",
    }[kind]
    if kind == "memory URI":
        with fsspec.open(source, "wb") as file:
            file.write(packed.read_bytes())
    sha256 = hashlib.sha256(packed.read_bytes()).hexdigest()
    folder = load_declaration("folder")
    found = fetch(folder, tmp_path / "own", source=source, sha256=sha256)
    assert_whole(found.root, drawn)
    if kind == "path":  # a file at hand may be taken at its word
        assert_whole(fetch(folder, tmp_path / "other", source=source).root, drawn)
    assert packed.is_file()


def refusal(declaration: Declaration, target: Path, **given: str) -> str:
    with pytest.raises(DatasetError) as caught:
        fetch(declaration, target, **given)
    assert str(caught.value).isprintable()
    return str(caught.value)


def test_what_is_refused(packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    declaration, folder = declare(packed, "http://127.0.0.1:1/a"), load_declaration("folder")
    target = tmp_path / "new"
    assert "nothing to fetch, its declaration has no [archive]" in refusal(folder, target)
    assert "give its --sha256" in refusal(folder, target, source="s3://bucket/a.tar")
    assert "not the one given" in refusal(declaration, target, sha256="0" * 64)
    assert "is not there; give a tar or zip" in refusal(declaration, target, source="no.tar")
    assert "is a folder: use it as" in refusal(declaration, target, source=str(tmp_path))
    assert "127.0.0.1:1/a: connection failed" in refusal(declaration, target)
    (tmp_path / "bad.tar").write_bytes(b"x")
    message = refusal(declaration, target, source=str(tmp_path / "bad.tar"))
    assert "expected SHA-256 " in message
    assert "it is damaged or another one" in message
    assert "cannot be unpacked" in refusal(folder, target, source=str(tmp_path / "bad.tar"))
    with tarfile.open(tmp_path / "empty.tar", "w") as tar:
        tar.addfile(tarfile.TarInfo("readme.txt"), io.BytesIO())
    message = refusal(folder, target, source=str(tmp_path / "empty.tar"))
    assert "expected CATEGORY/train/good/*.png in it, found 'readme.txt'; is it the" in message
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").touch()
    message = refusal(declaration, tmp_path / "full", source=str(packed))
    assert "is there already, and is not what would be fetched" in message
    (tmp_path / "file").touch()
    message = refusal(declaration, tmp_path / "file" / "x", source=str(packed))
    assert "cannot be written (File exists); give another folder with --to" in message
    for place in ("/", ".", ".."):
        message = refusal(declaration, Path(place), source=str(packed))
        assert message.startswith(f"--to {place} names no new folder; give one")
    assert not target.exists()
    assert sorted(path.name for path in tmp_path.glob(".*.lock")) == []
    full = SimpleNamespace(free=10)
    monkeypatch.setattr("shutil.disk_usage", lambda _: full)
    given: dict[str, str]
    for given in ({}, {"source": str(packed)}):
        message = refusal(declaration, target, **given)
        assert "GB are free; make room, or give another folder with --to" in message


def test_what_an_earlier_fetch_left_is_proven_before_it_is_used(
    packed: Path, drawn: Path, tmp_path: Path
) -> None:
    """Of another archive it is dropped, of the same one it spares the download."""
    folder, target = load_declaration("folder"), tmp_path / "new" / "drawn"
    other = tmp_path / "other.tar"
    with tarfile.open(other, "w") as tar:
        tar.addfile(tarfile.TarInfo("readme.txt"), io.BytesIO())
    other_sha256 = hashlib.sha256(other.read_bytes()).hexdigest()
    message = refusal(folder, target, source=other.as_uri(), sha256=other_sha256)
    assert "is it the right archive?" in message
    left = target.with_name(".drawn.fetch") / "archive"
    assert left.read_bytes() == other.read_bytes()
    sha256 = hashlib.sha256(packed.read_bytes()).hexdigest()
    assert_whole(fetch(folder, target, source=packed.as_uri(), sha256=sha256).root, drawn)
    shutil.rmtree(target)
    left.parent.mkdir()
    shutil.copyfile(packed, left)
    assert_whole(fetch(declare(packed, "http://127.0.0.1:1/a"), target).root, drawn)


def test_an_archive_that_is_refused_is_not_kept(tmp_path: Path) -> None:
    bad, target = tmp_path / "bad.tar", tmp_path / "new" / "drawn"
    bad.write_bytes(b"x" * 1000)
    sha256 = hashlib.sha256(bad.read_bytes()).hexdigest()
    message = refusal(load_declaration("folder"), target, source=bad.as_uri(), sha256=sha256)
    assert "cannot be unpacked" in message
    assert [path.name for path in tmp_path.rglob("archive*")] == []


def test_two_at_once_one_works_the_other_finds_it(
    site: Site, packed: Path, drawn: Path, tmp_path: Path
) -> None:
    declaration = declare(packed, site.url("a.tar.xz", server.slowly))
    results: list[Fetched] = []
    threads = [
        threading.Thread(target=lambda: results.append(fetch(declaration, tmp_path / "drawn")))
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found.was_there for found in results) == [False, True]
    assert len(site.asked) == 1
    assert_whole(tmp_path / "drawn", drawn)


@pytest.mark.parametrize("is_local", [False, True], ids=["fetch", "extract"])
def test_killed_at_any_moment_the_same_command_ends_well(
    site: Site, packed: Path, drawn: Path, tmp_path: Path, is_local: bool
) -> None:
    """From a server that takes its time, and from a file, where unpacking takes longest."""
    url = site.url("a.tar.xz", server.slowly)
    archive = declare(packed, url)
    survive_kills(
        """
import pathlib, shutil, sys
import requests
from etstpm import download
from etstpm.catalog import Declaration
from etstpm.fetching import fetch

declaration = Declaration.model_validate_json(sys.argv[2])
source = sys.argv[3] or None
drawn, folder = map(pathlib.Path, sys.argv[4:])
download.FIRST_PAUSE = 0.001

def contents(root):
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*.*")
            if p.is_file() and p.name[0] != "."}

expected = contents(drawn)

def reset():
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()

def work():
    fetch(declaration, folder / "data", source=source)

def check():
    assert contents(folder / "data") == expected
    assert [path.name for path in folder.iterdir()] == ["data"]
""",
        archive.model_dump_json(),
        str(packed) if is_local else "",
        drawn,
        tmp_path / "work",
    )


def test_who_waits_says_so(packed: Path, tmp_path: Path) -> None:
    """In the words of `locked`, which another process holds here."""
    code = (
        "import pathlib, sys; from etstpm.locks import locked\n"
        "with locked(pathlib.Path(sys.argv[1]), 'x'): print('held', flush=True); sys.stdin.read()\n"
    )
    lock = tmp_path / ".drawn.fetch.lock"
    with subprocess.Popen(
        [sys.executable, "-c", code, str(lock)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=REPOSITORY,
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdin is not None
        assert holder.stdout.readline() == b"held\n"
        waiter = subprocess.Popen(
            [
                sys.executable,
                "-c",
                "import sys; from etstpm.cli import main; main()",
                *("data", "fetch", "folder", "--from", str(packed)),
                *("--to", str(tmp_path / "drawn")),
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=REPOSITORY,
            text=True,
        )
        assert waiter.stderr is not None
        line = waiter.stderr.readline()
        holder.stdin.close()
        output, errors = waiter.communicate(timeout=60)
    assert "note: another process is fetching" in line
    assert "waiting for it" in line
    assert (waiter.returncode, errors) == (0, "")
    assert "next: etstpm data validate" in output
    shutil.rmtree(tmp_path / "drawn")


@pytest.mark.parametrize("is_known", [False, True])
def test_what_nothing_was_held_against_is_not_called_verified(
    packed: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    is_known: bool,
) -> None:
    sha256 = ["--sha256", hashlib.sha256(packed.read_bytes()).hexdigest()] if is_known else []
    to = (tmp_path / "dr awn").as_uri()
    arguments = ["etstpm", "data", "fetch", "folder", "--from", str(packed), "--to", to, *sha256]
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code
    output = capsys.readouterr().out
    assert ("archive verified" in output) == is_known
    assert ("no --sha256 to hold it against" in output) != is_known
    assert (tmp_path / "dr awn" / "flange").is_dir()


def test_a_bucket_is_no_folder_to_read_from(
    packed: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    to = "s3://key:hush@bucket/drawn"
    arguments = ["etstpm", "data", "fetch", "folder", "--from", str(packed), "--to", to]
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(SystemExit, match="2"):
        main()
    errors = capsys.readouterr().err
    assert "is read from a folder, on a local or shared disk, not from a bucket; give" in errors
    assert "hush" not in errors
    assert errors.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
