"""A stateful model: frames, readers that join, lag, leave and come back, ends of every kind, time, and a full store.

The model knows the frames of each stream. In any order of events, a reader that follows by ids gets every outcome after
its cursor once and in order, its cursor only grows, and the store counts exactly the bytes that it retains.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Final, TypeVar

import anyio
from anyio.abc import TaskGroup
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    MultipleResults,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    precondition,
    rule,
)

from streamproxy.core.cursor import Cursor
from streamproxy.core.events import Frame, Operation, Role, type_of
from streamproxy.errors import Failure, ProxyError
from streamproxy.hub.generation import Generation, OnDisconnect
from streamproxy.hub.hub import Hub
from streamproxy.hub.keys import Names
from streamproxy.hub.limits import HubLimits
from streamproxy.hub.log import Record
from streamproxy.hub.memory import MemoryMarks, MemoryStore
from streamproxy.hub.store import StoreBackend
from streamproxy.hub.stream import Stream, Subscriber
from streamproxy.observe import Observer

CAP: Final = 400
LINGER: Final = 100.0
IMAGES: Final = 3
BOUND: Final = 5.0
TURNS: Final = 6
"""Turns of the loop after which everything that can go on has done so."""

PREVIEW: Final = type_of(Operation.GENERATION, Role.PREVIEW)
COMPLETED: Final = type_of(Operation.GENERATION, Role.COMPLETED)

Result = TypeVar("Result")


@dataclass(eq=False, slots=True)
class Model:
    """What one stream has been given: the outcomes with their seq, and each image's newest preview."""

    generation: Generation
    policy: OnDisconnect
    outcomes: dict[int, Frame] = field(default_factory=dict)
    previews: dict[int, int] = field(default_factory=dict)
    done: set[int] = field(default_factory=set)
    live: bool = True

    @property
    def stream(self) -> Stream:
        return self.generation.stream


@dataclass(eq=False, slots=True)
class Follower:
    """A reader by ids: where it is, which outcomes it has had, and its connection, None while it is away."""

    model: Model
    cursor: Cursor | None
    had: list[int]
    subscriber: Subscriber | None = None


class Streams(RuleBasedStateMachine):
    """See the module's text. Every rule runs in one loop, until nothing can go on."""

    models: Bundle[Model] = Bundle("models")
    followers: Bundle[Follower] = Bundle("followers")

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.now = 0.0
        self.store = MemoryStore(max_bytes=CAP, linger=LINGER, now=lambda: self.now)
        self.all: list[Model] = []
        self.connected: list[Follower] = []
        self.stop = asyncio.Event()
        self.ready: asyncio.Future[TaskGroup] | None = None
        self.app: asyncio.Task[None] | None = None

    def run(self, work: Callable[[], Awaitable[Result]]) -> Result:
        async def bounded() -> Result:
            with anyio.fail_after(BOUND):
                result = await work()
                for _ in range(TURNS):
                    await asyncio.sleep(0)
                return result

        return self.runner.run(bounded())

    @initialize()
    def start(self) -> None:
        async def start() -> None:
            ready: asyncio.Future[TaskGroup] = asyncio.get_running_loop().create_future()

            async def app() -> None:
                async with anyio.create_task_group() as tasks:
                    ready.set_result(tasks)
                    await self.stop.wait()
                    tasks.cancel_scope.cancel()

            self.app = asyncio.create_task(app())
            limits = HubLimits(grace=0, hold=0, viewers=1000, viewers_of_owner=1000, streams=1000)
            kept = StoreBackend(self.store, self.store, MemoryMarks(now=anyio.current_time))
            self.hub = Hub(backend=kept, tasks=await ready, limits=limits, observer=Observer())

        self.run(start)

    # The producer's side.

    @rule(target=models, policy=st.sampled_from(OnDisconnect))
    def create(self, policy: OnDisconnect) -> Model:
        async def create() -> Generation:
            record = Record(f"s{len(self.all)}", n=IMAGES)
            generation = self.hub.prepare(record, policy=policy, names=Names("body"))
            await self.hub.register(generation)
            generation.stream.commit()
            return generation

        self.all.append(Model(self.run(create), policy))
        return self.all[-1]

    @rule(model=models, image=st.integers(0, IMAGES - 1), final=st.booleans(), size=st.integers(0, 150))
    def append(self, model: Model, image: int, final: bool, size: int) -> None:
        if not model.live or (final and image in model.done):
            return
        frame = Frame(COMPLETED if final else PREVIEW, (b"x" * size,), image, final)
        self.run(lambda: model.generation.append(frame))
        if image in model.done:
            return  # a preview that no reader gets
        model.previews.pop(image, None)
        if final:
            model.done.add(image)
            model.outcomes[model.stream.log.last] = frame
        elif self._makes_room(model, size):
            assert model.stream.log.last not in [entry.cursor.seq for entry in model.stream.log.retained()]
        else:
            model.previews[image] = model.stream.log.last

    def _makes_room(self, model: Model, size: int) -> bool:
        """Whether the new preview is dropped: the live streams are over the cap, and every reader has received it."""
        live = sum(other.stream.log.bytes for other in self.all if other.live)
        spared = all(entry.cursor.seq != model.stream.log.last for entry in model.stream.log.retained())
        return live + spared * size > CAP and not any(follower.model is model for follower in self.connected)

    @rule(model=models, how=st.sampled_from(["finish", "fail", "cancel"]))
    def end(self, model: Model, how: str) -> None:
        if model.live:
            self.run(lambda: self._end(model, how))

    async def _end(self, model: Model, how: str) -> None:
        """As the relay does it."""
        if how == "cancel":
            await self.hub.end(model.stream)
            assert model.generation.scope.cancel_called
            assert model.generation.ending is not None
        if how != "finish":
            await model.generation.fail(ProxyError(Failure.CANCELLED, "Ended."))
            (last,) = [e for e in model.stream.log.retained() if e.cursor.seq == model.stream.log.last]
            model.outcomes[model.stream.log.last] = last.frame
        await self.hub.conclude(model.generation)
        await self.hub.conclude(model.generation)
        model.previews.clear()
        model.live = False

    # The readers' side.

    @rule(target=followers, model=models, position=st.one_of(st.none(), st.integers(0, 20)))
    def join(self, model: Model, position: int | None) -> Follower:
        cursor = None if position is None else Cursor(1, min(position, model.stream.log.last))
        had = [seq for seq in model.outcomes if cursor is not None and seq <= cursor.seq]
        return Follower(model, cursor, had)

    @rule(follower=followers)
    def connect(self, follower: Follower) -> None:
        if follower.subscriber is not None:
            return

        async def subscribe() -> Subscriber | Failure:
            try:
                found = await self.hub.find(follower.model.stream.id)
            except ProxyError as error:
                return error.failure
            subscriber = found.subscribe(follower.cursor)
            self.hub.admission.watch(found, subscriber)
            return subscriber

        subscriber = self.run(subscribe)
        if isinstance(subscriber, Failure):
            assert (subscriber, follower.model.live) == (Failure.GONE, False)
            return
        assert subscriber.stream.finished != follower.model.live
        follower.subscriber = subscriber
        self.connected.append(follower)

    @rule(follower=followers, most=st.integers(1, 5))
    def read(self, follower: Follower, most: int) -> None:
        for _ in range(most):
            if not self._take(follower):
                return

    def _take(self, follower: Follower) -> bool:
        """Take one entry if there is one; at the end leave."""
        subscriber = follower.subscriber
        if subscriber is None:
            return False
        model = follower.model
        if subscriber.stream.log.after(subscriber.seq) is None and not subscriber.stream.finished:
            return False  # it would wait
        entry = self.run(subscriber.next)
        if entry is None:
            assert subscriber.at_end
            assert follower.had == list(model.outcomes)
            self.leave(follower)
            return False
        assert follower.cursor is None or entry.cursor > follower.cursor
        follower.cursor = entry.cursor
        if entry.critical:
            missed = [seq for seq in model.outcomes if seq <= entry.cursor.seq and seq not in follower.had]
            assert missed == [entry.cursor.seq]
            assert entry.frame is model.outcomes[entry.cursor.seq]
            follower.had.append(entry.cursor.seq)
        else:
            assert model.previews.get(entry.frame.image) == entry.cursor.seq
        return True

    @rule(follower=followers)
    def leave(self, follower: Follower) -> None:
        subscriber, follower.subscriber = follower.subscriber, None
        if subscriber is None:
            return
        self.connected.remove(follower)

        async def unwatch() -> None:
            self.hub.admission.unwatch(subscriber.stream, subscriber)

        self.run(unwatch)
        model = follower.model
        if subscriber.stream is model.stream and model.live and not model.stream.subscribers:
            assert model.generation.scope.cancel_called == (model.policy is OnDisconnect.CANCEL)
            if model.policy is OnDisconnect.CANCEL:
                self.run(lambda: self._end(model, "fail"))

    @rule(follower=consumes(followers))
    def forget(self, follower: Follower) -> None:
        self.leave(follower)

    # The world.

    @rule(seconds=st.sampled_from([1.0, LINGER / 2, LINGER]))
    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        self.run(self.store.sweep)

    @rule(target=models, sizes=st.lists(st.integers(100, 300), min_size=1, max_size=3))
    def crowd(self, sizes: list[int]) -> MultipleResults[Model]:
        """Streams that come and go at once press on the cap."""
        for size in sizes:
            self.create(OnDisconnect.FINISH)
            self.append(self.all[-1], 0, True, size)
            self.end(self.all[-1], "finish")
        return multiple(*self.all[-len(sizes) :])

    @precondition(lambda self: self.connected)
    @rule()
    def read_all(self) -> None:
        for follower in list(self.connected):
            while self._take(follower):
                pass

    # What always holds.

    @invariant()
    def bytes_are_accounted_for(self) -> None:
        streams = [kept for _, kept in self.store._live.values()]
        streams += [kept for _, _, kept in self.store._finished.values()]
        assert self.store.bytes == sum(entry.frame.size for kept in streams for entry in kept.retained())
        assert all(kept.bytes == sum(entry.frame.size for entry in kept.retained()) for kept in streams)
        live = sum(kept.bytes for _, kept in self.store._live.values())
        assert self.store.bytes <= max(CAP, live)

    @invariant()
    def live_streams_retain_what_the_model_says(self) -> None:
        for model in self.all:
            expected = sorted([*model.outcomes, *model.previews.values()])
            retained = [entry.cursor.seq for entry in model.stream.log.retained()]
            if not model.live:  # what its last reader has taken is gone
                assert retained == expected[len(expected) - len(retained) :]
                for reader in model.stream.subscribers:
                    assert [seq for seq in expected if seq > reader.seq] == [s for s in retained if s > reader.seq]
            else:
                assert retained == expected
                assert [e.cursor.seq for e in self.store._live[model.stream.id][1].retained()] == expected

    @invariant()
    def nothing_is_leaked(self) -> None:
        if not hasattr(self, "hub"):
            return
        live = {model.stream.id for model in self.all if model.live}
        assert set(self.hub._generations) == set(self.store._live) == live
        assert sum(self.hub.admission._viewers_of.values()) == len(self.connected)
        assert sum(len(model.stream.subscribers) for model in self.all) <= len(self.connected)

    def teardown(self) -> None:
        async def stop() -> None:
            self.stop.set()
            if self.app is not None:
                await self.app
            assert asyncio.all_tasks() == {asyncio.current_task()}

        for follower in list(self.connected):
            self.leave(follower)
        try:
            self.run(stop)
        finally:
            self.runner.close()


TestStreams = Streams.TestCase
TestStreams.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
