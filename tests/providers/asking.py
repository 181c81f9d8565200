"""Requests and not-applied members of an adapter, for the tests of one provider's wire each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Final

import msgspec

from streamproxy.core.catalogue import Model
from streamproxy.core.conversation import Convert, Job, Launch, Picture, Send
from streamproxy.core.events import Operation
from streamproxy.core.requests import Decoded, Encoded, Inline, Input, UpstreamRequest
from streamproxy.errors import ProxyError
from streamproxy.providers import ADAPTERS
from tests.contract.scenarios import Scenario
from tests.golden.shapes import PICTURE
from tests.providers.making import CATALOGUE

PNG = Inline(memoryview(PICTURE), "image/png")
MADE = Inline(memoryview(b"Y29udmVydGVk"), "image/png")
"""What every image is converted to."""

NO_MEMBERS: Final[Mapping[str, object]] = MappingProxyType({})


def job(
    adapter: str,
    model: str,
    members: Mapping[str, object] = NO_MEMBERS,
    *,
    n: int = 1,
    images: tuple[Input, ...] = (),
    mask: Input | None = None,
    stream: bool = False,
) -> Job:
    """A job of this upstream model, as the catalogue knows it, for these members of a caller's body."""
    scenario = Scenario(
        adapter, "one", n=n, images=images, mask=mask, stream=stream, members=dict(members), model=model
    )
    given = scenario.job
    texts = {name: members.get(name) for name in ("size", "output_format", "quality")}
    operation = Operation.EDIT if images else Operation.GENERATION
    row = CATALOGUE.models.get(f"{adapter}/{model}") or CATALOGUE.find(model) or Model.unknown(model)
    provider = CATALOGUE.providers[adapter]
    request = replace(given.request, operation=operation, **texts)  # type: ignore[arg-type]
    return replace(given, request=request, route=replace(given.route, model=row, provider=provider))


def paid(given: Job) -> tuple[UpstreamRequest, dict[str, object], list[Convert]]:
    """The request that costs money, its JSON, and what was converted for it. Raises ProxyError where it is refused."""
    conversation = ADAPTERS[given.provider.adapter].converse(given)
    conversions: list[Convert] = []
    step = next(conversation)
    while isinstance(step, Convert):
        conversions.append(step)
        step = conversation.send(Picture((bytes(MADE.base64),), MADE.media_type))
    conversation.close()
    assert isinstance(step, Send | Launch), step
    pieces = (part.base64 if isinstance(part, Decoded) else part for part in step.request.body)
    raw = b"".join(b"upload" if isinstance(piece, Encoded) else bytes(piece) for piece in pieces)  # type: ignore[arg-type]
    return step.request, msgspec.json.decode(raw), conversions


def told(given: Job) -> dict[str, object]:
    """The JSON of the request that costs money."""
    return paid(given)[1]


def not_applied(given: Job) -> tuple[str, ...]:
    return ADAPTERS[given.provider.adapter].not_applied(given)


def refused(given: Job) -> ProxyError:
    """The error that it ends in before anything is sent."""
    try:
        paid(given)
    except ProxyError as error:
        return error
    raise AssertionError("it was sent")
