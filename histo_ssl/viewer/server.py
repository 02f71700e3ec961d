"""The server: on the local address, read-only, one thread for each connection of the browser."""

import errno
import hashlib
import logging
import sys
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from histo_ssl.viewer.answers import Answer, Answers
from histo_ssl.viewer.guard import SECURITY, refusal
from histo_ssl.viewer.pyramid import NotThereError

log = logging.getLogger(__name__)

HOST = "127.0.0.1"
IDLE_S = 60  # after which a connection that asks for nothing is closed
KEPT_S = 600  # a browser may keep a tile, whose address changes with its file
TEXT = "text/plain; charset=utf-8"
ALLOWED = "GET, HEAD"


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"  # connections are kept, so that a view of many tiles opens few
    server_version, sys_version = "histo_ssl", ""
    timeout = IDLE_S
    server: "Server"

    def do_GET(self) -> None:
        """Answer with a body."""
        self._answer()

    def do_HEAD(self) -> None:
        """Answer without one."""
        self._answer()

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:  # noqa: ARG002
        """Refuse what http.server itself refuses: other methods, and requests that are none."""
        is_method = code == HTTPStatus.NOT_IMPLEMENTED
        status = HTTPStatus.METHOD_NOT_ALLOWED if is_method else HTTPStatus(code)
        self.close_connection = True  # what follows may be the body of what was refused
        self._send(_text(status, status.phrase), {"Allow": ALLOWED} if is_method else {})

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing of requests that went well; http.server would, of each tile."""

    def _answer(self) -> None:
        refused = refusal(self.headers)
        if refused:
            self.close_connection = True
            self._send(_text(*refused), {})
            return
        answer = self._found()
        if not answer.is_kept:
            self._send(answer, {"Cache-Control": "no-store"})
            return
        mark = f'"{hashlib.sha256(answer.body).hexdigest()[:20]}"'
        kept = {"Cache-Control": f"private, max-age={KEPT_S}", "ETag": mark}
        if self.headers.get("If-None-Match") == mark:
            answer = Answer(body=b"", kind=answer.kind, status=HTTPStatus.NOT_MODIFIED)
        self._send(answer, kept)

    def _found(self) -> Answer:
        try:
            return self.server.answers.of(self.path)
        except NotThereError:
            return _text(HTTPStatus.NOT_FOUND, "there is nothing at this address")
        except (ValueError, OSError) as error:
            log.warning("view: %s", error)
            return _text(HTTPStatus.INTERNAL_SERVER_ERROR, "this can't be read; the terminal says why")

    def _send(self, answer: Answer, headers: dict[str, str]) -> None:
        self.send_response(answer.status)
        for name, value in {**SECURITY, **headers}.items():
            self.send_header(name, value)
        if answer.status != HTTPStatus.NOT_MODIFIED:
            self.send_header("Content-Type", answer.kind)
            self.send_header("Content-Length", str(len(answer.body)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer.body)


class Server(ThreadingHTTPServer):
    """Answers of a shelf at a port of this machine.

    Raises:
        OSError: the port is taken; its text is a sentence.
    """

    daemon_threads = True  # connections that wait don't keep the program from ending
    request_queue_size = 64

    def __init__(self, answers: Answers, *, port: int) -> None:
        self.answers = answers
        try:
            super().__init__((HOST, port), Handler)
        except OSError as error:
            if error.errno not in (errno.EADDRINUSE, errno.EACCES):
                raise
            raise ValueError(
                f"port {port} can't be had ({error.strerror}); give another with --port, or 0 for any"
            ) from error

    @property
    def address(self) -> str:
        """Of the first page."""
        return f"http://{HOST}:{self.server_port}/"

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002
        """Tell of what went wrong in a thread, unless the browser has just gone."""
        is_expected = isinstance(sys.exc_info()[1], ConnectionError | TimeoutError)
        if not (is_expected or self.answers.is_closed):
            log.error("view: a request failed", exc_info=True)


def _text(status: HTTPStatus, words: str) -> Answer:
    return Answer(body=f"{words}\n".encode(), kind=TEXT, status=status)
