"""The documentation, as the package has it in streamproxy/docs: for people at /docs, for programs as Markdown.

    GET /docs              the pages, each with one line
    GET /docs/{page}       one page as HTML; with `.md` behind its name as Markdown
    GET /llms.txt          the pages for language models (llmstxt.org)

A page becomes HTML when it is first asked for. Raw HTML in it is shown as text, and nothing on it is a program, so the
content security policy allows nothing but the style sheet.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from itertools import pairwise
from typing import TYPE_CHECKING, Final

from anyio import to_thread
from starlette.requests import Request
from starlette.types import ASGIApp

from streamproxy.errors import Failure, ProxyError
from streamproxy.web.endpoint import Context
from streamproxy.web.responses import NO_REFERRER
from streamproxy.web.static import ANY_PAGE, StaticFile, file_response, static_file

if TYPE_CHECKING:
    from markdown_it.token import Token

PAGES: Final = {
    "frontends": "pages, SDKs and clients",
    "recipes": "Next.js, Vue, Svelte, plain HTML and the AI SDK",
    "streams": "follow, resume, share, poll and cancel; webhooks and buckets",
    "api": "routes and their behaviour, chats and responses, uploads",
    "providers": "what each can do, and how it is set up",
    "deploy": "keys, processes, containers, edges",
    "edges": "nginx, HAProxy, Envoy and others, and a doctor for yours",
    "configuration": "every setting",
    "callers": "keys, limits, budgets and usage",
    "errors": "every failure, and how no call is paid twice",
    "metrics": "what is counted, logged and traced",
    "extra_headers": "which of a request's headers reach a provider",
    "figures": "speed and memory, beside peers",
    "design": "how it is built, and where a change goes",
}
"""Each page in one line, in their order."""

SUMMARY: Final = (
    "A small service between frontends and image providers that makes every image model stream, to every client that "
    "speaks OpenAI's API."
)

POLICY: Final = {
    "content-security-policy": (
        "default-src 'none'; style-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    ),
    **NO_REFERRER,
}

HEADINGS: Final = ("h2", "h3")
"""Those that a link may lead to."""

_PAGE_LINK: Final = re.compile(r"([a-z_]+)\.md(#[a-z-]+)?")


@dataclass(frozen=True, slots=True)
class Page:
    """One page: its name in URLs, its first heading, its line in lists, and its Markdown."""

    name: str
    title: str
    line: str
    markdown: str


@cache
def read_page(name: str) -> Page:
    """A page of PAGES."""
    markdown = files("streamproxy").joinpath("docs", f"{name}.md").read_text("utf-8")
    return Page(name, markdown.partition("\n")[0].removeprefix("# "), PAGES[name], markdown)


async def index(request: Request, context: Context) -> ASGIApp:
    """The list of pages."""
    return file_response(request, await to_thread.run_sync(_index))


async def page(request: Request, context: Context) -> ASGIApp:
    """One page, in the form that its name says."""
    name, _, suffix = request.path_params["page"].partition(".")
    if name not in PAGES or suffix not in ("", "md"):
        raise ProxyError(Failure.NOT_FOUND, "No such page. GET /docs lists them.", param="page")
    return file_response(request, await to_thread.run_sync(_markdown if suffix else _page, name))


async def llms(request: Request, context: Context) -> ASGIApp:
    """The list of pages for language models."""
    return file_response(request, await to_thread.run_sync(_llms))


async def openapi(request: Request, context: Context) -> ASGIApp:
    """Every route and schema, as OpenAPI."""
    return file_response(request, await to_thread.run_sync(context.openapi))


@cache
def _index() -> StaticFile:
    lines = [f"* [{page.title}](docs/{page.name}.md): {page.line}" for page in map(read_page, PAGES)]
    more = "[openapi.json](openapi.json) has every route, and [llms.txt](llms.txt) lists these pages for programs."
    return _html("streamproxy", "\n".join(("# streamproxy", "", SUMMARY, "", *lines, "", more)), root="")


@cache
def _page(name: str) -> StaticFile:
    page = read_page(name)
    return _html(page.title, page.markdown, root="../", name=name)


@cache
def _markdown(name: str) -> StaticFile:
    return static_file(".md", read_page(name).markdown.encode(), ANY_PAGE)


@cache
def _llms() -> StaticFile:
    lines = [f"- [{page.title}](docs/{page.name}.md): {page.line}" for page in map(read_page, PAGES)]
    routes = "- [OpenAPI](openapi.json): every route, with the schemas of bodies, events and errors"
    text = "\n".join(("# streamproxy", "", f"> {SUMMARY}", "", "## Pages", "", *lines, routes, ""))
    return static_file(".txt", text.encode(), ANY_PAGE)


def _html(title: str, markdown: str, *, root: str, name: str | None = None) -> StaticFile:
    """A page of HTML. `root`: the way to /docs.css; `name` of a page that has its own Markdown."""
    pages = [read_page(other) for other in PAGES]
    links = "".join(
        f'<li><a href="{root}docs/{page.name}"{_current(page.name == name)}>{html.escape(page.title)}</a></li>'
        for page in pages
    )
    own = "" if name is None else f'<link rel="alternate" type="text/markdown" href="{name}.md">'
    text = (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<link rel="icon" href="data:,"><link rel="stylesheet" href="{root}docs.css">{own}</head><body>'
        f'<nav aria-label="Pages"><a href="{root}docs"{_current(name is None)}>streamproxy</a><ul>{links}</ul></nav>'
        f"<main>{rendered(markdown)}</main></body></html>\n"
    )
    return static_file(".html", text.encode(), POLICY)


def _current(here: bool) -> str:
    return ' aria-current="page"' if here else ""


def rendered(markdown: str) -> str:
    """Markdown as HTML. Headings get ids, and links to other pages lose their `.md`."""
    from markdown_it import MarkdownIt  # most processes are never asked for a page

    parser = MarkdownIt("commonmark", {"html": False}).enable("table")
    tokens = parser.parse(markdown)
    for opening, inline in pairwise(tokens):
        if opening.type == "heading_open" and opening.tag in HEADINGS:
            opening.attrSet("id", anchor(inline.content))
    for link in _links(tokens):
        if (found := _PAGE_LINK.fullmatch(str(link.attrGet("href")).removeprefix("docs/"))) is not None:
            link.attrSet("href", str(link.attrGet("href")).replace(f"{found[1]}.md", found[1]))
    text = str(parser.renderer.render(tokens, parser.options, {}))
    return re.sub("<(pre|table)>", r'<\1 tabindex="0">', text)  # so that keys can scroll what is too wide


def _links(tokens: Sequence[Token]) -> Iterator[Token]:
    for token in tokens:
        yield from (child for child in token.children or () if child.type == "link_open")


def anchor(heading: str) -> str:
    """The id of a heading, as GitHub makes it of these."""
    return re.sub(r"[^a-z0-9_ -]", "", heading.lower()).replace(" ", "-")
