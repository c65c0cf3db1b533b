"""Downloads from a server that breaks off, stalls, forgets and lies."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from etstpm import download as module
from etstpm.download import Expected, download, shown
from etstpm.errors import DatasetError
from etstpm.settings import settings
from tests import archive_server as server
from tests.archive_server import Site

CONTENT = np.random.default_rng(0).bytes(400_000)
EXPECTED = Expected(hashlib.sha256(CONTENT).hexdigest(), len(CONTENT))


@pytest.fixture
def site() -> Iterator[Site]:
    with server.archive_server(CONTENT) as found:
        yield found


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FIRST_PAUSE", 0.001)
    monkeypatch.setenv("ETSTPM_ATTEMPTS", "4")
    monkeypatch.setenv("ETSTPM_STALL_SECONDS", "0.5")
    settings.cache_clear()


def fetch(tmp_path: Path, *urls: str, expected: Expected = EXPECTED) -> bytes:
    path = tmp_path / "archive.part"
    download(urls, path, expected)
    return path.read_bytes()


def refusal(tmp_path: Path, *urls: str) -> str:
    with pytest.raises(DatasetError) as caught:
        fetch(tmp_path, *urls)
    assert "\n" not in str(caught.value)
    assert "run the same command again" in str(caught.value)
    return str(caught.value)


def test_a_file_arrives_in_one_request(site: Site, tmp_path: Path) -> None:
    assert fetch(tmp_path, site.url("a.tar")) == CONTENT
    assert site.asked == [("/a.tar", 0)]


def test_a_size_that_is_not_known_is_no_hindrance(site: Site, tmp_path: Path) -> None:
    expected = Expected(EXPECTED.sha256)
    url = site.url("a.tar", server.cut_at_every_tenth)
    assert fetch(tmp_path, url, expected=expected) == CONTENT


def test_it_goes_on_where_it_broke_off(site: Site, tmp_path: Path) -> None:
    assert fetch(tmp_path, site.url("a.tar", server.cut_at_every_tenth)) == CONTENT
    starts = [start for _, start in site.asked]
    assert len(starts) == 10
    assert starts == sorted(set(starts))  # no byte is asked for twice


def test_it_goes_on_where_an_earlier_process_stopped(site: Site, tmp_path: Path) -> None:
    (tmp_path / "archive.part").write_bytes(CONTENT[:123_456])
    assert fetch(tmp_path, site.url("a.tar")) == CONTENT
    assert site.asked == [("/a.tar", 123_456)]


def test_what_has_arrived_whole_is_not_asked_for(site: Site, tmp_path: Path) -> None:
    (tmp_path / "archive.part").write_bytes(CONTENT)
    assert fetch(tmp_path, site.url("a.tar")) == CONTENT
    assert site.asked == []


@pytest.mark.parametrize("start", [CONTENT[:1000][::-1], bytes(len(CONTENT)), bytes(500_000)])
def test_a_wrong_beginning_is_thrown_away(site: Site, tmp_path: Path, start: bytes) -> None:
    (tmp_path / "archive.part").write_bytes(start)
    assert fetch(tmp_path, site.url("a.tar")) == CONTENT


def test_silence_is_a_broken_connection(site: Site, tmp_path: Path) -> None:
    assert fetch(tmp_path, site.url("a.tar", server.stall_half_way)) == CONTENT
    assert len(site.asked) > 2


def test_a_trickle_is_silence(site: Site, tmp_path: Path) -> None:
    urls = site.url("slow.tar", server.trickle), site.url("a.tar")
    assert fetch(tmp_path, *urls) == CONTENT


def test_a_server_without_ranges_begins_again(site: Site, tmp_path: Path) -> None:
    (tmp_path / "archive.part").write_bytes(CONTENT[:100_000])
    assert fetch(tmp_path, site.url("a.tar", server.without_ranges)) == CONTENT


def test_another_place_than_asked_for_is_not_appended(site: Site, tmp_path: Path) -> None:
    urls = site.url("odd.tar", server.another_place), site.url("a.tar")
    assert fetch(tmp_path, *urls) == CONTENT


@pytest.mark.parametrize("code", [404, 403, 429, 500, 503])
def test_an_error_may_pass(site: Site, tmp_path: Path, code: int) -> None:
    assert fetch(tmp_path, site.url("a.tar", server.status(code, times=2))) == CONTENT


def test_redirects_are_followed(site: Site, tmp_path: Path) -> None:
    target = site.url("target.tar", server.cut_at_every_tenth)
    assert fetch(tmp_path, site.url("a.tar", server.redirect(target))) == CONTENT


def test_mirrors_are_tried_in_order(site: Site, tmp_path: Path) -> None:
    urls = [
        site.url("gone.tar", server.status(404)),
        "http://127.0.0.1:1/refused.tar",
        site.url("page.tar", server.a_page),
        site.url("long.tar", server.longer_than_it_says),
        site.url("endless.tar", server.chunks_without_end),
        site.url("other.tar", server.another_file),
        site.url("a.tar"),
    ]
    assert fetch(tmp_path, *urls) == CONTENT
    asked = [path for path, _ in site.asked]
    assert list(dict.fromkeys(asked)) == [
        "/gone.tar",
        "/page.tar",
        "/long.tar",
        "/endless.tar",
        "/other.tar",
        "/a.tar",
    ]


def test_a_mirror_goes_on_where_another_broke_off(site: Site, tmp_path: Path) -> None:
    urls = [site.url("b.tar", server.cut_at_every_tenth), site.url("a.tar")]
    site.answers["/b.tar"] = lambda handler, content, start: (
        server.status(503)(handler, content, start)
        if start
        else server.cut_at_every_tenth(handler, content, start)
    )
    assert fetch(tmp_path, *urls) == CONTENT
    assert site.asked[-1] == ("/a.tar", len(CONTENT) // 10 + 1)


def test_a_lie_in_the_middle_costs_a_second_download(site: Site, tmp_path: Path) -> None:
    """Its beginning came from elsewhere: who had the wrong bytes is not known, so it is asked."""

    def lie(handler: server.Handler, content: bytes, start: int) -> None:
        if start:
            server.status(503)(handler, content, start)
        else:
            server.cut_at_every_tenth(handler, bytes(len(content)), start)

    assert fetch(tmp_path, site.url("lie.tar", lie), site.url("a.tar")) == CONTENT


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (server.status(404), "HTTP 404"),
        (server.status(503, wait="0"), "HTTP 503"),
        (server.a_page, "has another file (400000 bytes expected, 26 found)"),
        (server.longer_than_it_says, "has another file (400000 bytes expected, 401000 found)"),
        (server.chunks_without_end, "sends more than 400000 bytes"),
        (server.another_file, f"(SHA-256 {EXPECTED.sha256[:12]} expected, "),
    ],
)
def test_where_nobody_has_it_each_says_why(
    site: Site, tmp_path: Path, answer: server.Answer, message: str
) -> None:
    assert message in refusal(tmp_path, site.url("a.tar", answer))


def test_a_redirect_without_end(site: Site, tmp_path: Path) -> None:
    url = site.url("a.tar")
    site.answers["/a.tar"] = server.redirect(url)
    assert "redirects without end" in refusal(tmp_path, url)


def test_nobody_listens(tmp_path: Path) -> None:
    message = refusal(tmp_path, "http://127.0.0.1:1/a.tar")
    assert "http://127.0.0.1:1/a.tar: connection failed" in message
    assert "0x" not in message


def test_secrets_in_addresses_are_not_shown(site: Site, tmp_path: Path) -> None:
    url = site.url("a.tar?signature=hush", server.status(403)).replace("//", "//user:hush@")
    site.answers["/a.tar?signature=hush"] = server.status(403)
    message = refusal(tmp_path, url)
    assert "hush" not in message
    assert shown("s3://key:hush@bucket/a.tar") == "s3://bucket/a.tar"


def test_any_file_system_is_a_source(tmp_path: Path) -> None:
    import fsspec

    with fsspec.open("memory://mirror/a.tar", "wb") as file:
        file.write(CONTENT)
    (tmp_path / "archive.part").write_bytes(CONTENT[:1000])
    assert fetch(tmp_path, "memory://mirror/gone.tar", "memory://mirror/a.tar") == CONTENT


def test_waiting_grows_and_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FIRST_PAUSE", 1.0)
    slept: list[float] = []
    monkeypatch.setattr("time.sleep", slept.append)
    for idle in range(1, 9):
        for _ in range(50):
            module.pause(idle, 0.0)
    groups = [slept[i : i + 50] for i in range(0, 400, 50)]
    assert all(len(set(group)) == 50 for group in groups)
    assert all(
        limit / 2 < max(group) <= limit
        for group, limit in zip(groups, [2, 4, 8, 16, 32, 60, 60, 60], strict=True)
    )
    module.pause(1, 7.0)
    assert slept[-1] == 7.0
