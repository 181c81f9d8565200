"""Every route, once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from starlette.routing import Route

from streamproxy.web import images, models, ops
from streamproxy.web.context import Contextual, Endpoint, Handler

PREFIXES: Final = ("/v1", "/v3")
"""The OpenAI surface is served under both: OpenAI's own version, and Eden AI's."""


@dataclass(frozen=True, slots=True)
class Row:
    """One route. `surface`: served under each of PREFIXES, and only with a caller key where keys are configured."""

    method: str
    path: str
    handler: Handler
    meaning: str
    surface: bool = True


ROUTES: Final[tuple[Row, ...]] = (
    Row("POST", "/images/generations", images.generations, "Images from a prompt; with an `image`, an edit"),
    Row("POST", "/images/edits", images.edits, "Images from images, as JSON or multipart"),
    Row("GET", "/images/models", models.models, "The models that are served"),
    Row("GET", "/models", models.models, "The same list"),
    Row("GET", "/models/{id:path}", models.model, "One model; ids may contain `/`"),
    Row("GET", "/livez", ops.livez, "The process serves", surface=False),
    Row("GET", "/readyz", ops.readyz, "New requests are taken", surface=False),
    Row("GET", "/metrics", ops.metrics, "Prometheus metrics", surface=False),
)


def routes(context: Contextual) -> list[Route]:
    """Starlette's routes. `context` is asked at each request: it exists once the app has started."""
    return [
        Route(prefix + row.path, Endpoint(row.handler, context, keys=row.surface), methods=[row.method])
        for row in ROUTES
        for prefix in (PREFIXES if row.surface else ("",))
    ]
