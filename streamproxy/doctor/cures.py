"""FAULTS of an edge in front of the proxy, and the lines that cure them, edge by edge.

A line stands in the file of `deploy/edge` that the edge's row names, or is the default of that edge. Tests run each
edge in its stock form and with its file, and hold this table to what they find.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from types import MappingProxyType
from typing import Final


class Fault(Enum):
    """What an edge can do wrong, in words for its operator."""

    UNREACHABLE = "requests do not reach the proxy"
    BUFFERED = "events are held back until the stream ends, so there are no previews"
    DELAYED = "small events are held back for a moment"
    COMPRESSED = "answers are compressed, which holds events back and gains nothing on images"
    STREAM_TIMEOUT = "a stream is cut, although it carries a comment every few seconds"
    ANSWER_TIMEOUT = "an answer without stream is cut while the model works"
    BODY_LIMIT = "an upload of 20 MB is refused"
    REQUEST_HEADERS = "request headers are lost or changed"
    ANSWER_HEADERS = "response headers are lost or changed"
    STREAM_LEFT = "a caller that leaves a stream is noticed late, and the model works on"
    ANSWER_LEFT = "a caller that leaves an answer without stream is noticed late, and the model works on"
    OLD_HTTP = "the proxy is asked by HTTP/1.0, where a cut answer looks like a whole one"
    REQUEST_BODY = "request bodies are changed"
    ANSWER_BODY = "response bodies are changed"
    ERROR_PAGES = "error answers are replaced by the edge's own"
    REPEATED = "requests are sent twice, and a paid one is paid twice"


GENERAL: Final[Mapping[Fault, str]] = MappingProxyType(
    {
        Fault.UNREACHABLE: "forward to the address of --listen, with path and query as they are",
        Fault.STREAM_TIMEOUT: "allow 660 s for a whole answer: total_timeout and a minute",
        Fault.ANSWER_TIMEOUT: "allow 660 s of silence: total_timeout and a minute; or set json_heartbeat",
        Fault.STREAM_LEFT: "set heartbeat to fewer seconds: it is noticed when comments cannot be written",
        Fault.ANSWER_LEFT: "let callers stream, or set json_heartbeat",
        Fault.REQUEST_BODY: "let no filter or firewall rewrite bodies",
        Fault.ANSWER_BODY: "let no filter or firewall rewrite bodies",
        Fault.REQUEST_HEADERS: "forward all request headers as they are",
        Fault.ANSWER_HEADERS: "forward all response headers as they are",
        Fault.ERROR_PAGES: "pass error answers on as they are",
        Fault.BUFFERED: "turn response buffering off for /v1 and /v3",
        Fault.DELAYED: "send events without delay (TCP_NODELAY)",
        Fault.COMPRESSED: "turn compression off for text/event-stream",
        Fault.BODY_LIMIT: "allow bodies of max_upload_bytes",
        Fault.OLD_HTTP: "speak HTTP/1.1 to the proxy",
        Fault.REPEATED: "turn repeated tries of POST requests off",
    }
)
"""The cure of an edge that is not known, or whose row has none."""


@dataclass(frozen=True, slots=True)
class Edge:
    """A program, its file in `deploy/edge`, and its cures.

    `marks`: a response header of its own, by which it is known. `cannot`: what no line of its configuration changes.
    """

    name: str
    file: str
    cures: Mapping[Fault, str]
    marks: Mapping[str, str] = field(default_factory=dict)
    cannot: frozenset[Fault] = frozenset()

    def marked(self, headers: Mapping[str, str]) -> bool:
        """Whether a response with these headers comes from it."""
        return any(re.search(mark, headers.get(name, ""), re.IGNORECASE) for name, mark in self.marks.items())


_ROWS: Final = (
    Edge(
        "nginx",
        "nginx.conf",
        {
            Fault.ANSWER_TIMEOUT: "proxy_read_timeout 660s;",
            Fault.STREAM_TIMEOUT: "proxy_read_timeout 660s;",
            Fault.BODY_LIMIT: "client_max_body_size 0;",
            Fault.OLD_HTTP: "proxy_http_version 1.1;",
            Fault.BUFFERED: "proxy_buffering off;  (or no proxy_ignore_headers X-Accel-Buffering)",
            Fault.COMPRESSED: "gzip off;",
            Fault.ERROR_PAGES: "proxy_intercept_errors off;",
            Fault.REQUEST_HEADERS: "no proxy_set_header for this header",
            Fault.ANSWER_HEADERS: "no proxy_hide_header for this header",
            Fault.STREAM_LEFT: "proxy_ignore_client_abort off;",
            Fault.ANSWER_LEFT: "proxy_ignore_client_abort off;",
            Fault.REPEATED: "proxy_next_upstream error timeout;  (without non_idempotent)",
        },
        {"server": r"^nginx"},
    ),
    Edge("caddy", "Caddyfile", {Fault.COMPRESSED: "encode off this route"}, {"server": r"^Caddy", "via": r"Caddy"}),
    Edge(
        "haproxy",
        "haproxy.cfg",
        {
            Fault.ANSWER_TIMEOUT: "timeout server 660s",
            Fault.STREAM_TIMEOUT: "timeout server 660s",
            Fault.DELAYED: "option http-no-delay",
            Fault.STREAM_LEFT: "option abortonclose",
            Fault.ANSWER_LEFT: "option abortonclose",
            Fault.COMPRESSED: "no compression filter",
        },
    ),
    Edge(
        "envoy",
        "envoy.yaml",
        {
            Fault.ANSWER_TIMEOUT: "timeout: 0s",
            Fault.STREAM_TIMEOUT: "timeout: 0s",
        },
        {"server": r"^envoy"},
    ),
    Edge(
        "apache",
        "apache.conf",
        {
            Fault.ANSWER_TIMEOUT: "timeout=660",
            Fault.STREAM_TIMEOUT: "timeout=660",
            Fault.BUFFERED: "flushpackets=on",
        },
        {"server": r"^Apache"},
        frozenset({Fault.STREAM_LEFT, Fault.ANSWER_LEFT}),
    ),
    Edge(
        "varnish",
        "varnish.vcl",
        {
            Fault.ANSWER_TIMEOUT: "return (pipe);",
            Fault.STREAM_TIMEOUT: "return (pipe);",
            Fault.STREAM_LEFT: "return (pipe);",
            Fault.ANSWER_LEFT: "return (pipe);",
        },
        {"via": r"varnish", "x-varnish": r"."},
    ),
    Edge(
        "lighttpd",
        "lighttpd.conf",
        {Fault.BUFFERED: "server.stream-response-body = 2", Fault.STREAM_LEFT: "server.stream-response-body = 2"},
        {"server": r"^lighttpd"},
        frozenset({Fault.ANSWER_LEFT}),
    ),
    Edge("traefik", "traefik.yaml", {}),
)

EDGES: Final[Mapping[str, Edge]] = MappingProxyType({edge.name: edge for edge in _ROWS})


def detect(headers: Mapping[str, str]) -> Edge | None:
    """The edge that a response's headers name; None where they name none."""
    return next((edge for edge in EDGES.values() if edge.marked(headers)), None)


def cures(fault: Fault, edge: Edge | None) -> tuple[str, ...]:
    """Lines that cure a fault: those of the edge, or of every edge where it is not known."""
    known = EDGES.values() if edge is None else (edge,)
    lines = tuple(f"{row.name}: {row.cures[fault]}   (deploy/edge/{row.file})" for row in known if fault in row.cures)
    return lines if edge is not None and lines else (GENERAL[fault], *lines)
