"""A headless Chromium, driven by its own protocol (CDP): opens pages, runs scripts, points and clicks."""

import asyncio
import base64
import contextlib
import itertools
import json
import shutil
import subprocess
import time
from collections.abc import Coroutine, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import aiohttp

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"),
    *("--no-first-run", "--disable-extensions", "--disable-background-networking", "--mute-audio"),
    *("--remote-debugging-port=0", "about:blank"),
)
BAD_STATUS = 400  # of an answer to a request, from which on
START_S, ANSWER_S, LOOK_S = 60.0, 60.0, 0.05


def executable() -> str | None:
    """Path of a Chromium, if this machine has one."""
    return next((path for path in map(shutil.which, NAMES) if path), None)


class Browser:
    """One tab. Used as `with Browser(folder) as browser`; the folder, an empty one, holds its profile."""

    def __init__(self, profile: Path) -> None:
        program = executable()
        assert program, f"no Chromium on this machine; looked for {', '.join(NAMES)}"
        self.errors: list[str] = []  # of the console, of scripts and of what the page's policy refused
        self._numbers, self._events = itertools.count(1), list[dict[str, Any]]()
        self._profile, self._loop = profile, asyncio.new_event_loop()
        self._process = subprocess.Popen(
            [program, f"--user-data-dir={profile}", *FLAGS],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def __enter__(self) -> "Browser":
        try:
            self._wait(self._connect())
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._wait(self._disconnect())
        finally:
            self._end()

    def open(
        self,
        address: str,
        *,
        width: int = 1440,
        height: int = 2000,
        is_mobile: bool = False,
        is_still: bool = False,
    ) -> None:
        """Load a page in a window of this size, in CSS px, and wait until it is loaded; errors start anew.

        Where it `is_still`, for a person who wants little motion.
        """
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": is_mobile}
        self.call("Emulation.setDeviceMetricsOverride", **size)
        motion = {"name": "prefers-reduced-motion", "value": "reduce" if is_still else ""}
        self.call("Emulation.setEmulatedMedia", features=[motion])
        for url in ("about:blank", address):
            self._events.clear()
            self.errors.clear()
            failed = self.call("Page.navigate", url=url).get("errorText")
            assert not failed, f"{url}: {failed}"
            self._wait(self._until("Page.loadEventFired"))

    def evaluate(self, script: str) -> Any:
        """Value of a JavaScript expression, by JSON; of a promise what it resolves to."""
        words = {"expression": script, "returnByValue": True, "awaitPromise": True}
        answer = self.call("Runtime.evaluate", **words)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def wait_for(self, script: str, *, within_s: float = 30.0) -> None:
        """Return when a JavaScript expression comes to something true."""
        give_up_at = time.monotonic() + within_s
        while not self.evaluate(f"Boolean({script})"):
            assert time.monotonic() < give_up_at, f"not within {within_s} s: {script}"
            time.sleep(0.02)

    def frame(self) -> None:
        """Wait until what was changed is drawn."""
        self.evaluate(
            "new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => done(1))))"
        )

    def move(self, x: float, y: float) -> None:
        """Point at a place of the window, CSS px."""
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
        self.frame()

    def click(self, x: float, y: float) -> None:
        """Press and release the left button there."""
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)
        self.frame()

    def mouse(self, kind: str, x: float, y: float, **more: Any) -> None:
        """A bare mouse event: moved, pressed, released or wheel; nothing is waited for."""
        name = "mouseWheel" if kind == "wheel" else f"mouse{kind.capitalize()}"
        self.call("Input.dispatchMouseEvent", type=name, x=x, y=y, **more)

    def key(self, key: str) -> None:
        """Press a key and let go of it; nothing is waited for."""
        codes = {"Enter": 13, "ArrowRight": 39, "ArrowDown": 40, "ArrowLeft": 37, "ArrowUp": 38, "Tab": 9}
        named = {"key": key, "windowsVirtualKeyCode": codes.get(key, ord(key[0].upper()))}
        text = {} if key in codes else {"text": key}
        self.call("Input.dispatchKeyEvent", type="keyDown", **named, **text)
        self.call("Input.dispatchKeyEvent", type="keyUp", **named)

    def press(self, key: str, *, code: int = 0) -> None:
        """Press and release a key, by its name as in `KeyboardEvent.key`, and its key code."""
        for kind in ("rawKeyDown", "char", "keyUp"):
            text = {"text": "\r"} if key == "Enter" and kind == "char" else {}
            if kind != "char" or text:
                words = {"key": key, "code": key, "windowsVirtualKeyCode": code}
                self.call("Input.dispatchKeyEvent", type=kind, **words, **text)
        self.frame()

    def screenshot(self, path: Path, *, size: tuple[int, int] | None = None) -> Path:
        """What is seen as a PNG, or the page from its top, of a width and a height."""
        if size:
            words = {"width": size[0], "height": size[1], "deviceScaleFactor": 1, "mobile": False}
            self.call("Emulation.setDeviceMetricsOverride", **words)
        self.frame()
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))
        return path

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """The answer to a command of the protocol."""
        answer: dict[str, Any] = self._wait(self._call(method, parameters))
        return answer

    def _wait(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self._loop.run_until_complete(asyncio.wait_for(work, ANSWER_S))

    async def _connect(self) -> None:
        port = (await self._port()).splitlines()[0]
        self._session = aiohttp.ClientSession()
        async with self._session.get(f"http://127.0.0.1:{port}/json/list") as answer:
            pages = [page for page in await answer.json() if page["type"] == "page"]
        self._socket = await self._session.ws_connect(pages[0]["webSocketDebuggerUrl"], max_msg_size=0)
        for domain in ("Page", "Runtime", "Log", "Network"):
            await self._call(f"{domain}.enable", {})

    async def _port(self) -> str:
        """What Chromium writes once it listens."""
        path, end = self._profile / "DevToolsActivePort", time.monotonic() + START_S
        while time.monotonic() < end:
            with contextlib.suppress(FileNotFoundError):
                if "\n" in (text := path.read_text()):
                    return text
            await asyncio.sleep(LOOK_S)
        raise TimeoutError(f"{self._process.args}: not ready after {START_S} s")

    async def _call(self, method: str, parameters: dict[str, Any]) -> dict[str, Any]:
        number = next(self._numbers)
        await self._socket.send_json({"id": number, "method": method, "params": parameters})
        while (message := await self._message()).get("id") != number:
            pass
        assert "error" not in message, f"{method}: {message['error']}"
        answer: dict[str, Any] = message["result"]
        return answer

    async def _until(self, event: str) -> None:
        while not any(one["method"] == event for one in self._events):
            await self._message()

    async def _message(self) -> dict[str, Any]:
        message: dict[str, Any] = json.loads((await self._socket.receive()).data)
        if "method" in message:
            self._events.append(message)
            self.errors.extend(_complaints(message["method"], message["params"]))
        return message

    async def _disconnect(self) -> None:
        await self._call("Browser.close", {})
        await self._socket.close()
        await self._session.close()

    def _end(self) -> None:
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._loop.close()


def _complaints(event: str, told: dict[str, Any]) -> Iterator[str]:
    """What an event says went wrong."""
    if event == "Runtime.exceptionThrown":
        details = told["exceptionDetails"]
        yield details.get("exception", {}).get("description") or details["text"]
    elif event == "Log.entryAdded" and told["entry"]["level"] in ("error", "warning"):
        yield told["entry"]["text"]
    elif event == "Runtime.consoleAPICalled" and told["type"] in ("error", "warning", "assert"):
        yield " ".join(str(argument.get("value")) for argument in told["args"])
    elif event == "Network.responseReceived" and told["response"]["status"] >= BAD_STATUS:
        yield f"{told['response']['status']} {told['response']['url']}"
