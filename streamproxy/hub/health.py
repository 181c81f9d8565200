"""The health of the store. When the store fails, generations of this process go on and serve the readers here."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import TypeVar

from streamproxy.errors import Failure, ProxyError
from streamproxy.hub.store import StoreError
from streamproxy.observe import Observer

Result = TypeVar("Result")


class StoreHealth:
    """Performs operations on the store. `failed`: the last one failed."""

    def __init__(self, observer: Observer) -> None:
        self._observer = observer
        self.failed = False

    async def attempt(self, operation: Awaitable[Result]) -> Result | None:
        """The store's answer; None where the store fails."""
        try:
            result = await operation
        except StoreError as error:
            self.note(error)
            return None
        if self.failed:
            self.failed = False
            self._observer.store_recovered()
        return result

    def note(self, error: StoreError) -> None:
        """Count a failure, and log the first of an outage."""
        if not self.failed:
            self._observer.store_failed(str(error))
        self.failed = True


def unreachable() -> ProxyError:
    """The error for a request that only the store could answer."""
    return ProxyError(Failure.OVERLOADED, "The store of streams cannot be reached now.", retry_after="2")
