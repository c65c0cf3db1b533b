"""What passes by itself, and patience with it."""

import logging
import random
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

from etstpm.errors import reason_of

Result = TypeVar("Result")

FIRST_PAUSE = 0.25
LONGEST_PAUSE = 15.0
THROTTLED = 429
SERVER_FAULTS = 500

# By name, since importing botocore and aiohttp takes half a second that a local store has not to
# pay. Each is a connection that broke, could not be made, or stalled.
TRANSIENT_NAMES = frozenset(
    {
        *("EndpointConnectionError", "ConnectionClosedError", "ConnectTimeoutError"),
        *("ReadTimeoutError", "HTTPClientError", "ResponseStreamingError", "IncompleteReadError"),
        *("ClientPayloadError", "ClientOSError", "ServerDisconnectedError", "IncompleteRead"),
        *("FSTimeoutError", "ClientConnectionError", "ClientConnectorError"),
    }
)
# Codes that come with status 4xx, and without fault of the request.
TRANSIENT_CODES = frozenset(
    {
        *("SlowDown", "Throttling", "ThrottlingException", "RequestTimeout", "RequestThrottled"),
        *("RequestLimitExceeded", "BandwidthLimitExceeded", "OperationAborted"),
        *("XAmzContentSHA256Mismatch", "BadDigest", "IncompleteBody"),
    }
)

_log = logging.getLogger("etstpm.storage")
_jitter = random.SystemRandom()


def persist(operation: Callable[[], Result], what: str, patience: float) -> Result:
    """The operation's result, tried again for `patience` seconds while its fault is transient.

    Pauses grow twofold, each drawn between half and whole, so that a fleet which failed together
    does not come back together. A fault that stays is raised as it came.
    """
    started, pause = time.monotonic(), FIRST_PAUSE
    while True:
        try:
            return operation()
        except Exception as error:
            wait = _jitter.uniform(pause / 2, pause)
            left = patience - (time.monotonic() - started) - wait
            if left < 0 or not is_transient(error):
                raise
            _log.warning(
                "%s (%s: %s); trying again in %.1f s, for %.0f s more",
                *(what, type(error).__name__, reason_of(error), wait, left),
            )
        time.sleep(wait)
        pause = min(2 * pause, LONGEST_PAUSE)


def is_transient(error: BaseException) -> bool:
    """Whether trying again may help: a broken or stalled connection, throttling, a 5xx."""
    for cause in _chain(error):
        response = getattr(cause, "response", None)  # botocore's ClientError has the answer
        if isinstance(response, dict):
            status = response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
            code = response.get("Error", {}).get("Code")
            return status >= SERVER_FAULTS or status == THROTTLED or code in TRANSIENT_CODES
        if isinstance(cause, ConnectionError | TimeoutError):
            return True
        if any(kind.__name__ in TRANSIENT_NAMES for kind in type(cause).__mro__):
            return True
    return False


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error and what it was raised from."""
    cause: BaseException | None = error
    for _ in range(8):
        if cause is None:
            return
        yield cause
        cause = cause.__cause__
