"""Every route, once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from starlette.routing import Route

from streamproxy.web import images, models, ops, streams
from streamproxy.web.context import Endpoint, Handler

PREFIXES: Final = ("/v1", "/v3")
"""The OpenAI surface is served under both: OpenAI's own version, and Eden AI's."""


@dataclass(frozen=True, slots=True)
class Row:
    """One route. `surface`: served under each of PREFIXES. `keys`: only with a caller key, where keys are configured;
    streams ask for a token or a key themselves. `follows`: shows a stream, so foreign pages are refused.
    """

    method: str
    path: str
    handler: Handler
    meaning: str
    surface: bool = True
    keys: bool = True
    follows: bool = False


ROUTES: Final[tuple[Row, ...]] = (
    Row("POST", "/images/generations", images.generations, "Images from a prompt; with an `image`, an edit"),
    Row("POST", "/images/edits", images.edits, "Images from images, as JSON or multipart"),
    Row("GET", "/images/models", models.models, "The models that are served"),
    Row("GET", "/models", models.models, "The same list"),
    Row("GET", "/models/{id:path}", models.model, "One model; ids may contain `/`"),
    Row(
        "GET",
        "/streams/{id}",
        streams.stream,
        "One stream: its events, unless JSON is what is accepted",
        keys=False,
        follows=True,
    ),
    Row("DELETE", "/streams/{id}", streams.delete, "Cancel it; once it has ended, forget it", keys=False),
    Row("GET", "/streams/{id}/status", streams.status, "Its status and results as JSON", keys=False, follows=True),
    Row("GET", "/streams/{id}/images/{image_index}", streams.image, "A completed image as a file", keys=False),
    Row(
        "GET",
        "/streams/{id}/images/{image_index}/preview",
        streams.preview,
        "The newest preview as a file",
        keys=False,
    ),
    Row(
        "POST",
        "/openai/deployments/{model:path}/images/generations",
        images.generations,
        "As Azure's own client asks",
        surface=False,
    ),
    Row("POST", "/openai/deployments/{model:path}/images/edits", images.edits, "The same for edits", surface=False),
    Row("POST", "/openai/v1/images/generations", images.generations, "Azure's later form", surface=False),
    Row("POST", "/openai/v1/images/edits", images.edits, "The same for edits", surface=False),
    Row("GET", "/livez", ops.livez, "The process serves", surface=False, keys=False),
    Row("GET", "/readyz", ops.readyz, "New requests are taken", surface=False, keys=False),
    Row("GET", "/metrics", ops.metrics, "Prometheus metrics", surface=False),
)


def routes() -> list[Route]:
    """Starlette's routes, one a path."""
    found: dict[str, list[Row]] = {}
    for row in ROUTES:
        for prefix in PREFIXES if row.surface else ("",):
            found.setdefault(prefix + row.path, []).append(row)
    return [
        Route(
            path,
            Endpoint(
                {row.method: row.handler for row in rows},
                keys=rows[0].keys,
                follows=any(row.follows for row in rows),
            ),
            methods=[row.method for row in rows],
        )
        for path, rows in found.items()
    ]
