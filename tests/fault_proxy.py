"""An HTTP proxy on 127.0.0.1: passes requests on, counts them, breaks those it is told to."""

import http.client
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

UPSTREAM_SECONDS = 60.0


class Fault(StrEnum):
    """What becomes of a request."""

    SLOW_DOWN = "slow down"  # 503, as S3 throttles
    INTERNAL = "internal"  # 500
    CUT = "cut"  # the connection closes without an answer
    CUT_ANSWER = "cut answer"  # it closes in the middle of the answer
    CUT_AFTER = "cut after"  # the server has done it, and the answer is lost
    STALL = "stall"  # nothing comes, until `release`
    DENIED = "denied"  # 403, as a bucket that was made read-only


@dataclass(frozen=True)
class Request:
    """A request as the proxy saw it."""

    method: str
    path: str
    """With its query."""

    @property
    def is_write(self) -> bool:
        return self.method in ("PUT", "POST", "DELETE")

    @property
    def is_listing(self) -> bool:
        return self.method == "GET" and "list-type=" in self.path


Plan = Callable[[Request], Fault | None]

CODES = {
    Fault.SLOW_DOWN: (503, "SlowDown"),
    Fault.INTERNAL: (500, "InternalError"),
    Fault.DENIED: (403, "AccessDenied"),
}


class FaultProxy:
    """What a test sees of the proxy."""

    def __init__(self, upstream: tuple[str, int]) -> None:
        self.upstream = upstream
        self.requests: list[Request] = []
        self.broken = 0
        """How many requests met a fault."""
        self.plan: Plan = lambda _: None
        self.released = threading.Event()
        self.port = 0
        self._lock = threading.Lock()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def fail_next(self, count: int, *faults: Fault) -> None:
        """The next `count` requests meet these faults in turn; the ones after them pass."""
        left = [faults[number % len(faults)] for number in range(count)]
        self.plan = lambda _: left.pop(0) if left else None

    def fail_always(self, fault: Fault) -> None:
        self.plan = lambda _: fault

    def heal(self) -> None:
        self.plan = lambda _: None

    def release(self) -> None:
        """Let the stalled connections go; they close."""
        self.released.set()

    def decide(self, request: Request) -> Fault | None:
        with self._lock:
            self.requests.append(request)
            fault = self.plan(request)
            self.broken += fault is not None
        return fault


@contextmanager
def running_proxy(upstream: tuple[str, int]) -> Iterator[FaultProxy]:
    """A proxy before `upstream` (host, port), on a free port."""
    proxy = FaultProxy(upstream)
    server = _Server(("127.0.0.1", 0), _handler_of(proxy))
    proxy.port = server.server_port
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        proxy.release()
        server.shutdown()
        server.server_close()
        thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def handle_error(self, *_: Any) -> None:
        """Clients of a broken connection leave early: no news."""


def _handler_of(proxy: FaultProxy) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            fault = proxy.decide(Request(self.command, self.path))
            match fault:
                case Fault.CUT:
                    self._cut()
                case Fault.STALL:
                    proxy.released.wait()
                    self._cut()
                case Fault.SLOW_DOWN | Fault.INTERNAL | Fault.DENIED:
                    code, name = CODES[fault]
                    error = f"<Error><Code>{name}</Code><Message>{fault}</Message></Error>"
                    self._send(code, [("Content-Type", "application/xml")], error.encode())
                case _:
                    self._forward(body, fault)

        do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _answer  # noqa: N815

        def _forward(self, body: bytes, fault: Fault | None) -> None:
            # `Host` goes on as it came: the signature covers it.
            upstream = http.client.HTTPConnection(*proxy.upstream, timeout=UPSTREAM_SECONDS)
            try:
                upstream.request(self.command, self.path, body, dict(self.headers.items()))
                answer = upstream.getresponse()
                content = answer.read()
            except (OSError, http.client.HTTPException):  # the server is down
                self._cut()
                return
            finally:
                upstream.close()
            if fault is Fault.CUT_AFTER:
                self._cut()
            else:
                half = len(content) // 2 if fault is Fault.CUT_ANSWER else None
                self._send(answer.status, answer.getheaders(), content, half)

        def _send(
            self, code: int, headers: list[tuple[str, str]], body: bytes, half: int | None = None
        ) -> None:
            self.send_response_only(code)
            length = str(len(body))
            for name, value in headers:
                if name.lower() == "content-length":
                    length = value  # of a HEAD: what a GET would send
                elif name.lower() not in ("transfer-encoding", "connection"):
                    self.send_header(name, value)
            self.send_header("Content-Length", length)
            self.end_headers()
            self.wfile.write(body[:half])
            if half is not None:
                self._cut()

        def _cut(self) -> None:
            self.close_connection = True
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)

        def log_message(self, *_: Any) -> None:
            """Say nothing."""

    return Handler
