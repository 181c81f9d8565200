"""GET and DELETE streams/{id}, and its images: for those who come back, who only watch, and who change their mind."""

from __future__ import annotations

import msgspec
import orjson
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp

from streamproxy.auth import owner_of
from streamproxy.core.cursor import Cursor, parse_cursor
from streamproxy.core.events import ANSWER, ERROR, read_error
from streamproxy.core.imagefile import media_type, probe
from streamproxy.core.reference import image_bytes, referenced
from streamproxy.core.sse import Piece
from streamproxy.errors import Failure, ProxyError
from streamproxy.hub.stream import Entry, Stream
from streamproxy.web.context import Context
from streamproxy.web.following import come_back, followed
from streamproxy.web.prefer import preferences
from streamproxy.web.ranges import partial
from streamproxy.web.responses import Answer, EventStream, Reader, json_response

IMMUTABLE = "private, max-age=31536000, immutable"


async def stream(request: Request, context: Context) -> ASGIApp:
    """As events, or as one JSON object: its status and its results so far."""
    strict = preferences(request).get("handling") == "strict"
    events = "text/event-stream" in request.headers.get("accept", "") and request.method != "HEAD"
    try:
        found = await _authorised(request, context)
        if events and context.hub.draining and not found.finished:
            raise ProxyError(Failure.DRAINING, "The proxy is shutting down.", retry_after="2")
    except ProxyError as error:
        if not events or strict or error.status != 503:
            raise
        away = EventStream(come_back(), {}, context.pace, Reader())
        away.headers["connection"] = "close"  # on a new connection, a balancer can choose another process
        return away
    if not events:
        return as_json(request, context, found)
    return _events(request, context, found)


def _events(request: Request, context: Context, found: Stream) -> ASGIApp:
    begin = _choice(request, "from", ("latest", "start", "now"))
    ref = _choice(request, "payload", ("inline", "ref")) == "ref"
    preempt = _choice(request, "preempt", ("1", "0")) == "1"
    after = _cursor(request, found, begin)
    if found.finished and not _follows(found, after):
        return Response(status_code=204, headers={"cache-control": "no-store"})
    subscriber = found.subscribe(after)
    context.hub.watch(found, subscriber)
    urls = _Urls(request, context, found)
    content = followed(
        subscriber,
        urls.referenced if ref else _inline,
        heartbeat=context.settings.heartbeat,
        preempt=preempt,
    )
    reader = Reader(at_end=lambda: subscriber.at_end, close=lambda: context.hub.unwatch(found, subscriber))
    return EventStream(content, {}, context.pace, reader)


def _choice(request: Request, name: str, values: tuple[str, ...]) -> str:
    """A query parameter's value, the first of `values` by default; raises ProxyError(INVALID_REQUEST) for another."""
    given = request.query_params.get(name, values[0])
    if given not in values:
        raise ProxyError(Failure.INVALID_REQUEST, f"{name} must be one of {', '.join(values)}.", param=name)
    return given


def _follows(found: Stream, after: Cursor | None) -> bool:
    """Whether there are events behind this position; a JSON answer is none."""
    seq = 0 if after is None else after.seq
    return any(entry.cursor.seq > seq and entry.frame.type != ANSWER for entry in found.retained())


def _cursor(request: Request, found: Stream, begin: str) -> Cursor | None:
    """Where to begin: the header before the query; an id that is not this stream's means from the start."""
    given = request.headers.get("last-event-id") or request.query_params.get("last_event_id")
    cursor = parse_cursor(given)
    if cursor is not None and 0 < cursor.epoch <= found.epoch and cursor.seq <= found.last:
        return cursor
    return Cursor(found.epoch, found.last) if given is None and begin == "now" else None


def _inline(entry: Entry) -> tuple[Piece, ...]:
    return entry.frame.data


class _Urls:
    """Where one stream's images are, for a reader with a token of his own or a new one."""

    def __init__(self, request: Request, context: Context, found: Stream) -> None:
        prefix = request.url.path.split("/streams/")[0]
        self.token = request.query_params.get("token") or context.tokens.mint(found.id)
        self._base = f"{prefix}/streams/{found.id}"

    @property
    def stream(self) -> str:
        return f"{self._base}?token={self.token}"

    def referenced(self, entry: Entry) -> tuple[Piece, ...]:
        """The event's data with the image's URL instead of the image; a preview's URL names its position."""
        if entry.frame.type == ERROR:
            return entry.frame.data
        which = f"images/{entry.frame.image}"
        if not entry.critical:
            which += "/preview"
        return (referenced(entry.frame.data, f"{self._base}/{which}?v={entry.cursor}&token={self.token}"),)


def as_json(request: Request, context: Context, found: Stream) -> Answer:
    """The stream as one object; `data` are the completed events."""
    urls = _Urls(request, context, found)
    ref = _choice(request, "payload", ("inline", "ref")) == "ref"
    done = [entry for entry in found.retained() if entry.critical]
    images = [e for e in done if e.frame.type not in (ERROR, ANSWER)]
    errors = [e for e in done if e.frame.type == ERROR]
    answers = [e for e in done if e.frame.type == ANSWER]
    head: dict[str, object] = {
        "id": found.id,
        "object": "image.stream",
        "status": status_of(found),
        "created_at": found.created,
        "stream_url": urls.stream,
    }
    pieces: list[Piece] = [orjson.dumps(head)[:-1], b',"data":[']
    for number, entry in enumerate(images):
        pieces += [b"," if number else b"", *(urls.referenced(entry) if ref else entry.frame.data)]
    pieces += [b'],"error":', _error_of(errors), b',"response":', *(answers[-1].frame.data if answers else (b"null",))]
    return Answer(200, "application/json", [*pieces, b"}"], {"cache-control": "no-store"})


def status_of(found: Stream) -> str:
    """in_progress, completed, failed or cancelled."""
    error = next((entry for entry in found.retained() if entry.frame.type == ERROR), None)
    if error is not None:
        return "cancelled" if read_error(error.frame).code == Failure.CANCELLED.value.code else "failed"
    return "completed" if found.finished else "in_progress"


def _error_of(errors: list[Entry]) -> bytes:
    """The `error` member of the last one; every error event has one."""
    return bytes(msgspec.json.decode(b"".join(errors[-1].frame.data), type=_Failed).error) if errors else b"null"


class _Failed(msgspec.Struct):
    error: msgspec.Raw


async def delete(request: Request, context: Context) -> ASGIApp:
    """Cancel it for everybody; once it has ended this changes nothing."""
    found = await _authorised(request, context)
    await context.hub.cancel(found)
    return json_response({"id": found.id, "object": "image.stream", "deleted": True})


async def image(request: Request, context: Context) -> ASGIApp:
    """The completed image as the file it is."""
    return await _picture(request, context, preview=False)


async def preview(request: Request, context: Context) -> ASGIApp:
    """The newest preview as the file it is; the completed image once that is there."""
    return await _picture(request, context, preview=True)


async def _picture(request: Request, context: Context, *, preview: bool) -> ASGIApp:
    found = await _authorised(request, context)
    index: str = request.path_params["image_index"]
    candidates = [e for e in found.retained() if str(e.frame.image) == index and e.frame.type not in (ERROR, ANSWER)]
    wanted = [e for e in candidates if e.critical] or (candidates if preview else [])
    picture = image_bytes(wanted[-1].frame.data) if wanted else None
    if picture is None:
        raise ProxyError(Failure.NOT_FOUND, "This stream has no such image, or not yet.", param="image_index")
    info = probe(picture)
    headers = {
        "etag": f'"{found.id}-{wanted[-1].cursor}"',
        "cache-control": IMMUTABLE if wanted[-1].critical and not preview else "no-store",
        "x-content-type-options": "nosniff",
        "content-security-policy": "default-src 'none'",
    }
    kind = media_type(info.format) if info else "application/octet-stream"
    return partial(request, picture, kind, headers)


async def _authorised(request: Request, context: Context) -> Stream:
    """The stream, if the token or the caller's key says so; another caller's stream does not exist."""
    id: str = request.path_params["id"]
    token = request.query_params.get("token")
    if token is not None:
        context.tokens.check(id, token)
        return await context.hub.find(id)
    owner = owner_of(request.scope["headers"], context.settings.caller_keys)
    found = await context.hub.find(id)
    if found.owner != owner:
        raise ProxyError(Failure.NOT_FOUND, "No such stream.")
    return found
