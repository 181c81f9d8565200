"""Everything that a process writes is the log: one form for all lines, and no text of an exception in it."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
from pathlib import Path
from typing import Final

import anyio
import orjson
import pytest
from structlog.testing import capture_logs

from streamproxy.simulator.script import Script, error_answer, sse
from streamproxy.simulator.server import Received, serve
from tests.support.caller import calling, generation
from tests.support.process import caller, configuration
from tests.support.provider import completed, preview
from tests.support.proxy import BOUND, PROMPT, no_leaks, running_proxy, until
from tests.support.stopping import started

ROOT: Final = Path(__file__).parents[2]
SECRET: Final = "planted-19ac"

NOISE: Final = f"""
import asyncio, gc, logging, sys, threading, warnings
from streamproxy.observe.log import configure_logging, get_log, say

configure_logging(sys.argv[1], sys.argv[2])
say("begun", sys.argv[2])
get_log().info("ours", number=1)
warnings.warn("old way\\nsecond line {SECRET}")

def broken():
    raise ValueError("{SECRET}\\nand more")

try:
    broken()
except ValueError as error:
    logging.getLogger("library").exception("it broke\\n%s", error)
    logging.getLogger("streamproxy.part").error("two\\nlines")

import traceback
try:
    broken()
except ValueError:
    logging.getLogger("uvicorn.error").error(traceback.format_exc())

thread = threading.Thread(target=broken, name="worker")
thread.start()
thread.join()

class Odd:
    def __del__(self):
        broken()

Odd()

async def task():
    broken()

async def forgotten():
    one = asyncio.create_task(task())
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    del one
    gc.collect()

asyncio.run(forgotten())
logging.getLogger("httpx").info("GET https://host.test/?{SECRET}")
broken()
"""


def test_whatever_a_process_writes_is_json() -> None:
    words = [sys.executable, "-c", NOISE, "debug", "auto"]
    ran = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=BOUND, check=False)
    assert ran.returncode == 1
    lines = [orjson.loads(line) for line in ran.stderr.splitlines()]
    assert all({"event", "level", "timestamp"} <= line.keys() for line in lines)
    assert SECRET not in ran.stderr
    raised = [(line["event"], line.get("logger")) for line in lines if line.get("exception") == "ValueError"]
    assert raised == [
        ("it broke", "library"),
        ("failed", "uvicorn.error"),
        ("unexpected", None),  # a thread's
        ("unexpected", None),  # a destructor's
        ("Task exception was never retrieved", "asyncio"),
        ("unexpected", None),  # the one that ended the process
    ]
    assert all(re.fullmatch(r"<string>:\d+", line["where"]) for line in lines if "exception" in line)
    told = [line["event"] for line in lines if "exception" not in line]
    assert told[:2] == ["begun", "ours"]
    assert "UserWarning: old way" in told[2]
    assert "two\nlines" in told


def test_on_a_terminal_it_is_text() -> None:
    ours, theirs = pty.openpty()
    try:
        with subprocess.Popen([sys.executable, "-c", NOISE, "info", "auto"], cwd=ROOT, stderr=theirs) as process:
            os.close(theirs)
            text = b""
            while True:
                try:
                    text += os.read(ours, 65536)
                except OSError:  # Linux: the other end is closed
                    break
        assert process.returncode == 1
    finally:
        os.close(ours)
    assert text.startswith(b"begun\r\n")
    assert b"ours" in text
    assert SECRET.encode() not in text
    assert b"{" not in text


WARNING_TASK: Final = """
import sys
if "serve" in sys.orig_argv:
    import atexit, warnings
    atexit.register(warnings.warn, "at the end")
"""


@pytest.mark.anyio
async def test_a_readers_line_names_its_stream() -> None:
    script = sse([preview(0), completed()])
    async with no_leaks(), serve(lambda _: script) as server, running_proxy(server.url) as proxy:
        with capture_logs() as logs:
            answer = await proxy.generate(stream=True)
            stream, url = answer.headers["stream-id"], proxy.url + answer.headers["location"]
            assert (await proxy.client.get(url, headers={"accept": "text/event-stream"})).status_code == 200
            assert (await proxy.client.get(url.replace(stream, "str_nobody"))).status_code in (401, 404)
            await until(lambda: len([line for line in logs if line["event"] == "request"]) == 2)
        assert [line.get("stream") for line in logs if line["event"] == "request"] == [stream, None]


@pytest.mark.anyio
async def test_a_life_of_the_process_is_json(tmp_path: Path) -> None:
    """From its start over requests, failures and broken ones to SIGTERM and Python's own warnings."""
    (tmp_path / "sitecustomize.py").write_text(WARNING_TASK)

    def provider(received: Received) -> Script:
        return error_answer(500, SECRET) if b"fail" in received.body else sse([preview(0), completed()])

    async with serve(provider) as server:
        environ = {"PYTHONPATH": os.pathsep.join((str(ROOT), str(tmp_path))), "PYTHONWARNINGS": "always"}
        async with (
            started(configuration(server.url, settings='log_level = "debug"'), environ=environ) as process,
            caller() as client,
        ):
            for prompt in (PROMPT, "fail"):
                body = {"model": "sim/gpt-image", "prompt": prompt, "stream": True}
                await client.post(f"{process.url}/v1/images/generations", json=body)
            async with calling(process.port) as broken:
                await broken.send(b"nonsense\r\n\r\n")
                assert await broken.head() == 400
            async with calling(process.port) as leaves:
                await leaves.send(generation(prompt=SECRET)[:-5])
                leaves.reset()
            await process.logged("caller_gone")
            process.child.terminate()
            assert await process.exited(BOUND) == 0
            with anyio.fail_after(BOUND):
                await process.logged("at the end")
    lines = [orjson.loads(line) for line in process.log]
    assert all({"event", "level", "timestamp"} <= line.keys() for line in lines)
    ended = [(line["outcome"], line["status"]) for line in lines if line["event"] == "generation"]
    assert ended == [("completed", 200), ("failed", 502)]
    requests = [(line["route"], line["status"]) for line in lines if line["event"] == "request"]
    assert requests == [("none", 400), ("/v1/images/generations", 499)]
    assert SECRET not in "".join(process.log)
