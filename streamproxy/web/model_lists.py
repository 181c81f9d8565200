"""An upstream's own list of models: GET /models below its base_url, with the credential that a request would carry.

Two callers may see different models, so a list is kept for one credential only, by its hash, and for a short time. Of
each model only what OpenAI's shape has is kept: some hosts describe every model in kilobytes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Final

import anyio
import msgspec

from streamproxy.auth import Credential, Headers
from streamproxy.core.catalogue import Provider
from streamproxy.core.requests import UpstreamRequest
from streamproxy.errors import ErrorDetails, Failure, ProxyError
from streamproxy.generation.router import Service

FRESH_SECONDS: Final = 60.0
"""How long a list is kept: a page that polls asks once a minute, and a new model is seen soon."""

ASK_SECONDS: Final = 10.0
"""Time limit for asking. A list costs the host no model's work, and the catalogue can stand in for it."""

LIST_BYTES: Final = 4 * 1024 * 1024
"""Of a list: several times the largest public one (OpenRouter, about 400 models); parsed in some 10 ms."""

MOST_LISTS: Final = 64
"""Lists kept at a time, the oldest goes: a few hundred models each are some 3 MB in all."""


class ListedModel(msgspec.Struct, frozen=True):
    """One model as its host lists it."""

    id: Annotated[str, msgspec.Meta(min_length=1, max_length=256)]
    created: object = None
    owned_by: object = None


class _List(msgspec.Struct, frozen=True):
    data: tuple[ListedModel, ...]


@dataclass(frozen=True, slots=True)
class _CachedList:
    until: float
    models: tuple[ListedModel, ...]


class ModelLists:
    """The lists of all upstreams whose models only they know."""

    def __init__(self, services: Mapping[str, Service]) -> None:
        self._services = services
        self._kept: dict[tuple[str, str], _CachedList] = {}

    async def of(self, provider: Provider, headers: Headers) -> tuple[ListedModel, ...]:
        """The models of this provider for a caller with these headers. Raises ProxyError where it does not say them."""
        service = self._services[provider.name]
        credential = service.credential.present(headers)
        presented = "" if credential is None else f"{credential.header}:{credential.value}"
        key = provider.name, hashlib.sha256(presented.encode()).hexdigest()
        kept = self._kept.get(key)
        if kept is not None and kept.until > anyio.current_time():
            return kept.models
        models = await _ask(service, credential)
        self._kept.pop(key, None)
        while len(self._kept) >= MOST_LISTS:
            del self._kept[next(iter(self._kept))]
        self._kept[key] = _CachedList(anyio.current_time() + FRESH_SECONDS, models)
        return models


async def _ask(service: Service, credential: Credential | None) -> tuple[ListedModel, ...]:
    provider = service.provider
    query = f"?{provider.query}" if provider.query else ""
    headers = [("accept", "application/json"), ("accept-encoding", "identity"), ("user-agent", "streamproxy")]
    if credential is not None:
        headers.append((credential.header, credential.value))
    request = UpstreamRequest("GET", f"{provider.base_url}/models{query}", tuple(headers), ())
    with anyio.move_on_after(ASK_SECONDS):
        async with service.upstream.open(request) as response:
            body = await response.body(LIST_BYTES)
            status = response.head.status
        if status in (401, 403) and service.credential.kind != "caller":
            raise ProxyError(Failure.PROVIDER_AUTH, f"The provider refused the configured key with status {status}.")
        if status != 200:
            message = f"The provider answered GET models with status {status}."
            raise ProxyError(Failure.PROVIDER_REFUSED, message, details=ErrorDetails(status=status))
        return _read(body)
    raise ProxyError(Failure.FIRST_BYTE_TIMEOUT, f"The provider did not answer GET models within {ASK_SECONDS:g} s.")


def _read(body: bytes) -> tuple[ListedModel, ...]:
    """The list in an answer: OpenAI's object, or the bare array that some hosts send."""
    try:
        found = msgspec.json.decode(body, type=_List | tuple[ListedModel, ...])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise ProxyError(Failure.BAD_JSON, "The provider's answer to GET models is no list of models.") from None
    return found.data if isinstance(found, _List) else found
