"""The demo, end to end: simulator, proxy and client in one process, over real HTTP."""

from __future__ import annotations

import base64
import io
import os
import re
import subprocess
import sys
from pathlib import Path

import anyio
import httpx
import pytest
from PIL import Image

from streamproxy import simulator
from streamproxy.demo import Options, Order, Shown, demo, generate, stream, terminal_pictures
from streamproxy.errors import ProxyError
from streamproxy.server.listening import listen
from streamproxy.settings import ConfigurationError, Settings

pytestmark = pytest.mark.anyio

SECONDS = 60.0


def test_one_picture_arrives_with_its_previews(tmp_path: Path) -> None:
    words = ["demo", "--once", "--pace", "0", "--port", "0", "--output", "picture.png", "--prompt", "a red boat"]
    command = [sys.executable, "-m", "streamproxy", *words]
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=SECONDS)
    assert (result.returncode, result.stderr) == (0, "")
    assert re.match(r"http://127\.0\.0\.1:\d+/ ", result.stdout)  # the page comes first
    assert "SIMULATOR" in result.stdout
    assert re.search(r"API base URL: http://127\.0\.0\.1:\d+/v1", result.stdout)
    shown = re.findall(r"^  (preview \d|completed) +\d+ kB +\d+ ms$", result.stdout, re.M)
    assert shown == ["preview 1", "preview 2", "preview 3", "completed"]
    with Image.open(tmp_path / "picture.png") as picture:
        picture.load()
        assert picture.size == (1024, 1024)


async def test_the_callers_port_is_not_replaced_by_another(tmp_path: Path) -> None:
    said: list[str] = []
    with listen("127.0.0.1", 0) as taken, anyio.fail_after(SECONDS):
        port = taken.getsockname()[1]
        with pytest.raises(ConfigurationError):
            await demo(Options(prompt="a", output=tmp_path / "a.png", port=port, pace=0, once=True), said.append)
    assert said == []


async def test_a_taken_port_is_said_with_the_used_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    with listen("127.0.0.1", 0) as taken, anyio.fail_after(SECONDS):
        port = taken.getsockname()[1]
        monkeypatch.setattr("streamproxy.demo.USUAL_PORT", port)
        await demo(Options(prompt="a", output=tmp_path / "a.png", port=None, pace=0, once=True), said.append)
    match = re.fullmatch(
        rf"Port {port} is taken by another program, so this is (http://127\.0\.0\.1:(\d+)) instead\.", said[1]
    )
    assert match
    assert said[0].startswith(f"{match[1]}/ ")
    assert match[2] != str(port)
    assert any(line.startswith(f"API base URL: {match[1]}/v1 ") for line in said)


async def test_pictures_come_one_by_one() -> None:
    with anyio.fail_after(SECONDS):
        async with simulator.running(pace=0) as upstream:
            pictures = await anyio.to_thread.run_sync(lambda: list(stream(upstream.url, Order(prompt="a"))))
    assert [picture.preview for picture in pictures] == [0, 1, 2, None]
    assert all(Image.open(io.BytesIO(picture.data)).format for picture in pictures)
    assert [picture.ms for picture in pictures] == sorted(picture.ms for picture in pictures)


async def test_a_refusal_is_said_in_the_servers_words() -> None:
    with anyio.fail_after(SECONDS):
        async with simulator.running(pace=0) as upstream:
            with pytest.raises(ProxyError, match=r"The proxy answered: ."):
                await anyio.to_thread.run_sync(lambda: list(stream(upstream.url, Order(prompt=""))))


async def test_loopback_pages_may_call_and_others_are_told_why(tmp_path: Path) -> None:
    said: list[str] = []
    answers: dict[str, httpx.Response] = {}

    def say(line: str) -> None:
        said.append(line)
        if not line.startswith("The completed picture"):
            return
        for origin in (
            "http://localhost:5173",
            "http://127.0.0.1:3000",
            "http://localhost.evil.example",
            "https://a.test",
        ):
            headers = {"origin": origin, "access-control-request-method": "POST"}
            answers[origin] = httpx.options(f"{said[0].split()[0]}v1/images/generations", headers=headers)

    with anyio.fail_after(SECONDS):
        await demo(Options(prompt="a", output=tmp_path / "a.png", port=0, pace=0, once=True), say)
    assert [answer.status_code for answer in answers.values()] == [200, 200, 403, 403]
    assert "cors_origins" in answers["https://a.test"].json()["error"]["message"]


async def test_one_picture_of_a_configured_provider(tmp_path: Path) -> None:
    """Previews are files beside the picture, and the cost is said; keys and the port of `serve` are not used."""
    said: list[str] = []
    with listen("127.0.0.1", 0) as taken, anyio.fail_after(SECONDS):
        async with simulator.running(pace=0) as upstream:
            row = {"base_url": f"{upstream.url}/v1", "credential": "none"}
            settings = Settings.of(
                {"port": taken.getsockname()[1], "providers": {"sim": row}, "caller_keys": [f"sha256:{'0' * 64}"]}
            )
            shown = Shown(tmp_path / "boat.png", said.append, None)
            await generate(Order(prompt="a red boat", previews=2), settings, shown)
    assert sorted(os.listdir(tmp_path)) == ["boat.png", "boat.preview-1.png", "boat.preview-2.png"]
    for name in os.listdir(tmp_path):
        with Image.open(tmp_path / name) as picture:
            assert picture.size == (1024, 1024)
    assert said[-1].startswith("It")
    assert "cost" in said[-1]


async def test_a_refused_order_leaves_no_file(tmp_path: Path) -> None:
    with anyio.fail_after(SECONDS):
        async with simulator.running(pace=0) as upstream:
            row = {"base_url": f"{upstream.url}/v1", "credential": "none"}
            settings = Settings.of({"providers": {"sim": row}})
            with pytest.RaisesGroup(ProxyError, flatten_subgroups=True):
                await generate(Order(prompt=""), settings, Shown(tmp_path / "a.png", print, None))
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize(
    ("environ", "mark"),
    [
        ({"TERM": "xterm-kitty"}, "\x1b_G"),
        ({"TERM_PROGRAM": "ghostty"}, "\x1b_G"),
        ({"LC_TERMINAL": "iTerm2"}, "\x1b]1337"),
    ],
)
def test_a_terminal_that_shows_pictures(environ: dict[str, str], mark: str) -> None:
    show = terminal_pictures(environ, tty=True)
    assert show is not None
    data = bytes(range(256)) * 40
    text = show(data)
    assert text.startswith(mark)
    sent = re.findall(r"m=[01];([^\x1b]*)\x1b", text) or [text.partition(":")[2].removesuffix("\a")]
    assert base64.b64decode("".join(sent)) == data
    assert terminal_pictures(environ, tty=False) is None


def test_another_terminal_gets_files() -> None:
    assert terminal_pictures({"TERM": "xterm-256color"}, tty=True) is None
