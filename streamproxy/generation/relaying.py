"""Requests that are passed on to a provider as they came, and their answers.

The provider speaks OpenAI's wire. Its errors are read like those of its images.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final, TypeAlias
from urllib.parse import urlsplit

import orjson
from anyio.streams.memory import MemoryObjectSendStream

from streamproxy.account import Account, Order
from streamproxy.core.catalogue import UNKNOWN
from streamproxy.core.conversation import COMMON, REFUSAL_SECONDS, SMALL, redirected
from streamproxy.core.rawjson import JsonObject
from streamproxy.core.requests import Head, UpstreamRequest
from streamproxy.errors import ProxyError
from streamproxy.generation.router import Path, Plan
from streamproxy.generation.tracing import CHAT, AttemptSpan, attempt
from streamproxy.observe import Observer
from streamproxy.providers.openai.errors import refusal
from streamproxy.providers.openai.request import segment
from streamproxy.upstream import Answer

EVENTS: Final = "text/event-stream"

Item: TypeAlias = Head | bytes | ProxyError
"""A part of an answer: its head, bytes as they came, or the failure that ends it."""


def passed_on(body: JsonObject, plan: Plan, path: Path) -> UpstreamRequest:
    """The request as it came, but with the upstream model, and without members for this proxy."""
    route = plan.route
    query = f"?{route.provider.query}" if route.provider.query else ""
    url = route.provider.base_url + path(route.provider).replace("{model}", segment(route.upstream_model)) + query
    headers = (("content-type", "application/json"), ("accept", f"application/json, {EVENTS}"), *COMMON)
    renamed = {"model": orjson.dumps(route.upstream_model)}
    left_out = {"extra_headers"} & body.members.keys()  # alone: other gateways have fallbacks of their own
    return UpstreamRequest("POST", url, headers, body.pieces(replace=renamed, drop=left_out))


@dataclass(frozen=True, slots=True)
class Exchange:
    """One request to a provider, which is sent once."""

    plan: Plan
    request: UpstreamRequest
    observer: Observer
    request_id: str

    def account(self) -> Account:
        """The account of the request, which is sent once. It makes no image, and its cost is not known."""
        model = self.plan.route.model
        order = Order(
            stream_id="",
            request_id=self.request_id,
            traceparent=dict(self.plan.trace).get("traceparent"),
            caller=self.plan.caller.label,
            provider=self.plan.route.provider.name,
            model=None if model.family == UNKNOWN else model.id,
            n=0,
        )
        return Account(order, attempts=1)

    async def read(self, to: MemoryObjectSendStream[Item]) -> None:
        """Send the request, and write the parts of the answer to `to`."""
        async with to:
            try:
                with attempt(self.observer.traces, self.plan, CHAT) as span:
                    await self._pass(span, to)
            except ProxyError as error:
                await to.send(error)
            except Exception as error:
                await to.send(self.observer.unexpected(error, self.request_id))

    async def _pass(self, span: AttemptSpan, to: MemoryObjectSendStream[Item]) -> None:
        service = self.plan.service
        signed = replace(self.request, headers=await span.plan.headers(self.request))
        with service.breaker.attempt() as turn:
            service.upstream.retries.sent()
            self.observer.upstream(service.provider.name)
            async with service.upstream.open(signed) as answer:
                await self._check(answer)
                turn.accepted()
                span.accepted()
                await to.send(answer.head)
                while (chunk := await answer.chunk()) is not None:
                    await to.send(chunk)

    async def _check(self, answer: Answer) -> None:
        """Raise ProxyError for an answer that is a refusal."""
        head = answer.head
        if 200 <= head.status < 300:
            return
        if 300 <= head.status < 400:
            raise redirected()
        try:
            raw = await answer.body(SMALL, REFUSAL_SECONDS)
        except ProxyError:
            raw = b""  # its status is enough
        path = urlsplit(self.request.url).path
        theirs = self.plan.service.credential.kind == "caller"
        raise refusal(head, raw, path=path, callers_credential=theirs, scrub=self.plan.scrub)

    def passed(self, head: Head) -> dict[str, str]:
        """The provider's headers that are passed on to the caller."""
        found = self.plan.policy.relayable(head.items)
        return {name: value for name, value in found if self.plan.scrub(value) == value}
