"""Google's Imagen: `predict`, with one JSON answer. Vertex AI also takes edits, the Gemini API only generations.

    instances[]        the prompt, and on Vertex AI an image to edit and its mask, as reference images
    parameters         number, aspect ratio, size, and the file's format
    predictions[]      pictures; filtered ones are missing, and the last item has the reason, shown as a `warning`

Google has turned these models off. The adapter is for accounts that still have them, and for gateways with this wire.

Sources: google-genai 3.6.1; Vertex AI's reference of the Imagen API, June 2026.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import sqrt
from typing import Final
from urllib.parse import quote

import msgspec

from streamproxy.core.catalogue import Route
from streamproxy.core.completion import finals
from streamproxy.core.conversation import (
    Accepted,
    Conversation,
    Job,
    Picture,
    body,
    converted,
    decoded,
    inlined,
    mask,
    pixels,
    post_json,
    refusal_body,
    send,
    unapplied,
)
from streamproxy.core.rawjson import base64_text
from streamproxy.core.requests import Embedded, ImageRequest, UpstreamRequest
from streamproxy.errors import Failure, ProxyError
from streamproxy.providers.google import FORMATS, nearest, on_vertex, refusal, support_code
from streamproxy.providers.refusals import MESSAGE_LIMIT, moderated, no_image

RATIOS: Final = ("1:1", "3:4", "4:3", "9:16", "16:9")
LARGE: Final = 1536.0
"""The mean edge (square root of the area in pixels) from which a size is 2K."""

ONE_SIZE: Final = ("fast", "capability")
"""Words in the names of models with one size only."""

OPTIONS: Final[Mapping[str, str]] = {
    "guidance_scale": "guidanceScale",
    "person_generation": "personGeneration",
    "language": "language",
}
"""Members that both hosts take, and Google's names for them."""

VERTEX_OPTIONS: Final[Mapping[str, str]] = {
    "negative_prompt": "negativePrompt",
    "seed": "seed",
    "enhance_prompt": "enhancePrompt",
    "add_watermark": "addWatermark",
}


class _Prediction(msgspec.Struct, rename="camel"):
    bytes_base64_encoded: msgspec.Raw = msgspec.Raw()
    mime_type: str = ""
    rai_filtered_reason: str | None = None


class _Answer(msgspec.Struct):
    predictions: list[_Prediction] | None = None


class Imagen:
    """The adapter: see `core.conversation.Adapter`."""

    def at_once(self, request: ImageRequest, route: Route) -> int:
        return min(request.n, route.model.max_n)

    def not_applied(self, job: Job) -> tuple[str, ...]:
        return unapplied(job, _applied(job))

    def converse(self, job: Job) -> Conversation[None]:
        head = yield from send((yield from _request(job)))
        if head.status != 200:
            raise refusal(job, head, (yield from refusal_body()))
        answer = decoded((yield from body(job.limits.answer)), _Answer)
        pictures = [picture for item in answer.predictions or () if (picture := _picture(item)) is not None]
        reason = next((item.rai_filtered_reason for item in answer.predictions or () if item.rai_filtered_reason), None)
        if not pictures and reason is not None:
            raise moderated(job, reason, support_code(reason) or "raiFilteredReason")
        if not pictures:
            raise no_image(job, "", "")
        yield Accepted()
        if (form := FORMATS.get(job.request.output_format or "")) is not None:
            for index, picture in enumerate(pictures):  # where the model ignored the format
                pictures[index] = yield from converted(picture, form)
        told = None if reason is None else {"warning": job.scrub(reason)[:MESSAGE_LIMIT]}
        yield from finals(job, pictures, said=told)


def _picture(item: _Prediction) -> Picture | None:
    text = base64_text(item.bytes_base64_encoded) if memoryview(item.bytes_base64_encoded) else b""
    return Picture((text,), item.mime_type) if text else None


def _request(job: Job) -> Conversation[UpstreamRequest]:
    instance: dict[str, object] = {"prompt": job.request.prompt}
    parameters = _parameters(job)
    if job.request.images:
        instance["referenceImages"] = yield from _references(job)
        inpaint = job.request.mask is not None
        parameters["editMode"] = "EDIT_MODE_INPAINT_INSERTION" if inpaint else "EDIT_MODE_DEFAULT"
    model = quote(job.route.upstream_model, safe="")
    value = {"instances": [instance], "parameters": parameters}
    return post_json(job, f"{job.provider.base_url}/models/{model}:predict", value)


def _references(job: Job) -> Conversation[list[object]]:
    """The image to edit, and its mask. Google's mask is white where OpenAI's is transparent."""
    request = job.request
    if not on_vertex(job):
        message = "Imagen edits images on Vertex AI only, not on the Gemini API."
        raise ProxyError(Failure.UNSUPPORTED_PARAMETER, message, param="images[0]")
    if len(request.images) > 1:
        raise ProxyError(Failure.UNSUPPORTED_PARAMETER, "This model takes one input image.", param="images[1]")
    shown = yield from inlined(request.images[0], job, "images[0]")
    raw = {"bytesBase64Encoded": Embedded(shown)}
    references: list[object] = [{"referenceType": "REFERENCE_TYPE_RAW", "referenceId": 1, "referenceImage": raw}]
    marked = yield from mask(job, "white")
    if marked is not None:
        references.append(
            {
                "referenceType": "REFERENCE_TYPE_MASK",
                "referenceId": 2,
                "referenceImage": {"bytesBase64Encoded": Embedded(marked)},
                "maskImageConfig": {"maskMode": "MASK_MODE_USER_PROVIDED"},
            }
        )
    return references


def _parameters(job: Job) -> dict[str, object]:
    request = job.request
    form = FORMATS.get(request.output_format or "")
    output: dict[str, object] = {} if form is None else {"mimeType": f"image/{form}"}
    if (compression := request.option("output_compression")) is not None and form == "jpeg":
        output["compressionQuality"] = int(str(compression))
    values = {"sampleCount": job.n, "includeRaiReason": True, **_shape(job)}
    if output:
        values["outputOptions"] = output
    given = ((wire, request.option(name)) for name, wire in _options(job).items())
    values |= {wire: value for wire, value in given if value is not None}
    if "seed" in values:
        values.setdefault("addWatermark", False)  # 400 for a seed with a watermark
    return values


def _options(job: Job) -> Mapping[str, str]:
    return {**OPTIONS, **VERTEX_OPTIONS} if on_vertex(job) else OPTIONS


def _shape(job: Job) -> dict[str, object]:
    """Aspect ratio and size for OpenAI's size. {} for an edit, which has the size of its image."""
    edges = pixels(job.request.size)
    if edges is None or job.request.images:
        return {}
    width, height = edges
    found: dict[str, object] = {"aspectRatio": nearest(width, height, RATIOS)}
    if not any(word in job.route.upstream_model for word in ONE_SIZE):
        found["sampleImageSize"] = "2K" if sqrt(width * height) >= LARGE else "1K"
    return found


def _applied(job: Job) -> frozenset[str]:
    request = job.request
    conditions = {
        "size": request.size in (None, "auto") or bool(_shape(job)),
        "mask": bool(request.images),
        "output_format": FORMATS.get(request.output_format or "png") == (request.output_format or "png"),
        "output_compression": FORMATS.get(request.output_format or "") == "jpeg",
    }
    return frozenset({"image", "images", *_options(job), *(name for name, holds in conditions.items() if holds)})
