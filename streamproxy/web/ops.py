"""For operators: livez says that the process serves, readyz that it takes new work, metrics what it has done."""

from __future__ import annotations

from starlette.requests import Request
from starlette.types import ASGIApp

from streamproxy.web.context import Context
from streamproxy.web.responses import Answer, json_response


async def livez(request: Request, context: Context) -> ASGIApp:
    """200 while the event loop turns; asks nobody else."""
    return json_response({"status": "ok"})


async def readyz(request: Request, context: Context) -> ASGIApp:
    """200 while new requests are taken. A store that fails is said, but streams of this process go on without it."""
    draining = context.hub.admission.draining
    body = {
        "status": "draining" if draining else "ok",
        "store": "failed" if context.hub.health.failed else "ok",
    }
    return json_response(body, status=503 if draining else 200)


async def metrics(request: Request, context: Context) -> ASGIApp:
    """Prometheus' text format."""
    body, content_type = context.observer.exposition()
    return Answer(200, content_type, (body,), {})
