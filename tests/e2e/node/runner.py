"""Runs calls.mjs: the real openai-node against a proxy.

    npm install --no-package-lock --no-audit --no-fund        once, in this folder

Without node, or without node_modules, tests that need it are skipped and say so.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, TypedDict

import anyio
import orjson
import pytest

HERE = Path(__file__).parent
BOUND = 60.0
"""Seconds for a whole list of calls; a hundred take about two."""


class Call(TypedDict, total=False):
    """One call. `files` pictures are attached to an edit; `retries` are the SDK's.

    `method` is generate, edit, vary, files, models, respond or chat.
    """

    method: str
    body: dict[str, object]
    files: int
    picture: str
    retries: int


Seen = dict[str, Any]
"""What the SDK's user would have seen: `events`, `answer` and `error`, as calls.mjs writes them."""


def _missing() -> str:
    if shutil.which("node") is None:
        return "node is not installed"
    if not (HERE / "node_modules" / "openai").is_dir():
        return f"openai-node is not installed: npm install --no-package-lock --no-audit --no-fund in {HERE.name}/"
    return ""


needs_node = pytest.mark.skipif(bool(_missing()), reason=_missing() or "node is there")


async def run_node(url: str, calls: list[Call]) -> list[Seen]:
    """What each call came to, in order."""
    with anyio.fail_after(BOUND):
        ran = await anyio.run_process(
            ["node", str(HERE / "calls.mjs"), f"{url}/v1"], input=orjson.dumps(calls), check=False
        )
    assert ran.returncode == 0, ran.stderr.decode()
    return [orjson.loads(line) for line in ran.stdout.splitlines()]
