"""What a model can do where it is served, for lists of models.

The catalogue's row says some of it. The rest is the adapter's to know: it is asked, as for a request, which members it
would not send on. So a list cannot promise what a request does not get.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import fields
from typing import Final

import orjson

from streamproxy.core.catalogue import UNKNOWN, Model, Route
from streamproxy.core.conversation import Adapter, Job, Limits
from streamproxy.core.cost import Price
from streamproxy.core.rawjson import parse
from streamproxy.surfaces import images

FORMATS: Final = ("png", "jpeg", "webp")
"""Values of `output_format` that OpenAI's images API has for every model."""

_SHOWN: Final = "data:image/png;base64,AAAA"
_SIZE: Final = "1024x1024"


def abilities(adapter: Adapter, route: Route) -> Mapping[str, object]:
    """Members of one entry of GET models; none for a model that the catalogue does not know."""
    model, quirks = route.model, route.provider.quirks
    if model.family == UNKNOWN:
        return {}
    edits = model.edits and (quirks is None or quirks.edit != "none")
    shown = {"images": [{"image_url": _SHOWN}], "mask": {"image_url": _SHOWN}} if edits else {}
    unapplied = {form: _not_applied(adapter, route, size=_SIZE, output_format=form, **shown) for form in FORMATS}
    ignored = unapplied[FORMATS[0]]
    return {
        "streams": model.streams and route.provider.streams,
        "partial_images": model.partial_images if route.provider.streams else 0,
        "edits": edits,
        "masks": edits and "mask" not in ignored,
        "sizes": "size" not in ignored,
        "formats": [form for form in FORMATS if "output_format" not in unapplied[form]],
        "inputs": list(model.inputs),
        "n": model.max_n,
        "surfaces": [*model.surfaces, "responses"],
        "image_sizes": list(model.image_sizes) if "chat" in model.surfaces else [],
        "price": None if model.price is None else _price(model.price),
    }


def in_words(model: Model, found: Mapping[str, object]) -> str:
    """The same as one line of text; "" for a model of which nothing is known."""
    if not found:
        return ""
    formats, price = found["formats"], found["price"]
    assert isinstance(formats, list)
    words = [
        "previews" if found["streams"] and found["partial_images"] else "completed only",
        "edits with masks" if found["masks"] else "edits" if found["edits"] else "no edits",
        f"n {found['n']}",
        "sizes" if found["sizes"] else "one size",
        *(["/".join(formats)] if formats else []),
        *(["chats"] if "chat" in model.surfaces else []),
        *([" ".join(f"{name}={rate:g}" for name, rate in price.items())] if isinstance(price, Mapping) else []),
        *([f"until {model.retired}"] if model.retired is not None else []),
    ]
    return ", ".join(words)


def _not_applied(adapter: Adapter, route: Route, **members: object) -> Collection[str]:
    """The members of such a request that the adapter does not send on."""
    body = parse(orjson.dumps({"model": route.model.id, "prompt": "x", **members}))
    read = images.edit if "images" in members else images.generation
    request = read(body, max_prompt=1)
    limits = Limits(event=1, answer=1)
    return adapter.not_applied(Job(request, route, n=1, now=0, token="0" * 32, limits=limits, scrub=str))


def _price(price: Price) -> Mapping[str, float]:
    """USD, by the units that the price has."""
    rates = {rate.name: getattr(price, rate.name) for rate in fields(price)}
    return {name: float(rate) for name, rate in rates.items() if rate is not None}
