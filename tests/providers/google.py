"""Jobs for Google's adapters, and answers to them in one piece."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import msgspec

from streamproxy.core.catalogue import Route
from streamproxy.core.completion import collected
from streamproxy.core.conversation import Job
from streamproxy.core.events import Operation
from streamproxy.core.rawjson import parse
from streamproxy.core.requests import Head, ImageRequest, Input, UpstreamRequest
from streamproxy.errors import ProxyError
from streamproxy.providers import ADAPTERS
from streamproxy.settings.providers import read_catalogue
from tests.contract.peer import LIMITS, Exchange, Peer, Run

CATALOGUE: Final = read_catalogue()
VERTEX: Final = "https://aiplatform.test/v1/projects/p/locations/l/publishers/google"
SOLE: Final = "01234567" * 4


def job(
    model: str = "gemini-3-pro-image",
    *,
    provider: str = "gemini",
    images: Sequence[Input] = (),
    mask: Input | None = None,
    n: int = 1,
    first: int = 0,
    of: int | None = None,
    **members: Any,
) -> Job:
    """A job for one of a provider's models; `members` are the body's, of which the usual ones become fields."""
    wanted = of or n
    body = {"model": model, "prompt": "a lighthouse", "n": wanted, **members}
    names = ("stream", "partial_images", "size", "quality", "background", "output_format")
    fields: dict[str, Any] = {name: members.get(name, False if name == "stream" else None) for name in names}
    request = ImageRequest(
        operation=Operation.GENERATION,
        model=model,
        prompt="a lighthouse",
        n=wanted,
        response_format=None,
        images=tuple(images),
        mask=mask,
        extra_headers=None,
        body=parse(msgspec.json.encode(body)),
        **fields,
    )
    row = CATALOGUE.providers[provider]
    row = replace(row, base_url=VERTEX) if provider == "vertex" else row
    known = CATALOGUE.models[f"google/{model}"]
    return Job(request, Route(row, known, model), n, 1_795_248_999, SOLE, LIMITS, str, first, wanted > 1)


def asked(job: Job) -> tuple[str, dict[str, Any]]:
    """URL and body of the one request that a job sends."""
    run = play(job, {})
    [request] = [step.request for step in run.steps if hasattr(step, "request") and step.request is not None]
    assert isinstance(request, UpstreamRequest)
    pieces = [piece for piece in request.body if isinstance(piece, bytes | memoryview)]
    return request.url, msgspec.json.decode(b"".join(pieces))


def play(job: Job, answer: object, *, status: int = 200) -> Run:
    """Carry a job out. `answer`: one object, or a list of a stream's chunks."""
    if isinstance(answer, list):
        raw = b"".join(b"data: " + msgspec.json.encode(chunk) + b"\n\n" for chunk in answer)
    else:
        raw = msgspec.json.encode(answer)
    kind = "text/event-stream" if isinstance(answer, list) else "application/json"
    peer = _Any(Exchange("", frozenset({"paid"}), Head(status, (("content-type", kind),)), (raw,), False), job.n)
    conversation = ADAPTERS[job.provider.adapter].converse(job)
    reply: object = None
    try:
        while True:
            reply = peer.perform(conversation.send(reply))
    except StopIteration:
        pass
    except ProxyError as error:
        peer.run.error = error
    return peer.run


class _Any(Peer):
    """Gives its one answer to whatever is asked."""

    def __init__(self, exchange: Exchange, n: int) -> None:
        super().__init__((), n)
        self._exchange = exchange

    def _answer(self, what: str) -> Exchange:
        return self._exchange


def data(run: Run) -> list[dict[str, Any]]:
    """The data of a run's events."""
    assert run.error is None, run.error
    return [msgspec.json.decode(b"".join(frame.data)) for frame in run.frames]


@dataclass(frozen=True, slots=True)
class Told:
    """An error as callers see it."""

    code: str
    status: int
    provider_code: object
    charged: bool


def told(run: Run) -> Told:
    """What a run's error says."""
    assert run.error is not None
    details: Mapping[str, object] = run.error.details.members
    return Told(run.error.code, run.error.status, details.get("provider_code"), run.error.charged)


def whole(runs: Sequence[Run]) -> dict[str, Any]:
    """The JSON answer that the runs of one request amount to."""
    finals = [b"".join(frame.data) for run in runs for frame in run.frames if frame.final]
    return msgspec.json.decode(collected(finals, 1))  # type: ignore[no-any-return]
