"""Google's Gemini image models: generateContent, and its stream for callers who want events.

    contents[].parts[]     the prompt, and each input image as inlineData
    generationConfig       aspect ratio and size tier, from OpenAI's `size`
    candidates[].content   text, pictures, and drafts: pictures that a thinking model makes on the way

A thinking model may answer with several pictures, drafts first, and not every draft is marked. So the newest picture is
held back. If another one follows, it was a draft and becomes a preview. The last picture is the result, preferably one
that is not marked as a thought. One request makes one picture, and there is neither mask nor seed.

All input images go in one turn of the user: a picture in a turn of the model is refused without its signature. Vertex
AI has the same wire at another address, and takes the file's format. The Gemini API does not, so its pictures are
converted here. Neither makes WebP: a caller who asks for it gets PNG.

Sources: google-genai 3.6.1; ai.google.dev/gemini-api/docs/image-generation, 16 July 2026.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import sqrt
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
    Tolerated,
    converted,
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
from streamproxy.errors import ErrorDetails, Failure, ProxyError
from streamproxy.providers.google import (
    FORMATS,
    GoogleError,
    invalid,
    nearest,
    on_vertex,
    refusal,
    refused_by,
    support_code,
    text_option,
)
from streamproxy.providers.refusals import moderated, no_image

TEN: Final = ("1:1", "2:3", "3:2", "3:4", "4:3", "4:5", "5:4", "9:16", "16:9", "21:9")
FOURTEEN: Final = (*TEN, "1:4", "4:1", "1:8", "8:1")


@dataclass(frozen=True, slots=True)
class Shape:
    """The choices of one model: aspect ratios, and size tiers from the smallest; no tiers where it has one size."""

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
"""For a model outside the table."""

TIERS: Final = {"512": 768.0, "1K": 1536.0, "2K": 3072.0, "4K": float("inf")}
"""The mean edge (square root of the area in pixels) below which a size belongs to the tier."""

PIXELS: Final[Mapping[str, str]] = {
    **{"1280x896": "4:3", "896x1280": "3:4"},
    **{"1248x832": "3:2", "832x1248": "2:3", "1184x864": "4:3", "864x1184": "3:4", "1152x896": "5:4"},
    **{"896x1152": "4:5", "1344x768": "16:9", "768x1344": "9:16", "1536x672": "21:9"},
}
"""Sizes whose ratio is not the nearest one: those that the 2.5 model makes, and two that clients use."""

APPLIED: Final = frozenset({"image", "images", "thinking_level", "media_resolution", "response_modalities"})
CONFIG: Final = {"aspect_ratio": "aspectRatio", "image_size": "imageSize"}
"""Members of a caller's `image_config`, and Google's names for them."""

_BLOCKED: Final = frozenset(
    {"SAFETY", "IMAGE_SAFETY", "IMAGE_PROHIBITED_CONTENT", "PROHIBITED_CONTENT", "BLOCKLIST", "SPII", "RECITATION"}
    | {"IMAGE_RECITATION", "MODEL_ARMOR", "ESCALATION"}
)
"""Finish reasons for what the prompt or the picture shows."""

_REFUSED: Final = {
    "LANGUAGE": "The provider's model does not know the prompt's language.",
    "MISSING_THOUGHT_SIGNATURE": "The provider requires the signature of an earlier answer.",
    "PUP_LIMITED_DISABLED": "The provider has limited this account because of its use.",
}
"""Finish reasons for the request or the account, and their failures. Any other reason: NO_IMAGE."""


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


class _Chunk(msgspec.Struct, rename="camel"):
    """A GenerateContentResponse, or an error. Thought signatures, which may be larger than pictures, are not read."""

    candidates: list[_Candidate] | None = None
    prompt_feedback: _Feedback | None = None
    usage_metadata: _Usage | None = None
    error: GoogleError | None = None


_CHUNK: Final = msgspec.json.Decoder(_Chunk)
_CHUNKS: Final = msgspec.json.Decoder(list[_Chunk])


class Gemini:
    """The adapter: see `core.conversation.Adapter`."""

    def at_once(self, request: ImageRequest, route: Route) -> int:
        return 1

    def not_applied(self, job: Job) -> tuple[str, ...]:
        return unapplied(job, APPLIED | _applied(job))

    def converse(self, job: Job) -> Conversation[None]:
        head = yield from send((yield from _request(job)))
        if head.status != 200:
            raise refusal(job, head, (yield from refusal_body()))
        answer = _Answer(job)
        yield from _read(answer, head)
        picture = answer.result()
        if (form := FORMATS.get(job.request.output_format or "")) is not None:
            picture = yield from converted(picture, form)
        yield from finals(job, [picture], usage=_openai_usage(answer.usage), said=answer.said())


def _read(answer: _Answer, head: Head) -> Conversation[None]:
    """Read the answer to its end, and yield its previews."""
    accepted = False
    while (event := (yield from _next(answer))) is not None:
        for chunk in _chunks(event):
            drafts = answer.take(chunk, head)
            if answer.begun and not accepted:
                accepted = True
                yield Accepted()
            yield from drafts
        del event, chunk  # each holds a picture


def _next(answer: _Answer) -> Conversation[Event | None]:
    """The next event; None at the end, also where the answer breaks off after its picture and finish reason."""
    try:
        return (yield from next_event())
    except ProxyError as error:
        if not answer.over:
            raise
        yield Tolerated(error.failure.value.label)
        return None


def _request(job: Job) -> Conversation[UpstreamRequest]:
    config = _config(job)  # first, because a refusal needs no image
    parts: list[object] = []
    for index, image in enumerate(job.request.images):
        shown = yield from inlined(image, job, f"images[{index}]")
        parts.append({"inlineData": {"mimeType": shown.media_type, "data": Embedded(shown)}})
    parts.append({"text": job.request.prompt})
    value = {"contents": [{"role": "user", "parts": parts}], "generationConfig": config}
    method = "streamGenerateContent?alt=sse" if job.request.stream else "generateContent"
    model = quote(job.route.upstream_model, safe="")
    return post_json(job, f"{job.provider.base_url}/models/{model}:{method}", value)


def _config(job: Job) -> dict[str, object]:
    config: dict[str, object] = {"responseModalities": _modalities(job)}
    image = _shape(job.route.upstream_model, job.request.size) | _image_config(job)
    if output := _output(job):
        image["imageOutputOptions"] = output
    if image:
        config["imageConfig"] = image
    if level := text_option(job, "thinking_level"):
        config["thinkingConfig"] = {"thinkingLevel": level.upper()}
    if resolution := text_option(job, "media_resolution"):
        config["mediaResolution"] = f"MEDIA_RESOLUTION_{resolution.upper()}"
    return config


def _modalities(job: Job) -> list[str]:
    """The caller's `response_modalities`, like `["text", "image"]`, or `text,image` in a form."""
    given = job.request.option("response_modalities")
    words = given.split(",") if isinstance(given, str) else given
    if words is None:
        return ["TEXT", "IMAGE"]
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise invalid("response_modalities", "an array of strings")
    found = [word.strip().upper() for word in words]
    if "IMAGE" not in found:
        message = "response_modalities must hold `image`: this route only makes images."
        raise ProxyError(Failure.UNSUPPORTED_PARAMETER, message, param="response_modalities")
    return found


def _given_config(job: Job) -> dict[str, object]:
    """The caller's `image_config`, which a form has as JSON text."""
    given = job.request.option("image_config")
    if isinstance(given, str):
        try:
            given = msgspec.json.decode(given)
        except (msgspec.DecodeError, UnicodeEncodeError, RecursionError):
            given = ()
    if given is None:
        return {}
    if not isinstance(given, dict):
        raise invalid("image_config", "an object")
    return given


def _image_config(job: Job) -> dict[str, object]:
    return {CONFIG[name]: value for name, value in _given_config(job).items() if name in CONFIG and value is not None}


def _output(job: Job) -> dict[str, object]:
    """The file format for Vertex AI. The Gemini API does not take one."""
    form = FORMATS.get(job.request.output_format or "")
    if form is None or not on_vertex(job):
        return {}
    compression = job.request.option("output_compression")
    quality = {"compressionQuality": int(str(compression))} if form == "jpeg" and compression is not None else {}
    return {"mimeType": f"image/{form}", **quality}


def _applied(job: Job) -> frozenset[str]:
    """The applied members that depend on others, on the model, or on the provider."""
    request, shape = job.request, _shape(job.route.upstream_model, job.request.size)
    config = _image_config(job)
    applied = {
        "size": request.size in (None, "auto") or not shape.keys() <= config.keys(),
        "image_config": _given_config(job).keys() <= CONFIG.keys(),
        "output_format": FORMATS.get(request.output_format or "png") == (request.output_format or "png"),
        "output_compression": "compressionQuality" in _output(job),
    }
    return frozenset(name for name, holds in applied.items() if holds)


def _shape(model: str, size: str | None) -> dict[str, object]:
    """`imageConfig` for OpenAI's size: the nearest ratio, and the size's tier. {} where the model may choose.

    A size that is only a ratio or a tier, like "16:9" or "2K", is used where the model has it.
    """
    known = SHAPES.get(model.removesuffix("-preview"), LIKELY)
    edges = pixels(size)
    if edges is None:
        tier: dict[str, object] = {"imageSize": size} if size in known.tiers else {}
        return {"aspectRatio": size} if size in known.ratios else tier
    width, height = edges
    found: dict[str, object] = {"aspectRatio": PIXELS.get(f"{width}x{height}") or nearest(width, height, known.ratios)}
    if known.tiers:
        wanted = next(tier for tier, end in TIERS.items() if sqrt(width * height) < end)
        order = list(TIERS)
        found["imageSize"] = min(known.tiers, key=lambda tier: abs(order.index(tier) - order.index(wanted)))
    return found


def _chunks(event: Event) -> list[_Chunk]:
    """An event's chunks: one in each event of a stream, or an array of them in an answer without `alt=sse`."""
    raw = event.joined()
    try:
        return _CHUNKS.decode(raw) if raw.lstrip()[:1] == b"[" else [_CHUNK.decode(raw)]
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise ProxyError(Failure.BAD_JSON, "The provider's answer is not the JSON of generateContent.") from None


class _Answer:
    """The answer so far: the newest picture, the newest that is a thought, the text, and the finish reason."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._held: Picture | None = None
        self._result: Picture | None = None
        self._drafts = 0
        self._words: list[str] = []
        self._before = 0
        """Texts that came before the result so far."""
        self._reason = ""
        self._message = ""
        self.usage: _Usage | None = None
        self.begun = False

    @property
    def over(self) -> bool:
        """Whether it has a picture and a finish reason. Only the usage can still be missing."""
        return bool(self._reason) and self._held is not None

    def take(self, chunk: _Chunk, head: Head) -> list[Frame]:
        """Take a chunk, and yield earlier pictures as previews. Raises ProxyError for a refusal."""
        if chunk.error is not None:
            raise refused_by(self._job, Head(chunk.error.code or 502, head.items), chunk.error)
        if chunk.prompt_feedback is not None and chunk.prompt_feedback.block_reason:
            feedback = chunk.prompt_feedback
            raise moderated(self._job, feedback.block_reason_message or "", feedback.block_reason or "")
        self.usage = chunk.usage_metadata or self.usage
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
        wanted = (self._job.request.partial_images or 0) if self._job.request.as_events else 0
        if self._held is not None and self._drafts < wanted:
            yield preview(self._job, self._held, self._drafts)
            self._drafts += 1
        self._held = picture
        if not thought or self._result is None:
            self._before = len(self._words)
        if not thought:
            self._result = picture

    def result(self) -> Picture:
        """The picture. Raises ProxyError where there is none, by the finish reason."""
        picture = self._result or self._held
        if picture is not None:
            return picture
        job, reason, message = self._job, self._reason, self._message
        if reason in _BLOCKED or support_code(message):
            raise moderated(job, message, reason)
        if reason in _REFUSED:
            details = ErrorDetails(members={"provider_code": reason})
            error = ProxyError(Failure.PROVIDER_REFUSED, _REFUSED[reason], details=details)
            error.charged = True  # the model has thought about the request, and thoughts are charged
            raise error
        raise no_image(job, message or self._text(), reason)

    def said(self) -> dict[str, object]:
        """The text beside the picture, and both in the model's order."""
        parts: list[dict[str, object]] = [{"type": "image", "index": self._job.first}]
        before, after = "".join(self._words[: self._before]), "".join(self._words[self._before :])
        if before:
            parts.insert(0, {"type": "text", "text": before})
        if after:
            parts.append({"type": "text", "text": after})
        return {**({"text": self._text()} if self._words else {}), "parts": parts}

    def _text(self) -> str:
        return "".join(self._words)


def _openai_usage(said: _Usage | None) -> Mapping[str, object] | None:
    """The usage in OpenAI's form. Thoughts count as output text, so that input and output add up to the total."""
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
