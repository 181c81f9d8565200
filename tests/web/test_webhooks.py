"""How a delivery is repeated and given up, with pauses of milliseconds."""

from __future__ import annotations

import ssl
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

import anyio
import pytest
import trustme
from structlog.testing import capture_logs

from streamproxy.auth import StreamTokens
from streamproxy.core.webhooks import signing_key
from streamproxy.hub import STORES
from streamproxy.hub.hub import Hub
from streamproxy.hub.limits import HubLimits
from streamproxy.hub.outbox import MemoryNotices, Notice, OutboxLimits
from streamproxy.observe import Observer
from streamproxy.simulator.received import Received
from streamproxy.simulator.script import Script, Send, Stall, head
from streamproxy.simulator.server import serve
from streamproxy.upstream.posting import POST_SECONDS, Poster, Undelivered
from streamproxy.web.webhooks import DELIVERIES, DELIVERIES_TO_ONE, Notifier
from tests.support.proxy import BOUND, NO_TRUST
from tests.support.receiver import PATH, SECRET, Receiver, receiving

pytestmark = pytest.mark.anyio

LIMITS: Final = HubLimits(grace=0.0, hold=0.0, viewers=10, viewers_of_owner=10, streams=10)
PAUSES: Final = (0.01, 0.01, 0.01)
ROOM: Final = OutboxLimits(1000, 1000)


@dataclass(frozen=True, slots=True)
class Setup:
    """A notifier that runs, and what it delivers to."""

    notices: MemoryNotices
    notifier: Notifier
    receiver: Receiver

    async def put(self, id: str = "str_1", *, path: str = PATH, body: str = '{"type":"test"}') -> None:
        notice = Notice(id, None, self.receiver.origin + path, "https://p.test/v1/streams/s", "sim", None, body)
        await self.notices.put(notice, time.time(), ROOM)
        self.notifier.outbox.changed.set()

    async def pending(self) -> None:
        """Wait until no notice is kept any more."""
        with anyio.fail_after(BOUND):
            while self.notices.kept:  # noqa: ASYNC110
                await anyio.sleep(0.005)


@asynccontextmanager
async def notifying(*statuses: int, also: str = "http://127.0.0.1:1") -> AsyncIterator[Setup]:
    observer = Observer()
    notices = MemoryNotices()
    with anyio.fail_after(BOUND):
        async with (
            receiving(*statuses) as receiver,
            STORES["memory"]("memory", 1 << 20, 60.0) as backend,
            anyio.create_task_group() as tasks,
        ):
            hub = Hub(backend=backend, tasks=tasks, limits=LIMITS, observer=observer, notices=notices)
            assert hub.outbox is not None
            poster = Poster(origins=[f"{each} internal" for each in (receiver.origin, also)], ssl_context=NO_TRUST)
            notifier = Notifier(
                outbox=hub.outbox,
                poster=poster,
                hub=hub,
                tokens=StreamTokens("a secret of sixteen", 60.0),
                observer=observer,
                results=None,
                key=signing_key(SECRET),
                schedule=PAUSES,
                poll=0.01,
            )
            tasks.start_soon(notifier.run)
            yield Setup(notices, notifier, receiver)
            tasks.cancel_scope.cancel()
        await poster.aclose()


@pytest.mark.parametrize("status", [200, 201, 204, 299])
async def test_any_2xx_ends_it(status: int) -> None:
    async with notifying(status) as setup:
        await setup.put()
        await setup.pending()
        assert len(setup.receiver.messages) == 1


@pytest.mark.parametrize("status", [300, 302, 307, 400, 401, 404, 429, 500, 503])
async def test_any_other_status_is_repeated(status: int) -> None:
    async with notifying(status, status) as setup:
        await setup.put()
        await setup.pending()
        assert setup.receiver.messages == [{"type": "test"}] * 3
        assert set(setup.receiver.ids) == {"msg_str_1"}


async def test_410_ends_it_for_good() -> None:
    with capture_logs() as logs:
        async with notifying(410) as setup:
            await setup.put()
            await setup.pending()
            assert len(setup.receiver.messages) == 1
    assert [(line["outcome"], line["stream"]) for line in logs if line["event"] == "webhook"] == [("gone", "str_1")]


async def test_it_is_given_up_with_one_line() -> None:
    with capture_logs() as logs:
        async with notifying(*[500] * 10) as setup:
            await setup.put()
            await setup.pending()
            assert len(setup.receiver.messages) == len(PAUSES) + 1
    [line] = [line for line in logs if line["event"] == "webhook"]
    assert (line["outcome"], line["attempts"], line["reason"]) == ("given_up", len(PAUSES) + 1, "HTTP 500")


async def test_a_failed_attempt_holds_up_no_other() -> None:
    async with notifying() as setup:
        await setup.put("str_1", path="\nnot a path")
        await setup.put("str_2")
        await setup.receiver.message()
        assert setup.receiver.ids == ["msg_str_2"]
        await setup.pending()


async def test_many_are_delivered_once_each() -> None:
    async with notifying() as setup:
        for number in range(3 * DELIVERIES):
            await setup.put(f"str_{number}")
        await setup.pending()
        assert sorted(setup.receiver.ids) == sorted(f"msg_str_{number}" for number in range(3 * DELIVERIES))


async def test_a_hung_receiver_holds_up_only_its_own() -> None:
    async with serve(lambda _: (Stall(),)) as hung, notifying(also=hung.url) as setup:
        for number in range(2 * DELIVERIES):
            notice = Notice(f"str_{number}", None, hung.url + PATH, "https://p.test/s", body="{}")
            await setup.notices.put(notice, time.time(), ROOM)
        setup.notifier.outbox.changed.set()
        await hung.wait_until(lambda server: server.calls == DELIVERIES_TO_ONE, BOUND)
        await setup.put()
        assert await setup.receiver.message() == {"type": "test"}
        assert hung.calls == DELIVERIES_TO_ONE


async def test_an_unknown_stream_is_told_as_failed() -> None:
    """Its process was lost between the promise and the generation."""
    async with notifying() as setup:
        await setup.put(body="")
        setup.receiver.messages.clear()
        said = await setup.receiver.message()
        assert (said["type"], said["data"]["error"]["code"]) == ("image.stream.failed", "not_found")


async def test_a_receiver_that_refuses_connections() -> None:
    async with receiving() as receiver:
        gone = receiver.origin
    poster = Poster(origins=[f"{gone} internal"], ssl_context=NO_TRUST)
    with pytest.raises(Undelivered) as raised:
        await poster.post(gone + PATH, {}, b"{}")
    assert "path-0123456789" not in str(raised.value)
    assert POST_SECONDS < 30
    await poster.aclose()


async def names(host: str, port: int) -> list[str]:
    """A resolver: every name is this machine's."""
    return ["127.0.0.1"]


@pytest.mark.parametrize(("certified", "delivered"), [("hooks.lan", True), ("another.lan", False)])
async def test_the_certificate_is_that_of_the_name(certified: str, delivered: bool) -> None:
    """It is an address that is dialled."""
    authority = trustme.CA()
    theirs, ours = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    authority.issue_cert(certified).configure_cert(theirs)
    authority.configure_trust(ours)
    hosts: list[str | None] = []

    def take(received: Received) -> Script:
        hosts.append(received.header("host"))
        return (Send(head(204, length=0)),)

    with anyio.fail_after(BOUND):
        async with serve(take, ssl=theirs) as server:
            origin = f"https://hooks.lan:{server.port}"
            poster = Poster(origins=[f"{origin} internal"], ssl_context=ours, resolver=names)
            if delivered:
                assert await poster.post(origin + PATH, {}, b"{}") == 204
                assert hosts == [f"hooks.lan:{server.port}"]
            else:
                with pytest.raises(Undelivered):
                    await poster.post(origin + PATH, {}, b"{}")
                assert hosts == []
            await poster.aclose()


async def test_a_receiver_that_hangs_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streamproxy.upstream.posting.POST_SECONDS", 0.1)
    with anyio.fail_after(BOUND):
        async with serve(lambda _: (Stall(),)) as server:
            poster = Poster(origins=[f"{server.url} internal"], ssl_context=NO_TRUST)
            with pytest.raises(Undelivered, match=r"it took over 0\.1 s"):
                await poster.post(server.url + PATH, {}, b"{}")
            await server.wait_closed_connections(BOUND)
            await poster.aclose()
