"""Google's Gemini image models: generateContent, and its stream for callers who want events.

    contents[].parts[]     the prompt, and each input image as inlineData
    generationConfig       aspect ratio and size tier, from OpenAI's `size`
    candidates[].content   text, pictures, and drafts: pictures that a thinking model makes on the way

A thinking model may answer with several pictures, drafts first, and not every draft is marked. So the newest picture is
held back: one that another follows was a draft, and becomes a preview; the one that is left at the end is the result,
preferably one that is not marked as a thought. There is one picture a request, and no mask.

Sources: google-genai 3.6.1; ai.google.dev/gemini-api/docs/image-generation, 16 July 2026.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import log, sqrt
from typing import Final
from urllib.parse import quote

import msgspec

from streamproxy.core.catalogue import Route
from streamproxy.core.completion import finals, preview
from streamproxy.core.conversation import (
    Accepted,
    Conversation,
    Job,
    Picture,
    inlined,
    next_event,
    pixels,
    post_json,
    refusal_body,
    send,
    unapplied,
)
from streamproxy.core.events import Frame
from streamproxy.core.rawjson import base64_text
from streamproxy.core.requests import Embedded, Head, ImageRequest, UpstreamRequest
from streamproxy.core.sse import Event
from streamproxy.errors import Failure, ProxyError
from streamproxy.providers.refusals import Refusal, bad_credential, moderated, no_image, refused

TEN: Final = ("1:1", "2:3", "3:2", "3:4", "4:3", "4:5", "5:4", "9:16", "16:9", "21:9")
FOURTEEN: Final = (*TEN, "1:4", "4:1", "1:8", "8:1")


@dataclass(frozen=True, slots=True)
class Shape:
    """What one model can be asked for: aspect ratios, and size tiers from the smallest; none where it has one size."""

    ratios: tuple[str, ...]
    tiers: tuple[str, ...]


SHAPES: Final[Mapping[str, Shape]] = {
    "gemini-2.5-flash-image": Shape(TEN, ()),
    "gemini-3-pro-image": Shape(TEN, ("1K", "2K", "4K")),
    "gemini-3.1-flash-image": Shape(FOURTEEN, ("512", "1K", "2K", "4K")),
    "gemini-3.1-flash-lite-image": Shape(FOURTEEN, ("512", "1K")),
    "gemini-nano-banana-2.1": Shape(FOURTEEN, ("1K", "2K", "4K")),
}
LIKELY: Final = Shape(TEN, ("1K", "2K", "4K"))
"""For a model that is not in the table."""

TIERS: Final = {"512": 768.0, "1K": 1536.0, "2K": 3072.0, "4K": float("inf")}
"""Each tier ends below this mean edge, the square root of the area in pixels."""

PIXELS: Final[Mapping[str, str]] = {
    **{"1280x896": "4:3", "896x1280": "3:4"},
    **{"1248x832": "3:2", "832x1248": "2:3", "1184x864": "4:3", "864x1184": "3:4", "1152x896": "5:4"},
    **{"896x1152": "4:5", "1344x768": "16:9", "768x1344": "9:16", "1536x672": "21:9"},
}
"""Sizes whose nearest ratio is not the one that they are made with: the 2.5 model's own, and two that clients use."""

APPLIED: Final = frozenset({"size", "image", "images", "image_config", "thinking_level", "media_resolution", "seed"})
_BLOCKED: Final = frozenset(
    {"SAFETY", "IMAGE_SAFETY", "IMAGE_PROHIBITED_CONTENT", "PROHIBITED_CONTENT", "BLOCKLIST", "SPII", "RECITATION"}
    | {"IMAGE_RECITATION", "MODEL_ARMOR"}
)
"""Reasons to finish that are about what is shown; every other one without a picture is a failure."""


class _Blob(msgspec.Struct, rename="camel"):
    data: msgspec.Raw = msgspec.Raw()
    mime_type: str = ""


class _Part(msgspec.Struct, rename="camel"):
    text: str | None = None
    thought: bool | None = None
    inline_data: _Blob | None = None


class _Content(msgspec.Struct, rename="camel"):
    parts: list[_Part] | None = None


class _Candidate(msgspec.Struct, rename="camel"):
    content: _Content | None = None
    finish_reason: str | None = None
    finish_message: str | None = None


class _Feedback(msgspec.Struct, rename="camel"):
    block_reason: str | None = None
    block_reason_message: str | None = None


class _Count(msgspec.Struct, rename="camel"):
    modality: str = ""
    token_count: int = 0


class _Usage(msgspec.Struct, rename="camel"):
    prompt_token_count: int | None = None
    candidates_token_count: int | None = None
    thoughts_token_count: int | None = None
    total_token_count: int | None = None
    prompt_tokens_details: list[_Count] | None = None
    candidates_tokens_details: list[_Count] | None = None


class _Detail(msgspec.Struct, rename="camel"):
    reason: str | None = None
    retry_delay: str | None = None


class _Error(msgspec.Struct, rename="camel"):
    code: int | None = None
    message: str = ""
    status: str | None = None
    details: list[_Detail] | None = None


class _Chunk(msgspec.Struct, rename="camel"):
    """A GenerateContentResponse, or an error. Thought signatures, larger than the picture, are left where they are."""

    candidates: list[_Candidate] | None = None
    prompt_feedback: _Feedback | None = None
    usage_metadata: _Usage | None = None
    error: _Error | None = None


_CHUNK: Final = msgspec.json.Decoder(_Chunk)
_CHUNKS: Final = msgspec.json.Decoder(list[_Chunk])


class Gemini:
    """The adapter: see `core.conversation.Adapter`."""

    def at_once(self, request: ImageRequest, route: Route) -> int:
        return 1

    def not_applied(self, job: Job) -> tuple[str, ...]:
        return unapplied(job, APPLIED)

    def converse(self, job: Job) -> Conversation[None]:
        head = yield from send((yield from _request(job)))
        if head.status != 200:
            raise _refusal(job, head, (yield from refusal_body()))
        answer = _Answer(job)
        accepted = False
        while (event := (yield from next_event())) is not None:
            for chunk in _chunks(event):
                drafts = answer.take(chunk, head)
                if answer.begun and not accepted:
                    accepted = True
                    yield Accepted()
                yield from drafts
            del event, chunk  # each holds a picture
        yield from answer.finish()


def _request(job: Job) -> Conversation[UpstreamRequest]:
    parts: list[object] = []
    for index, image in enumerate(job.request.images):
        shown = yield from inlined(image, job, f"images[{index}]")
        parts.append({"inlineData": {"mimeType": shown.media_type, "data": Embedded(shown)}})
    parts.append({"text": job.request.prompt})
    value = {"contents": [{"role": "user", "parts": parts}], "generationConfig": _config(job)}
    method = "streamGenerateContent?alt=sse" if job.request.stream else "generateContent"
    model = quote(job.route.upstream_model, safe="")
    return post_json(job, f"{job.provider.base_url}/models/{model}:{method}", value)


def _config(job: Job) -> dict[str, object]:
    request = job.request
    config: dict[str, object] = {"responseModalities": ["TEXT", "IMAGE"]}
    shape = _shape(job.route.upstream_model, request.size)
    given = request.option("image_config")
    if isinstance(given, dict):
        names = {"aspect_ratio": "aspectRatio", "image_size": "imageSize"}
        shape |= {names[name]: value for name, value in given.items() if name in names}
    if shape:
        config["imageConfig"] = shape
    if isinstance(level := request.option("thinking_level"), str):
        config["thinkingConfig"] = {"thinkingLevel": level.upper()}
    if isinstance(resolution := request.option("media_resolution"), str):
        config["mediaResolution"] = f"MEDIA_RESOLUTION_{resolution.upper()}"
    if isinstance(seed := request.option("seed"), int):
        config["seed"] = seed
    return config


def _shape(model: str, size: str | None) -> dict[str, object]:
    """`imageConfig` for OpenAI's size, {} where the model may choose: the nearest ratio, and the tier it falls in."""
    edges = pixels(size)
    if edges is None:
        return {}
    width, height = edges
    known = SHAPES.get(model.removesuffix("-preview"), LIKELY)
    ratio = PIXELS.get(f"{width}x{height}") or min(
        known.ratios, key=lambda name: abs(log(_ratio(name) * height / width))
    )
    found: dict[str, object] = {"aspectRatio": ratio}
    if known.tiers:
        wanted = next(tier for tier, end in TIERS.items() if sqrt(width * height) < end)
        order = list(TIERS)
        found["imageSize"] = min(known.tiers, key=lambda tier: abs(order.index(tier) - order.index(wanted)))
    return found


def _ratio(name: str) -> float:
    width, height = name.split(":")
    return int(width) / int(height)


def _chunks(event: Event) -> list[_Chunk]:
    """An event's chunks: the stream has one an event, the form without `alt=sse` an array of them."""
    raw = event.joined()
    try:
        return _CHUNKS.decode(raw) if raw.lstrip()[:1] == b"[" else [_CHUNK.decode(raw)]
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise ProxyError(Failure.BAD_JSON, "The provider's answer is not the JSON of generateContent.") from None


class _Answer:
    """What has come so far: the newest picture that is no thought, the newest that is, words, and why it ended."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._held: Picture | None = None
        self._result: Picture | None = None
        self._drafts = 0
        self._words: list[str] = []
        self._reason = ""
        self._message = ""
        self._usage: _Usage | None = None
        self.begun = False

    def take(self, chunk: _Chunk, head: Head) -> list[Frame]:
        """Take a chunk: the previews that it makes of earlier pictures. Raises ProxyError for a refusal."""
        if chunk.error is not None:
            raise _said(self._job, Head(chunk.error.code or 502, head.items), chunk.error)
        if chunk.prompt_feedback is not None and chunk.prompt_feedback.block_reason:
            feedback = chunk.prompt_feedback
            raise moderated(self._job, feedback.block_reason_message or "", feedback.block_reason or "")
        self._usage = chunk.usage_metadata or self._usage
        previews: list[Frame] = []
        for candidate in chunk.candidates or ():
            self._reason = candidate.finish_reason or self._reason
            self._message = candidate.finish_message or self._message
            for part in (candidate.content and candidate.content.parts) or ():
                self.begun = True
                if part.text and not part.thought:
                    self._words.append(part.text)
                if part.inline_data is not None:
                    previews += self._picture(part.inline_data, thought=bool(part.thought))
        return previews

    def _picture(self, blob: _Blob, *, thought: bool) -> Iterator[Frame]:
        picture = Picture((base64_text(blob.data),), blob.mime_type)
        if self._held is not None and self._drafts < (self._job.request.partial_images or 0):
            yield preview(self._job, self._held, self._drafts)
            self._drafts += 1
        self._held = picture
        if not thought:
            self._result = picture

    def finish(self) -> Iterator[Frame]:
        """The result. Raises ProxyError where there is none."""
        picture = self._result or self._held
        if picture is not None:
            yield from finals(self._job, [picture], usage=_openai_usage(self._usage))
        elif self._reason in _BLOCKED:
            raise moderated(self._job, self._message or " ".join(self._words), self._reason)
        else:
            raise no_image(self._job, self._message or " ".join(self._words), self._reason)


def _openai_usage(said: _Usage | None) -> Mapping[str, object] | None:
    """In OpenAI's terms: thoughts are output text, so that input and output add up to the provider's total."""
    if said is None:
        return None
    sent, made = said.prompt_token_count or 0, said.candidates_token_count or 0
    thoughts = said.thoughts_token_count or 0
    shown, drawn = _images(said.prompt_tokens_details), _images(said.candidates_tokens_details)
    return {
        "total_tokens": said.total_token_count or sent + made + thoughts,
        "input_tokens": sent,
        "output_tokens": made + thoughts,
        "input_tokens_details": {"text_tokens": sent - shown, "image_tokens": shown},
        "output_tokens_details": {"text_tokens": made + thoughts - drawn, "image_tokens": drawn},
    }


def _images(counts: list[_Count] | None) -> int:
    return sum(count.token_count for count in counts or () if count.modality == "IMAGE")


def _refusal(job: Job, head: Head, raw: bytes) -> ProxyError:
    """An answer that is no 200: `{"error": {code, message, status, details}}`."""
    try:
        said = _CHUNK.decode(raw).error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        said = None
    return _said(job, head, said or _Error())


def _said(job: Job, head: Head, error: _Error) -> ProxyError:
    details = error.details or []
    if any(detail.reason == "API_KEY_INVALID" for detail in details) and not job.callers_key:
        return bad_credential(head.status)
    delay = next((detail.retry_delay for detail in details if detail.retry_delay), None)
    after = delay[:-1].partition(".")[0] if delay and delay.endswith("s") else None
    return refused(job, head, Refusal(error.message, error.status, retry_after=after))
