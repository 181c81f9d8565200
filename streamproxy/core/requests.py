"""What one caller asks for, and what one provider is sent: plain values between web, providers and upstream."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from streamproxy.core.catalogue import Model, Provider
from streamproxy.core.events import Operation
from streamproxy.core.jsonbody import JsonObject


class Upload(Protocol):
    """One uploaded file, spooled: its size in bytes is known, its bytes stay where they are until they are sent."""

    @property
    def size(self) -> int: ...

    def read(self, offset: int, length: int) -> bytes:
        """Up to `length` bytes from `offset`; blocking, so called from a worker thread."""
        ...


Segment = bytes | Upload
"""A run of a request's body: the bytes themselves, or a file to be read while sending."""


@dataclass(frozen=True, slots=True)
class Part:
    """One part of a multipart form, in the caller's order. `filename` None: a text field, `value` its UTF-8 bytes."""

    name: str
    value: Segment
    filename: str | None = None
    content_type: str | None = None


@dataclass(frozen=True, slots=True)
class ImageRequest:
    """One validated request for images.

    `body` is the caller's: a JSON object as raw bytes with member spans, or the parts of a form. `upstream_model` is
    the name that the provider knows. `stream`: the caller asked for events. `ask_stream`: the provider is asked too.
    `quality`, `background` and `size` are the caller's words, for events that we have to fill ourselves.
    """

    operation: Operation
    model: Model
    upstream_model: str
    body: JsonObject | tuple[Part, ...]
    extra_headers: tuple[tuple[str, str], ...]
    n: int
    stream: bool
    ask_stream: bool
    size: str | None = None
    quality: str | None = None
    background: str | None = None
    trace: tuple[tuple[str, str], ...] = ()
    """`x-request-id` and `traceparent` as the caller gave them, for the provider."""
    image_index: int | None = None
    """Which image of the caller's request this is, where each is asked for by a request of its own."""
    via_generations: bool = False
    """An edit that came as a generation with an `image` member."""


@dataclass(frozen=True, slots=True)
class UpstreamRequest:
    """One request to a provider, whole: nothing is added later but Host and the connection's own headers.

    `headers` are in order, names lower-case. The body is sent segment by segment with a Content-Length.
    """

    method: str
    url: str
    headers: tuple[tuple[str, str], ...]
    body: tuple[Segment, ...]

    @property
    def content_length(self) -> int:
        """Bytes of the whole body."""
        return sum(len(part) if isinstance(part, bytes) else part.size for part in self.body)


@dataclass(frozen=True, slots=True)
class Head:
    """A provider's response head: status, and headers with lower-case names, the last of equal names winning."""

    status: int
    headers: Mapping[str, str]

    @property
    def media_type(self) -> str:
        """The content type without its parameters, lower-case; "" when there is none."""
        return self.headers.get("content-type", "").partition(";")[0].strip().lower()


@dataclass(frozen=True, slots=True)
class Exchange:
    """A request with the head of its answer: all that a decoder may know. `now` in Unix seconds.

    `max_event_bytes` bounds the data of one event, `max_answer_bytes` a whole buffered answer; `scrub` takes what looks
    like a secret out of a provider's text.
    """

    request: ImageRequest
    provider: Provider
    head: Head
    now: int
    max_event_bytes: int
    max_answer_bytes: int
    scrub: Callable[[str], str]
