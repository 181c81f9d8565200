"""The relay that a tutorial would write, as a peer: each event decoded, parsed, made again and yielded as text.

    python -m tests.bench.tutorial PORT ORIGIN_URL

Two lines no tutorial has, both in its favour: without `limits` it stops at 100 streams, and `ping` would put comments,
which are no cost of relaying, into long rounds.
"""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator

import httpx
import orjson
import uvicorn
from httpx_sse import aconnect_sse
from sse_starlette.sse import EventSourceResponse
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route


def app(origin: str) -> Starlette:
    """One route that relays a streamed generation."""
    client = httpx.AsyncClient(base_url=origin, timeout=None, trust_env=False, limits=httpx.Limits())

    async def generations(request: Request) -> Response:
        body = await request.json()

        async def events() -> AsyncIterator[dict[str, str]]:
            async with aconnect_sse(client, "POST", "/v1/images/generations", json=body) as source:
                async for event in source.aiter_sse():
                    data = orjson.loads(event.data)
                    yield {"event": event.event, "data": orjson.dumps(data).decode()}

        return EventSourceResponse(events(), ping=3600)

    return Starlette(routes=[Route("/v1/images/generations", generations, methods=["POST"])])


if __name__ == "__main__":
    uvicorn.run(app(sys.argv[2]), port=int(sys.argv[1]), log_level="warning")
