"""Requests and exchanges as the web side would make them, for adapters' tests."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from decimal import Decimal

from streamproxy.configuration import read_catalogue
from streamproxy.core.catalogue import Model, Provider
from streamproxy.core.cost import Price
from streamproxy.core.events import Frame, Operation
from streamproxy.core.headers import HeaderPolicy
from streamproxy.core.jsonbody import JsonObject, parse
from streamproxy.core.requests import Exchange, Head, ImageRequest, Part
from streamproxy.errors import ProxyError
from streamproxy.providers import Decoder
from streamproxy.providers.openai import OpenAI

CATALOGUE = read_catalogue()
GPT = replace(CATALOGUE.models["openai/gpt-image-2"], price=Price(per_image=Decimal("0.02")))
SCRUB = HeaderPolicy.load().scrub
NOW = 1_795_248_999
BOUNDARY = "boundary"


def provider(name: str) -> Provider:
    row = CATALOGUE.providers[name]
    return replace(row, base_url=row.base_url or f"https://{name}.test/v1")


def wanted(
    body: bytes | JsonObject | tuple[Part, ...] = b'{"model":"gpt-image-2","prompt":"p"}',
    *,
    operation: Operation = Operation.GENERATION,
    model: Model = GPT,
    upstream_model: str = "gpt-image-2",
    n: int = 1,
    stream: bool = True,
    ask_stream: bool = True,
    via_generations: bool = False,
) -> ImageRequest:
    return ImageRequest(
        operation=operation,
        model=model,
        upstream_model=upstream_model,
        body=parse(body) if isinstance(body, bytes) else body,
        extra_headers=(),
        n=n,
        stream=stream,
        ask_stream=ask_stream,
        size="1024x1024",
        quality="high",
        via_generations=via_generations,
    )


def exchange(
    request: ImageRequest,
    headers: Mapping[str, str] | None = None,
    *,
    max_event_bytes: int = 1 << 20,
    max_answer_bytes: int = 1 << 20,
) -> Exchange:
    head = Head(200, {"content-type": "text/event-stream"} if headers is None else headers)
    return Exchange(request, provider("openai"), head, NOW, max_event_bytes, max_answer_bytes, SCRUB)


def decoded(what: Exchange, chunks: Iterable[bytes]) -> tuple[list[Frame], ProxyError | None]:
    """The frames of an answer, and the error that it ends in, as the relay reads it."""
    frames: list[Frame] = []
    try:
        decoder: Decoder = OpenAI().decoder(what)
        for chunk in chunks:
            frames += filter(None, decoder.feed(chunk))
            if decoder.done:
                return frames, None
        for frame in decoder.finish():
            frames.append(frame)
    except ProxyError as error:
        return frames, error
    return frames, None


def data(frame: Frame) -> bytes:
    return b"".join(frame.data)
