"""A store that counts what it sends: files over HTTP, in ranges, as slow and as faulty as a test wants it."""

import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.utils import formatdate
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import quote, unquote

RANGE = re.compile(r"bytes=(\d+)-(\d+)")


@dataclass
class Served:
    """A server of a folder's files, and what it was asked."""

    folder: Path
    address: str = ""
    knows_ranges: bool = True
    delay_s: float = 0.0
    faults: list[int] = field(default_factory=list)  # statuses of the next answers; 0 sends half of one
    asked: list[str] = field(default_factory=list)  # "HEAD", or the range of a GET
    n_sent: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def ranges(self) -> list[tuple[int, int]]:
        """First and last byte of all ranges that were asked for."""
        found = [RANGE.fullmatch(asked) for asked in self.asked]
        return [(int(match[1]), int(match[2])) for match in found if match]

    def forget(self) -> None:
        """Count from zero."""
        self.asked, self.n_sent = [], 0


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def __init__(self, *args: object, served: Served) -> None:
        self.served = served
        super().__init__(*args)  # type: ignore[arg-type]

    def log_message(self, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.answer(is_head=True)

    def do_GET(self) -> None:
        self.answer(is_head=False)

    def answer(self, *, is_head: bool) -> None:
        served, path = self.served, self.served.folder / unquote(self.path.partition("?")[0]).strip("/")
        asked = RANGE.fullmatch(self.headers.get("Range", ""))
        with served.lock:
            served.asked.append("HEAD" if is_head else self.headers.get("Range", "all"))
            fault = served.faults.pop(0) if served.faults and not is_head else None
        time.sleep(served.delay_s)
        if fault or not path.is_file():
            self.plain(fault or (200 if path.is_dir() else 404), b"" if is_head or fault else self.page(path))
            return
        content, status = path.read_bytes(), path.stat()
        is_range = asked is not None and served.knows_ranges
        start, stop = (int(asked[1]), min(int(asked[2]) + 1, len(content))) if is_range else (0, len(content))
        self.send_response(206 if is_range else 200)
        self.send_header("Content-Length", str(stop - start))
        self.send_header("ETag", f'"{status.st_mtime_ns}-{len(content)}"')
        self.send_header("Last-Modified", formatdate(status.st_mtime, usegmt=True))
        if is_range:
            self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{len(content)}")
        self.end_headers()
        if is_head:
            return
        body = content[start : start + (stop - start) // 2] if fault == 0 else content[start:stop]
        with served.lock:
            served.n_sent += len(body)
        self.wfile.write(body)
        self.close_connection |= fault == 0

    def page(self, path: Path) -> bytes:
        """The files of a folder as links, as servers list them."""
        names = sorted(file.name for file in path.iterdir()) if path.is_dir() else []
        return "".join(f'<a href="{quote(name)}">{name}</a>\n' for name in names).encode()

    def plain(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Type", "text/html")
        self.end_headers()
        self.wfile.write(body)


@contextmanager
def serve(folder: Path) -> Iterator[Served]:
    """A server of a folder, until the block ends."""
    served = Served(folder)
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, served=served))
    server.daemon_threads = True
    served.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield served
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
