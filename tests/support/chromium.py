"""A real Chromium without a window, driven over its DevTools protocol: https://chromedevtools.github.io/devtools-protocol

    with chromium() as browser:                     one process, whose profile is new and empty
        async with browser.page(url) as page:       a tab; what its script gives to `report()` is in page.reports

It may open no address but 127.0.0.1, to which names under evil.example lead and no others, and is ended by its pid.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import anyio
import orjson
import pytest
from websockets.asyncio.client import ClientConnection, connect

from tests.support.proxy import BOUND
from tests.support.scenes import Reports

PROGRAM: Final = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS: Final = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-default-apps",
    "--disable-domain-reliability",
    "--disable-extensions",
    "--disable-sync",
    "--no-pings",
    "--no-proxy-server",
    "--host-resolver-rules=MAP *.evil.example 127.0.0.1, MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
    "--remote-debugging-port=0",
)
END_SECONDS: Final = 10.0

needs_chromium = pytest.mark.skipif(PROGRAM is None, reason="chromium is not installed: apt-get install chromium")


@contextmanager
def chromium() -> Iterator[Chromium]:
    """A running browser."""
    assert PROGRAM is not None
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        command = [PROGRAM, *FLAGS, f"--user-data-dir={profile}", "about:blank"]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            try:
                yield Chromium(_address(process, Path(profile, "DevToolsActivePort")))
            finally:
                process.terminate()
                try:
                    process.wait(END_SECONDS)
                except subprocess.TimeoutExpired:
                    process.kill()


def _address(process: subprocess.Popen[bytes], file: Path) -> str:
    """Where it listens, which it writes into its profile: the port, and a path with an unguessable part."""
    ends = time.monotonic() + BOUND
    while time.monotonic() < ends and process.poll() is None:
        lines = file.read_text().splitlines() if file.is_file() else []
        if len(lines) == 2:
            return f"ws://127.0.0.1:{lines[0]}{lines[1]}"
        time.sleep(0.02)  # there is no event for a written file
    raise TimeoutError("chromium does not listen")


@dataclass(frozen=True, slots=True)
class Chromium:
    """Where the browser is driven."""

    address: str

    @asynccontextmanager
    async def page(self, url: str) -> AsyncIterator[Page]:
        """A new tab with this page; `report` is there before its scripts run. What they throw fails the block."""
        async with (
            connect(self.address, max_size=None, proxy=None) as socket,
            anyio.create_task_group() as tasks,
        ):
            page = Page(socket)
            tasks.start_soon(page.listen)
            created = await page.call("Target.createTarget", url="about:blank", browserContextId=await _context(page))
            attached = await page.call("Target.attachToTarget", targetId=created["targetId"], flatten=True)
            page.session = attached["sessionId"]
            await page.call("Page.enable")
            await page.call("Runtime.enable")
            await page.call("Runtime.addBinding", name="report")
            await page.call("Log.enable")
            await page.call("Page.navigate", url=url)
            with anyio.fail_after(BOUND):
                await page.loaded.wait()
            yield page
            tasks.cancel_scope.cancel()
        assert page.thrown == []


async def _context(page: Page) -> str:
    """A profile of its own for this tab, which ends with the connection that made it."""
    found: str = (await page.call("Target.createBrowserContext", disposeOnDetach=True))["browserContextId"]
    return found


@dataclass(slots=True)
class Page:
    """One tab."""

    socket: ClientConnection
    session: str = ""
    reports: Reports = field(default_factory=Reports)
    thrown: list[object] = field(default_factory=list)
    logged: list[dict[str, Any]] = field(default_factory=list)  # entries of its console that the browser makes
    loaded: anyio.Event = field(default_factory=anyio.Event)
    _sent: int = 0
    _answers: dict[int, dict[str, Any]] = field(default_factory=dict)
    _answered: anyio.Event = field(default_factory=anyio.Event)

    async def call(self, method: str, **params: object) -> dict[str, Any]:
        """One command of the protocol, and its result."""
        self._sent += 1
        number = self._sent
        where = {"sessionId": self.session} if self.session else {}
        await self.socket.send(orjson.dumps({"id": number, "method": method, "params": params, **where}).decode())
        with anyio.fail_after(BOUND):
            while number not in self._answers:
                await self._answered.wait()
        answer = self._answers.pop(number)
        assert "error" not in answer, answer
        result: dict[str, Any] = answer["result"]
        return result

    async def run(self, expression: str) -> object:
        """Evaluate in the page, and await a promise; its value as JSON carries it."""
        result = await self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    async def reload(self) -> None:
        """Load it again, and wait for that."""
        self.loaded = anyio.Event()
        await self.call("Page.reload")
        with anyio.fail_after(BOUND):
            await self.loaded.wait()

    async def until(self, test: str) -> None:
        """Wait until this expression is true in the page."""
        found = await self.run(
            f"""(async () => {{
              for (let count = 0; count < 1000; count++) {{
                if ({test}) return "";
                await new Promise((resolve) => setTimeout(resolve, 20));
              }}
              return document.body.innerText;
            }})()"""
        )
        assert found == "", f"never {test}: {found}"

    async def press(self, key: str, text: str = "", *, modifiers: int = 0) -> None:
        """Press a key and let it go. `modifiers`: 2 is Ctrl, 8 is Shift."""
        code = {"Tab": 9, "Enter": 13, " ": 32}.get(key, 0)
        common = {"key": key, "modifiers": modifiers, "windowsVirtualKeyCode": code}
        await self.call("Input.dispatchKeyEvent", type="keyDown", **common, **({"text": text} if text else {}))
        await self.call("Input.dispatchKeyEvent", type="keyUp", **common)

    async def drag(self, *points: tuple[float, float]) -> None:
        """Press the mouse at the first of these points, move it through the others, and let it go."""
        common = {"button": "left", "clickCount": 1}
        x, y = points[0]
        await self.call("Input.dispatchMouseEvent", type="mousePressed", x=x, y=y, **common)
        for x, y in points[1:]:
            await self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y, buttons=1, **common)
        await self.call("Input.dispatchMouseEvent", type="mouseReleased", x=x, y=y, **common)

    async def box(self, selector: str) -> tuple[float, float, float, float]:
        """Where an element is, scrolled into view: left, top, width, height."""
        found: Any = await self.run(
            f"""(() => {{
              const element = document.querySelector({orjson.dumps(selector).decode()});
              element.scrollIntoView({{ block: "center", behavior: "instant" }});
              const {{ left, top, width, height }} = element.getBoundingClientRect();
              return [left, top, width, height];
            }})()"""
        )
        left, top, width, height = found
        return left, top, width, height

    async def click(self, selector: str) -> None:
        """Click the middle of an element with the mouse."""
        left, top, width, height = await self.box(selector)
        await self.drag((left + width / 2, top + height / 2))

    async def listen(self) -> None:
        """Sort what the browser sends: answers, reports, and what scripts throw."""
        async for message in self.socket:
            said: dict[str, Any] = orjson.loads(message)
            match said.get("method"):
                case None:
                    self._answers[said["id"]] = said
                    self._answered.set()
                    self._answered = anyio.Event()
                case "Runtime.bindingCalled":
                    self.reports.add(orjson.loads(said["params"]["payload"]))
                case "Runtime.exceptionThrown":
                    self.thrown.append(said["params"]["exceptionDetails"])
                case "Log.entryAdded":
                    self.logged.append(said["params"]["entry"])
                case "Page.loadEventFired":
                    self.loaded.set()
