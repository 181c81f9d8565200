"""Jobs as the web side would make them, and answers as the driver would read them, for adapters' tests."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from decimal import Decimal
from typing import Literal

from streamproxy.core.catalogue import Model, Provider, Route
from streamproxy.core.completion import collected
from streamproxy.core.conversation import Accepted, Job, Limits, Said, Send
from streamproxy.core.cost import Price
from streamproxy.core.events import ANSWER, Frame, Operation
from streamproxy.core.headers import HeaderPolicy
from streamproxy.core.rawjson import JsonObject, parse
from streamproxy.core.requests import Head, ImageRequest, Inline, Input, Part, Remote, UpstreamRequest
from streamproxy.errors import ProxyError
from streamproxy.providers import ADAPTERS
from streamproxy.providers.openai.events import Answer
from streamproxy.settings.providers import read_catalogue

CATALOGUE = read_catalogue()
GPT = replace(CATALOGUE.models["openai/gpt-image-2"], price=Price(per_image=Decimal("0.02")))
SCRUB = HeaderPolicy.load().scrub
NOW = 1_795_248_999
TOKEN = "0" * 32
BOUNDARY = f"streamproxy-{TOKEN}"
EVENTS = {"content-type": "text/event-stream"}


def provider(name: str) -> Provider:
    row = CATALOGUE.providers[name]
    return replace(row, base_url=row.base_url or f"https://{name}.test/v1")


def wanted(
    body: bytes | JsonObject | tuple[Part, ...] = b'{"model":"gpt-image-2","prompt":"p"}',
    *,
    host: str = "openai",
    operation: Operation = Operation.GENERATION,
    model: Model = GPT,
    upstream_model: str = "gpt-image-2",
    n: int = 1,
    stream: bool = True,
    asks: bool = True,
    via_generations: bool = False,
    inline_urls: Literal["always", "asked", "never"] = "never",
    response_format: str | None = None,
    max_event_bytes: int = 1 << 20,
    max_answer_bytes: int = 1 << 20,
) -> Job:
    """A job for all of the request's images. `asks`: the model can be asked to stream."""
    body = parse(body) if isinstance(body, bytes) else body
    inputs = tuple(_inputs(body)) if isinstance(body, JsonObject) else ()
    mask = next(_images(body, "mask"), None) if isinstance(body, JsonObject) else None
    request = ImageRequest(
        operation=operation,
        model="gpt-image-2",
        prompt="p",
        n=n,
        stream=stream,
        partial_images=None,
        size="1024x1024",
        quality="high",
        background=None,
        output_format=None,
        response_format=response_format,
        images=inputs,
        mask=mask,
        extra_headers=None,
        body=body,
        via_generations=via_generations,
    )
    return Job(
        request=request,
        route=Route(provider(host), replace(model, streams=asks), upstream_model),
        n=n,
        now=NOW,
        token=TOKEN,
        limits=Limits(max_event_bytes, max_answer_bytes, inline_urls=inline_urls),
        scrub=SCRUB,
        several=n > 1,
    )


def _inputs(body: JsonObject) -> Iterator[Input]:
    yield from _images(body, "image")
    yield from _images(body, "images")


def _images(body: JsonObject, name: str) -> Iterator[Input]:
    """Where the images are; what they are is not looked at."""
    given = body.decode(name)
    for item in given if isinstance(given, list) else [given]:
        url = item.get("image_url") if isinstance(item, dict) else item
        if isinstance(url, str):
            yield Remote(url) if url.lower().startswith("http") else Inline(memoryview(b""), "image/png")


def sent(job: Job) -> UpstreamRequest:
    """The first request of a job."""
    conversation = ADAPTERS[job.provider.adapter].converse(job)
    step = next(conversation)
    conversation.close()
    assert isinstance(step, Send)
    return step.request


def answering(job: Job, headers: Mapping[str, str] = EVENTS) -> Answer:
    """What reads an answer with such a head."""
    return Answer(job, Head(200, tuple(headers.items())))


def decoded(
    job: Job, chunks: Iterable[bytes], headers: Mapping[str, str] = EVENTS
) -> tuple[list[Frame], ProxyError | None]:
    """The frames of an answer as its caller gets them, and the error that it ends in."""
    frames: list[Frame] = []
    try:
        for frame in _frames(answering(job, headers), chunks):
            frames.append(frame)
        if not job.request.stream:
            frames = [one_answer(frames)]
    except ProxyError as error:
        return frames if job.request.stream else [], error.with_traceback(None)
    return frames, None


def _frames(decoder: Answer, chunks: Iterable[bytes]) -> Iterator[Frame]:
    accepted = False
    for step in _steps(decoder, chunks):
        match step:
            case Accepted():
                assert not accepted, "an answer is accepted once"
                accepted = True
            case Frame():
                assert accepted, "no frame comes before an answer is accepted"
                yield step


def _steps(decoder: Answer, chunks: Iterable[bytes]) -> Iterator[Said | None]:
    for chunk in chunks:
        yield from decoder.feed(chunk)
        if decoder.done:
            return
    yield from decoder.finish()


def one_answer(frames: Iterable[Frame]) -> Frame:
    """The JSON answer that the frames amount to."""
    [*_, last] = events = list(frames)
    return last if last.type == ANSWER else Frame(ANSWER, (collected([data(frame) for frame in events], NOW),))


def data(frame: Frame) -> bytes:
    return b"".join(frame.data)
