"""GET streams without `stream`: a caller's own streams as a list, newest first, in the form of OpenAI's lists.

A stream belongs to the key that asked for it. One that was asked for without a key is in no list.
"""

from __future__ import annotations

from typing import Final

from starlette.requests import Request

from streamproxy.auth import owner_of
from streamproxy.core.events import ERROR, Frame
from streamproxy.errors import Failure, ProxyError
from streamproxy.hub.store import Summary
from streamproxy.web.endpoint import Context
from streamproxy.web.responses import NO_REFERRER, Response, json_response
from streamproxy.web.streams import status_with, urls

LIMIT: Final = 20
MOST: Final = 100
"""As OpenAI's lists: 1 to 100, and 20 by default."""


async def list_streams(request: Request, context: Context) -> Response:
    """One page of the caller's streams: at most `limit`, those behind the one whose id is `after`."""
    owner = owner_of(request.scope["headers"], context.callers)
    if owner is None:
        message = (
            "Streams that were asked for without a key are in no list. Send the key, or name them: stream=ID:TOKEN."
        )
        raise ProxyError(Failure.NOT_FOUND, message)
    limit, after = _limit(request), request.query_params.get("after")
    found = await context.hub.owned(owner, after, limit + 1)
    if found is None:
        raise ProxyError(Failure.NOT_FOUND, "This key has no such stream, or no longer. Begin anew.", param="after")
    page = found[:limit]
    body = {
        "object": "list",
        "data": [_described(request, context, summary) for summary in page],
        "first_id": page[0].record.id if page else None,
        "last_id": page[-1].record.id if page else None,
        "has_more": len(found) > limit,
    }
    return json_response(body, headers={"cache-control": "no-store", **NO_REFERRER})


def _limit(request: Request) -> int:
    given = request.query_params.get("limit", str(LIMIT))
    limit = int(given) if given.isascii() and given.isdecimal() and len(given) <= len(str(MOST)) else 0
    if not 1 <= limit <= MOST:
        raise ProxyError(Failure.INVALID_REQUEST, f"limit must be a number from 1 to {MOST}.", param="limit")
    return limit


def _described(request: Request, context: Context, summary: Summary) -> dict[str, object]:
    record = summary.record
    places = urls(request, context, record.id)
    error = Frame(ERROR, (summary.error,), final=True) if summary.error else None
    return {
        "id": record.id,
        "object": "image.stream",
        "status": status_with(error, finished=summary.finished),
        "created_at": record.created,
        "n": record.n,
        "stream_url": places.stream,
        "status_url": places.status,
    }
