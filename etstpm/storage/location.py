"""From a URI to a file system. Endpoint and credentials come from the environment alone.

AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_ENDPOINT_URL, AWS_PROFILE and their like are read by
botocore itself; nothing of them passes through this project, so that nothing can be written down.
"""

import os
from typing import Any

import fsspec

from etstpm.errors import StorageError, has_credentials
from etstpm.settings import settings

S3 = ("s3", "s3a")
PART_BYTES = 16 * 2**20
"""A file of twice this size goes up in parts, several at a time, each tried again by itself."""


def open_location(uri: str) -> tuple[Any, str]:
    """The file system of a URI and the path in it. Raises `StorageError`."""
    if not uri:  # `--store "$UNSET"` would be the working directory
        raise StorageError(
            "store '' is no place; give a folder or a URI such as s3://bucket/prefix"
        )
    if has_credentials(uri):
        raise StorageError(
            f"store {uri!r} carries credentials, which would end up in logs and tables; leave them "
            "out and set them in the environment (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or "
            "AWS_PROFILE)"
        )
    protocol = uri.partition("://")[0] if "://" in uri else "file"
    try:
        fs, root = fsspec.core.url_to_fs(uri, **(_s3_options() if protocol in S3 else {}))
    except (ValueError, ImportError, OSError) as error:
        raise StorageError(
            f"store {uri!r} is not a place that fsspec knows ({error}); give a folder or a URI "
            "such as s3://bucket/prefix"
        ) from error
    if protocol in S3:
        # The store has retries of its own, with a deadline and a line for the person who waits.
        # s3fs's five, each with botocore's, would multiply them.
        fs.retries = 1
    return fs, root.rstrip("/")


def is_s3(fs: Any) -> bool:
    """Whether a file system is s3fs's."""
    protocols = (fs.protocol,) if isinstance(fs.protocol, str) else fs.protocol
    return "s3" in protocols


def _s3_options() -> dict[str, Any]:
    """Explicit, so that fsspec's cache of file systems tells two endpoints apart."""
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    timeout = settings().store_timeout
    return {
        "use_listings_cache": False,  # other runs write here too
        "client_kwargs": {"endpoint_url": endpoint} if endpoint else {},
        "config_kwargs": {
            # A part of a large upload is tried again by itself, with backoff and jitter.
            "retries": {"mode": "standard", "total_max_attempts": 3},
            "connect_timeout": min(timeout, 10.0),
            "read_timeout": timeout,
        },
    }
