"""The browser's files: modules that any page may import, the same as an npm package, the page of `playground`, and the
style sheet of /docs.

All are read when the first app is made, and each has an ETag of its content: a new version is there with the proxy that
serves it, and a page asks for nothing twice.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from importlib.resources import files
from types import MappingProxyType
from typing import Final

import orjson
from starlette.requests import Request
from starlette.types import ASGIApp

from streamproxy.web.headers import has_version
from streamproxy.web.responses import NO_REFERRER, Response, empty_response

KINDS: Final = {
    ".js": "text/javascript; charset=utf-8",
    ".ts": "text/plain; charset=utf-8",  # types are for compilers; no browser runs them
    ".tgz": "application/gzip",
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".md": "text/markdown; charset=utf-8",
    ".txt": "text/plain; charset=utf-8",
    ".json": "application/json",
}

MODULES: Final = ("client.js", "client.d.ts", "element.js", "element.d.ts", "react.js", "react.d.ts")
PACKAGE: Final = "client.tgz"
PLAYGROUND: Final = "playground"
PAGE: Final = "index.html"
STYLE: Final = "docs.css"
PAGE_FILES: Final = (
    "page.css",
    "page.js",
    "gallery.js",
    "history.js",
    "inputs.js",
    "inspector.js",
    "mask.js",
    "options.js",
    "panels.js",
    "run.js",
    "snippets.js",
)
"""Of the playground, below its name; the page itself is at /."""

ANY_PAGE: Final = {"access-control-allow-origin": "*", "cross-origin-resource-policy": "cross-origin"}
"""Of the modules: they are public, and a page has to be able to import them before it may call anything."""

OWN_PAGE: Final = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    **NO_REFERRER,
}


@dataclass(frozen=True, slots=True)
class StaticFile:
    """One file as it is served."""

    body: bytes
    content_type: str
    headers: Mapping[str, str]


@cache
def read_files() -> Mapping[str, StaticFile]:
    """All files by their paths, once for all apps of a process."""
    folder = files("streamproxy.web").joinpath("static")
    modules = {name: folder.joinpath(name).read_bytes() for name in MODULES}
    own = {f"{PLAYGROUND}/{name}": folder.joinpath(PLAYGROUND, name).read_bytes() for name in (PAGE, *PAGE_FILES)}
    own[STYLE] = folder.joinpath(STYLE).read_bytes()
    shared = {**modules, PACKAGE: package(modules)}
    served = {f"/{name}": static_file(name, body, ANY_PAGE) for name, body in shared.items()}
    served |= {f"/{name}": static_file(name, body, OWN_PAGE) for name, body in own.items()}
    served["/"] = served.pop(f"/{PLAYGROUND}/{PAGE}")
    return MappingProxyType(served)


def static_file(name: str, body: bytes, headers: Mapping[str, str]) -> StaticFile:
    """A file with the headers of all of them; the end of its name says its type."""
    common = {
        "etag": f'"{hashlib.sha256(body).hexdigest()[:32]}"',
        "cache-control": "public, no-cache",  # kept, and asked for again: mostly a 304
        "x-content-type-options": "nosniff",
    }
    return StaticFile(body, KINDS[name[name.rindex(".") :]], {**common, **headers})


def file_response(request: Request, found: StaticFile) -> ASGIApp:
    """The file, or 304 where the caller has it."""
    if has_version(request, found.headers["etag"]):
        return empty_response(304, found.headers)
    return Response(200, found.content_type, (found.body,), found.headers)


def package(modules: Mapping[str, bytes]) -> bytes:
    """The modules as an npm package. The same files always give the same bytes, so that a lock file can name them."""
    with io.BytesIO() as raw:
        with tarfile.open(fileobj=raw, mode="w", format=tarfile.USTAR_FORMAT) as archive:
            for name, body in {"package.json": _manifest(), **modules}.items():
                entry = tarfile.TarInfo(f"package/{name}")
                entry.size, entry.mode = len(body), 0o644
                archive.addfile(entry, io.BytesIO(body))
        return gzip.compress(raw.getvalue(), mtime=0)


def _manifest() -> bytes:
    names = {".": "client", "./element": "element", "./react": "react"}
    exports = {path: {"types": f"./{name}.d.ts", "default": f"./{name}.js"} for path, name in names.items()}
    manifest = {
        "name": "streamproxy-client",
        "version": version("streamproxy"),
        "description": "Follows streamproxy's streams of images.",
        "license": "MIT",
        "type": "module",
        "exports": exports,
        "types": "./client.d.ts",
        "sideEffects": ["./element.js", "./react.js"],
        "peerDependencies": {"react": ">=18"},
        "peerDependenciesMeta": {"react": {"optional": True}},
    }
    return orjson.dumps(manifest, option=orjson.OPT_INDENT_2)
