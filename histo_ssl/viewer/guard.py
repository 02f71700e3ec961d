"""Who is answered: a browser on this machine that shows a page of ours, and asks for nothing else.

The address is local, but every page that the browser has open can send requests to it. So a request must name
this machine as its host (a name that a stranger's server rebinds to 127.0.0.1 is not ours), must not come
from a page of another origin, and must carry nothing.
"""

import re
from collections.abc import Mapping
from http import HTTPStatus
from typing import Protocol

LOCAL = re.compile(r"(localhost|127\.0\.0\.1)(:[0-9]{1,5})?", re.IGNORECASE)
FROM_US = ("same-origin", "none")  # of Sec-Fetch-Site; none: typed, or a bookmark
# Of the one rule of style that OpenSeadragon adds to a page (no outline of the focus where nothing hovers).
ITS_STYLE = "sha256-9xTiqzfwFaL2SGb1rmr8gysEwVVjIvqWAgmZgqFqpEE="
SECURITY: Mapping[str, str] = {
    "Content-Security-Policy": f"default-src 'self'; style-src 'self' '{ITS_STYLE}'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'; object-src 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


class Headers(Protocol):
    """Of a request, by name whatever its capitals."""

    def get_all(self, name: str) -> list[str] | None:
        """All that were sent under a name."""


def refusal(headers: Headers) -> tuple[HTTPStatus, str] | None:
    """Why a request is not answered; None where it is."""
    hosts = headers.get_all("Host") or []
    if len(hosts) != 1 or not LOCAL.fullmatch(hosts[0].strip()):
        return HTTPStatus.FORBIDDEN, "only localhost and 127.0.0.1 are answered as hosts"
    origins = headers.get_all("Origin") or []
    if any(origin.strip().lower() != f"http://{hosts[0].strip().lower()}" for origin in origins):
        return HTTPStatus.FORBIDDEN, "pages of other origins are not answered"
    if not _is_from_us(headers):
        return HTTPStatus.FORBIDDEN, "pages of other sites are not answered"
    lengths = headers.get_all("Content-Length") or []
    if headers.get_all("Transfer-Encoding") or any(length.strip() != "0" for length in lengths):
        return HTTPStatus.BAD_REQUEST, "a request that carries nothing is expected"
    return None


def _is_from_us(headers: Headers) -> bool:
    """Whether a page of ours asks, as far as the browser says; a link to us may stand on any page."""
    sites = headers.get_all("Sec-Fetch-Site") or []
    is_link = headers.get_all("Sec-Fetch-Mode") == ["navigate"] and headers.get_all("Sec-Fetch-Dest") == [
        "document"
    ]
    return is_link or all(site in FROM_US for site in sites)
