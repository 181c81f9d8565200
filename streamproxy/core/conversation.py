"""A conversation with a provider: the steps that an adapter asks for, as values, and typed helpers for them.

    head = yield from send(request)       one HTTP exchange; closes an earlier one
    raw = yield from body(limit)          its answer, whole
    event = yield from next_event()       or event by event, None at the end
    yield from pour(decoder)              or through a decoder as it arrives: the fast lane
    yield Accepted()                      the provider works on it: every later failure may have been charged
    yield frame                           one event for the readers

    yield Launch(request)                 a request that is long under way, while others ask how far it is
    head = yield from join(seconds)       its answer's head, None where it is not there yet

An adapter's `converse` is a generator of these steps. It reads like blocking code but does no I/O: it has no socket,
clock, credential or log, so a test drives it with a list of replies. `generation/driver.py` performs the steps, and
throws the ProxyError of a failed step into the generator.

Steps and helpers are one module, because every adapter is written in both.

Rules, checked for every adapter by one contract suite: no frame before Accepted; nothing is sent after the last final
frame; no credential in any step; `close()` and `throw()` at any step leave nothing behind.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal, Protocol, TypeVar, cast

import msgspec

from streamproxy.core.catalogue import Model, Provider, Route
from streamproxy.core.events import Frame
from streamproxy.core.images import base64_slices, media_type, probe, probe_base64
from streamproxy.core.requests import (
    FileId,
    Head,
    ImageRequest,
    Inline,
    Input,
    Segment,
    Spooled,
    UpstreamRequest,
    as_bytes,
    json_segments,
)
from streamproxy.core.schema import CHOICE
from streamproxy.core.sse import Cutter, Event
from streamproxy.errors import Failure, ProxyError

Result = TypeVar("Result")

SMALL: Final = 256 * 1024
"""Bytes of an answer without a picture: a job's status, an error. The largest recorded one has under 64 KiB."""

REFUSAL_SECONDS: Final = 5.0
"""Seconds to wait for the body of an error answer. Its status alone is enough for an error."""

POLLS: Final = (0.25, 0.5, 0.5, 1.0)
"""Seconds between two polls of a job; the last one repeats. BFL asks for 1 s (its `retry-after`)."""

TRIES: Final = 5
"""Tries of one poll that fails. The job has been paid for, and polling costs nothing."""

_BUSY: Final = frozenset({429, 500, 502, 503, 504})
_LASTING: Final = frozenset(
    {Failure.FOREIGN_HOST, Failure.UNEXPECTED_REDIRECT, Failure.DEADLINE, Failure.PROVIDER_AUTH, Failure.INTERNAL}
    | {Failure.RESPONSE_BODY_SIZE, Failure.CONTENT_CODING, Failure.UPSTREAM_REQUEST}
)
"""Failures that a repetition does not mend."""


# ---------------------------------------------------------------------------------------------------------------- steps


@dataclass(frozen=True, slots=True)
class Send:
    """One HTTP exchange. Reply: Head. The driver signs the request, and closes the answer that was open before."""

    request: UpstreamRequest


@dataclass(frozen=True, slots=True)
class Launch:
    """Send a request and go on while it is under way, beside other exchanges. One at a time. Reply: None."""

    request: UpstreamRequest


@dataclass(frozen=True, slots=True)
class Join:
    """Wait for the launched request's answer. Reply: Head, and that answer is the open one; None after `seconds`."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Body:
    """The rest of the open answer. Reply: bytes, at most `limit`. `within`: stop after that many seconds."""

    limit: int
    within: float | None = None


@dataclass(frozen=True, slots=True)
class NextEvent:
    """The open answer's next event. Reply: Event, or None at the end. A JSON answer is one event without a name."""


@dataclass(frozen=True, slots=True)
class Pour:
    """Run the open answer through `decoder`, whose values are steps. Reply: None when it has ended or is `done`."""

    decoder: Decoder


@dataclass(frozen=True, slots=True)
class Wait:
    """A pause. Reply: None after `seconds`."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Fetch:
    """An image by URL: without credential, through the address guard. Reply: Picture."""

    url: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Convert:
    """An image as another kind of file, made beside the event loop. Reply: Picture. ProxyError(UNREADABLE_IMAGE).

    A mask is a PNG in black and white. Where OpenAI's mask is transparent, a white mask is white and a black one black.
    """

    image: Inline | Spooled | Picture = field(repr=False)
    form: Literal["png", "jpeg", "white mask", "black mask"]


@dataclass(frozen=True, slots=True)
class Inlining:
    """A frame whose pictures are at `urls`. They are fetched, and `frame` makes it of them. Reply: None.

    One that cannot be fetched keeps its URL: it has been paid for.
    """

    urls: tuple[str, ...] = field(repr=False)
    frame: Callable[[tuple[Picture, ...]], Frame] = field(repr=False)


@dataclass(frozen=True, slots=True)
class Connect:
    """Open a WebSocket beside the exchanges. Reply: None."""

    url: str


@dataclass(frozen=True, slots=True)
class Tell:
    """Send a text message on the WebSocket. Reply: None."""

    text: str


@dataclass(frozen=True, slots=True)
class Hear:
    """The next message on the WebSocket. Reply: str or bytes."""


@dataclass(frozen=True, slots=True)
class Accepted:
    """The provider works on the request."""


@dataclass(frozen=True, slots=True)
class NotApplied:
    """The caller's members that are not sent to the provider, where they differ from `Adapter.not_applied`."""

    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Undo:
    """A request to send once if the generation is cancelled from here on; None withdraws an earlier one."""

    request: UpstreamRequest | None


@dataclass(frozen=True, slots=True)
class JobId:
    """The provider's own name for the work, for the log: by it an operator finds a job that was paid for."""

    id: str


@dataclass(frozen=True, slots=True)
class Progress:
    """The provider's progress: a fraction from 0 to 1, or a place in its queue."""

    fraction: float | None = None
    queue: int | None = None

    @property
    def known(self) -> dict[str, float | int]:
        """What is said of it, by name."""
        said = {"fraction": self.fraction, "queue": self.queue}
        return {name: value for name, value in said.items() if value is not None}

    @property
    def stage(self) -> tuple[int | None, int | None]:
        """Its tenth and its place. A log needs no more of it."""
        return None if self.fraction is None else int(self.fraction * 10), self.queue


@dataclass(frozen=True, slots=True)
class Tolerated:
    """A fault of the provider that no caller noticed, by its metric label."""

    label: str


Said = Accepted | Frame | Inlining | Tolerated
"""The steps that a decoder may yield: those without a reply."""

Step = (
    Send
    | Launch
    | Join
    | Body
    | NextEvent
    | Pour
    | Wait
    | Fetch
    | Inlining
    | Convert
    | Connect
    | Tell
    | Hear
    | Accepted
    | NotApplied
    | Undo
    | JobId
    | Progress
    | Tolerated
    | Frame
)
Conversation = Generator[Step, object, Result]


class Decoder(Protocol):
    """Turns one answer into frames. Yields every whole frame before it raises the ProxyError of a failure."""

    @property
    def done(self) -> bool:
        """Whether every image has its final frame, so that the rest of the answer is not wanted."""
        ...

    def feed(self, chunk: bytes) -> Iterator[Said | None]:
        """Take the next bytes, cut anywhere, and yield the steps that they complete.

        None among them asks for a pause: much work gave no step, and other tasks should have a turn.
        """
        ...

    def finish(self) -> Iterator[Said]:
        """Take the answer's end: yield the rest, then raise ProxyError unless every image had its outcome."""
        ...


# ------------------------------------------------------------------------------------------------- one provider's share


@dataclass(frozen=True, slots=True)
class Limits:
    """Most bytes of one event and of a whole answer. `fetch_images`: whether callers' image URLs are fetched.

    `inline_urls`: whether those of a provider's answer are.
    """

    event: int
    answer: int
    fetch_images: bool = False
    inline_urls: Literal["always", "asked", "never"] = "never"


@dataclass(frozen=True, slots=True)
class Job:
    """One provider's share of a request.

    `n`: images to make; `first`: the index of the first one. `several`: the request is for more than one image, so
    events name their index. `now`: Unix seconds. `token`: 32 random hexadecimal digits. `scrub` removes secrets from a
    provider's text. `callers_key`: the credential is the caller's own, so a 401 is the caller's error.
    """

    request: ImageRequest
    route: Route
    n: int
    now: int
    token: str
    limits: Limits
    scrub: Callable[[str], str]
    first: int = 0
    several: bool = False
    callers_key: bool = False

    @property
    def provider(self) -> Provider:
        return self.route.provider

    @property
    def model(self) -> Model:
        return self.route.model

    @property
    def inlines(self) -> bool:
        """Whether the caller gets pictures as base64 that the provider has at URLs."""
        asked = self.request.response_format == "b64_json"
        return self.limits.inline_urls == "always" or (asked and self.limits.inline_urls == "asked")


class Adapter(Protocol):
    """One provider's wire form."""

    def at_once(self, request: ImageRequest, route: Route) -> int:
        """How many of the request's images one job makes: at least 1, at most `request.n`."""
        ...

    def not_applied(self, job: Job) -> tuple[str, ...]:
        """Names of the caller's members that will not be honoured, as far as is known before anything is sent."""
        ...

    def converse(self, job: Job) -> Conversation[None]:
        """Make the job's images. Ends when each has its final frame; otherwise raises ProxyError."""
        ...


@dataclass(frozen=True, slots=True)
class Picture:
    """One image: its base64 in pieces, the first with the image's header, and its media type.

    An image that could not be fetched has no pieces, but its URL, and the reason in `problem`. `revised_prompt`:
    the provider's own wording, or empty.
    """

    base64: tuple[bytes | memoryview, ...] = field(repr=False)
    media_type: str = ""
    url: str | None = field(default=None, repr=False)
    problem: str = ""
    revised_prompt: str = field(default="", repr=False)


# ------------------------------------------------------------------------------------------------------- typed helpers


def send(request: UpstreamRequest, *, redirects: bool = False) -> Conversation[Head]:
    """Make one exchange and return its head. A redirect is an error: following it would send the credential along."""
    head = cast(Head, (yield Send(request)))
    if 300 <= head.status < 400 and not redirects:
        raise redirected()
    return head


def redirected() -> ProxyError:
    """The error for an answer that is a redirect."""
    return ProxyError(
        Failure.UNEXPECTED_REDIRECT,
        "The provider answered with a redirect, which is never followed because it would carry the credential. "
        "Check the provider's base_url.",
    )


def join(seconds: float) -> Conversation[Head | None]:
    """The launched request's answer, None where its head has not come within `seconds`."""
    return cast("Head | None", (yield Join(seconds)))


def body(limit: int) -> Conversation[bytes]:
    """The open answer's body. Raises ProxyError(RESPONSE_BODY_SIZE) over `limit` bytes."""
    return cast(bytes, (yield Body(limit)))


def refusal_body() -> Conversation[bytes]:
    """The body of an error answer; b"" where it cannot be read, since its status is enough for an error."""
    try:
        return cast(bytes, (yield Body(SMALL, REFUSAL_SECONDS)))
    except ProxyError:
        return b""


def picture(limit: int) -> Conversation[Picture]:
    """The open answer's body as a picture."""
    raw = yield from body(limit)
    info = probe(raw)
    return Picture(tuple(base64_slices(raw)), media_type(info.format) if info else "")


def next_event() -> Conversation[Event | None]:
    """The open answer's next event, None at the end."""
    return cast("Event | None", (yield NextEvent()))


def pour(decoder: Decoder) -> Conversation[None]:
    """Run the open answer through a decoder as it arrives."""
    yield Pour(decoder)


def wait(seconds: float) -> Conversation[None]:
    """Let `seconds` pass."""
    yield Wait(seconds)


def hear() -> Conversation[str | bytes]:
    """The WebSocket's next message."""
    return cast("str | bytes", (yield Hear()))


def fetch(url: str) -> Conversation[Picture]:
    """A result by its URL. One that cannot be fetched keeps the URL: it has been paid for."""
    try:
        return cast(Picture, (yield Fetch(url)))
    except ProxyError as error:
        yield Tolerated(error.failure.value.label)
        return Picture((), url=url, problem=error.message)


def converted(image: Picture, form: Literal["png", "jpeg"]) -> Conversation[Picture]:
    """A result as a file of this form. One that cannot be converted stays as it is: it has been paid for."""
    info = probe_base64(image.base64[0]) if image.base64 else None
    if info is not None and info.format == form:
        return image
    try:
        return cast(Picture, (yield Convert(image, form)))
    except ProxyError as error:
        yield Tolerated(error.failure.value.label)
        return image


def first_of(made: Sequence[Result], job: Job) -> Conversation[Sequence[Result]]:
    """As many results as the job is for. What more a provider has made is not read."""
    if len(made) > job.n:
        yield Tolerated("more_images")
    return made[: job.n]


def inlined(image: Input, job: Job, param: str) -> Conversation[Inline | Spooled]:
    """An input image with its bytes. A caller's URL is fetched if the model takes URLs, or fetch_images allows it."""
    if isinstance(image, Inline | Spooled):
        return image
    param = job.request.told(param)
    if isinstance(image, FileId):
        message = "This provider knows no file ids of its own. POST /v1/files uploads an image to this proxy."
        raise ProxyError(Failure.UNSUPPORTED_PARAMETER, message, param=param)
    if not (job.limits.fetch_images or job.model.remote_image_urls):
        raise ProxyError(
            Failure.UNSUPPORTED_PARAMETER,
            "This model takes no image URLs: send the image as a data: URL, or upload it as a file. The setting "
            "fetch_images lets the proxy fetch them.",
            param=param,
        )
    found = cast(Picture, (yield Fetch(image.url)))
    return Inline(memoryview(b"".join(found.base64)), found.media_type, in_body=False)


def mask(job: Job, marks: Literal["white", "black"]) -> Conversation[Inline | None]:
    """The caller's mask in black and white, None where there is none. `marks`: the colour of what is to be edited."""
    if job.request.mask is None:
        return None
    given = yield from inlined(job.request.mask, job, "mask")
    try:
        made = cast(Picture, (yield Convert(given, "white mask" if marks == "white" else "black mask")))
    except ProxyError as error:
        error.param = job.request.told("mask")
        raise
    return Inline(memoryview(b"".join(made.base64)), made.media_type)


def look(request: UpstreamRequest, limit: int = SMALL) -> Conversation[tuple[Head, bytes]]:
    """Send a request that is safe to repeat; repeat it with pauses while the provider is busy or unreachable."""
    for pause in (*(2.0**number / 4 for number in range(TRIES - 1)), None):
        try:
            head = yield from send(request)
            raw = yield from body(limit)
        except ProxyError as error:
            if pause is None or error.failure in _LASTING:
                raise
        else:
            if head.status not in _BUSY or pause is None:
                return head, raw
            pause = max(pause, asked_pause(head))
        yield Wait(pause)
    raise AssertionError("the last try returns or raises")


def asked_pause(head: Head) -> float:
    """Seconds of `retry-after`, at most 30; 0 without it."""
    value = head.headers.get("retry-after", "")
    return min(float(value), 30.0) if value.isdecimal() else 0.0


def pauses() -> Iterator[float]:
    """Seconds between two polls of a job, without end."""
    yield from POLLS
    while True:
        yield POLLS[-1]


def post_json(job: Job, url: str, value: object, headers: tuple[tuple[str, str], ...] = ()) -> UpstreamRequest:
    """A POST of JSON. Images embedded in `value` are not copied into it."""
    own = (("content-type", "application/json"), *COMMON, *headers)
    return UpstreamRequest("POST", url, own, json_segments(value, job.token))


def post_file(job: Job, url: str, name: str, image: Inline | Spooled) -> UpstreamRequest:
    """A POST of a form with one file."""
    return post_form(job, url, {}, {name: image})


def post_form(
    job: Job,
    url: str,
    fields: Mapping[str, str],
    files: Mapping[str, Inline | Spooled] | Sequence[tuple[str, Inline | Spooled]],
    accept: str = "",
) -> UpstreamRequest:
    """A POST of a form: its texts, then its files, which are sent from where they are; several may have one name."""
    boundary = f"streamproxy-{job.token}".encode()
    pieces: list[Segment] = []
    for name, value in fields.items():
        pieces += (_part(boundary, name), value.encode(), b"\r\n")
    for name, image in files.items() if isinstance(files, Mapping) else files:
        kind = image.media_type
        pieces += (_part(boundary, name, f"{job.token}.{kind.removeprefix('image/')}", kind), as_bytes(image), b"\r\n")
    pieces.append(b"--%b--\r\n" % boundary)
    headers = (("content-type", f"multipart/form-data; boundary={boundary.decode()}"), *COMMON)
    return UpstreamRequest("POST", url, (*headers, ("accept", accept)) if accept else headers, tuple(pieces))


def _part(boundary: bytes, name: str, filename: str = "", kind: str = "") -> bytes:
    """The head of a form's part. The names are ours."""
    file = f'; filename="{filename}"\r\nContent-Type: {kind}' if filename else ""
    return b"--%b\r\n" % boundary + f'Content-Disposition: form-data; name="{name}"{file}\r\n\r\n'.encode()


def get(url: str) -> UpstreamRequest:
    """A GET."""
    return UpstreamRequest("GET", url, COMMON)


COMMON: Final = (("accept-encoding", "identity"), ("user-agent", "streamproxy"))
"""Headers of every request. An answer is relayed as it comes, so it must not be compressed."""


def pixels(size: str | None) -> tuple[int, int] | None:
    """Width and height of a size like 1024x1536; None for `auto` and for anything else."""
    found = _PIXELS.fullmatch(size or "")
    return (int(found[1]), int(found[2])) if found else None


def unapplied(job: Job, applied: frozenset[str]) -> tuple[str, ...]:
    """The caller's members that neither the adapter (`applied`) nor the proxy itself honours."""
    return tuple(sorted(job.request.given - applied - _HONOURED))


def decoded(raw: bytes, shape: type[Result]) -> Result:
    """A provider's JSON as `shape`. Raises ProxyError(BAD_JSON)."""
    try:
        return msgspec.json.decode(raw, type=shape)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise ProxyError(Failure.BAD_JSON, "The provider's answer is not the JSON that it should be.") from None


class Events:
    """Cuts an answer into events as it arrives. One that begins like JSON is a single event without a name."""

    done = False

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._lead = b""
        self._cutter: Cutter | None = None
        self._json: list[bytes] | None = None
        self._size = 0

    def feed(self, chunk: bytes) -> Iterator[Event]:
        """Take the next bytes, and yield the events that they end."""
        if self._json is None and self._cutter is None:
            chunk = self._lead + chunk
            start = chunk.lstrip(_BLANK)[:1]
            if not start:
                self._lead = chunk[:SMALL]
                return
            if start in (b"{", b"["):
                self._json = []
            else:
                self._cutter = Cutter(self._limits.event)
        if self._cutter is not None:
            yield from self._cutter.feed(chunk)
        elif self._json is not None:
            self._size += len(chunk)
            if self._size > self._limits.answer:
                raise ProxyError(
                    Failure.RESPONSE_BODY_SIZE,
                    f"The provider's answer is over {self._limits.answer} bytes. "
                    "The setting max_response_bytes allows larger ones.",
                )
            self._json.append(chunk)

    @property
    def gather(self) -> Callable[[bytes], bool] | None:
        """Cutter.gather, where the answer is events."""
        return None if self._cutter is None else self._cutter.gather

    def finish(self) -> Iterator[Event]:
        """Take the answer's end, and yield the rest as the last event. Raises ProxyError(BAD_JSON) if it is not whole.

        After a lost connection `UpstreamResponse.frames` gives that as the reason instead.
        """
        last = None if self._cutter is None else self._cutter.finish()
        if self._json is not None:
            last = Event("", tuple(self._json))
        if last is not None:
            raw = last.joined()
            decoded(raw, msgspec.Raw)
            yield Event(last.name, (raw,))


_PIXELS: Final = re.compile(r"([1-9][0-9]{0,4})[xX]([1-9][0-9]{0,4})")
_HONOURED: Final = frozenset(
    {"model", "prompt", "n", "stream", "partial_images", "response_format", "extra_headers", *CHOICE}
)

_BLANK: Final = b"\xef\xbb\xbf \t\r\n"
