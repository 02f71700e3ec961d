"""What the viewer does not answer: other hosts, other origins, paths, what is out of range, what writes."""

import base64
import hashlib
import re
import socket
from pathlib import Path

import pytest

from histo_ssl.viewer.answers import PAGE
from histo_ssl.viewer.guard import ITS_STYLE
from histo_ssl.viewer.server import Server

from .conftest import Site

TRAVERSALS = [
    "/../../../../etc/passwd",
    "/static/../guard.py",
    "/static/..%2f..%2fguard.py",
    "/static/%2e%2e/%2e%2e/guard.py",
    "/static//etc/passwd",
    "//etc/passwd",
    "/etc/passwd",
    "/static/..\\..\\guard.py",
    "/static/page.css/",
    "/static/page.css%00.js",
    "/static/",
    "/static",
    "/static/openseadragon.LICENSE.txt",
    "/static/index.html",
    "file:///etc/passwd",
    "http://127.0.0.1/etc/passwd",
    "/slide/../slide",
    "/?file=/etc/passwd",
    "/tile/%2e%2e/9/0_0.jpg",
]


@pytest.mark.parametrize("path", TRAVERSALS)
def test_no_address_is_a_path_of_a_file(site: Site, path: str) -> None:
    reply = site.ask(path)
    assert (reply.status, reply.body) == (404, b"there is nothing at this address\n")


def test_a_slide_is_not_to_be_had_by_its_path(site: Site) -> None:
    for shown in site.shelf.slides.values():
        path = shown.slide.path
        assert Path(path).is_file()
        for address in (path, f"/{path}", f"/tile/{path}/9/0_0.jpg", f"/slide/{path}", f"/api/{path}.json"):
            assert site.ask(address).status == 404


@pytest.mark.parametrize(
    "host",
    [
        *(
            "evil.example",
            "evil.example:80",
            "127.0.0.1.evil.example",
            "localhost.evil.example",
            "192.168.0.4",
        ),
        *("127.0.0.1:80:80", "127.0.0.1@evil.example", "0.0.0.0", "[::1]evil", "", "127.0.0.1/"),
    ],
)
def test_a_name_that_is_not_this_machine_is_refused(site: Site, host: str) -> None:
    for path in ("/", "/api/slides.json", "/static/page.css"):
        assert site.ask(path, Host=host).status == 403


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "LOCALHOST:8642", "127.0.0.1:9000"])
def test_this_machine_is_answered_at_any_port_so_that_tunnels_work(site: Site, host: str) -> None:
    assert site.ask("/", Host=host).status == 200


def test_a_request_of_no_host_or_of_two_is_refused(site: Site) -> None:
    for hosts in ("", "Host: localhost\r\nHost: evil.example\r\n"):
        with socket.create_connection(("127.0.0.1", site.server.server_port), timeout=10) as connection:
            connection.sendall(f"GET / HTTP/1.1\r\n{hosts}\r\n".encode())
            assert connection.recv(100).startswith(b"HTTP/1.1 403 ")


def test_pages_of_other_origins_are_refused(site: Site) -> None:
    port = site.server.server_port
    foreign = [
        "http://evil.example",
        "null",
        "http://localhost:3000",
        f"https://{site.host}",
        f"http://localhost:{port}",
    ]
    for origin in foreign:
        reply = site.ask("/api/slides.json", Origin=origin)
        assert reply.status == 403
        assert "Access-Control-Allow-Origin" not in reply.headers
    own = site.ask("/api/slides.json", Origin=f"http://{site.host}")
    assert own.status == 200
    assert "Access-Control-Allow-Origin" not in own.headers


def test_pictures_are_not_shown_on_pages_of_other_sites_but_links_are_followed(site: Site) -> None:
    shown = next(iter(site.shelf.slides.values()))
    tile = f"/tile/{shown.id}/9/0_0.jpg"
    image = {"Sec_Fetch_Mode": "no-cors", "Sec_Fetch_Dest": "image"}
    assert site.ask(tile, Sec_Fetch_Site="cross-site", **image).status == 403
    assert site.ask(tile, Sec_Fetch_Site="same-site", **image).status == 403
    assert site.ask(tile, Sec_Fetch_Site="same-origin", **image).status == 200
    frame = {"Sec_Fetch_Mode": "navigate", "Sec_Fetch_Dest": "iframe"}
    assert site.ask("/", Sec_Fetch_Site="cross-site", **frame).status == 403
    link = {"Sec_Fetch_Mode": "navigate", "Sec_Fetch_Dest": "document"}
    assert site.ask("/", Sec_Fetch_Site="cross-site", **link).status == 200


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "CONNECT", "BREW"])
def test_nothing_but_reading_is_allowed(site: Site, method: str) -> None:
    reply = site.ask("/", method=method)
    assert reply.status == 405
    assert reply.headers["Allow"] == "GET, HEAD"


def test_a_request_that_carries_something_is_refused_and_the_connection_closed(site: Site) -> None:
    reply = site.ask("/", body=b"GET /api/slides.json HTTP/1.1\r\n\r\n")
    assert (reply.status, reply.headers["Connection"]) == (400, "close")
    assert site.ask("/", Transfer_Encoding="chunked").status == 400


def test_tiles_beyond_a_slide_are_refused(site: Site) -> None:
    slide = site.slide("P01S1")
    mark, level = slide["id"], slide["maxLevel"]
    labels = site.layer(slide, "labels")
    assert site.ask(f"/tile/{mark}/{level}/2_2.jpg").status == 200
    beyond = [
        f"{level}/3_0",
        f"{level}/0_3",
        f"{level + 1}/0_0",
        "99/0_0",
        f"{level}/999999999_0",
        f"{level}/-1_0",
    ]
    beyond += [f"{level}/9999999999_0", f"{level}/0_0_0", f"{level}/1e3_0", f"{level}/٣_0", f"{level}/ 1_0"]
    for place in beyond:
        quoted = place.encode().decode("latin-1").replace(" ", "%20")
        assert site.ask(f"/tile/{mark}/{_ascii(quoted)}.jpg").status == 404, place
        assert site.ask(f"/layer/{mark}/{labels}/{_ascii(quoted)}.png").status == 404, place
    assert site.ask(f"/picture/{mark}/{labels}/999999.jpg").status == 404
    assert site.ask(f"/tile/{mark}/{level}/0_0.png").status == 404


def _ascii(text: str) -> str:
    """An address as a browser sends it: what is not ASCII in per cent."""
    return "".join(letter if ord(letter) < 128 else f"%{ord(letter):02X}" for letter in text)


def test_a_map_of_one_slide_is_not_to_be_had_at_another(site: Site) -> None:
    first, second = site.slide("P01S1"), site.slide("P02S1")
    attention = site.layer(first, "attention")
    assert site.ask(f"/api/{first['id']}/{attention}.json").status == 200
    assert site.ask(f"/api/{second['id']}/{attention}.json").status == 404
    assert site.ask(f"/api/{'0' * 10}.json").status == 404


def test_overlong_requests_are_refused(site: Site) -> None:
    assert site.ask("/" + "a" * 70_000).status == 414
    assert site.ask("/", X="a" * 70_000).status == 431


def test_every_answer_forbids_what_pages_of_ours_never_do(site: Site) -> None:
    for path in ("/", "/api/slides.json", "/static/page.css", "/nothing"):
        headers = site.ask(path).headers
        assert headers["Content-Security-Policy"].startswith("default-src 'self'; ")
        assert "unsafe" not in headers["Content-Security-Policy"]
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["X-Frame-Options"] == "DENY"
        assert headers["Cross-Origin-Resource-Policy"] == "same-origin"
        assert "Python" not in headers["Server"]


def test_the_one_style_that_is_allowed_in_a_page_is_openseadragons() -> None:
    (style,) = re.findall(
        r'o\.textContent="([^"]+)";document\.head', (PAGE / "openseadragon.min.js").read_text()
    )
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert f"sha256-{digest}" == ITS_STYLE


def test_a_slide_that_has_vanished_is_told_of_without_a_traceback_or_a_path(
    site: Site, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    shown = next(iter(site.shelf.slides.values()))
    monkeypatch.setattr(shown.slide, "path", "/nowhere/slide.tif")
    reply = site.ask(f"/tile/{shown.id}/{9}/1_0.jpg")
    assert reply.status == 404  # there is but one tile on that level
    reply = site.ask(f"/tile/{shown.id}/10/0_0.jpg")
    assert (reply.status, reply.body) == (500, b"this can't be read; the terminal says why\n")
    assert "/nowhere/slide.tif: there is no such file" in caplog.text


def test_a_port_that_is_taken_is_told_in_a_sentence(site: Site) -> None:
    port = site.server.server_port
    with pytest.raises(ValueError, match=rf"port {port} can't be had \(.*\); give another with --port, or 0"):
        Server(site.server.answers, port=port)


def test_only_this_machine_is_listened_to(site: Site) -> None:
    assert site.server.server_address[0] == "127.0.0.1"
