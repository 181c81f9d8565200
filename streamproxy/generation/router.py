"""From a model's name and a caller's headers to a provider, and the credential for it.

Router.plan(model, headers)     -> Plan; refusals that need no provider, and what the caller may not ask for
Plan.headers(request)           -> the headers of one request, signed at the moment of sending
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Final

from streamproxy.auth import Caller, Callers, CredentialSource, Headers, authenticate
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


ANYBODY: Final = Caller()


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
    """Where one request goes.

    `caller`: its sender; `extra`: the caller's headers, checked for this provider; `trace`: its trace ids.
    """

    route: Route
    service: Service
    signer: Signer
    policy: HeaderPolicy
    caller: Caller = ANYBODY
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
    """All configured providers, the catalogue of models, and the callers that may ask for some of them."""

    def __init__(
        self,
        catalogue: Catalogue,
        services: Mapping[str, Service],
        policy: HeaderPolicy,
        callers: Callers = MappingProxyType({}),
    ) -> None:
        self._catalogue = catalogue
        self._services = services
        self._policy = policy
        self._callers = callers
        self._providers = tuple(service.provider for service in services.values())

    def plan(self, model: str, headers: Headers) -> Plan:
        """The plan for `model`. AUTO is no model, see `generation.choosing`: UNSUPPORTED_PARAMETER.

        Raises ProxyError: MODEL_NOT_FOUND, MODEL_NOT_ALLOWED, PROVIDER_NOT_CONFIGURED, INVALID_API_KEY.
        """
        if not self._services:
            raise ProxyError(
                Failure.PROVIDER_NOT_CONFIGURED,
                "No provider is configured. Set OPENAI_API_KEY, or [providers] in the configuration, or --upstream.",
            )
        if model == AUTO:
            raise ProxyError(Failure.UNSUPPORTED_PARAMETER, "A model is not chosen for this. Name one.", param="model")
        caller = authenticate(headers, self._callers)
        return self._planned(self._resolved(model, caller), headers, caller)

    def by_price(self) -> Sequence[str]:
        """Names of the models that are known to be served today, by the typical cost of a picture.

        What a provider that takes every name makes of one is not known.
        """
        known = [
            replace(provider, serves=_without_all(provider), models=provider.listed) for provider in self._providers
        ]
        listed = self._catalogue.listed(known, datetime.now(UTC).date())
        return [name for _, name in sorted(listed, key=lambda row: typical(row[0].price))]

    def plan_relay(self, model: str, headers: Headers, path: Path, missing: str) -> Plan:
        """The plan for a request that is passed on as it came. `missing`: the message where no provider takes it.

        An unknown name goes to the first provider with that path, which knows its own models. Raises ProxyError:
        UNSUPPORTED_PARAMETER, MODEL_NOT_ALLOWED, INVALID_API_KEY.
        """
        caller = authenticate(headers, self._callers)
        try:
            route = self._resolved(model, caller)
        except ProxyError as error:
            if error.failure is Failure.MODEL_NOT_ALLOWED:
                raise
            able = next((provider for provider in self._usable(caller) if path(provider)), None)
            if error.failure is not Failure.MODEL_NOT_FOUND or able is None:
                raise ProxyError(Failure.UNSUPPORTED_PARAMETER, missing, param="model") from None
            route = _allowed(Route(able, Model.unknown(model), model), caller)
        if not path(route.provider):
            raise ProxyError(Failure.UNSUPPORTED_PARAMETER, missing, param="model")
        return self._planned(route, headers, caller)

    def allows(self, model: str, headers: Headers) -> bool:
        """Whether the caller with these headers may ask for `model`, which is served."""
        caller = authenticate(headers, self._callers)
        if (caller.models, caller.providers) == (ANYBODY.models, ANYBODY.providers):
            return True
        try:
            self._resolved(model, caller)
        except ProxyError:
            return False
        return True

    def _usable(self, caller: Caller) -> tuple[Provider, ...]:
        return tuple(provider for provider in self._providers if caller.may_use(provider.name))

    def _resolved(self, model: str, caller: Caller) -> Route:
        """As Catalogue.resolve, among what the caller may use. Raises ProxyError(MODEL_NOT_ALLOWED) too."""
        try:
            route = self._catalogue.resolve(model, self._usable(caller))
        except ProxyError:
            self._catalogue.resolve(model, self._providers)  # an unknown model is refused as unknown, not as forbidden
            raise _not_allowed("providers") from None
        return _allowed(route, caller)

    def _planned(self, route: Route, headers: Headers, caller: Caller) -> Plan:
        service = self._services[route.provider.name]
        if service.signer is not None:
            return Plan(route, service, service.signer, self._policy, caller)
        found = service.credential.present(headers)
        signer = KeySigner(() if found is None else ((found.header, found.value),))
        return Plan(route, service, signer, self._policy, caller)


def _allowed(route: Route, caller: Caller) -> Route:
    """The route. Raises ProxyError(MODEL_NOT_ALLOWED) where it leads to what the caller may not ask for."""
    if not caller.may_ask_for(route.names):
        raise _not_allowed("models")
    return route


def _not_allowed(setting: str) -> ProxyError:
    message = f"This caller may not use this model here: its setting {setting}. GET /v1/models lists those that it may."
    return ProxyError(Failure.MODEL_NOT_ALLOWED, message, param="model")
