"""Download an archive: mirrors in order, resumed where it broke off, proven by its SHA-256.

Not pooch, which begins again from the first byte: an archive of five gigabytes over a connection
that breaks every gigabyte would never arrive. requests does the protocol, fsspec what is not HTTP.
"""

import hashlib
import random
import re
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from etstpm.errors import DatasetError, reason_of
from etstpm.progress import Bar
from etstpm.settings import settings

CHUNK = 2**16
CONNECT_SECONDS = 15.0
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 60.0  # seconds; doubled from pass to pass, and drawn below that
SLOWEST = 1024  # bytes a second; below it for as long as a stall is waited for, it is one
OK, PARTIAL_CONTENT, RANGE_REFUSED = 200, 206, 416


class BrokenOffError(Exception):
    """An address gave nothing, or not all of it: another attempt may go on."""

    def __init__(self, message: str, wait: float = 0.0) -> None:
        super().__init__(message)
        self.wait = wait


class WrongFileError(Exception):
    """An address has another file: it is not asked again."""


@dataclass(frozen=True)
class Expected:
    """What is to arrive."""

    sha256: str
    bytes: int | None = None


@dataclass
class Partial:
    """What has arrived of a file, and the hash of it."""

    path: Path
    sha256: "hashlib._Hash" = field(default_factory=hashlib.sha256)
    size: int = 0
    source: str | None = None
    """The address that gave the last of it."""
    is_mixed: bool = False
    """Whether an earlier process or another address gave the beginning."""
    may_be_mixed: bool = True
    """Until that has gone wrong once."""

    def resume(self, bar: Bar) -> None:
        """Take over what an earlier process has left."""
        with suppress(FileNotFoundError), self.path.open("rb") as file:
            while block := file.read(2**20):
                self.sha256.update(block)
                self.size += len(block)
                bar.advance(len(block))
        self.is_mixed = self.size > 0

    def restart(self, bar: Bar) -> None:
        """Throw away what has arrived."""
        self.path.unlink(missing_ok=True)
        bar.advance(-self.size)
        self.sha256, self.size, self.is_mixed = hashlib.sha256(), 0, False

    def append(self, block: bytes) -> None:
        """Keep what has arrived, on the disk before it counts."""
        try:
            with self.path.open("ab", buffering=0) as file:
                file.write(block)
        except OSError as error:
            raise DatasetError(
                f"{self.path} cannot be written ({error.strerror}); make room, and run the same "
                "command again: it goes on where it stopped"
            ) from None
        self.sha256.update(block)
        self.size += len(block)


def download(urls: Sequence[str], path: Path, expected: Expected) -> None:
    """Fetch a file from the first address that has it; `path` grows, and is proven at the end.

    Called again after a kill it goes on. Raises `DatasetError` that names each address and what
    was wrong with it when none has it, or when all have given nothing for several passes.
    """
    asked, faults, idle = list(urls), dict[str, str](), 0
    crumbs = SLOWEST * settings().stall_seconds  # what a trickle gives: it counts as nothing
    with Bar(f"fetch {name_of(urls[0])}", expected.bytes, in_bytes=True) as bar:
        partial = Partial(path)
        partial.resume(bar)
        if expected.bytes is not None and partial.size > expected.bytes:
            partial.restart(bar)
        while asked:
            before, waits = partial.size, [0.0]
            # Who has given something goes on.
            for url in sorted(asked, key=lambda url: url != partial.source):
                try:
                    if _try(url, partial, expected, bar):
                        return
                except BrokenOffError as fault:
                    faults[url] = reason_of(fault)
                    waits.append(fault.wait)
                    if partial.size - before > crumbs:
                        break  # it gives something: from the first address again
                except WrongFileError as fault:
                    faults[url] = reason_of(fault)
                    asked.remove(url)
                    before = min(before, partial.size)
            idle = 0 if partial.size - before > crumbs else idle + 1
            if idle >= settings().attempts:
                break
            if asked:
                pause(idle, max(waits))
    found = "; ".join(f"{shown(url)}: {fault}" for url, fault in faults.items())
    raise DatasetError(
        f"no address has the archive ({found}); if you have it, give it with --from FILE, else "
        "run the same command again: it goes on where it stopped"
    )


def _try(url: str, partial: Partial, expected: Expected, bar: Bar) -> bool:
    """Whether the whole file has arrived. Raises `BrokenOffError` or `WrongFileError`."""
    if partial.size and partial.source != url:
        partial.is_mixed = True
        if not partial.may_be_mixed:
            partial.restart(bar)
    if expected.bytes is None or partial.size < expected.bytes:
        _transfer(url, partial, expected, bar)
    if partial.sha256.hexdigest() == expected.sha256:
        return True
    found, was_mixed = partial.sha256.hexdigest(), partial.is_mixed
    partial.restart(bar)
    if was_mixed:
        partial.may_be_mixed = False
        raise BrokenOffError("what had arrived before was not the beginning of the archive")
    raise WrongFileError(
        f"has another file (SHA-256 {expected.sha256[:12]} expected, {found[:12]} found)"
    )


def _transfer(url: str, partial: Partial, expected: Expected, bar: Bar) -> None:
    """Append what an address gives, to its end."""
    blocks = _http(url, partial, expected, bar) if is_http(url) else _fsspec(url, partial)
    since, received = time.monotonic(), 0
    with closing(blocks):
        for block in blocks:
            if expected.bytes is not None and partial.size + len(block) > expected.bytes:
                partial.restart(bar)
                raise WrongFileError(f"sends more than {expected.bytes} bytes")
            partial.append(block)
            partial.source = url
            bar.advance(len(block))
            received += len(block)
            seconds = time.monotonic() - since
            if seconds > settings().stall_seconds:
                if received < SLOWEST * seconds:
                    raise BrokenOffError(
                        f"{received / seconds:.0f} bytes a second for {seconds:.0f} s"
                    )
                since, received = time.monotonic(), 0
    if expected.bytes is not None and partial.size < expected.bytes:
        raise BrokenOffError(f"broke off at byte {partial.size} of {expected.bytes}")


def _http(url: str, partial: Partial, expected: Expected, bar: Bar) -> Generator[bytes, None, None]:
    import requests
    from urllib3.exceptions import HTTPError

    headers = {"Accept-Encoding": "identity"}
    if partial.size:
        headers["Range"] = f"bytes={partial.size}-"
    limits = (CONNECT_SECONDS, settings().stall_seconds)
    try:
        with requests.get(url, headers=headers, stream=True, timeout=limits) as response:
            total = _judge(response.status_code, response.headers, partial, bar)
            if total is not None and expected.bytes not in {None, total}:
                raise WrongFileError(
                    f"has another file ({expected.bytes} bytes expected, {total} found)"
                )
            if total is not None and expected.bytes is None:
                bar.expect(total)
            while block := response.raw.read1(CHUNK):
                yield block
            if total is not None and partial.size < total:
                raise BrokenOffError(f"broke off at byte {partial.size} of {total}")
    except (requests.RequestException, HTTPError, OSError) as error:
        raise BrokenOffError(_network_fault(error)) from None


def _judge(status: int, headers: Mapping[str, str], partial: Partial, bar: Bar) -> int | None:
    """The file's whole size as the server states it; what was held is thrown away if it begins
    again, as a server does that knows no ranges."""
    length = headers.get("Content-Length", "")
    if status == OK:
        if partial.size:
            partial.restart(bar)
        return int(length) if length.isdecimal() else None
    if status == PARTIAL_CONTENT:
        found = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", headers.get("Content-Range", ""))
        if found is None or int(found[1]) != partial.size:
            at = partial.size
            partial.restart(bar)
            raise BrokenOffError(f"asked to go on from byte {at}, it sent something else")
        return int(found[2]) if found[2] != "*" else None
    if status == RANGE_REFUSED:
        at = partial.size
        partial.restart(bar)
        raise BrokenOffError(f"has nothing from byte {at} on")
    wait = headers.get("Retry-After", "")
    raise BrokenOffError(
        f"HTTP {status}", min(float(wait), LONGEST_PAUSE) if wait.isdecimal() else 0.0
    )


def _fsspec(url: str, partial: Partial) -> Generator[bytes, None, None]:
    import fsspec

    try:
        with fsspec.open(url, "rb", expand=False) as file:
            file.seek(partial.size)
            while block := file.read(2**20):
                yield block
    except Exception as error:  # file systems are plug-ins: their faults have no common base
        raise BrokenOffError(f"{type(error).__name__}: {reason_of(error)}") from None


def _network_fault(error: Exception) -> str:
    """What went wrong, without the addresses and object names that the libraries wrap it in."""
    import requests

    if isinstance(error, requests.Timeout) or "timed out" in str(error):
        return f"silent for {settings().stall_seconds:g} s"
    if isinstance(error, requests.TooManyRedirects):
        return "redirects without end"
    if isinstance(error, requests.exceptions.SSLError):
        return "its certificate cannot be verified"
    reason: BaseException = error
    while reason.__cause__ is not None or reason.__context__ is not None:
        reason = reason.__cause__ or reason.__context__ or reason
    text = getattr(reason, "strerror", None) or reason_of(reason)
    return f"connection failed ({type(error).__name__}: {text})"


def pause(idle: int, at_least: float) -> None:
    """Wait longer from pass to pass, and not all waiters alike ("full jitter")."""
    limit = min(FIRST_PAUSE * 2**idle, LONGEST_PAUSE)
    time.sleep(max(at_least, random.uniform(0, limit)))  # noqa: S311 - no secret hangs on it


def is_http(url: str) -> bool:
    """Whether it is an address of the web."""
    return urlsplit(url).scheme in {"http", "https"}


def name_of(url: str) -> str:
    """A file's name in an address, for people."""
    return urlsplit(url).path.rsplit("/", 1)[-1] or "archive"


def shown(url: str) -> str:
    """An address without user, password and query, which may be secrets."""
    parts = urlsplit(url)
    host = parts.netloc.rsplit("@", 1)[-1]
    return f"{parts.scheme}://{host}{parts.path}" if parts.scheme else url
