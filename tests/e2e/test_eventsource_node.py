"""EventSource in Node: npm's eventsource, undici's own, and eventsource-parser over fetch() follow one stream."""

from __future__ import annotations

import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Final

import anyio
import orjson
import pytest
from anyio.abc import Process

from streamproxy.web import writing
from tests.e2e.node.runner import HERE, needs_node, run_node
from tests.support.provider import COMPLETED, PREVIEW, completed, preview
from tests.support.proxy import BOUND, PROMPT
from tests.support.scenes import (
    Reports,
    Scene,
    comes_back_after_overload,
    is_spared_a_stale_preview,
    staged,
    survives_cuts,
    tells_a_failure_from_a_cut,
)

CLIENTS: Final = {"eventsource": "eventsource", "undici": "undici", "parser": "eventsource-parser"}
"""The package that each client of follow.mjs is."""

MISSING: Final = [package for package in CLIENTS.values() if not (HERE / "node_modules" / package).is_dir()]

pytestmark = [
    pytest.mark.anyio,
    needs_node,
    pytest.mark.skipif(
        bool(MISSING), reason=f"{', '.join(MISSING)}: npm install --no-package-lock --no-audit --no-fund in node/"
    ),
]


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Readers are told to come back sooner: what they are told is what they do, whichever number it is."""
    monkeypatch.setattr(writing, "RETRY", (200, 400))
    monkeypatch.setattr(writing, "RETRY_OVERLOADED", (300, 500))


@asynccontextmanager
async def following_with(client: str, url: str) -> AsyncIterator[Reports]:
    """A node process that follows; it is ended with the block."""
    reports = Reports()
    command = ["node", str(Path(HERE, "follow.mjs")), client, url]
    async with (
        await anyio.open_process(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child,
        anyio.create_task_group() as tasks,
    ):
        tasks.start_soon(_read, child, reports)
        try:
            yield reports
            assert child.returncode is None, "the client has ended by itself"
        finally:
            child.kill()
            with anyio.CancelScope(shield=True):
                await child.wait()
            tasks.cancel_scope.cancel()


async def _read(child: Process, reports: Reports) -> None:
    assert child.stdout is not None
    pending = b""
    async for data in child.stdout:
        *lines, pending = (pending + data).split(b"\n")
        for line in lines:
            reports.add(orjson.loads(line))


@pytest.mark.parametrize(
    "scene", [survives_cuts, comes_back_after_overload, tells_a_failure_from_a_cut, is_spared_a_stale_preview]
)
async def test_every_client(scene: Scene) -> None:
    """Side by side: each has a provider, a proxy and a stream of its own."""
    with anyio.fail_after(2 * BOUND):
        async with anyio.create_task_group() as tasks:
            for client in CLIENTS:
                tasks.start_soon(_named, client, scene)


async def _named(client: str, scene: Scene) -> None:
    try:
        await scene(partial(following_with, client), ())
    except (AssertionError, TimeoutError) as error:
        error.add_note(f"client: {client}")
        raise


async def test_the_sdk_sees_nothing_of_it() -> None:
    """No id, no retry, no URL in the events: openai-node reads a retained stream as any other."""
    async with staged(frames=(preview(0), completed())) as stage:
        stage.held.let(2)
        call = {"model": "sim/gpt-image", "prompt": PROMPT, "stream": True, "partial_images": 1}
        (seen,) = await run_node(stage.cutter.url, [{"method": "generate", "body": call, "retries": 0}])
        assert seen["error"] is None
        assert [event["type"] for event in seen["events"]] == [PREVIEW, COMPLETED]
        (answer,) = stage.cutter.answers.values()
        assert b"\r\nstream-id: str_" in answer
        assert not [line for line in answer.split(b"\n") if line.startswith((b"id:", b"retry:"))]
