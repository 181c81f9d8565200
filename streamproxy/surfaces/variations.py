"""OpenAI's images/variations: images like another one, without an instruction.

Since the last of OpenAI's own models for it is gone, few hosts have the route. Where the provider has none, a model
whose edit without an instruction is a variation serves as one, and the answer says so (SERVED_AS).
"""

from __future__ import annotations

from typing import Final

from streamproxy.core.catalogue import Route
from streamproxy.core.requests import ImageRequest, Part, Variation
from streamproxy.errors import Failure, ProxyError
from streamproxy.surfaces import images

SERVED_AS: Final = "streamproxy-served-as"
"""Response header: what a request was made as, where that is other than what was asked for."""


def way(route: Route) -> Variation:
    """How a variation is made on this route. Raises ProxyError(UNSUPPORTED_PARAMETER) where it is in no way."""
    if route.provider.variations:
        return Variation.ROUTE
    if route.model.varies:
        return Variation.EDIT
    raise ProxyError(
        Failure.UNSUPPORTED_PARAMETER,
        "This provider has no variations, and the model's edit is none without an instruction. Send the image to "
        f"/v1/images/edits with a prompt. The setting is providers.{route.provider.name}.variations.",
        param="model",
    )


def form(parts: tuple[Part, ...], made: Variation, *, max_prompt: int) -> ImageRequest:
    """A variation as a multipart form with one image. Raises ProxyError as `core.forms.form`."""
    if made is Variation.EDIT and not any(part.name == "prompt" for part in parts):
        parts = (*parts, Part("prompt", b""))
    return images.form(parts, max_prompt=max_prompt, variation=made)
