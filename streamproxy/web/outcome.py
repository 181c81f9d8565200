"""The failure of a request, noted where it happens and logged once.

It is in the request's log line, or in that of the generation that the request began.

The state of an ASGI scope holds it, because a handler, a middleware or the writer of a stream may fail.
"""

from __future__ import annotations

from typing import Final

from starlette.types import Scope

from streamproxy.errors import ProxyError
from streamproxy.hub.stream import Stream

FAILURE: Final = "failure"
GENERATION: Final = "generation"


def note_failure(scope: Scope, error: ProxyError) -> None:
    """The request failed; of several failures the first one counts, the others follow from it.

    Its traceback goes: it leads to the request's body, and back to this scope.
    """
    error.__traceback__ = None
    scope["state"].setdefault(FAILURE, error)


def failure_of(scope: Scope) -> ProxyError | None:
    """The failure that was noted, if any."""
    found: ProxyError | None = scope["state"].get(FAILURE)
    return found


def note_generation(scope: Scope, stream: Stream) -> None:
    """The request began this generation, whose own log line says how it ended."""
    scope["state"][GENERATION] = stream


def told(scope: Scope) -> bool:
    """Whether the generation's line says all: the request has no failure, or the same one."""
    stream: Stream | None = scope["state"].get(GENERATION)
    return stream is not None and failure_of(scope) in (None, stream.error)
