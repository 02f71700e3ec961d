"""Debian's Chromium without a window, driven over its DevTools protocol."""

import asyncio
import base64
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import aiohttp

NAMES = ("chromium", "chromium-browser", "google-chrome")
START_S, ANSWER_S = 60.0, 60.0


def chromium() -> str | None:
    """Path of a Chromium on this machine."""
    return next((found for name in NAMES if (found := shutil.which(name))), None)


class Chromium:
    """One page. What its console says of errors and warnings, and requests that fail, are kept."""

    def __init__(self, program: str, folder: Path) -> None:
        self.complaints: list[str] = []
        self._loop = asyncio.new_event_loop()
        options = [
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--no-first-run",
        ]
        options += ["--remote-debugging-port=0", f"--user-data-dir={folder}", "about:blank"]
        self._process = subprocess.Popen(
            [program, *options], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        self._n_sent, self._answers = 0, dict[int, dict[str, Any]]()
        self._loop.run_until_complete(self._connect(folder / "DevToolsActivePort"))
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        self._loop.run_until_complete(self._disconnect())
        self._loop.close()
        self._process.terminate()
        self._process.wait(30)

    def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        """What the browser answers to a command."""
        return self._loop.run_until_complete(self._asked(method, parameters))

    def value(self, script: str) -> Any:
        """What a script comes to, once what it promises is there."""
        found = self.send("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def wait_for(self, script: str, *, within_s: float = 30.0) -> None:
        """Return when a script comes to something true."""
        give_up_at = time.monotonic() + within_s
        while not self.value(f"Boolean({script})"):
            assert time.monotonic() < give_up_at, f"not within {within_s} s: {script}"
            time.sleep(0.02)

    def open(self, address: str, *, width: int, height: int, is_still: bool = True) -> None:
        """Show a page in a window of that size, for a person who wants little motion where it `is_still`."""
        size: Mapping[str, Any] = {
            "width": width,
            "height": height,
            "deviceScaleFactor": 1,
            "mobile": width < 600,
        }
        self.send("Emulation.setDeviceMetricsOverride", **size)
        motion = {"name": "prefers-reduced-motion", "value": "reduce" if is_still else ""}
        self.send("Emulation.setEmulatedMedia", features=[motion])
        self.send("Page.navigate", url=address)
        self.wait_for(f"location.href === {address!r} && document.readyState === 'complete'")

    def mouse(self, kind: str, x: float, y: float, **more: Any) -> None:
        """A mouse event of kind moved, pressed, released or wheel."""
        name = "mouseWheel" if kind == "wheel" else f"mouse{kind.capitalize()}"
        self.send("Input.dispatchMouseEvent", type=name, x=x, y=y, **more)

    def key(self, key: str) -> None:
        """Press a key and let go of it."""
        codes = {"Enter": 13, "ArrowRight": 39, "ArrowDown": 40, "ArrowLeft": 37, "ArrowUp": 38, "Tab": 9}
        named = {"key": key, "windowsVirtualKeyCode": codes.get(key, ord(key[0].upper()))}
        text = {} if key in codes else {"text": key}
        self.send("Input.dispatchKeyEvent", type="keyDown", **named, **text)
        self.send("Input.dispatchKeyEvent", type="keyUp", **named)

    def screenshot(self, path: Path) -> None:
        """What is seen, as a PNG."""
        path.write_bytes(base64.b64decode(self.send("Page.captureScreenshot")["data"]))

    async def _connect(self, said: Path) -> None:
        give_up_at = time.monotonic() + START_S
        while not (said.is_file() and said.read_text().count("\n")):
            assert time.monotonic() < give_up_at, "Chromium does not start"
            await asyncio.sleep(0.05)
        port = said.read_text().split()[0]
        self._session = aiohttp.ClientSession()
        async with self._session.get(f"http://127.0.0.1:{port}/json/list") as answer:
            (page,) = [one for one in await answer.json() if one["type"] == "page"]
        self._socket = await self._session.ws_connect(page["webSocketDebuggerUrl"], max_msg_size=0)

    async def _disconnect(self) -> None:
        await self._socket.close()
        await self._session.close()

    async def _asked(self, method: str, parameters: Mapping[str, Any]) -> dict[str, Any]:
        self._n_sent += 1
        number = self._n_sent
        await self._socket.send_json({"id": number, "method": method, "params": parameters})
        while True:
            message = await asyncio.wait_for(self._socket.receive_json(), ANSWER_S)
            if message.get("id") == number:
                assert "error" not in message, message["error"]
                found: dict[str, Any] = message["result"]
                return found
            self._note(message)

    def _note(self, event: dict[str, Any]) -> None:
        content = event.get("params", {})
        if event.get("method") == "Runtime.exceptionThrown":
            self.complaints.append(str(content["exceptionDetails"]))
        elif event.get("method") == "Runtime.consoleAPICalled" and content["type"] in ("error", "warning"):
            words = str(content["args"])
            if (
                "loaded before reset" not in words
            ):  # OpenSeadragon on a tile whose map was switched off meanwhile
                self.complaints.append(words)
        elif event.get("method") == "Log.entryAdded" and content["entry"]["level"] in ("error", "warning"):
            self.complaints.append(str(content["entry"]))
        elif event.get("method") == "Network.responseReceived" and content["response"]["status"] >= 400:
            self.complaints.append(f"{content['response']['status']} {content['response']['url']}")


@contextmanager
def browser(folder: Path) -> Iterator[Chromium]:
    """A Chromium that ends with the block."""
    program = chromium()
    assert program is not None
    with Chromium(program, folder) as started:
        yield started
