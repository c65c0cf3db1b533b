"""A loopback HTTP server that knows ranges, and lies when it is told to."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

Answer = Callable[["Handler", bytes, int], None]


@dataclass
class Site:
    """What lies at each path, how it is served, and who has asked for what."""

    address: str
    content: bytes
    answers: dict[str, Answer] = field(default_factory=dict)
    asked: list[tuple[str, int]] = field(default_factory=list)
    """Path and first byte of each request."""

    def url(self, path: str, answer: Answer | None = None) -> str:
        """An address at which the archive is served in this way."""
        self.answers[f"/{path}"] = answer or serve
        return f"{self.address}/{path}"


class Handler(BaseHTTPRequestHandler):
    """Looks up how the path is to be answered."""

    site: Site

    def do_GET(self) -> None:
        wanted = self.headers.get("Range")
        start = int(wanted.removeprefix("bytes=").split("-")[0]) if wanted else 0
        self.site.asked.append((self.path, start))
        self.close_connection = True
        with suppress(BrokenPipeError, ConnectionResetError):  # the client has had enough
            self.site.answers[self.path](self, self.site.content, start)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass

    def begin(self, content: bytes, start: int, total: int | None = None) -> None:
        """Status and headers of a whole answer, or of its end from byte `start`."""
        total = len(content) if total is None else total
        if start:
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{total - 1}/{total}")
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(total - start))
        self.end_headers()


def serve(handler: Handler, content: bytes, start: int) -> None:
    """As it should be."""
    if start >= len(content):
        handler.send_error(416)
        return
    handler.begin(content, start)
    handler.wfile.write(content[start:])


def cut_at_every_tenth(handler: Handler, content: bytes, start: int) -> None:
    """The connection breaks whenever another tenth of the file has been sent."""
    handler.begin(content, start)
    handler.wfile.write(content[start : start + len(content) // 10 + 1])


def stall_half_way(handler: Handler, content: bytes, start: int) -> None:
    """Of the first half a quarter, then silence; the second half whole."""
    handler.begin(content, start)
    if start > len(content) // 2:
        handler.wfile.write(content[start:])
        return
    handler.wfile.write(content[start : start + len(content) // 4])
    handler.wfile.flush()
    time.sleep(1.5)


def slowly(handler: Handler, content: bytes, start: int) -> None:
    """In twenty pieces, so that there is time to kill who listens."""
    handler.begin(content, start)
    size = len(content) // 20 + 1
    for place in range(start, len(content), size):
        handler.wfile.write(content[place : place + size])
        handler.wfile.flush()
        time.sleep(0.01)


def trickle(handler: Handler, content: bytes, start: int) -> None:
    """A byte now and then: never silent, and never done."""
    handler.begin(content, start)
    for place in range(start, len(content)):
        handler.wfile.write(content[place : place + 1])
        handler.wfile.flush()
        time.sleep(0.1)


def without_ranges(handler: Handler, content: bytes, start: int) -> None:
    """The whole file, whatever was asked for."""
    serve(handler, content, 0 * start)


def longer_than_it_says(handler: Handler, content: bytes, start: int) -> None:
    """More bytes than announced, and than there are."""
    handler.begin(content, start, len(content) + 1000)
    handler.wfile.write(content[start:] + bytes(1000))


def chunks_without_end(handler: Handler, content: bytes, start: int) -> None:
    """No length, and more than there is."""
    handler.send_response(200)
    handler.end_headers()
    while True:
        handler.wfile.write(content[start:] + content)


def another_file(handler: Handler, content: bytes, start: int) -> None:
    """The right length, other bytes."""
    serve(handler, bytes(len(content)), start)


def a_page(handler: Handler, content: bytes, start: int) -> None:
    """What a portal shows instead of the file, with status 200."""
    serve(handler, b"<html>Please log in</html>", 0 * (start + len(content)))


def another_place(handler: Handler, content: bytes, start: int) -> None:
    """Goes on, but not from where it was asked to."""
    if not start:
        cut_at_every_tenth(handler, content, start)
        return
    handler.send_response(206)
    handler.send_header("Content-Range", f"bytes 0-{len(content) - 1}/{len(content)}")
    handler.send_header("Content-Length", str(len(content)))
    handler.end_headers()
    handler.wfile.write(content)


def status(code: int, *, times: int = 10**9, wait: str | None = None) -> Answer:
    """An error so many times, then the file."""
    left = [times]

    def answer(handler: Handler, content: bytes, start: int) -> None:
        left[0] -= 1
        if left[0] < 0:
            serve(handler, content, start)
            return
        handler.send_response(code)
        if wait is not None:
            handler.send_header("Retry-After", wait)
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    return answer


def redirect(url: str) -> Answer:
    """Elsewhere."""

    def answer(handler: Handler, _: bytes, __: int) -> None:
        handler.send_response(302)
        handler.send_header("Location", url)
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    return answer


@contextmanager
def archive_server(content: bytes) -> Iterator[Site]:
    """Serve `content` on a free port of this machine."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    site = Site(f"http://127.0.0.1:{server.server_port}", content)
    Handler.site = site
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield site
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
