"""ComfyUI, which sends previews of each picture: by Comfy API v2 (HTTP and events), or by the server's own WebSocket.

The request is the operator's workflow: one JSON graph in API format per model. Strings in it that are a slot are
replaced by the caller's values. The slots are {prompt}, {width}, {height}, {seed}, {image} and {mask}.

    API v2      POST api/v2/jobs -> events: preview, output, status -> each output's content
    WebSocket   connect, then POST prompt; previews as binary messages; then history and view

At most `partial_images` previews are shown, spread over the progress. Both forms cancel this job by its id: an
interrupt without an id would stop the running job, which may be another caller's.

Sources: Comfy-Org/comfy-api-proxy, spec/openapi.yaml and realtime.py; comfyanonymous/ComfyUI, server.py, protocol.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final
from urllib.parse import urlencode, urljoin

import msgspec

from streamproxy.core.catalogue import Route
from streamproxy.core.completion import finals, preview
from streamproxy.core.conversation import (
    COMMON,
    SMALL,
    Accepted,
    Connect,
    Conversation,
    Job,
    Picture,
    Progress,
    Tell,
    Undo,
    Wait,
    body,
    decoded,
    fetch,
    first_of,
    get,
    hear,
    look,
    next_event,
    pauses,
    picture,
    pixels,
    post_file,
    post_json,
    refusal_body,
    send,
    unapplied,
)
from streamproxy.core.events import Frame
from streamproxy.core.images import base64_slices, media_type, probe
from streamproxy.core.requests import Head, ImageRequest, Inline, Input, Spooled, UpstreamRequest
from streamproxy.errors import Failure, ProxyError
from streamproxy.providers.refusals import Refusal, failed, no_image, refused

APPLIED: Final = frozenset({"size", "image", "images", "mask", "seed", "partial_images"})
SQUARE: Final = (1024, 1024)
"""Pixels where the caller gives no size: that of the models in ComfyUI's own templates."""

OVER: Final = frozenset({"succeeded", "failed", "canceled", "expired"})


class _Urls(msgspec.Struct):
    self_url: str = msgspec.field(name="self")
    events: str
    cancel: str


class _JobError(msgspec.Struct):
    code: str = ""
    message: str = ""


class _Output(msgspec.Struct):
    type: str = ""
    url: str | None = None
    id: str | None = None


class _JobState(msgspec.Struct):
    id: str
    status: str
    urls: _Urls
    outputs: list[_Output] | None = None
    error: _JobError | None = None


class _Event(msgspec.Struct):
    """The data of an event."""

    status: str | None = None
    queue_position: int | None = None
    value: float | None = None
    data_base64: msgspec.Raw = msgspec.Raw()
    content_type: str = ""


class _Refused(msgspec.Struct):
    error: _JobError | None = None


class _Asset(msgspec.Struct):
    id: str


class ComfyApi:
    """Comfy API v2, in front of one's own ComfyUI or on Comfy Cloud: see `core.conversation.Adapter`."""

    def at_once(self, request: ImageRequest, route: Route) -> int:
        return 1

    def not_applied(self, job: Job) -> tuple[str, ...]:
        return _unapplied(job)

    def converse(self, job: Job) -> Conversation[None]:
        values = _values(job)
        for slot, image in list(_images(job)):  # all are looked at before one is sent
            asset = yield from _upload(job, image)
            values[slot] = {"__type": "core/ASSET", "info": {"id": asset}}
        base = job.provider.base_url
        submission = post_json(job, f"{base}/api/v2/jobs", {"workflow": _filled(job, values)}, _key(job))
        head = yield from send(submission)
        if head.status not in (200, 201):
            raise _refusal(job, head, (yield from refusal_body()))
        state = decoded((yield from body(SMALL)), _JobState)
        yield Accepted()
        yield Undo(UpstreamRequest("POST", urljoin(base, state.urls.cancel), COMMON))
        yield from _watched(job, urljoin(base, state.urls.events))
        state = yield from _ended(urljoin(base, state.urls.self_url))
        yield Undo(None)
        if state.status != "succeeded":
            error = state.error or _JobError()
            raise failed(job, error.message, error.code or state.status)
        pictures = []
        made = [output.url for output in state.outputs or () if output.type == "image" and output.url is not None]
        for url in (yield from first_of(made, job)):
            pictures.append((yield from _content(job, urljoin(base, url))))
        if not pictures:
            raise no_image(job, "The workflow has no output of type image.", "")
        yield from finals(job, pictures)


def _watched(job: Job, url: str) -> Conversation[None]:
    """Yield previews while the job runs. A failure here costs only previews: the job itself is polled next."""
    spread = _Spread(job)
    try:
        head = yield from send(get(url))
        if head.status != 200:
            return
        while (event := (yield from next_event())) is not None:
            said = decoded(event.joined(), _Event)
            if said.value is not None or said.queue_position is not None:
                yield Progress(said.value, said.queue_position)
            if event.name == "preview" and len(memoryview(said.data_base64)) > 2:
                text = bytes(memoryview(said.data_base64)[1:-1])
                yield from spread.take(Picture((text,), said.content_type))
            if said.status in OVER:
                return
    except ProxyError:
        return


def _ended(url: str) -> Conversation[_JobState]:
    """Poll until the job has ended. Its status counts, not the events'."""
    for pause in pauses():
        head, raw = yield from look(get(url))
        if head.status != 200:
            raise ProxyError(Failure.PROVIDER_FAILED, f"The provider lost the job: status {head.status}.")
        state = decoded(raw, _JobState)
        if state.status in OVER:
            return state
        yield Wait(pause)
    raise AssertionError("pauses have no end")


def _content(job: Job, url: str) -> Conversation[Picture]:
    """An output's bytes: from the host itself, or from the target of its redirect, which gets no credential."""
    head = yield from send(get(url), redirects=True)
    if head.status in (301, 302, 303, 307, 308):
        return (yield from fetch(urljoin(url, head.headers.get("location", ""))))
    if head.status != 200:
        raise failed(job, f"An output could not be read: status {head.status}.", "output")
    return (yield from picture(job.limits.answer))


def _upload(job: Job, image: Inline | Spooled) -> Conversation[str]:
    request = post_file(job, f"{job.provider.base_url}/api/v2/assets", "file", image)
    head = yield from send(request)
    if head.status not in (200, 201):
        raise _refusal(job, head, (yield from refusal_body()))
    return decoded((yield from body(SMALL)), _Asset).id


def _key(job: Job) -> tuple[tuple[str, str], ...]:
    """An idempotency key, so that a submission whose answer is lost does not become a second job."""
    return (("idempotency-key", _uuid(job)),)


def _refusal(job: Job, head: Head, raw: bytes) -> ProxyError:
    try:
        error = decoded(raw, _Refused).error or _JobError()
    except ProxyError:
        error = _JobError()
    return refused(job, head, Refusal(error.message, error.code or None))


# ----------------------------------------------------------------------------------------------------------- WebSocket


class _Message(msgspec.Struct):
    type: str = ""
    data: msgspec.Raw = msgspec.Raw(b"{}")


class _Data(msgspec.Struct):
    """The members that are read of a message's data."""

    prompt_id: str | None = None
    node: str | None = msgspec.field(default="")
    value: float | None = None
    max: float | None = None
    exception_message: str = ""
    exception_type: str = ""


class _Prompted(msgspec.Struct):
    prompt_id: str


class _File(msgspec.Struct):
    filename: str
    subfolder: str = ""
    type: str = "output"


class _NodeOutput(msgspec.Struct):
    images: list[_File] | None = None


class _Past(msgspec.Struct):
    outputs: dict[str, _NodeOutput]


class _Uploaded(msgspec.Struct):
    name: str
    subfolder: str = ""


FLAGS: Final = '{"type":"feature_flags","data":{"supports_preview_metadata":true}}'
PREVIEW: Final = 1
PREVIEW_WITH_METADATA: Final = 4
IMAGE_TYPES: Final = {1: "image/jpeg", 2: "image/png"}


class ComfyWebSocket:
    """ComfyUI's own server: see `core.conversation.Adapter`.

    Events go only to the client id that submitted the prompt, so each job has a client id of its own.
    """

    def at_once(self, request: ImageRequest, route: Route) -> int:
        return 1

    def not_applied(self, job: Job) -> tuple[str, ...]:
        return _unapplied(job)

    def converse(self, job: Job) -> Conversation[None]:
        base, client = job.provider.base_url, _uuid(job)
        values = _values(job)
        for slot, image in list(_images(job)):  # all are looked at before one is sent
            values[slot] = yield from self._upload(job, image)
        yield Connect(f"{base.replace('http', 'ws', 1)}/ws?clientId={client}")
        yield Tell(FLAGS)
        prompt = {"prompt": _filled(job, values), "client_id": client, "prompt_id": client}
        head = yield from send(post_json(job, f"{base}/prompt", prompt))
        if head.status != 200:
            raise _prompt_refusal(job, head, (yield from refusal_body()))
        id = decoded((yield from body(SMALL)), _Prompted).prompt_id
        yield Accepted()
        yield Undo(UpstreamRequest("POST", f"{base}/api/jobs/{id}/cancel", COMMON))
        yield from _heard(job, id)
        files = yield from _files(f"{base}/history/{id}", id)
        yield Undo(None)
        pictures = []
        for file in (yield from first_of(files, job)):
            where = urlencode({"filename": file.filename, "subfolder": file.subfolder, "type": file.type})
            pictures.append((yield from _content(job, f"{base}/view?{where}")))
        if not pictures:
            raise no_image(job, "The workflow has no output image.", "")
        yield from finals(job, pictures)

    def _upload(self, job: Job, image: Inline | Spooled) -> Conversation[str]:
        head = yield from send(post_file(job, f"{job.provider.base_url}/upload/image", "image", image))
        if head.status != 200:
            raise refused(job, head, Refusal())
        found = decoded((yield from body(SMALL)), _Uploaded)
        return f"{found.subfolder}/{found.name}" if found.subfolder else found.name


def _heard(job: Job, id: str) -> Conversation[None]:
    """Yield previews until the job has ended. If the WebSocket breaks, that costs only previews: see `_files`."""
    spread = _Spread(job)
    try:
        while True:
            message = yield from hear()
            if isinstance(message, bytes):
                found = _binary(message, id)
                if found is not None:
                    yield from spread.take(found)
                continue
            kind, data = _read(message)
            if data.prompt_id != id:
                continue
            if kind == "execution_error":
                raise failed(job, data.exception_message, data.exception_type)
            if kind == "execution_interrupted":
                raise failed(job, "The job was interrupted at the provider.", kind)
            if kind == "progress" and data.value is not None and data.max:
                yield Progress(min(1.0, data.value / data.max))
            if kind == "execution_success" or (kind == "executing" and data.node is None):
                return
    except ProxyError as error:
        if error.failure is Failure.PROVIDER_FAILED:
            raise


def _read(message: str) -> tuple[str, _Data]:
    try:
        said = msgspec.json.decode(message, type=_Message)
        return said.type, msgspec.json.decode(said.data, type=_Data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return "", _Data()  # some extension's own message


def _binary(message: bytes, id: str) -> Picture | None:
    """A binary message's preview; None for other messages, and for one that is cut short."""
    kind, length = int.from_bytes(message[:4]), int.from_bytes(message[4:8])
    if len(message) <= 8:
        return None
    if kind == PREVIEW and length in IMAGE_TYPES:  # it names no job, but this socket hears of one only
        return Picture(tuple(base64_slices(message[8:])), IMAGE_TYPES[length])
    if kind == PREVIEW_WITH_METADATA and 8 + length < len(message):
        try:
            data = msgspec.json.decode(message[8 : 8 + length], type=_Data)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return None
        image = message[8 + length :]
        info = probe(image)
        if data.prompt_id == id and info is not None:
            return Picture(tuple(base64_slices(image)), media_type(info.format))
    return None


def _files(url: str, id: str) -> Conversation[list[_File]]:
    """Poll the history for the output files. They appear there a moment after the last message."""
    for pause in pauses():
        head, raw = yield from look(get(url))
        if head.status != 200:
            raise ProxyError(Failure.PROVIDER_FAILED, f"The provider lost the job: status {head.status}.")
        past = decoded(raw, dict[str, _Past]).get(id)
        if past is not None:
            return [file for node in past.outputs.values() for file in node.images or () if file.type == "output"]
        yield Wait(pause)
    raise AssertionError("pauses have no end")


class _PromptError(msgspec.Struct):
    type: str = ""
    message: str = ""
    details: str = ""


class _PromptRefused(msgspec.Struct):
    error: _PromptError | None = None


def _prompt_refusal(job: Job, head: Head, raw: bytes) -> ProxyError:
    try:
        error = decoded(raw, _PromptRefused).error or _PromptError()
    except ProxyError:
        error = _PromptError()
    return refused(job, head, Refusal(f"{error.message} {error.details}".strip(), error.type or None))


# ------------------------------------------------------------------------------------------------------------ workflow


def _unapplied(job: Job) -> tuple[str, ...]:
    graph = _workflow(job)
    slots = {"size": "{width}", "seed": "{seed}", "mask": "{mask}"}
    missing = {name for name, slot in slots.items() if f'"{slot}"' not in graph}
    return unapplied(job, APPLIED - missing)


def _workflow(job: Job) -> str:
    for name in (job.route.upstream_model, job.request.model, "*"):
        if name in (found := dict(job.provider.workflows)):
            return found[name]
    raise ProxyError(
        Failure.MODEL_NOT_FOUND,
        "This provider has no workflow for this model. The setting is workflows of its provider.",
        param="model",
    )


def _values(job: Job) -> dict[str, object]:
    """The values of the slots, images apart."""
    width, height = pixels(job.request.size) or SQUARE
    seed = job.request.option("seed")
    given = (
        int(seed) if isinstance(seed, int) or (isinstance(seed, str) and seed.isdecimal()) else int(job.token[:12], 16)
    )
    return {"{prompt}": job.request.prompt, "{width}": width, "{height}": height, "{seed}": given}


def _images(job: Job) -> Iterator[tuple[str, Inline | Spooled]]:
    """The slots for images, with their images. Raises ProxyError for an image without a slot."""
    graph = _workflow(job)
    given: list[tuple[str, Input | None]] = [("{mask}", job.request.mask)]
    given += [
        ("{image}" if not index else f"{{image{index + 1}}}", image) for index, image in enumerate(job.request.images)
    ]
    for slot, image in given:
        if image is None:
            continue
        param = slot.strip("{}")
        if not isinstance(image, Inline | Spooled):
            message = "This provider takes input images only with their bytes: send a data: URL, or upload the file."
            raise ProxyError(Failure.UNSUPPORTED_PARAMETER, message, param=param)
        if f'"{slot}"' not in graph:
            message = f'The workflow of this model has no slot "{slot}", so this image has no place in it.'
            raise ProxyError(Failure.UNSUPPORTED_PARAMETER, message, param=param)
        yield slot, image


def _filled(job: Job, values: Mapping[str, object]) -> object:
    """The workflow's graph with the values in place of its slots."""

    def fill(node: object) -> object:
        if isinstance(node, dict):
            return {name: fill(value) for name, value in node.items()}
        if isinstance(node, list):
            return [fill(value) for value in node]
        return values.get(node, node) if isinstance(node, str) else node

    return fill(msgspec.json.decode(_workflow(job)))


def _uuid(job: Job) -> str:
    """A UUID, as ComfyUI wants ids: lower-case, with hyphens."""
    token = job.token
    return "-".join((token[:8], token[8:12], token[12:16], token[16:20], token[20:32]))


class _Spread:
    """Chooses at most `partial_images` previews, each after twice as many steps as the one before."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._most = (job.request.partial_images or 0) if job.request.stream else 0
        self._seen = 0
        self._given = 0

    def take(self, found: Picture) -> Iterator[Frame]:
        self._seen += 1
        if self._given < self._most and self._seen >= 2**self._given:
            yield preview(self._job, found, self._given)
            self._given += 1
