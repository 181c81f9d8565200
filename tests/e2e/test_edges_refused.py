"""Refusals before the body is read reach the caller through a stock edge that goes on sending the body."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

import anyio
import orjson
import pytest

from tests.support.caller import EDITS, GENERATIONS, calling
from tests.support.edges import EDGES, edge
from tests.support.proxy import BOUND, no_leaks, running_proxy

pytestmark = pytest.mark.anyio

TIMES: Final = 50
AT_ONCE: Final = 5
PIECE: Final = bytes(64 * 1024)
SIZE: Final = 48 * len(PIECE)
"""3 MiB: more than the sockets between the edge and the proxy hold."""

NO_ORIGIN: Final = "http://127.0.0.1:9"
"""Nothing listens there, and nothing is sent there."""


@dataclass(frozen=True, slots=True)
class Refused:
    """A request whose head says already that it is refused, under which settings, and the error's code."""

    path: str
    kind: str
    code: str
    settings: Mapping[str, object]


REFUSED: Final[Mapping[int, Refused]] = {
    400: Refused(EDITS, "multipart/form-data", "invalid_multipart", {}),
    401: Refused(GENERATIONS, "application/json", "invalid_api_key", {"caller_keys": ["sha256:" + "0" * 64]}),
    404: Refused("/nope", "application/json", "not_found", {}),
    413: Refused(GENERATIONS, "application/json", "body_too_large", {"max_json_bytes": SIZE - 1}),
    415: Refused(GENERATIONS, "text/plain", "unsupported_media_type", {}),
}


@pytest.mark.parametrize("status", REFUSED)
@pytest.mark.parametrize("name", EDGES)
async def test_every_early_refusal_arrives(name: str, status: int) -> None:
    refused = REFUSED[status]
    head = (
        f"POST {refused.path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: {refused.kind}\r\n"
        f"Content-Length: {SIZE}\r\nConnection: close\r\n\r\n"
    ).encode()
    seen: list[tuple[int, str]] = []

    async def one(port: int) -> None:
        async with calling(port) as caller:
            await caller.send(head)
            for _ in range(SIZE // len(PIECE)):
                await caller.send(PIECE)
            seen.append((await caller.head(), orjson.loads(await caller.rest())["error"]["code"]))

    with anyio.fail_after(2 * BOUND):
        async with (
            no_leaks(),
            running_proxy(NO_ORIGIN, **refused.settings) as proxy,  # type: ignore[arg-type]
            edge(EDGES[name], proxy.port, timeout=BOUND) as url,
        ):
            port = urlsplit(url).port
            assert port is not None
            for _ in range(TIMES // AT_ONCE):
                async with anyio.create_task_group() as tasks:
                    for _ in range(AT_ONCE):
                        tasks.start_soon(one, port)
    assert seen == [(status, refused.code)] * TIMES
