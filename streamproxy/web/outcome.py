"""The failure of a request, noted where it happens and logged once, in the request's log line.

The state of an ASGI scope holds it, because a handler, a middleware or the writer of a stream may fail.
"""

from __future__ import annotations

from typing import Final

from starlette.types import Scope

from streamproxy.errors import ProxyError

FAILURE: Final = "failure"


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
