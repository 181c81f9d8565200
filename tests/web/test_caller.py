"""Waiting for a result while the caller is there."""

from __future__ import annotations

import anyio
import anyio.lowlevel
import pytest
from starlette.types import Message

from streamproxy.errors import Failure, ProxyError
from streamproxy.web.caller import gone, unheard, unless_gone

pytestmark = pytest.mark.anyio

MORE: Message = {"type": "http.request", "body": b"x", "more_body": True}
LEFT: Message = {"type": "http.disconnect"}


class Caller:
    """What a server tells of its caller: these messages at once, and that it has left when told so."""

    def __init__(self, *messages: Message) -> None:
        self._messages = list(messages)
        self.leaves = anyio.Event()

    async def receive(self) -> Message:
        if self._messages:
            return self._messages.pop(0)
        await self.leaves.wait()
        return LEFT


async def seven() -> int:
    await anyio.lowlevel.checkpoint()
    return 7


async def test_the_result_while_the_caller_is_there() -> None:
    with anyio.fail_after(5):
        assert await unless_gone(Caller(MORE, MORE).receive, seven) == 7


async def test_work_ends_when_the_caller_leaves() -> None:
    caller = Caller()
    ended: list[str] = []

    async def work() -> None:
        caller.leaves.set()
        try:
            await anyio.sleep_forever()
        finally:
            ended.append("work")

    with anyio.fail_after(5), pytest.raises(ProxyError) as caught:
        await unless_gone(caller.receive, work)
    assert caught.value.failure is Failure.CALLER_GONE
    assert ended == ["work"]


async def test_a_caller_who_has_left_is_not_worked_for() -> None:
    began: list[str] = []

    async def work() -> None:
        began.append("work")

    with anyio.fail_after(5), pytest.raises(ProxyError) as caught:
        await unless_gone(Caller(LEFT).receive, work)
    assert caught.value.failure is Failure.CALLER_GONE
    assert began == []


@pytest.mark.parametrize("error", [ProxyError(Failure.NO_IMAGE, "m"), ValueError("v")])
async def test_a_failure_is_raised_as_it_is(error: Exception) -> None:
    async def work() -> None:
        raise error

    with anyio.fail_after(5), pytest.raises(type(error)) as caught:
        await unless_gone(Caller().receive, work)
    assert caught.value is error


async def test_to_be_cancelled_is_not_to_be_left() -> None:
    with anyio.move_on_after(0.01) as scope:
        await unless_gone(Caller().receive, anyio.sleep_forever)
    assert scope.cancelled_caught


async def test_gone_passes_over_what_else_comes() -> None:
    caller = Caller(MORE, MORE, LEFT)
    with anyio.fail_after(5):
        await gone(caller.receive)


async def test_unheard_never_says_anything() -> None:
    with anyio.move_on_after(0.01) as scope:
        await unheard()
    assert scope.cancelled_caught
