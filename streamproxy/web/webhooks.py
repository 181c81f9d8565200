"""Webhooks: a message to a URL of the caller's when its stream has ended, as Standard Webhooks has it.

    destination_of    the request's header, checked before anything is paid
    Notifier          delivers what the outbox holds, whichever process put it there

A delivery that fails is repeated by core.webhooks.SCHEDULE. A 2xx ends it, and so does a 410.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Final
from urllib.parse import urlsplit

import anyio
from anyio import to_thread
from starlette.requests import Request

from streamproxy.auth import StreamTokens
from streamproxy.core.events import Frame, error_frame
from streamproxy.core.webhooks import HEADER, SCHEDULE, StreamUrls, message, outcome, pause, refused, signed
from streamproxy.errors import Failure, ProxyError
from streamproxy.generation.results import Results
from streamproxy.hub.hub import Hub
from streamproxy.hub.log import Record
from streamproxy.hub.outbox import LOOK_SECONDS, RENEW_SECONDS, Lease, Notice, Outbox
from streamproxy.observe import Observer
from streamproxy.upstream.posting import Poster, Undelivered

DELIVERIES: Final = 32
"""At a time: a receiver that hangs holds one for POST_SECONDS. Each holds a message of up to 64 KiB."""

DELIVERIES_TO_ONE: Final = 8
"""Of them to one origin, so that a receiver that hangs holds up its own messages only."""

POLL_SECONDS: Final = 1.0
"""How soon a notice is seen that another process made due, or that is due again."""


async def destination_of(request: Request, notifier: Notifier | None, base: Callable[[str], str]) -> str | None:
    """The URL that is to be told of the stream's end, None for none. `base`: the absolute URL of a stream, or "".

    Raises ProxyError(WEBHOOK_REFUSED).
    """
    given = request.headers.getlist(HEADER)
    if not given:
        return None
    if len(given) > 1:
        raise refused("it must be one header with one URL")
    if notifier is None:
        raise refused("no origin is listed")
    if not base(""):
        raise ProxyError(
            Failure.WEBHOOK_REFUSED,
            f"{HEADER} is refused: its message could not name the stream's URL. Set public_url, or add the request's "
            "host name to the setting allowed_hosts.",
            param=HEADER,
        )
    await notifier.poster.check(given[0])
    return given[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class Notifier:
    """See the module's text. `key` signs; `schedule` are the seconds between attempts, `poll` those between looks."""

    outbox: Outbox
    poster: Poster
    hub: Hub
    tokens: StreamTokens
    observer: Observer
    results: Results | None
    key: bytes = field(repr=False)
    schedule: Sequence[float] = SCHEDULE
    poll: float = POLL_SECONDS
    _busy: Counter[str] = field(default_factory=Counter, init=False)

    async def run(self) -> None:
        """Deliver what is due, until cancelled."""
        free = anyio.Semaphore(DELIVERIES)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._renew)
            while True:
                await free.acquire()
                free.release()
                for lease in await self.outbox.claim(free.value):
                    await free.acquire()
                    tasks.start_soon(self._deliver, lease, free)
                await self.outbox.changed.wait(anyio.current_time() + self.poll)

    async def _renew(self) -> None:
        while True:
            await anyio.sleep(RENEW_SECONDS)
            await self.outbox.renew()

    async def _deliver(self, lease: Lease, free: anyio.Semaphore) -> None:
        origin = urlsplit(lease.notice.url).netloc
        self._busy[origin] += 1
        try:
            if self._busy[origin] > DELIVERIES_TO_ONE:
                await self.outbox.postpone(lease, lease.notice, POLL_SECONDS)
            elif (notice := await self._written(lease)) is not None:
                await self._attempt(lease, notice)
        except Exception as error:
            self.observer.unexpected(error, lease.notice.id)
            await self._again(lease, lease.notice, 0, "the proxy failed")
        finally:
            self._busy[origin] -= 1
            if not self._busy[origin]:
                del self._busy[origin]
            free.release()
            self.outbox.changed.set()

    async def _attempt(self, lease: Lease, notice: Notice) -> None:
        """Send a message once, and keep it for the next attempt where that is of use."""
        body = notice.body.encode()
        status, reason = 0, ""
        try:
            status = await self.poster.post(notice.url, signed(self.key, notice.id, int(time.time()), body), body)
        except Undelivered as error:
            reason = str(error)
        if 200 <= status <= 299:
            self.observer.webhook("delivered", notice.id, notice.attempts + 1)
            await self.outbox.drop(notice)
        else:
            await self._again(lease, notice, status, reason or f"HTTP {status}")

    async def _again(self, lease: Lease, notice: Notice, status: int, reason: str) -> None:
        """Keep a notice for its next attempt, if there is one after this failure."""
        tried = replace(notice, attempts=notice.attempts + 1)
        seconds = pause(tried.attempts, random.random(), self.schedule)
        if status == 410 or seconds is None:
            self.observer.webhook("gone" if status == 410 else "given_up", notice.id, tried.attempts, reason)
            await self.outbox.drop(notice)
            return
        self.observer.webhook("failed", notice.id, tried.attempts, reason)
        await self.outbox.postpone(lease, tried, seconds)

    async def _written(self, lease: Lease) -> Notice | None:
        """The notice with its message; None where the stream has not ended, or where that cannot be known now."""
        notice = lease.notice
        if notice.body:
            return notice
        try:
            found = await self.hub.ended(notice.id)
        except ProxyError as error:
            if error.failure is Failure.OVERLOADED:
                found = None
            else:  # it was deleted, or its process was lost before the store knew it
                found = Record(notice.id), (error_frame(error, notice.id),)
        if found is None:
            await self.outbox.postpone(lease, notice, LOOK_SECONDS)
            return None
        return replace(notice, body=await self._message(notice, *found))

    async def _message(self, notice: Notice, record: Record, frames: tuple[Frame, ...]) -> str:
        ended = await to_thread.run_sync(outcome, frames)
        links = await self.results.urls(record.id, record.created) if self.results is not None and ended.images else {}
        token = self.tokens.mint(notice.id)
        images = tuple(links.get(index) or f"{notice.base}/images/{index}?token={token}" for index in ended.images)
        urls = StreamUrls(f"{notice.base}?token={token}", f"{notice.base}/status?token={token}", images)
        made_by = {"provider": notice.provider, "model": notice.model}
        return message(notice.id, ended, urls, at=time.time(), made_by=made_by).decode()
