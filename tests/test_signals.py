"""A wake-up for all tasks that wait for a change."""

from __future__ import annotations

import anyio
import pytest

from streamproxy.signals import Signal

pytestmark = pytest.mark.anyio

BOUND = 5.0


async def test_all_that_wait_are_woken_and_later_ones_not() -> None:
    signal = Signal()
    woken: list[bool] = []

    async def wait() -> None:
        woken.append(await signal.wait())

    with anyio.fail_after(BOUND):
        signal.set()  # before any wait: it wakes none
        async with anyio.create_task_group() as tasks:
            for _ in range(3):
                tasks.start_soon(wait)
            await anyio.wait_all_tasks_blocked()
            assert woken == []
            signal.set()
            await anyio.wait_all_tasks_blocked()
            assert woken == [True] * 3
            assert not await signal.wait(anyio.current_time())


async def test_a_wait_that_is_given_up_stops_no_other() -> None:
    signal = Signal()
    woken: list[bool] = []

    async def wait() -> None:
        woken.append(await signal.wait())

    with anyio.fail_after(BOUND):
        async with anyio.create_task_group() as tasks:
            async with anyio.create_task_group() as given_up:
                given_up.start_soon(wait)
                tasks.start_soon(wait)
                await anyio.wait_all_tasks_blocked()
                given_up.cancel_scope.cancel()
            signal.set()
    assert woken == [True]


async def test_a_wait_ends_at_its_time() -> None:
    signal = Signal()
    with anyio.fail_after(BOUND):
        began = anyio.current_time()
        assert not await signal.wait(began + 0.05)
        assert anyio.current_time() >= began + 0.04  # libuv counts in whole milliseconds
