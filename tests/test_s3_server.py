"""The S3 server of the tests, and its proxy, do what their users lean on."""

import urllib.error
import urllib.request
from pathlib import Path

import fsspec
import pytest
from botocore.exceptions import EndpointConnectionError

from tests.fault_proxy import Fault, FaultProxy
from tests.s3_server import BUCKET, S3, running_s3_server, s3_environment


def file_system(s3: S3) -> fsspec.AbstractFileSystem:
    return fsspec.filesystem(
        "s3",
        client_kwargs={"endpoint_url": s3.endpoint},
        skip_instance_cache=True,
        config_kwargs={"retries": {"max_attempts": 0}},
    )


def test_the_environment_is_all_that_s3fs_needs(s3: S3) -> None:
    with fsspec.open(f"{s3.uri}/a/b.txt", "wb") as file:
        file.write(b"there")
    assert file_system(s3).cat_file(f"{s3.uri}/a/b.txt") == b"there"
    assert "secret" not in repr(s3)


def test_bulk_delete_is_refused_and_single_delete_works(s3: S3) -> None:
    """As by other S3-compatible stores; the product deletes one by one."""
    fs = file_system(s3)
    fs.pipe_file(f"{s3.uri}/a", b"1")
    with pytest.raises(OSError, match="MissingContentMD5"):
        fs.rm(f"{s3.uri}/a", recursive=True)
    fs.rm_file(f"{s3.uri}/a")
    assert fs.find(s3.uri) == []


def test_the_proxy_passes_and_counts(faulty_s3: S3, s3_proxy: FaultProxy) -> None:
    fs = file_system(faulty_s3)
    content = bytes(range(256)) * 40_000
    fs.pipe_file(f"{faulty_s3.uri}/big", content)
    assert fs.cat_file(f"{faulty_s3.uri}/big") == content
    assert fs.find(faulty_s3.uri) == [f"{faulty_s3.uri}/big".removeprefix("s3://")]
    methods = [request.method for request in s3_proxy.requests]
    assert methods[0] == "PUT"
    assert "GET" in methods
    assert any(request.is_listing for request in s3_proxy.requests)
    assert s3_proxy.broken == 0


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        (Fault.SLOW_DOWN, 503),
        (Fault.INTERNAL, 500),
        (Fault.DENIED, 403),
        (Fault.CUT, None),
        (Fault.CUT_AFTER, None),
    ],
)
def test_the_proxy_breaks_what_it_is_told_to(
    fault: Fault, expected: int | None, faulty_s3: S3, s3_proxy: FaultProxy
) -> None:
    s3_proxy.fail_next(1, fault)
    url = f"{faulty_s3.endpoint}/minio/health/live"
    with pytest.raises(OSError, match=r".") as caught:
        urllib.request.urlopen(url, timeout=10)  # noqa: S310
    assert getattr(caught.value, "code", None) == expected
    if isinstance(caught.value, urllib.error.HTTPError):
        caught.value.close()
    with urllib.request.urlopen(url, timeout=10) as answer:  # noqa: S310
        assert answer.status == 200
    assert s3_proxy.broken == 1


def test_a_killed_server_comes_back_with_what_it_had(tmp_path: Path) -> None:
    with running_s3_server(tmp_path) as server:
        place = S3(f"s3://{BUCKET}/x", s3_environment(server.endpoint, tmp_path))
        with pytest.MonkeyPatch.context() as patch:
            for name, value in place.environment.items():
                patch.setenv(name, value)
            fs = file_system(place)
            fs.pipe_file(f"{place.uri}/kept", b"kept")
            server.kill()
            with pytest.raises(EndpointConnectionError):
                fs.cat_file(f"{place.uri}/kept")
            server.start()
            assert fs.cat_file(f"{place.uri}/kept") == b"kept"
