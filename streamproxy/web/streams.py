"""GET and DELETE streams/{id}, and its images: to come back to a stream, to watch it, to cancel it."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Final

import msgspec
import orjson
from starlette.requests import Request
from starlette.types import ASGIApp

from streamproxy.auth import Right, owner_of
from streamproxy.core.cursor import Cursor, parse_cursor
from streamproxy.core.eventdata import image_bytes, nth_image, referenced
from streamproxy.core.events import ANSWER, ERROR, Frame, read_error
from streamproxy.core.images import SNIFFED, sniff
from streamproxy.core.previews import PreviewForm
from streamproxy.core.sse import Piece
from streamproxy.errors import Failure, ProxyError
from streamproxy.hub.hub import Hub
from streamproxy.hub.log import Entry, Unmade
from streamproxy.hub.stream import Stream, Subscriber
from streamproxy.web.caller import unless_gone
from streamproxy.web.endpoint import Context
from streamproxy.web.headers import byte_range, has_version, preferences, wait_seconds, wants_events
from streamproxy.web.previews import AS_THEY_COME, PreviewChoice, preview_choice
from streamproxy.web.responses import NO_REFERRER, Reader, Response, empty_response, json_response
from streamproxy.web.writing import EventStream, Followed, come_back, written

LOOK_AGAIN: Final = "2"
"""Seconds between looks at a stream that has not ended: previews come that often."""

IMMUTABLE = "private, max-age=31536000, immutable"

LET_GO: Final = (Failure.GONE, Failure.NOT_FOUND)

_INDEX: Final = 3
"""Digits of an image's index: as many as are read of a provider's."""

_VERSION: Final = re.compile(r"/v[0-9]+(?=/)")


async def get_stream(request: Request, context: Context) -> ASGIApp:
    """As events, or as one JSON object where that is what is accepted."""
    strict = preferences(request).get("handling") == "strict"
    events = wants_events(request) and request.method != "HEAD"
    try:
        stream, _ = await _authorised(request, context)
        if events and context.hub.admission.draining and not stream.finished:
            raise ProxyError(Failure.DRAINING, "The proxy is shutting down.", retry_after="2")
    except ProxyError as error:
        if not events or strict or error.status != 503:
            raise
        return away(context)
    if not events:
        return await _as_json(request, context, stream)
    return _events(request, context, stream)


def away(context: Context) -> ASGIApp:
    """For a reader that cannot be served now: it comes back by itself."""
    answer = EventStream(come_back(), {}, context.cutoff, Reader())
    answer.headers["connection"] = "close"  # on a new connection, a balancer can choose another process
    return answer


async def get_status(request: Request, context: Context) -> ASGIApp:
    """Its status and its results so far, whatever is accepted."""
    stream, _ = await _authorised(request, context)
    return await _as_json(request, context, stream)


def _events(request: Request, context: Context, stream: Stream) -> ASGIApp:
    begin = choice(request, "from", ("latest", "start", "now"))
    ref = choice(request, "payload", ("inline", "ref")) == "ref"
    preempt = choice(request, "preempt", ("1", "0")) == "1"
    previews = preview_choice(request, context.settings)
    after = _cursor(request, stream, begin)
    if stream.finished and not follows(stream, after):
        return empty_response(204, {"cache-control": "no-store", **NO_REFERRER})
    subscriber = stream.subscribe(after, versions=context.previews.versions(previews.form))
    context.hub.admission.watch(stream, subscriber)
    places = urls(request, context, stream.id, request.query_params.get("token"), previews)
    layout = Followed(places.referenced if ref else inline, preempt)
    content = written(subscriber, layout, context.settings.heartbeat, context.observer)
    return EventStream(content, previews.headers, context.cutoff, _Viewer(context.hub, subscriber))


class _Viewer(Reader):
    """A counted viewer of a stream."""

    def __init__(self, hub: Hub, subscriber: Subscriber) -> None:
        self._hub = hub
        self._subscriber = subscriber

    @property
    def at_end(self) -> bool:
        return self._subscriber.at_end

    def close(self, *, sent: bool) -> None:
        self._hub.admission.unwatch(self._subscriber.stream, self._subscriber)


def choice(request: Request, name: str, values: tuple[str, ...]) -> str:
    """A query parameter's value, the first of `values` by default; raises ProxyError(INVALID_REQUEST) for another."""
    given = request.query_params.get(name, values[0])
    if given not in values:
        raise ProxyError(Failure.INVALID_REQUEST, f"{name} must be one of {', '.join(values)}.", param=name)
    return given


def follows(stream: Stream, after: Cursor | None) -> bool:
    """Whether there are events behind this position; a JSON answer is none."""
    seq = 0 if after is None else after.seq
    return any(entry.cursor.seq > seq and entry.frame.type != ANSWER for entry in stream.log.retained())


def _cursor(request: Request, stream: Stream, begin: str) -> Cursor | None:
    """Where to begin: the header before the query; an id that is not this stream's means from the start."""
    query = request.query_params
    given = request.headers.get("last-event-id") or query.get("last_event_id") or query.get("lastEventId")
    cursor = parse_cursor(given)
    if cursor is not None and stream.log.gave(cursor):
        return cursor
    return Cursor(stream.log.epoch, stream.log.last) if given is None and begin == "now" else None


def inline(entry: Entry) -> tuple[Piece, ...]:
    """The event's data as it is."""
    return entry.frame.data


@dataclass(frozen=True, slots=True)
class Urls:
    """Where one stream is, and its images: `base` without a token, `token` reads, `previews` says their form."""

    base: str
    token: str
    previews: str = ""

    @property
    def stream(self) -> str:
        return f"{self.base}?token={self.token}{self.previews}"

    @property
    def status(self) -> str:
        return f"{self.base}/status?token={self.token}"

    def referenced(self, entry: Entry, stored: str | None = None) -> tuple[Piece, ...]:
        """The event's data with the image's URL instead of the image; a preview's URL names its position.

        `stored`: the URL of the image where it is kept elsewhere.
        """
        if entry.frame.type == ERROR or entry.frame.sums:
            return entry.frame.data
        if stored is not None:
            return (referenced(entry.frame.data, stored),)
        which, form = f"images/{entry.frame.image}", ""
        if not entry.critical:
            which, form = f"{which}/preview", self.previews
        return (referenced(entry.frame.data, f"{self.base}/{which}?v={entry.cursor}&token={self.token}{form}"),)


def urls(
    request: Request,
    context: Context,
    id: str,
    given: str | None = None,
    previews: PreviewChoice = AS_THEY_COME,
) -> Urls:
    """The URLs of a stream under the version that the request came by, with the token it came with if that only reads.

    They begin with `public_url`, or with the path that the server mounts the app under. A header never says so.
    """
    root: str = request.scope.get("root_path", "")
    version = _VERSION.match(request.scope["path"].removeprefix(root))
    base = f"{context.settings.public_url or root}{version[0] if version else '/v1'}/streams/{id}"
    if given is None or context.tokens.check(id, given) is not Right.READ:
        given = context.tokens.mint(id)
    return Urls(base, given, previews.query)


def image_urls(request: Request, context: Context, id: str) -> Callable[[int], str]:
    """The URLs of a stream's completed images, absolute where the name of the proxy is known.

    They begin with `public_url`, or with the request's own host where the settings know that name.
    """
    places = urls(request, context, id)
    known = _known(request, context)
    return lambda index: f"{known}{places.base}/images/{index}?token={places.token}"


async def result_urls(request: Request, context: Context, stream: Stream) -> Callable[[int], str]:
    """The same, or the URLs of those that are in the bucket."""
    own = image_urls(request, context, stream.id)
    if context.results is None:
        return own
    stored = await context.results.urls(stream.id, stream.record.created)
    return lambda index: stored.get(index) or own(index)


def absolute_base(request: Request, context: Context, id: str) -> str:
    """The absolute URL of a stream, without a token; "" where the name of the proxy is not known."""
    base = urls(request, context, id).base
    known = _known(request, context)
    return known + base if known or context.settings.public_url else ""


def _known(request: Request, context: Context) -> str:
    """What stands before an absolute path: "" where it has it already, or where the settings do not know the name."""
    if context.settings.public_url:
        return ""
    return context.origins.base_url(request.scope["scheme"], request.headers)


async def _as_json(request: Request, context: Context, stream: Stream) -> Response:
    """The stream as one object; `data` are the completed events."""
    previews = preview_choice(request, context.settings)
    applied = await _wait(request, context, stream)
    places = urls(request, context, stream.id, request.query_params.get("token"), previews)
    ref = choice(request, "payload", ("inline", "ref")) == "ref"
    done = [entry for entry in stream.log.retained() if entry.critical]
    images = [e for e in done if e.frame.type not in (ERROR, ANSWER) and not e.frame.sums]
    errors = [e for e in done if e.frame.type == ERROR]
    answers = [e for e in done if e.frame.type == ANSWER]
    head: dict[str, object] = {
        "id": stream.id,
        "object": "image.stream",
        "status": status_of(stream),
        "created_at": stream.record.created,
        "stream_url": places.stream,
        "status_url": places.status,
        "progress": progress_of(stream),
    }
    stored = await context.results.urls(stream.id, stream.record.created) if context.results and ref and images else {}
    pieces: list[Piece] = [orjson.dumps(head)[:-1], b',"data":[']
    for number, entry in enumerate(images):
        data = places.referenced(entry, stored.get(entry.frame.image)) if ref else entry.frame.data
        pieces += [b"," if number else b"", *data]
    pieces += [b'],"error":', _error_of(errors), b',"response":', *(answers[-1].frame.data if answers else (b"null",))]
    later = {} if stream.finished else {"retry-after": LOOK_AGAIN}
    headers = {"cache-control": "no-store", **NO_REFERRER, **later, **applied}
    return Response(200, "application/json", [*pieces, b"}"], headers)


async def _wait(request: Request, context: Context, stream: Stream) -> Mapping[str, str]:
    """Wait for the stream's end for as long as the caller prefers, as one of its viewers; the header that says so."""
    seconds = wait_seconds(request)
    if seconds is None:
        return {}
    if not stream.finished:
        subscriber = stream.subscribe()
        context.hub.admission.watch(stream, subscriber)
        try:
            await unless_gone(request.receive, partial(stream.ended, within=seconds))
        finally:
            context.hub.admission.unwatch(stream, subscriber)
    return {"preference-applied": f"wait={seconds}"}


def progress_of(stream: Stream) -> dict[str, float | int] | None:
    """How far the provider says it is, None where it does not say, or where another process asks it."""
    progress = None if stream.finished else stream.acceptance.progress
    return None if progress is None else progress.known or None


def status_of(stream: Stream) -> str:
    """in_progress, completed, failed or cancelled."""
    error = next((entry.frame for entry in stream.log.retained() if entry.frame.type == ERROR), None)
    return status_with(error, finished=stream.finished)


def status_with(error: Frame | None, *, finished: bool) -> str:
    """The status of a stream with this error event."""
    if error is not None:
        return "cancelled" if read_error(error).code == Failure.CANCELLED.value.code else "failed"
    return "completed" if finished else "in_progress"


def _error_of(errors: list[Entry]) -> bytes:
    """The `error` member of the last one; every error event has one."""
    return bytes(msgspec.json.decode(b"".join(errors[-1].frame.data), type=_Failed).error) if errors else b"null"


class _Failed(msgspec.Struct):
    error: msgspec.Raw


async def delete_stream(request: Request, context: Context) -> ASGIApp:
    """Cancel the stream for all readers while it runs; once it has ended, forget it."""
    stream, right = await _authorised(request, context)
    if right is not Right.ALL:
        message = "This token only reads. Send the one of cancel_url, or the key that asked for the stream."
        raise ProxyError(Failure.READ_ONLY_TOKEN, message)
    forgotten = await context.hub.end(stream)
    if forgotten and context.results is not None:
        context.results.forget(stream.id, stream.record.created)
    body = {"id": stream.id, "object": "image.stream", "deleted": forgotten, "cancelled": not forgotten}
    return json_response(body, headers={"cache-control": "no-store", **NO_REFERRER})


async def get_image(request: Request, context: Context) -> ASGIApp:
    """The completed image as the file it is, or where it is in the bucket."""
    try:
        stream, _ = await _authorised(request, context)
    except ProxyError as error:
        # A token, which has been checked, still opens the picture of a stream that was let go.
        opened = error.failure in LET_GO and "token" in request.query_params
        moved = await _moved(request, context, None) if opened else None
        if moved is None:
            raise
        return moved
    made = any(entry.critical and entry.frame.type != ERROR for entry in stream.log.retained())
    moved = await _moved(request, context, stream.record.created) if made else None
    return moved or await _picture(request, context, stream, preview=False)


async def get_preview(request: Request, context: Context) -> ASGIApp:
    """The newest preview as the file it is; the completed image once that is there."""
    stream, _ = await _authorised(request, context)
    return await _picture(request, context, stream, preview=True)


async def _moved(request: Request, context: Context, created: int | None) -> ASGIApp | None:
    """302 to the image in the bucket, None where it is not there. A signed URL is for GET only.

    `created`: of the stream, None where it is not known any more.
    """
    index: str = request.path_params["image_index"]
    if context.results is None or request.method != "GET" or not index.isdecimal() or len(index) > _INDEX:
        return None
    stored = (await context.results.urls(request.path_params["id"], created)).get(int(index))
    if stored is None:
        return None
    return empty_response(302, {"location": stored, "cache-control": "no-store", **NO_REFERRER})


async def _picture(request: Request, context: Context, stream: Stream, *, preview: bool) -> ASGIApp:
    form = preview_choice(request, context.settings).form if preview else None
    index: str = request.path_params["image_index"]
    of_image = [e for e in stream.log.retained() if str(e.frame.image) == index]
    candidates = [e for e in of_image if e.frame.type not in (ERROR, ANSWER)]
    wanted = [e for e in candidates if e.critical] or (candidates if preview else [])
    if form is not None and wanted and not wanted[-1].critical:
        wanted = [await _version(context, stream, wanted[-1], form)]
    picture = image_bytes(wanted[-1].frame.data) if wanted else None
    answers = [] if wanted else [entry for entry in stream.log.retained() if entry.frame.type == ANSWER]
    if answers and index.isdecimal() and len(index) <= _INDEX:
        wanted = answers
        picture = nth_image(answers[-1].frame.data, int(index))
    if picture is None:
        raise ProxyError(Failure.NOT_FOUND, "This stream has no such image, or not yet.", param="image_index")
    headers = {
        "etag": f'"{stream.id}-{wanted[-1].cursor}{"" if form is None else form.query}"',
        "cache-control": IMMUTABLE if wanted[-1].critical and not preview else "no-store",
        "x-content-type-options": "nosniff",
        **NO_REFERRER,
        "content-security-policy": "default-src 'none'",
    }
    kind = sniff(picture[:SNIFFED]) or "application/octet-stream"
    return partial_response(request, picture, kind, headers)


async def _version(context: Context, stream: Stream, entry: Entry, form: PreviewForm) -> Entry:
    """The preview in this form; as it is where it has none, or is of no more use."""
    while (version := context.previews.version(form, stream, entry)) is Unmade.MAKING:
        await stream.changed.wait()
        if stream.log.at(entry.cursor.seq) is None:
            return entry
    return version if isinstance(version, Entry) else entry


def partial_response(request: Request, body: bytes, content_type: str, headers: Mapping[str, str]) -> ASGIApp:
    """200, 304 where the caller has it, 206 for one range, 416 for one beyond the end. `headers` hold the etag."""
    etag = headers["etag"]
    if has_version(request, etag):
        return empty_response(304, headers)
    size = len(body)
    ranged = {**headers, "accept-ranges": "bytes"}
    span = byte_range(request, size, etag)
    if span is None:
        return Response(200, content_type, (body,), ranged)
    start, end = span
    if start >= end:
        return Response(416, content_type, (), {**ranged, "content-range": f"bytes */{size}"})
    view = memoryview(body)[start:end]
    return Response(206, content_type, (view,), {**ranged, "content-range": f"bytes {start}-{end - 1}/{size}"})


async def _authorised(request: Request, context: Context) -> tuple[Stream, Right]:
    """The stream and the right to it, by its token or the caller's key.

    Another caller's stream does not exist. A stream asked for without a key has no owner, so only its tokens open it.
    """
    stream, right = await _opened(request, context)
    request.state.stream = stream.id
    return stream, right


async def _opened(request: Request, context: Context) -> tuple[Stream, Right]:
    id: str = request.path_params["id"]
    token = request.query_params.get("token")
    if token is not None:
        right = context.tokens.check(id, token)
        return await context.hub.find(id), right
    owner = owner_of(request.scope["headers"], context.callers)
    stream = await context.hub.find(id)
    if owner is None or stream.record.owner != owner:
        raise ProxyError(Failure.NOT_FOUND, "No such stream.")
    return stream, Right.ALL
