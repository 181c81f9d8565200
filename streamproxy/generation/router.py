"""From a model's name and a caller's headers to a provider, and the credential for it.

Router.plan(model, headers)     -> Plan; refusals that need no provider
Plan.headers(request)           -> the headers of one request, signed at the moment of sending
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Final

from streamproxy.auth import CredentialSource
from streamproxy.core.catalogue import AUTO, EVERYTHING, UNKNOWN, Catalogue, Model, Provider, Route
from streamproxy.core.cost import typical
from streamproxy.core.headers import REDACTED, HeaderPolicy
from streamproxy.core.requests import UpstreamRequest
from streamproxy.errors import Failure, ProxyError
from streamproxy.upstream import Upstream
from streamproxy.upstream.breaker import Breaker
from streamproxy.upstream.signing import KeySigner, Signer

SHORT_SECRET: Final = 8
"""Characters. A shorter key can be part of an ordinary word."""


@dataclass(frozen=True, slots=True)
class Service:
    """One configured provider, ready to be used."""

    provider: Provider
    upstream: Upstream
    credential: CredentialSource
    strict_headers: bool
    allow_headers: tuple[str, ...]
    signer: Signer | None = None
    """Signs every request, in place of a key."""
    breaker: Breaker = field(default_factory=Breaker)


@dataclass(frozen=True, slots=True)
class Plan:
    """Where one request goes. `extra`: the caller's headers, checked for this provider; `trace`: its trace ids."""

    route: Route
    service: Service
    signer: Signer
    policy: HeaderPolicy
    extra: tuple[tuple[str, str], ...] = ()
    trace: tuple[tuple[str, str], ...] = ()

    def with_headers(self, extra: object, trace: tuple[tuple[str, str], ...]) -> Plan:
        """The plan with the caller's `extra_headers` and trace ids. Raises ProxyError by the header policy."""
        checked = self.policy.check(
            extra,
            strict=self.service.strict_headers,
            allow=self.service.allow_headers,
            reserved=self.signer.names,
        )
        return replace(self, extra=checked, trace=trace)

    async def headers(self, request: UpstreamRequest) -> tuple[tuple[str, str], ...]:
        """All headers of a request. It is checked that they hold the credential exactly once and no other secret."""
        signed = await self.signer.sign(request)
        given = {name for name, _ in self.extra}
        traced = tuple((name, value) for name, value in self.trace if name not in given)
        return tuple(self.policy.merge(self.extra, (*request.headers, *traced, *signed), self.signer.names))

    @property
    def model(self) -> str | None:
        """The model's id in the catalogue; None for an unknown one, whose name is in the caller's words."""
        model = self.route.model
        return None if model.family == UNKNOWN else model.id

    @property
    def scrub(self) -> Callable[[str], str]:
        """Remove secrets from a provider's text: the credential that was sent, and text that looks like a secret."""

        def scrub(text: str) -> str:
            for secret in self.signer.secrets:
                text = _without(secret, text)
            return self.policy.scrub(text)

        return scrub


def _without(secret: str, text: str) -> str:
    """Remove this secret from a text. A short one only as a whole word: `k` stays in `moderation_blocked`."""
    if len(secret) >= SHORT_SECRET:
        return text.replace(secret, REDACTED)
    return re.sub(rf"(?<!\w){re.escape(secret)}(?!\w)", REDACTED, text)


def _without_all(provider: Provider) -> tuple[str, ...]:
    return tuple(owner for owner in provider.serves if owner != EVERYTHING)


Path = Callable[[Provider], str]
"""A path below a provider's base_url; "" where it has none."""


class Router:
    """All configured providers, and the catalogue of models."""

    def __init__(self, catalogue: Catalogue, services: Mapping[str, Service], policy: HeaderPolicy) -> None:
        self._catalogue = catalogue
        self._services = services
        self._policy = policy
        self._providers = tuple(service.provider for service in services.values())

    def plan(self, model: str, headers: Sequence[tuple[bytes, bytes]]) -> Plan:
        """The plan for `model`. Raises ProxyError: MODEL_NOT_FOUND, PROVIDER_NOT_CONFIGURED, INVALID_API_KEY.

        AUTO is no model, see `generation.choosing`: UNSUPPORTED_PARAMETER.
        """
        if not self._services:
            raise ProxyError(
                Failure.PROVIDER_NOT_CONFIGURED,
                "No provider is configured. Set OPENAI_API_KEY, or [providers] in the configuration, or --upstream.",
            )
        if model == AUTO:
            raise ProxyError(Failure.UNSUPPORTED_PARAMETER, "A model is not chosen for this. Name one.", param="model")
        return self._planned(self._catalogue.resolve(model, self._providers), headers)

    def by_price(self) -> Sequence[str]:
        """Names of the models that are known to be served today, the cheapest first; those of unknown price last.

        What a provider that takes every name makes of one is not known.
        """
        known = [
            replace(provider, serves=_without_all(provider), models=provider.listed) for provider in self._providers
        ]
        listed = self._catalogue.listed(known, datetime.now(UTC).date())
        prices = [(name, typical(model.price)) for model, name in listed]
        return [name for name, price in sorted(prices, key=lambda row: (row[1] is None, row[1] or 0))]

    def plan_relay(self, model: str, headers: Sequence[tuple[bytes, bytes]], path: Path, missing: str) -> Plan:
        """The plan for a request that is passed on as it came. `missing`: the message where no provider takes it.

        An unknown name goes to the first provider with that path, which knows its own models. Raises ProxyError:
        UNSUPPORTED_PARAMETER, INVALID_API_KEY.
        """
        try:
            route = self._catalogue.resolve(model, self._providers)
        except ProxyError as error:
            able = next((provider for provider in self._providers if path(provider)), None)
            if error.failure is not Failure.MODEL_NOT_FOUND or able is None:
                raise ProxyError(Failure.UNSUPPORTED_PARAMETER, missing, param="model") from None
            route = Route(able, Model.unknown(model), model)
        if not path(route.provider):
            raise ProxyError(Failure.UNSUPPORTED_PARAMETER, missing, param="model")
        return self._planned(route, headers)

    def _planned(self, route: Route, headers: Sequence[tuple[bytes, bytes]]) -> Plan:
        service = self._services[route.provider.name]
        if service.signer is not None:
            return Plan(route, service, service.signer, self._policy)
        found = service.credential.present(headers)
        signer = KeySigner(() if found is None else ((found.header, found.value),))
        return Plan(route, service, signer, self._policy)
