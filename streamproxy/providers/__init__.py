"""Providers' wire forms. An adapter is two pure functions: build a request, decode an answer.

`ADAPTERS` is the only place that says which there are.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, Protocol

from streamproxy.core.catalogue import Provider
from streamproxy.core.events import Frame
from streamproxy.core.requests import Exchange, Head, ImageRequest, UpstreamRequest
from streamproxy.errors import ProxyError
from streamproxy.providers.openai import OpenAI
from streamproxy.providers.openai_errors import Scrub


class Decoder(Protocol):
    """Turns one provider's answer into frames. What was whole is yielded first; ProxyError if it ends in failure."""

    @property
    def done(self) -> bool:
        """Whether every image has its final frame: what may still come is not wanted."""
        ...

    @property
    def accepted(self) -> bool:
        """Whether the answer so far is one that may hold an image, so that the caller's head may go out."""
        ...

    @property
    def tolerated(self) -> tuple[str, ...]:
        """Labels of what the answer so far had that no answer should have, and that was passed over all the same."""
        ...

    def feed(self, chunk: bytes) -> Iterator[Frame | None]:
        """Take the next bytes, cut anywhere; yields the frames that they complete.

        None among them says that much work became no frame: others should have a turn before the next.
        """
        ...

    def finish(self) -> Iterator[Frame]:
        """The answer has ended: yields what was left, then raises ProxyError unless every image had its outcome."""
        ...


class Adapter(Protocol):
    """One provider's wire form."""

    def build(
        self, request: ImageRequest, provider: Provider, credential: tuple[tuple[str, str], ...], boundary: str
    ) -> UpstreamRequest:
        """The request to send. `boundary`: a random token for a multipart body."""
        ...

    def not_applied(self, request: ImageRequest) -> tuple[str, ...]:
        """Names of the caller's members that are not honoured, for the response to say so."""
        ...

    def decoder(self, exchange: Exchange) -> Decoder:
        """For a 2xx answer."""
        ...

    def refusal(self, head: Head, body: bytes, *, path: str, callers_credential: bool, scrub: Scrub) -> ProxyError:
        """What any other answer means. `path`: what was asked for, without a query.

        `callers_credential`: a 401 is about the caller's key, not ours.
        """
        ...

    def refuses_streaming(self, head: Head, body: bytes) -> bool:
        """Whether the answer refuses just `stream` or `partial_images`, so that nothing has been processed."""
        ...


ADAPTERS: Final[dict[str, Adapter]] = {
    "openai": OpenAI(),
}
