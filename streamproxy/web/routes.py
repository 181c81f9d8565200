"""Every route, once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from starlette.routing import Route

from streamproxy.web import chat, docs, images, info, many, streams, tool, uploads, usage
from streamproxy.web.endpoint import Endpoint, Handler
from streamproxy.web.info import METRICS
from streamproxy.web.static import PAGE_FILES, PLAYGROUND

PREFIXES: Final = ("/v1", "/v3")
"""The OpenAI surface is served under both: OpenAI's own version, and Eden AI's."""


@dataclass(frozen=True, slots=True)
class RouteRow:
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


ROUTES: Final[tuple[RouteRow, ...]] = (
    RouteRow("POST", "/images/generations", images.generations, "Images from a prompt; with an `image`, an edit"),
    RouteRow("POST", "/images/edits", images.edits, "Images from images, as JSON or multipart"),
    RouteRow("POST", "/images/variations", images.variations, "Images like another one; without a prompt"),
    RouteRow("POST", "/chat/completions", chat.completions, "Images from a conversation; other models' own answers"),
    RouteRow(
        "POST", "/responses", tool.responses, "A call of the `image_generation` tool; other responses as they are"
    ),
    RouteRow("GET", "/images/models", info.models, "The models that are served"),
    RouteRow("GET", "/models", info.models, "The same list"),
    RouteRow("GET", "/models/{id:path}", info.model, "One model; ids may contain `/`"),
    RouteRow("GET", "/usage", usage.usage, "Spending by day, caller, model and provider"),
    RouteRow("POST", "/files", uploads.create, "Upload an image, to be named by its id in later requests"),
    RouteRow("GET", "/files", uploads.index, "The files that came with this key"),
    RouteRow("GET", "/files/{id}", uploads.describe, "One file: its name, size and expiry"),
    RouteRow("DELETE", "/files/{id}", uploads.delete, "Delete it"),
    RouteRow("GET", "/files/{id}/content", uploads.content, "The file itself"),
    RouteRow("POST", "/upload", uploads.create_as_eden, "Upload an image as Eden AI's callers do"),
    RouteRow(
        "GET",
        "/streams",
        many.get_streams,
        "Several streams on one connection (`?stream=ID:TOKEN&stream=...`); without `stream`, a list of one's own",
        keys=False,
        follows=True,
    ),
    RouteRow(
        "GET",
        "/streams/{id}",
        streams.get_stream,
        "One stream: its events, unless JSON is what is accepted",
        keys=False,
        follows=True,
    ),
    RouteRow("DELETE", "/streams/{id}", streams.delete_stream, "Cancel it; once it has ended, forget it", keys=False),
    RouteRow(
        "GET", "/streams/{id}/status", streams.get_status, "Its status and results as JSON", keys=False, follows=True
    ),
    RouteRow("GET", "/streams/{id}/images/{image_index}", streams.get_image, "A completed image as a file", keys=False),
    RouteRow(
        "GET",
        "/streams/{id}/images/{image_index}/preview",
        streams.get_preview,
        "The newest preview as a file",
        keys=False,
    ),
    RouteRow(
        "POST",
        "/openai/deployments/{model:path}/images/generations",
        images.generations,
        "As Azure's own client asks",
        surface=False,
    ),
    RouteRow(
        "POST", "/openai/deployments/{model:path}/images/edits", images.edits, "The same for edits", surface=False
    ),
    RouteRow("POST", "/openai/v1/images/generations", images.generations, "Azure's later form", surface=False),
    RouteRow("POST", "/openai/v1/images/edits", images.edits, "The same for edits", surface=False),
    RouteRow("GET", "/livez", info.livez, "The process serves", surface=False, keys=False),
    RouteRow("GET", "/readyz", info.readyz, "New requests are taken", surface=False, keys=False),
    RouteRow("GET", METRICS, info.metrics, "Prometheus metrics; with `metrics_port` only there", surface=False),
    RouteRow("GET", "/openapi.json", docs.openapi, "Every route and schema, as OpenAPI 3.1", surface=False, keys=False),
    RouteRow("GET", "/docs", docs.index, "The documentation", surface=False, keys=False),
    RouteRow(
        "GET",
        "/docs/{page}",
        docs.page,
        "One page of it; `{page}.md` is its Markdown",
        surface=False,
        keys=False,
    ),
    RouteRow("GET", "/llms.txt", docs.llms, "Its pages, for language models", surface=False, keys=False),
    *(
        RouteRow("GET", path, info.file, meaning, surface=False, keys=False)
        for path, meaning in (
            ("/client.js", "Follows streams in a browser or in Node: one module, no dependency"),
            ("/client.d.ts", "Its types"),
            ("/element.js", "`<progressive-image>`: shows a stream as a picture that forms"),
            ("/element.d.ts", "Its types"),
            ("/react.js", "The same for React"),
            ("/react.d.ts", "Its types"),
            ("/client.tgz", "All of them as an npm package: `npm install http://.../client.tgz`"),
            ("/docs.css", "The style of the documentation"),
        )
    ),
)

PAGE: Final[tuple[RouteRow, ...]] = tuple(
    RouteRow("GET", path, info.file, "The page to try it", surface=False, keys=False)
    for path in ("/", *(f"/{PLAYGROUND}/{name}" for name in PAGE_FILES))
)
"""With the setting `playground` only."""


def routes(*, page: bool, metrics: bool = True, more: Sequence[RouteRow] = ()) -> list[Route]:
    """Starlette's routes, one a path. `page`: those of PAGE as well; `metrics`: METRICS; `more`: of other packages."""
    found: dict[str, list[RouteRow]] = {}
    for row in (*ROUTES, *(PAGE if page else ()), *more):
        if row.path == METRICS and not metrics:
            continue
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
