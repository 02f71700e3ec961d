"""A web server on this machine that can misbehave, and sets that it has."""

import contextlib
import hashlib
import io
import json
import re
import threading
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from histo_ssl.download.catalogue import RemoteFile


@dataclass
class Site:
    """What the server has, and how it answers."""

    address: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    takes_ranges: bool = True
    skips: int = 0  # bytes that it leaves out where it is asked for a range
    says_length: bool = True
    cut_after: list[int] = field(default_factory=list)  # bytes after which it hangs up, answer by answer
    asked: list[str] = field(default_factory=list)  # the ranges that were asked for, "" for the whole

    def remote(self, name: str, **changes: Any) -> RemoteFile:
        """A file of it, as a catalogue would list it."""
        return RemoteFile(**{**self.listed(name), **changes})

    def listed(self, name: str) -> dict[str, Any]:
        content = self.files[name]
        return {
            **{"name": name, "url": f"{self.address}/{name}", "n_bytes": len(content)},
            **{"md5": hashlib.md5(content).hexdigest(), "makes": "tiles"},
            **{"most_bytes": 1_000_000, "most_files": 100},
        }


def _handler(site: Site) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            content = site.files.get(self.path.lstrip("/"))
            if content is None:
                self.send_error(404)
                return
            site.asked.append(self.headers.get("Range", ""))
            asked = re.fullmatch(r"bytes=(\d+)-", site.asked[-1]) if site.takes_ranges else None
            start = int(asked[1]) + site.skips if asked else 0
            if start and start >= len(content):
                self.send_error(416)
                return
            self.send_response(206 if asked else 200)
            if asked:
                self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
            if site.says_length:
                self.send_header("Content-Length", str(len(content) - start))
            self.end_headers()
            stop = start + site.cut_after.pop(0) if site.cut_after else len(content)
            with contextlib.suppress(ConnectionError):  # who asked has hung up
                self.wfile.write(content[start:stop])

        def log_message(self, *_: Any) -> None:
            pass

    return Handler


@pytest.fixture
def site() -> Iterator[Site]:
    """A server on 127.0.0.1."""
    found = Site()
    with ThreadingHTTPServer(("127.0.0.1", 0), _handler(found)) as server:
        found.address = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield found
        server.shutdown()
        thread.join()


def zipped(files: Mapping[str, bytes]) -> bytes:
    """A zip archive, stored without compression."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return stream.getvalue()


@pytest.fixture
def make_zip() -> Callable[[Mapping[str, bytes]], bytes]:
    return zipped


@pytest.fixture
def write_catalogue(tmp_path: Path) -> Callable[..., Path]:
    """A function that writes a catalogue of one set named `tiny`."""

    def write(*files: Mapping[str, Any], **more: Any) -> Path:
        path = tmp_path / "catalogue.json"
        facts = {"about": "tiny", "source": "http://127.0.0.1", "files": files}
        path.write_text(json.dumps({"tiny": {**facts, **more}}))
        return path

    return write
