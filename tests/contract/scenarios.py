"""The scenarios of the contract suite: one row each, over the recorded exchanges in `tests/golden/`.

Three texts must not be repeated anywhere: the prompt and an image's base64, which stand beside every refusal, and the
provider's own key in its message.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Final, NamedTuple

import msgspec

from streamproxy.core.catalogue import Model, Route
from streamproxy.core.conversation import Job
from streamproxy.core.events import Operation
from streamproxy.core.headers import HeaderPolicy
from streamproxy.core.rawjson import parse
from streamproxy.core.requests import ImageRequest, Inline, Input, Part, Spooled
from streamproxy.errors import Failure, ProxyError
from streamproxy.providers import ADAPTERS
from streamproxy.settings.providers import read_catalogue
from tests.contract.peer import INSTANT, LIMITS, Answers, Peer, Run, recorded
from tests.golden.shapes import PICTURE

KEY: Final = "sk-canary-0123456789abcdefghij"
PROMPT: Final = "a canary in a coal mine"
HEADER: Final = "canary-of-an-extra-header"
PNG: Final = "iVBORw0KGgoAAAANSUhEUgAA"  # how every recorded image begins
INPUT: Final = Inline(memoryview(PICTURE), "image/png")
SECOND: Final = Inline(memoryview(b"iVBORw0KGgoAAAANSUhEUgAAAAFmaXJzdCBvZiBtYW55"), "image/png")
OVER: Final = Inline(memoryview(b"iVBORw0KGgoAAAANSUhEUgAAAAFhIHRyYW5zcGFyZW50"), "image/png")
"""A second input image and a mask. Only their first bytes are a picture's, since no adapter reads more."""

MASK: Final = Inline(
    memoryview(b"iVBORw0KGgoAAAANSUhEUgAAAAIAAAABCAYAAAD0In+KAAAADElEQVR4nGNggID/AAEIAQBNGY85AAAAAElFTkSuQmCC"),
    "image/png",
)
"""Two pixels, the left one transparent: a mask for a wire that takes another kind."""

WORKFLOW: Final = '{"1":{"text":"{prompt}","width":"{width}","height":"{height}","image":"{image}"}}'


@dataclass(frozen=True, slots=True)
class Uploaded:
    """An upload that is held in memory: see `core.requests.Upload`."""

    data: bytes = field(repr=False)

    @property
    def size(self) -> int:
        return len(self.data)

    def read(self, offset: int, length: int) -> bytes:
        return self.data[offset : offset + length]


def spooled(image: Inline) -> Spooled:
    """The same image as an uploaded file."""
    return Spooled(Uploaded(base64.b64decode(image.base64)), image.media_type)


class Host(NamedTuple):
    """The recorded provider of an adapter. `undo`: the request that cancels its recorded job."""

    base_url: str
    model: str
    undo: str | None = None


REPLICATE: Final = "https://replicate.test/v1"
COMFY: Final = "https://comfy.test/comfy"
LUMA: Final = "https://luma.test/dream-machine/v1"
DASH: Final = "https://dash.test/api/v1"
HOSTS: Final = {
    "openai": Host("https://openai.test/v1", "gpt-image-2"),
    "gemini": Host("https://gemini.test/v1beta", "gemini-3-pro-image"),
    "imagen": Host("https://vertex.test/v1/projects/p/locations/l/publishers/google", "imagen-3.0-capability-001"),
    "fal": Host("https://fal.test/queue.fal", "fal-ai/flux/dev", "PUT https://fal.test/fal-ai/flux/requests/1/cancel"),
    "bfl": Host("https://bfl.test/v1", "flux-2-pro"),
    "replicate": Host(REPLICATE, "black-forest-labs/flux-dev", f"POST {REPLICATE}/predictions/1/cancel"),
    "stability": Host("https://stability.test/v2beta", "sd3.5-large"),
    "bedrock": Host("https://bedrock.test", "stability.sd3-5-large-v1:0"),
    "nova": Host("https://bedrock.test", "amazon.nova-canvas-v1:0"),
    "ideogram": Host("https://ideogram.test", "ideogram-v3"),
    "luma": Host(LUMA, "photon-1", f"DELETE {LUMA}/generations/1"),
    "mai": Host("https://mai.test/v1", "MAI-Image-2.6"),
    "dashscope": Host(DASH, "wan2.7-image", f"POST {DASH}/tasks/1/cancel"),
    "openrouter": Host("https://openrouter.test/api/v1", "openai/gpt-image-2"),
    "automatic1111": Host("http://a1111.test", "default", "POST http://a1111.test/sdapi/v1/interrupt"),
    "ark": Host("https://ark.test/api/v3", "seedream-4-5-251128"),
    "minimax": Host("https://minimax.test/v1", "MiniMax-H3-Image"),
    "xai": Host("https://xai.test/v1", "grok-imagine-image-2.0"),
    "fireworks": Host("https://fireworks.test/inference/v1/workflows/accounts/fireworks/models", "flux-1-dev-fp8"),
    "cloudflare": Host("https://cloudflare.test/client/v4/accounts/1/ai/run", "@cf/black-forest-labs/flux-1-schnell"),
    "huggingface": Host("https://huggingface.test", "black-forest-labs/FLUX.1-dev"),
    "leonardo": Host("https://leonardo.test/api/rest/v1", "6bef9f1b-29cb-40c7-b9df-32b51c1f67d3"),
    "runware": Host("https://runware.test/v1", "runware:101@1"),
    "responses": Host("https://responses.test/v1", "gpt-image-2"),
    "comfyui": Host(COMFY, "flux", f"POST {COMFY}/api/v2/jobs/1/cancel"),
    "comfyui-websocket": Host(COMFY, "flux", f"POST {COMFY}/api/jobs/01234567-89ab-cdef-0123-456789abcdef/cancel"),
}

MOST: Final = 200  # steps: the longest recorded conversation has under 30, and each repeated look costs three
WHOLE: Final = "the whole answer"
BESIDE: Final = "an answer to another request, before the paid one has begun"
CATALOGUE: Final = read_catalogue()
POLICY: Final = HeaderPolicy.load()
PLAIN: Final = ImageRequest(
    Operation.GENERATION, "m", PROMPT, 1, True, 3, None, None, None, None, None, (), None, {"x-note": HEADER}, ()
)


@dataclass(frozen=True)
class Scenario:
    """One conversation and its outcome.

    `frames`: a letter and an image index each, like "p0 c0": preview, completed; "a0" is the JSON answer. `proof`: a
    text in the event by which the provider accepts the request, or WHOLE, or BESIDE; None: it does not accept.
    """

    adapter: str
    name: str
    frames: str = ""
    failure: Failure | None = None
    proof: str | None = WHOLE
    n: int = 1
    first: int = 0
    of: int | None = None
    stream: bool = True
    images: tuple[Input, ...] = ()
    mask: Input | None = None
    members: dict[str, object] = field(default_factory=dict)
    model: str | None = None
    about: dict[str, Any] = field(default_factory=dict)
    """Fields of the model's row in the catalogue."""

    @property
    def undo(self) -> str | None:
        """The request that cancels the accepted job; None for work that is answered in one exchange."""
        return None if {"fast", "streams"} & self.about.keys() else HOSTS[self.adapter].undo

    edit: bool = False
    form: bool = False
    """Whether the request is an edit, which matters for OpenAI's wire, and whether it came as a form."""
    quirks: str = ""
    """The host of the catalogue from which the recorded one has its quirks."""

    @property
    def inputs(self) -> tuple[Input, ...]:
        """The caller's images in order, the mask last."""
        return (*self.images, *((self.mask,) if self.mask is not None else ()))

    @property
    def exchanges(self) -> Answers:
        return recorded(self.adapter, self.name)

    def __str__(self) -> str:
        return f"{self.adapter}-{self.name}" + (f"-{self.first}" if self.first else "")

    @property
    def request(self) -> ImageRequest:
        n = self.of or self.n
        asked: dict[str, object] = {"model": "m", "prompt": PROMPT, "n": n, "stream": self.stream, "partial_images": 3}
        asked |= {"extra_headers": {"x-note": HEADER}, **self.members}
        if self.edit and not self.form:
            asked |= {"images": [_reference(image) for image in self.images]}
            asked |= {"mask": _reference(self.mask)} if self.mask is not None else {}
        body = parse(msgspec.json.encode(asked))
        operation = Operation.EDIT if self.edit else Operation.GENERATION
        format = self.members.get("output_format")
        wanted = replace(PLAIN, operation=operation, n=n, stream=self.stream, images=self.images, mask=self.mask)
        wanted = replace(wanted, output_format=format if isinstance(format, str) else None)
        return replace(wanted, body=tuple(_parts(asked, self)) if self.form else body)

    @property
    def route(self) -> Route:
        host = HOSTS[self.adapter]
        row, own = CATALOGUE.providers["openai"], (("*", WORKFLOW),)
        provider = replace(row, name=self.adapter, adapter=self.adapter, base_url=host.base_url, workflows=own)
        if self.quirks:
            provider = replace(provider, quirks=CATALOGUE.providers[self.quirks].quirks)
        model = replace(
            Model.unknown(host.model), max_n=4, max_stream_n=2, refuses=("response_format", "style"), **self.about
        )
        return Route(provider, model, self.model or host.model)

    @cached_property
    def job(self) -> Job:
        now, token, several = 1_795_248_999, "0123456789abcdef" * 2, (self.of or self.n) > 1
        return Job(self.request, self.route, self.n, now, token, LIMITS, POLICY.scrub, self.first, several)

    def play(
        self,
        exchanges: Answers | None = None,
        *,
        throw_at: int = -1,
        lost_from: int = MOST,
        close_at: int = -1,
        failure: Failure = Failure.UPSTREAM_INCOMPLETE,
    ) -> Run:
        """Perform it, with the recorded answers or with `exchanges`, until it ends or is closed at a step.

        Steps are the conversation's own, from 0. From `lost_from` on, every step that takes time fails with `failure`.
        """
        conversation = ADAPTERS[self.adapter].converse(self.job)
        peer = Peer(self.exchanges if exchanges is None else exchanges, self.n)
        run, reply, error = peer.run, None, None
        while True:
            try:
                step = conversation.send(reply) if error is None else conversation.throw(error)
            except StopIteration:
                return run
            except ProxyError as ended:
                run.error = ended
                return run
            assert len(run.waits) < MOST, "it does not end"
            if close_at == len(run.waits):
                conversation.close()  # RuntimeError where it yields once more
                return run
            lost = len(run.waits) >= lost_from and not isinstance(step, INSTANT)
            reply, error = None, ProxyError(failure, "Thrown in.") if lost or throw_at == len(run.waits) else None
            run.waits.append(step)
            if error is not None:
                peer.lose(step)
                continue
            try:
                reply = peer.perform(step)
            except ProxyError as failed:
                error = failed


def _reference(image: Input) -> object:
    assert isinstance(image, Inline)
    return {"image_url": f"data:{image.media_type};base64,{bytes(image.base64).decode()}"}


def _parts(asked: dict[str, object], scenario: Scenario) -> Iterator[Part]:
    """The request as a form, its files last."""
    for name, value in asked.items():
        text = value if isinstance(value, str) else msgspec.json.encode(value).decode()
        yield Part(name, text.encode())
    for image in scenario.inputs:
        assert isinstance(image, Spooled)
        yield Part("mask" if image is scenario.mask else "image[]", image.upload, "in.png", image.media_type)


F = Failure
INPAINT: Final = "us.stability.stable-image-inpaint-v1:0"
KONTEXT: Final = "flux-kontext-pro"
FLUX_2: Final = "@cf/black-forest-labs/flux-2-dev"
SDXL: Final = "@cf/stabilityai/stable-diffusion-xl-base-1.0"
MASKS: Final = "fal-ai/gpt-image-1.5/edit"
FAST: Final = {"family": "known", "fast": True, "streams": False}
STREAMS: Final = {"family": "known", "streams": True}
CALLED: Final = "image_generation_call.in_progress"
FILE: Final = spooled(OVER)
FILES: Final = (spooled(INPUT), spooled(SECOND))
SCENARIOS: Final = (
    Scenario("openai", "previews", "p0 p0 c0", proof="event"),
    Scenario("openai", "two", "p0 p1 c0 c1", proof="event", n=2),
    Scenario("openai", "json", "c0 c1", n=2),
    Scenario("openai", "json", "a0", n=2, stream=False),
    Scenario("openai", "one", "c1", first=1, of=2),
    Scenario("openai", "refuses-streaming", "c1", first=1, of=2),
    Scenario("openai", "url", "c0 c1", n=2),
    Scenario("openai", "url", "a0", n=2, stream=False),
    Scenario("openai", "url-event", "p0 c0", proof="event"),
    Scenario("openai", "refused", failure=F.PROVIDER_REFUSED, proof=None),
    Scenario("openai", "invalid", failure=F.PROVIDER_REFUSED, proof=None),
    Scenario("openai", "refused-under-200", failure=F.PROVIDER_STREAM_ERROR, proof=None),
    Scenario("openai", "refused-as-event", failure=F.PROVIDER_STREAM_ERROR, proof=None),
    Scenario("openai", "json", "c0"),
    Scenario("openai", "edited", "p0 c0", proof="event", images=(INPUT,), edit=True),
    Scenario("openai", "edited", "p0 c0", proof="event", images=(INPUT, SECOND), mask=OVER, edit=True),
    Scenario("openai", "edited", "p0 c0", proof="event", images=FILES, mask=FILE, edit=True, form=True),
    Scenario("openai", "edited", "p1 c1", proof="event", images=FILES, edit=True, form=True, first=1, of=2),
    Scenario("openai", "edited-json", "c0", images=(INPUT, SECOND), edit=True),
    Scenario("openai", "edited-json", "a0", images=FILES, edit=True, form=True, stream=False),
    Scenario("openai", "indented", "c0", quirks="together"),
    Scenario("openai", "indented", "c1", first=1, of=2, stream=False, quirks="zai"),
    Scenario("openai", "indented", "a0", stream=False, quirks="together"),
    Scenario("openai", "edited-json", "c0", images=(INPUT, SECOND), edit=True, quirks="together"),
    Scenario("openai", "edited-json", "c0", images=FILES, edit=True, form=True, quirks="together"),
    Scenario("openai", "edited-json", "c0", images=(INPUT, SECOND), mask=OVER, edit=True, quirks="deepinfra"),
    Scenario("openai", "edited-json", "a0", images=FILES, edit=True, form=True, stream=False, quirks="sd-cpp"),
    Scenario("openai", "refused-in-a-string", failure=F.PROVIDER_REFUSED, proof=None, quirks="sd-cpp"),
    Scenario("openai", "refused-by-code", failure=F.MODERATION_BLOCKED, proof=None, quirks="zai"),
    Scenario("openai", "content-filter", failure=F.MODERATION_BLOCKED, proof=None),
    Scenario("openai", "content-filter-event", failure=F.MODERATION_BLOCKED, proof=None),
    Scenario("openai", "content-filter-json", failure=F.MODERATION_BLOCKED, proof=None, stream=False),
    Scenario("openai", "failed", "p0", F.PROVIDER_STREAM_ERROR, proof="event"),
    Scenario("openai", "cut", "p0", F.UPSTREAM_INCOMPLETE, proof="event"),
    Scenario("openai", "cut-json", failure=F.UPSTREAM_INCOMPLETE, proof=None),
    Scenario("gemini", "previews", "p0 p0 c0", proof="Let me"),
    Scenario("gemini", "array", "p0 c0"),
    Scenario("gemini", "json", "c0", stream=False),
    Scenario("gemini", "json", "c1", stream=False, first=1, of=2, images=(INPUT, INPUT)),
    Scenario("gemini", "json", "c0", stream=False, images=FILES),
    Scenario("gemini", "previews", "p0 p0 c0", proof="Let me", images=(INPUT, *FILES)),
    Scenario("gemini", "refused", failure=F.PROVIDER_REFUSED, proof=None),
    Scenario("gemini", "refused-under-200", failure=F.PROVIDER_REFUSED, proof=None),
    Scenario("gemini", "blocked", failure=F.MODERATION_BLOCKED, proof=None),
    Scenario("gemini", "failed", failure=F.MODERATION_BLOCKED, proof="Let me"),
    Scenario("gemini", "cut", failure=F.UPSTREAM_INCOMPLETE, proof="Let me"),
    Scenario("gemini", "cut-json", failure=F.UPSTREAM_INCOMPLETE, proof=None, stream=False),
    Scenario("gemini", "cut-at-the-end", "c0", proof="Let me"),
    Scenario("gemini", "one-thought", "c0", members={"output_format": "jpeg"}),
    Scenario("gemini", "language", failure=F.PROVIDER_REFUSED, proof=None),
    Scenario("imagen", "two", "c0 c1", n=2),
    Scenario("imagen", "two", "c2 c3", n=2, first=2, of=4, stream=False, members={"output_format": "jpeg"}),
    Scenario("imagen", "masked", "c0", images=(INPUT,), mask=MASK),
    Scenario("imagen", "some-filtered", "c0"),
    Scenario("imagen", "filtered", failure=F.MODERATION_BLOCKED, proof=None),
    Scenario("imagen", "blocked", failure=F.MODERATION_BLOCKED, proof=None),
    Scenario("imagen", "refused", failure=F.PROVIDER_REFUSED, proof=None),
    Scenario("imagen", "nothing", failure=F.NO_IMAGE, proof=None),
    Scenario("imagen", "cut", failure=F.UPSTREAM_INCOMPLETE, proof=None),
    Scenario("fal", "one", "c0", images=(INPUT,)),
    Scenario("fal", "masked", "c0", images=FILES[:1], mask=FILE, model=MASKS),
    Scenario("fal", "masked", "c0", images=(INPUT,), mask=OVER, model=MASKS),
    Scenario("fal", "several-inputs", "c0", images=(INPUT, SECOND), model="fal-ai/nano-banana/edit"),
    Scenario("fal", "several-inputs", "c0", images=FILES, model="fal-ai/nano-banana/edit"),
    Scenario("fal", "two", "c0 c1", n=2),
    Scenario("fal", "two", "c2 c3", n=2, first=2, of=4),
    Scenario("fal", "more-than-asked", "c0"),
    Scenario("fal", "more-than-asked", "c1 c2", n=2, first=1, of=4),
    Scenario("fal", "gone", "c0"),
    Scenario("fal", "direct", "c0", about=FAST),
    Scenario("fal", "direct-refused", failure=F.MODERATION_BLOCKED, proof=None, about=FAST),
    Scenario("fal", "stream", "p0 p0 c0", proof='{"images":[{"url":"https://files.test/0.png"', about=STREAMS),
    Scenario("fal", "stream-refused", failure=F.PROVIDER_REFUSED, proof=None, about=STREAMS),
    Scenario(
        "fal",
        "stream-cut",
        "p0",
        F.UPSTREAM_INCOMPLETE,
        proof='{"images":[{"url":"https://files.test/0.png"',
        about=STREAMS,
    ),
    Scenario("fal", "half-flagged", "c0", F.MODERATION_BLOCKED, n=2),
    Scenario("fal", "lost", failure=F.PROVIDER_FAILED),
    Scenario("fal", "refused", failure=F.PROVIDER_REFUSED, proof=None),
    Scenario("fal", "refused-under-200", failure=F.PROVIDER_REFUSED, proof=None),
    Scenario("fal", "direct-under-200", failure=F.MODERATION_BLOCKED, proof=None, about=FAST),
    Scenario("fal", "limited", failure=F.PROVIDER_LIMIT, proof=None),
    Scenario("fal", "failed", failure=F.PROVIDER_FAILED),
    Scenario("fal", "flagged", failure=F.MODERATION_BLOCKED),
    Scenario("fal", "cut", failure=F.UPSTREAM_INCOMPLETE),
    Scenario("bfl", "one", "c0"),
    Scenario("bfl", "one", "c1", first=1, of=2, images=(INPUT, SECOND)),
    Scenario("bfl", "one", "c0", images=FILES),
    Scenario("bfl", "late", "c0"),
    Scenario("bfl", "gone", "c0"),
    Scenario("bfl", "refused", failure=F.PROVIDER_REFUSED, proof=None),
    Scenario("bfl", "words-under-200", failure=F.PROVIDER_REFUSED, proof=None),
    Scenario("bfl", "limited", failure=F.PROVIDER_LIMIT, proof=None),
    Scenario("bfl", "refused-under-200", failure=F.MODERATION_BLOCKED, proof=None),
    Scenario("bfl", "moderated", failure=F.MODERATION_BLOCKED),
    Scenario("bfl", "failed", failure=F.PROVIDER_FAILED),
    Scenario("bfl", "lost", failure=F.PROVIDER_FAILED),
    Scenario("bfl", "cut", failure=F.UPSTREAM_INCOMPLETE),
    Scenario("replicate", "one", "c0", stream=False, images=(INPUT,)),
    Scenario("replicate", "one", "c0", stream=False, images=FILES[:1]),
    Scenario("replicate", "two", "c0 c1", n=2),
    Scenario("replicate", "spare", "c1", first=1, of=2, stream=False),
    Scenario("replicate", "previews", "p0 p0 c0"),
    Scenario("replicate", "previews-cut", "p0 c0"),
    Scenario("replicate", "waited", "c0", about=FAST),
    Scenario("replicate", "gone", "c0", stream=False),
    Scenario("replicate", "kept", "c0", stream=False),
    Scenario("replicate", "refused", failure=F.PROVIDER_REFUSED, proof=None),
    Scenario("replicate", "words-under-200", failure=F.PROVIDER_REFUSED, proof=None),
    Scenario("replicate", "limited", failure=F.PROVIDER_LIMIT, proof=None),
    Scenario("replicate", "refused-under-201", failure=F.MODERATION_BLOCKED, proof=None, about=FAST),
    Scenario("replicate", "moderated", failure=F.MODERATION_BLOCKED, stream=False),
    Scenario("replicate", "failed", failure=F.PROVIDER_FAILED, stream=False),
    Scenario("replicate", "text", failure=F.NO_IMAGE, stream=False),
    Scenario("replicate", "cut", failure=F.UPSTREAM_INCOMPLETE, stream=False),
    Scenario("stability", "one", "c0"),
    Scenario("stability", "json", "c1", first=1, of=2),
    Scenario("stability", "one", "c0", images=(INPUT,)),
    Scenario("stability", "masked", "c0", images=(INPUT,), mask=MASK, model="inpaint"),
    Scenario("stability", "later", "c0", model="creative", images=FILES[:1]),
    Scenario("stability", "refused", failure=F.PROVIDER_REFUSED, proof=None),
    Scenario("stability", "blocked", failure=F.MODERATION_BLOCKED, proof=None),
    Scenario("stability", "filtered", failure=F.MODERATION_BLOCKED, proof=None),
    Scenario("stability", "refused-under-200", failure=F.PROVIDER_REFUSED, proof=None),
    Scenario("stability", "cut", failure=F.UPSTREAM_INCOMPLETE, proof=None),
    Scenario("stability", "lost", failure=F.PROVIDER_FAILED, model="creative"),
    Scenario("bedrock", "one", "c0"),
    Scenario("bedrock", "one", "c1", first=1, of=2, stream=False),
    Scenario("bedrock", "one", "c0", images=(INPUT,)),
    Scenario("bedrock", "one", "c0", images=FILES[:1], members={"output_format": "jpeg"}),
    Scenario("bedrock", "masked", "c0", images=(INPUT,), mask=MASK, model=INPAINT),
    Scenario("bedrock", "refused", failure=F.PROVIDER_REFUSED, proof=None),
    Scenario("bedrock", "limited", failure=F.PROVIDER_LIMIT, proof=None),
    Scenario("bedrock", "broken", failure=F.PROVIDER_FAILED, proof=None),
    Scenario("bedrock", "filtered", failure=F.MODERATION_BLOCKED, proof=None),
    Scenario("bedrock", "inference", failure=F.PROVIDER_FAILED, proof=None),
    Scenario("bedrock", "empty", failure=F.NO_IMAGE, proof=None),
    Scenario("bedrock", "refused-under-200", failure=F.PROVIDER_REFUSED, proof=None),
    Scenario("bedrock", "cut", failure=F.UPSTREAM_INCOMPLETE, proof=None),
    Scenario("nova", "one", "c0"),
    Scenario("nova", "two", "c0 c1", n=2),
    Scenario("nova", "two", "c2 c3", n=2, first=2, of=4, stream=False),
    Scenario("nova", "two", "c0"),
    Scenario("nova", "one", "c0", images=(INPUT, SECOND)),
    Scenario("nova", "one", "c0", images=FILES[:1], mask=MASK),
    Scenario("nova", "some-blocked", "c0"),
    Scenario("nova", "all-blocked", failure=F.MODERATION_BLOCKED, proof=None),
    Scenario("nova", "blocked", failure=F.MODERATION_BLOCKED, proof=None),
    Scenario("nova", "refused", failure=F.PROVIDER_REFUSED, proof=None),
    Scenario("nova", "empty", failure=F.NO_IMAGE, proof=None),
    Scenario("nova", "refused-under-200", failure=F.PROVIDER_REFUSED, proof=None),
    Scenario("nova", "cut", failure=F.UPSTREAM_INCOMPLETE, proof=None),
    Scenario("ideogram", "one", "c0"),
    Scenario("ideogram", "two", "c0 c1", n=2),
    Scenario("ideogram", "two", "c2 c3", n=2, first=2, of=4, stream=False),
    Scenario("ideogram", "two", "c0"),
    Scenario("ideogram", "edited", "c0", images=(INPUT,)),
    Scenario("ideogram", "edited", "c0", images=FILES[:1]),
    Scenario("ideogram", "masked", "c0", images=(INPUT,), mask=MASK),
    Scenario("ideogram", "later-version", "c0", images=(INPUT, SECOND), mask=MASK, model="ideogram-4.5"),
    Scenario("ideogram", "gone", "c0"),
    Scenario("ideogram", "half-unsafe", "c1", F.MODERATION_BLOCKED, n=2),
    Scenario("ideogram", "unsafe", failure=F.MODERATION_BLOCKED),
    Scenario("ideogram", "fewer", "c0", F.NO_IMAGE, n=2),
    Scenario("ideogram", "refused", failure=F.PROVIDER_REFUSED, proof=None),
    Scenario("ideogram", "blocked", failure=F.MODERATION_BLOCKED, proof=None),
    Scenario("ideogram", "no-credits", failure=F.PROVIDER_REFUSED, proof=None),
    Scenario("ideogram", "empty", failure=F.NO_IMAGE, proof=None),
    Scenario("ideogram", "refused-under-200", failure=F.PROVIDER_REFUSED, proof=None),
    Scenario("ideogram", "cut", failure=F.UPSTREAM_INCOMPLETE, proof=None),
    Scenario("luma", "one", "c0"),
    Scenario("luma", "one", "c1", first=1, of=2, stream=False),
    Scenario("luma", "gone", "c0"),
    Scenario("luma", "failed", failure=F.PROVIDER_FAILED),
    Scenario("luma", "moderated", failure=F.MODERATION_BLOCKED),
    Scenario("luma", "no-result", failure=F.NO_IMAGE),
    Scenario("luma", "lost", failure=F.PROVIDER_FAILED),
    Scenario("luma", "refused", failure=F.PROVIDER_REFUSED, proof=None),
    Scenario("luma", "blocked", failure=F.MODERATION_BLOCKED, proof=None),
    Scenario("luma", "refused-under-200", failure=F.PROVIDER_REFUSED, proof=None),
    Scenario("luma", "cut", failure=F.UPSTREAM_INCOMPLETE, proof=None),
    Scenario("mai", "one", "c0"),
    Scenario("mai", "one", "c1", first=1, of=2, stream=False),
    Scenario("mai", "edited", "c0", images=FILES[:1], members={"output_format": "jpeg"}),
    Scenario("mai", "edited", "c0", images=(INPUT,)),
    Scenario("mai", "refused", failure=F.PROVIDER_REFUSED, proof=None),
    Scenario("mai", "blocked", failure=F.MODERATION_BLOCKED, proof=None),
    Scenario("mai", "refused-under-200", failure=F.PROVIDER_REFUSED, proof=None),
    Scenario("mai", "cut", failure=F.UPSTREAM_INCOMPLETE, proof=None),
    Scenario("dashscope", "task", "c0"),
    Scenario("dashscope", "task", "c1", first=1, of=2, images=(INPUT, SECOND)),
    Scenario("dashscope", "old-task", "c0 c1", n=2, model="wan2.5-t2i-preview"),
    Scenario("dashscope", "partly", "c0", F.MODERATION_BLOCKED, n=2, model="wan2.5-t2i-preview"),
    Scenario("dashscope", "two", "c0 c1", n=2, model="qwen-image-2.0", about=FAST),
    Scenario("dashscope", "edited", "c0", images=FILES, model="qwen-image-2.0", about=FAST),
    Scenario("dashscope", "text", failure=F.NO_IMAGE, proof=None, model="qwen-image-2.0", about=FAST),
    Scenario("dashscope", "refused", failure=F.PROVIDER_REFUSED, proof=None, model="qwen-image-2.0", about=FAST),
    Scenario("dashscope", "blocked", failure=F.MODERATION_BLOCKED, proof=None),
    Scenario("dashscope", "refused-under-200", failure=F.PROVIDER_LIMIT, proof=None),
    Scenario("dashscope", "failed", failure=F.PROVIDER_FAILED),
    Scenario("dashscope", "flagged", failure=F.MODERATION_BLOCKED),
    Scenario("dashscope", "lost", failure=F.PROVIDER_FAILED),
    Scenario("dashscope", "cut", failure=F.UPSTREAM_INCOMPLETE),
    Scenario("openrouter", "previews", "p0 p0 c0", proof="image_generation.partial_image"),
    Scenario("openrouter", "previews", "p1 p1 c1", proof="image_generation.partial_image", first=1, of=2),
    Scenario("openrouter", "two", "c0 c1", n=2, stream=False),
    Scenario("openrouter", "edited", "c0", images=(INPUT, SECOND), stream=False),
    Scenario("openrouter", "edited", "c0", images=FILES, members={"output_format": "jpeg"}),
    Scenario("openrouter", "chat", "c0", proof='"delta"'),
    Scenario("openrouter", "chat-json", "c0", stream=False),
    Scenario("openrouter", "chat-refused", failure=F.MODERATION_BLOCKED, proof=None, stream=False),
    Scenario("openrouter", "chat-error", failure=F.PROVIDER_REFUSED, proof=None),
    Scenario("openrouter", "chat-text", failure=F.NO_IMAGE, proof='"delta"'),
    Scenario("openrouter", "refused", failure=F.PROVIDER_REFUSED, proof=None),
    Scenario("openrouter", "flagged", failure=F.MODERATION_BLOCKED, proof=None),
    Scenario("openrouter", "refused-under-200", failure=F.PROVIDER_LIMIT, proof=None),
    Scenario("openrouter", "empty", failure=F.NO_IMAGE, proof=None),
    Scenario("openrouter", "failed", "p0", F.PROVIDER_FAILED, proof="image_generation.partial_image"),
    Scenario("openrouter", "cut", "p0", F.UPSTREAM_INCOMPLETE, proof="image_generation.partial_image"),
    Scenario("automatic1111", "previews", "p0 p0 c0", proof=BESIDE),
    Scenario("automatic1111", "previews", "p1 p1 c1", proof=BESIDE, first=1, of=3),
    Scenario("automatic1111", "two", "c0 c1", n=2, about=FAST),
    Scenario("automatic1111", "edited", "c0", images=(INPUT,), about=FAST),
    Scenario("automatic1111", "edited", "c0", images=FILES[:1], mask=MASK, about=FAST),
    Scenario("automatic1111", "others", "c0", about=FAST),
    Scenario("automatic1111", "unwatched", "c0", about=FAST, members={"output_format": "png"}),
    Scenario("automatic1111", "refused", failure=F.PROVIDER_REFUSED, proof=None),
    Scenario("automatic1111", "refused-under-200", failure=F.PROVIDER_REFUSED, proof=None),
    Scenario("automatic1111", "memory", "p0", F.PROVIDER_FAILED, proof=BESIDE),
    Scenario("automatic1111", "cut", failure=F.UPSTREAM_INCOMPLETE, proof=None),
    *(
        scenario
        for adapter in ("ark", "minimax")
        for scenario in (
            Scenario(adapter, "one", "c0", proof="0.png"),
            Scenario(adapter, "two", "c0 c1", proof="0.png", n=2),
            Scenario(adapter, "two", "c2 c3", proof="0.png", n=2, first=2, of=4),
            Scenario(adapter, "other-order", "c1 c0", proof="1.png", n=2),
            Scenario(adapter, "more-than-asked", "c0", proof="0.png"),
            Scenario(adapter, "no-completed", "c0", proof="0.png"),
            Scenario(adapter, "one-failed", "c0", F.MODERATION_BLOCKED, proof="0.png", n=2),
            Scenario(adapter, "first-failed", "c1", F.PROVIDER_FAILED, proof="partial_failed", n=2),
            Scenario(adapter, "mid-error", "c0", F.PROVIDER_FAILED, proof="0.png", n=2),
            Scenario(adapter, "cut", "c0", F.UPSTREAM_INCOMPLETE, proof="0.png", n=2),
            Scenario(adapter, "multi-line", failure=F.BAD_JSON, proof=None),
            Scenario(adapter, "refused", failure=F.PROVIDER_REFUSED, proof=None),
            Scenario(adapter, "refused-under-200", failure=F.PROVIDER_REFUSED, proof=None),
            Scenario(adapter, "blocked", failure=F.MODERATION_BLOCKED, proof=None),
            Scenario(adapter, "limited", failure=F.PROVIDER_LIMIT, proof=None),
            Scenario(adapter, "json", "c0", stream=False),
            Scenario(adapter, "json-edit", "c0", stream=False, images=(INPUT, SECOND)),
            Scenario(adapter, "json-edit", "c1", stream=False, images=FILES, first=1, of=2),
            Scenario(adapter, "json-two", "c0 c1", stream=False, n=2),
            Scenario(adapter, "json-empty", failure=F.NO_IMAGE, proof=None, stream=False),
            Scenario(adapter, "cut-json", failure=F.UPSTREAM_INCOMPLETE, proof=None, stream=False),
        )
    ),
    Scenario("xai", "one", "c0"),
    Scenario("xai", "one", "c1", first=1, of=2, stream=False),
    Scenario("xai", "edit", "c0", images=(INPUT, SECOND)),
    Scenario("xai", "edit", "c0", images=FILES[:1]),
    Scenario("xai", "two", "c0 c1", n=2),
    Scenario("xai", "two", "c0"),
    Scenario("xai", "urls", "c2 c3", n=2, first=2, of=4),
    Scenario("xai", "blocked", failure=F.MODERATION_BLOCKED),
    Scenario("xai", "empty", failure=F.MODERATION_BLOCKED, proof=None),
    Scenario("xai", "refused", failure=F.PROVIDER_REFUSED, proof=None),
    Scenario("xai", "refused-under-200", failure=F.PROVIDER_REFUSED, proof=None),
    Scenario("xai", "moderated", failure=F.MODERATION_BLOCKED, proof=None),
    Scenario("xai", "limited", failure=F.PROVIDER_LIMIT, proof=None),
    Scenario("xai", "cut", failure=F.UPSTREAM_INCOMPLETE, proof=None),
    Scenario("fireworks", "one", "c0"),
    Scenario("fireworks", "json", "c1", first=1, of=2, stream=False),
    Scenario("fireworks", "later", "c0", model=KONTEXT, images=(INPUT,)),
    Scenario("fireworks", "later", "c0", model=KONTEXT, images=FILES[:1], members={"output_format": "jpeg"}),
    Scenario("fireworks", "refused", failure=F.PROVIDER_REFUSED, proof=None),
    Scenario("fireworks", "refused-under-200", failure=F.PROVIDER_REFUSED, proof=None),
    Scenario("fireworks", "later-refused", failure=F.PROVIDER_REFUSED, proof=None, model=KONTEXT),
    Scenario("fireworks", "filtered", failure=F.MODERATION_BLOCKED, proof=None),
    Scenario("fireworks", "moderated", failure=F.MODERATION_BLOCKED, model=KONTEXT),
    Scenario("fireworks", "failed", failure=F.PROVIDER_FAILED, model=KONTEXT),
    Scenario("fireworks", "cut", failure=F.UPSTREAM_INCOMPLETE, proof=None),
    Scenario("cloudflare", "one", "c0"),
    Scenario("cloudflare", "one", "c1", first=1, of=2, members={"output_format": "jpeg"}),
    Scenario("cloudflare", "bytes", "c0", images=(INPUT,), model=SDXL),
    Scenario("cloudflare", "form", "c0", images=(INPUT, SECOND), model=FLUX_2),
    Scenario("cloudflare", "form", "c0", images=FILES, model=FLUX_2),
    Scenario("cloudflare", "refused", failure=F.PROVIDER_REFUSED, proof=None),
    Scenario("cloudflare", "blocked", failure=F.MODERATION_BLOCKED, proof=None),
    Scenario("cloudflare", "refused-under-200", failure=F.PROVIDER_REFUSED, proof=None),
    Scenario("cloudflare", "empty", failure=F.NO_IMAGE, proof=None),
    Scenario("cloudflare", "cut", failure=F.UPSTREAM_INCOMPLETE, proof=None),
    Scenario("huggingface", "one", "c0"),
    Scenario("huggingface", "one", "c1", first=1, of=2, stream=False, members={"output_format": "jpeg"}),
    Scenario("huggingface", "one", "c0", images=(INPUT,)),
    Scenario("huggingface", "one", "c0", images=FILES[:1]),
    Scenario("huggingface", "refused", failure=F.PROVIDER_REFUSED, proof=None),
    Scenario("huggingface", "loading", failure=F.PROVIDER_FAILED, proof=None),
    Scenario("huggingface", "refused-under-200", failure=F.PROVIDER_REFUSED, proof=None),
    Scenario("huggingface", "cut", failure=F.UPSTREAM_INCOMPLETE, proof=None),
    Scenario("leonardo", "one", "c0"),
    Scenario("leonardo", "two", "c0 c1", n=2),
    Scenario("leonardo", "two", "c2 c3", n=2, first=2, of=4, stream=False),
    Scenario("leonardo", "two", "c0"),
    Scenario("leonardo", "too-few", "c0", F.NO_IMAGE, n=2),
    Scenario("leonardo", "gone", "c0"),
    Scenario("leonardo", "refused", failure=F.PROVIDER_REFUSED, proof=None),
    Scenario("leonardo", "blocked", failure=F.MODERATION_BLOCKED, proof=None),
    Scenario("leonardo", "refused-under-200", failure=F.PROVIDER_REFUSED, proof=None),
    Scenario("leonardo", "failed", failure=F.PROVIDER_FAILED),
    Scenario("leonardo", "lost", failure=F.PROVIDER_FAILED),
    Scenario("leonardo", "cut", failure=F.UPSTREAM_INCOMPLETE),
    Scenario("runware", "one", "c0"),
    Scenario("runware", "one", "c1", first=1, of=2, stream=False),
    Scenario("runware", "one", "c0", images=(INPUT,), mask=MASK),
    Scenario("runware", "one", "c0", images=FILES),
    Scenario("runware", "two", "c0 c1", n=2),
    Scenario("runware", "two", "c0"),
    Scenario("runware", "url", "c0"),
    Scenario("runware", "partly", "c0", F.PROVIDER_FAILED, n=2),
    Scenario("runware", "partly-blocked", "c0", F.MODERATION_BLOCKED, n=2),
    Scenario("runware", "refused", failure=F.PROVIDER_REFUSED, proof=None),
    Scenario("runware", "blocked", failure=F.MODERATION_BLOCKED, proof=None),
    Scenario("runware", "refused-under-200", failure=F.PROVIDER_REFUSED, proof=None),
    Scenario("runware", "empty", failure=F.NO_IMAGE, proof=None),
    Scenario("runware", "cut", failure=F.UPSTREAM_INCOMPLETE, proof=None),
    Scenario("responses", "previews", "p0 p0 c0", proof=CALLED),
    Scenario("responses", "previews", "p1 p1 c1", proof=CALLED, first=1, of=2),
    Scenario("responses", "unasked", "c0", proof=CALLED, images=(INPUT, SECOND), mask=OVER),
    Scenario("responses", "unasked", "c0", proof=CALLED, images=FILES, mask=FILE),
    Scenario("responses", "json", "c0", stream=False),
    Scenario("responses", "json", "c0"),
    Scenario("responses", "late-cut", "p0 c0", proof=CALLED),
    Scenario("responses", "failed-late", "p0 c0", proof=CALLED),
    Scenario("responses", "refused", failure=F.PROVIDER_REFUSED, proof=None),
    Scenario("responses", "blocked", failure=F.MODERATION_BLOCKED, proof=None),
    Scenario("responses", "refused-as-event", failure=F.PROVIDER_STREAM_ERROR, proof=None),
    Scenario("responses", "refused-under-200", failure=F.PROVIDER_STREAM_ERROR, proof=None),
    Scenario("responses", "words", failure=F.NO_IMAGE, proof=None),
    Scenario("responses", "refusal", failure=F.MODERATION_BLOCKED, proof=None),
    Scenario("responses", "incomplete", failure=F.PROVIDER_FAILED, proof=None),
    Scenario("responses", "filtered", failure=F.MODERATION_BLOCKED, proof=None),
    Scenario("responses", "failed", "p0", F.MODERATION_BLOCKED, proof=CALLED),
    Scenario("responses", "cut", "p0", F.UPSTREAM_INCOMPLETE, proof=CALLED),
    Scenario("responses", "ended", "p0", F.MISSING_TERMINAL_EVENT, proof=CALLED),
    Scenario("comfyui", "previews", "p0 p0 c0"),
    Scenario("comfyui", "redirected", "p0 p0 c0"),
    Scenario("comfyui", "more-than-asked", "p1 p1 c1", first=1, of=3),
    Scenario("comfyui", "uploaded", "p0 p0 c0", images=(INPUT,)),
    Scenario("comfyui", "more-than-asked", "p0 p0 c0"),
    Scenario("comfyui", "uploaded", "p0 p0 c0", images=FILES[:1]),
    Scenario("comfyui", "refused", failure=F.PROVIDER_REFUSED, proof=None),
    Scenario("comfyui", "failed", "p0", F.PROVIDER_FAILED),
    Scenario("comfyui", "cut", "p0", F.UPSTREAM_INCOMPLETE),
    Scenario("comfyui-websocket", "previews", "p0 p0 c0"),
    Scenario("comfyui-websocket", "more-than-asked", "c1", first=1, of=3),
    Scenario("comfyui-websocket", "uploaded", "c0", images=(INPUT,)),
    Scenario("comfyui-websocket", "more-than-asked", "c0"),
    Scenario("comfyui-websocket", "uploaded", "c0", images=FILES[:1]),
    Scenario("comfyui-websocket", "refused", failure=F.PROVIDER_REFUSED, proof=None),
    Scenario("comfyui-websocket", "failed", "p0", F.PROVIDER_FAILED),
    Scenario("comfyui-websocket", "cut", "p0", F.UPSTREAM_INCOMPLETE),
)
