"""The span of one attempt at a provider: what was asked, when it was accepted, shown and done, and how it failed."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from operator import add
from typing import Final

import anyio

from streamproxy.core.catalogue import UNKNOWN
from streamproxy.core.eventdata import Tokens, outline, tokens
from streamproxy.core.events import ERROR, Frame
from streamproxy.errors import Failure, ProxyError
from streamproxy.generation.router import Plan
from streamproxy.observe.traces import NO_SPAN, PROVIDERS, TRACEPARENT, Kind, Span, Traces, below

GENERATE: Final = "generate_content"
"""`gen_ai.operation.name` of an image's making: the conventions' word for what is not a chat."""

CHAT: Final = "chat"
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:/-]{0,127}")


class AttemptSpan:
    """Tells a span of an attempt's course. `plan` is the attempt's, with the traceparent that the provider gets."""

    def __init__(self, plan: Plan, span: Span) -> None:
        self.plan = replace(plan, trace=below(plan.trace, span)) if span is not NO_SPAN else plan
        self._span = span
        self._on = span is not NO_SPAN
        self._shown = False
        self._tokens = Tokens()

    def accepted(self) -> None:
        """The provider works on it."""
        self._span.event("accepted")

    def frame(self, frame: Frame) -> None:
        """An event has come."""
        if not self._on or frame.type == ERROR:
            return
        if frame.final:
            self._span.event("completed")
            self._read(frame)
        elif not self._shown:
            self._shown = True
            self._span.event("first_preview")

    def _read(self, frame: Frame) -> None:
        """Add up the tokens of a final event, and note the model that the provider names."""
        told = outline(frame.data)
        if told is None:
            return
        if _NAME.fullmatch(told.model):
            self._span.note(gen_ai__response__model=told.model)
        self._tokens = Tokens(*map(add, self._tokens, tokens(told.usage)))
        self._span.note(
            gen_ai__usage__input_tokens=self._tokens.input or None,
            gen_ai__usage__output_tokens=self._tokens.output or None,
        )


@contextmanager
def attempt(traces: Traces, plan: Plan, operation: str = GENERATE) -> Iterator[AttemptSpan]:
    """The span of an attempt by this plan, as long as the block lasts. It tells of the failure that ends the block."""
    span = traces.begin(Kind.ATTEMPT, dict(plan.trace).get(TRACEPARENT))
    provider, model = plan.route.provider.name, plan.route.model
    named = None if model.family == UNKNOWN else model.id  # an unknown one is in the caller's words
    span.note(
        gen_ai__operation__name=operation,
        gen_ai__provider__name=PROVIDERS.get(provider, provider),
        gen_ai__request__model=named,
        gen_ai__output__type="image" if operation == GENERATE else None,
    )
    error: str | None = Failure.INTERNAL.value.code
    try:
        yield AttemptSpan(plan, span)
        error = None
    except ProxyError as failed:
        error = failed.failure.value.code
        raise
    except anyio.get_cancelled_exc_class():
        error = Failure.CANCELLED.value.code
        raise
    finally:
        span.end(f"{operation} {named}" if named else operation, error, failed=error is not None)
