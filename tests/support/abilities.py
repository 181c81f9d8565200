"""What each known provider can do, found by asking its adapter: the rows of the documentation's table.

A job for each of the provider's models is carried as far as the request that costs money, with an input image, a mask
and every member of the images API. What is refused, or said not to be applied, is what it cannot do.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Final

from streamproxy.core.catalogue import UNKNOWN, Model, Provider, Route
from streamproxy.core.conversation import Connect, Convert, Job, Launch, Picture, Send
from streamproxy.core.requests import Remote
from streamproxy.errors import ProxyError
from streamproxy.providers import ADAPTERS
from tests.contract.scenarios import CATALOGUE, HOSTS, INPUT, MASK, SCENARIOS, Scenario

HEADER: Final = ("Provider", "Previews", "Edits", "Mask", "Pictures", "Formats", "Cancels", "Not applied")
FORMATS: Final = ("png", "jpeg", "webp")
MEMBERS: Final[Mapping[str, object]] = {
    "size": "1024x1024",
    "quality": "low",
    "background": "opaque",
    "output_compression": 80,
    "moderation": "low",
    "input_fidelity": "high",
    "user": "u",
}
MOST: Final = 10
REMOTE: Final = Remote("https://pictures.test/1.png")
"""For providers that take input images by URL alone."""

GRAPH: Final = '{"1":{"text":"{prompt}","width":"{width}","image":"{image}","mask":"{mask}"}}'
MORE: Final[Mapping[str, tuple[str, ...]]] = {
    "stability": ("inpaint", "creative"),
    "replicate": ("stability-ai/sdxl",),
    "comfyui": ("painter",),
}
"""Models that are not in the catalogue, but known to the adapter."""


def rows() -> list[tuple[str, ...]]:
    """The table, in the catalogue's order."""
    return [_row(provider) for provider in CATALOGUE.providers.values()]


def _row(provider: Provider) -> tuple[str, ...]:
    adapter = ADAPTERS[provider.adapter]
    routes = list(_routes(provider))
    plain = Scenario(provider.adapter, "plain", n=MOST, stream=False)
    counts = [adapter.at_once(replace(plain.request, n=MOST), route) for route in routes]
    formats = [form for form in FORMATS if any(_applies(route, "output_format", form) for route in routes)]
    lost = [name for name, value in MEMBERS.items() if not any(_applies(route, name, value) for route in routes)]
    return (
        f"`{provider.name}`",
        "yes" if _has_previews(provider, routes) else "",
        _some([_takes(route, "image", masked=False) for route in routes]),
        _some([_takes(route, "mask", masked=True) for route in routes]),
        str(max(counts)),
        ", ".join(formats),
        "yes" if HOSTS[provider.adapter].undo is not None else "",
        ", ".join(f"`{name}`" for name in lost),
    )


def _routes(provider: Provider) -> Iterator[Route]:
    """A route for each of its models in the catalogue; where it has none, for one that is not known.

    Those that are turned off count where there are no others.
    """
    own = replace(provider, base_url=provider.base_url or "https://own.test", workflows=(("*", GRAPH),))
    own = replace(own, project="p", location="l")
    listed = [model for word in provider.models if (model := CATALOGUE.find(word.partition("/")[2] or word))]
    served = [model for model in CATALOGUE.models.values() if provider.serves_owner(model.owner)]
    known = {model.id: model for model in (*listed, *served)}
    current = [model for model in known.values() if model.retired is None]
    more = [Model.unknown(name) for name in MORE.get(provider.name, ())]
    for model in [*(current or known.values()), *more] or [Model.unknown(HOSTS[provider.adapter].model)]:
        yield Route(own, model, model.id if model.family == UNKNOWN else model.name)


def _job(route: Route, members: Mapping[str, object], *, edit: bool = False, masked: bool = False) -> Job:
    row = Scenario(
        route.provider.adapter,
        "asked",
        stream=False,
        images=(INPUT,) if edit else (),
        mask=MASK if masked else None,
        members=dict(members),
        edit=edit,
    )
    texts = {name: members[name] for name in ("size", "quality", "background", "output_format") if name in members}
    return replace(row.job, route=route, request=replace(row.request, **texts))  # type: ignore[arg-type]


def _applies(route: Route, name: str, value: object) -> bool:
    job = _job(route, {name: value})
    return name not in ADAPTERS[route.provider.adapter].not_applied(job)


def _takes(route: Route, name: str, *, masked: bool) -> bool:
    """Whether an edit gets as far as the request that costs money, and is told to apply this member."""
    job = _job(route, {}, edit=True, masked=masked)
    if {name, f"{name}s"} & set(ADAPTERS[route.provider.adapter].not_applied(job)):
        return False
    return _is_sent(job) or _is_sent(replace(job, request=replace(job.request, images=(REMOTE,))))


def _is_sent(job: Job) -> bool:
    conversation = ADAPTERS[job.provider.adapter].converse(job)
    reply: object = None
    try:
        while not isinstance(step := conversation.send(reply), Send | Launch | Connect):
            reply = Picture((bytes(MASK.base64),), "image/png") if isinstance(step, Convert) else None
    except ProxyError:
        return False
    finally:
        conversation.close()
    return True


def _has_previews(provider: Provider, routes: list[Route]) -> bool:
    """Of OpenAI's wire the rows say it; of the others the recorded exchanges show it."""
    if provider.adapter == "openai":
        return provider.streams and any(route.model.streams and route.model.partial_images for route in routes)
    return any("p" in row.frames for row in SCENARIOS if row.adapter == provider.adapter)


def _some(found: list[bool]) -> str:
    return "yes" if all(found) else "some models" if any(found) else ""


def written() -> str:
    """The table as it stands in the documentation."""
    lines = [" | ".join(row) for row in (HEADER, *rows())]
    return "\n".join((f"| {lines[0]} |", "|" + "---|" * len(HEADER), *(f"| {line} |" for line in lines[1:])))
