"""The demo, end to end: simulator, proxy and client in one process, over real HTTP."""

from __future__ import annotations

import io
import re
import subprocess
import sys
from pathlib import Path

import anyio
import pytest
from PIL import Image

from streamproxy import simulator
from streamproxy.demo import Options, demo, stream
from streamproxy.errors import ProxyError
from streamproxy.server.listening import listen
from streamproxy.settings import ConfigurationError

pytestmark = pytest.mark.anyio

SECONDS = 60.0


def test_one_picture_arrives_with_its_previews(tmp_path: Path) -> None:
    words = ["demo", "--once", "--pace", "0", "--port", "0", "--output", "picture.png", "--prompt", "a red boat"]
    command = [sys.executable, "-m", "streamproxy", *words]
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=SECONDS)
    assert (result.returncode, result.stderr) == (0, "")
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


async def test_a_usual_port_that_is_taken_is_said_with_the_one_that_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    with listen("127.0.0.1", 0) as taken, anyio.fail_after(SECONDS):
        port = taken.getsockname()[1]
        monkeypatch.setattr("streamproxy.demo.USUAL_PORT", port)
        await demo(Options(prompt="a", output=tmp_path / "a.png", port=None, pace=0, once=True), said.append)
    match = re.fullmatch(
        rf"Port {port} is taken by another program, .* at (http://127\.0\.0\.1:(\d+)) instead\.", said[0]
    )
    assert match
    assert match[2] != str(port)
    assert any(line.startswith(f"API base URL: {match[1]}/v1 ") for line in said)


async def test_pictures_come_one_by_one() -> None:
    with anyio.fail_after(SECONDS):
        async with simulator.running(pace=0) as upstream:
            pictures = await anyio.to_thread.run_sync(lambda: list(stream(upstream.url, "a")))
    assert [picture.preview for picture in pictures] == [0, 1, 2, None]
    assert all(Image.open(io.BytesIO(picture.data)).format for picture in pictures)
    assert [picture.ms for picture in pictures] == sorted(picture.ms for picture in pictures)


async def test_a_refusal_is_said_in_the_servers_words() -> None:
    with anyio.fail_after(SECONDS):
        async with simulator.running(pace=0) as upstream:
            with pytest.raises(ProxyError, match=r"The proxy answered: ."):
                await anyio.to_thread.run_sync(lambda: list(stream(upstream.url, "")))
