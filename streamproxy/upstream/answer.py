"""One answer on its way from a connection to the task that sent the request.

    the loop       Connection -> Parser -> Answer.on_body -> Intake.feed     in the connection's own callback, no task
    the task       answer.chunk(), answer.body(limit), async for frame in answer.frames(decoder)

Bytes are decoded in the callback in which they arrive. The task wakes once per frame, for the end, and for a failure,
since half an event is of no use to it. Decoded frames that are not taken yet are bounded (see Intake): above the bound
the connection stops reading. All deadlines are one alarm with a time that moves. While reading is stopped, silence is
not counted.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterable, Callable, Iterator
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, Generic, Protocol, TypeVar

import anyio
import anyio.lowlevel

from streamproxy.core.requests import Head
from streamproxy.errors import Failure, ProxyError
from streamproxy.upstream.deadlines import Alarm, Deadlines, did_not_answer, fell_silent, took_too_long
from streamproxy.upstream.parsing import Header, Parser

if TYPE_CHECKING:
    from streamproxy.upstream.connection import Connection

WAITING: Final = 64 * 1024
"""Bytes of waiting frames above which reading stops. One larger frame stops it at once. A run of small frames together
with the end of the answer is still read, since the kernel may discard unread bytes on a reset.
"""

TURN: Final = 0.005
"""Seconds that one task takes frames of an answer before other tasks get a turn."""

CLOSE_SECONDS: Final = 1.0
"""Seconds for the end of an interrupted upload: a thread may be reading the file."""

T_co = TypeVar("T_co", covariant=True)
T = TypeVar("T")


class Decoder(Protocol[T_co]):
    """The receiver of an answer's bytes. Pure and quick, since `feed` runs in a callback of the event loop.

    A decoder may have `gather(chunk) -> bool`, or None in its place until it can have one. It is asked before `feed`:
    True where it took the chunk as the middle of a frame. Nine tenths of an image's chunks are that, and an iterator
    for each would cost most of their time.
    """

    @property
    def done(self) -> bool:
        """Whether the rest of the answer is not wanted."""
        ...

    def feed(self, chunk: bytes) -> Iterator[T_co | None]:
        """Take the next bytes, cut anywhere, and yield the frames that they complete. May raise after them.

        None among them asks for a turn of other tasks before the next.
        """
        ...

    def finish(self) -> Iterator[T_co]:
        """Take the answer's end: yield the rest, then raise unless the answer is complete."""
        ...


class Intake:
    """The part of an answer that its task has not taken yet.

    `frames`: decoded ones; `chunks`: bytes that no decoder has taken yet. `over`: no byte will follow; `broken`: the
    reason, unless that is the answer's end. `undecodable`: the decoder's exception.
    """

    __slots__ = (
        *("_decoder", "_decoding", "_gather", "_held", "_waiter"),
        *("broken", "chunks", "frames", "over", "undecodable"),
    )

    def __init__(self) -> None:
        self.chunks: deque[bytes] = deque()
        self.frames: deque[Any] = deque()
        self.over = False
        self.broken: Exception | None = None
        self.undecodable: Exception | None = None
        self._decoder: Decoder[Any] | None = None
        self._decoding: Iterator[Any] | None = None
        self._gather: Callable[[bytes], bool] | None = None
        self._held = 0
        self._waiter: asyncio.Future[None] | None = None

    @property
    def full(self) -> bool:
        """Whether reading has to stop until the task has taken some of it."""
        return self._decoding is not None or (self._held >= WAITING and bool(self.frames or self.chunks))

    @property
    def interrupted(self) -> bool:
        """Whether the decoder has paused for other tasks; `decode` continues."""
        return self._decoding is not None

    def decode_with(self, decoder: Decoder[Any] | None) -> None:
        """Run the bytes so far, and all later ones, through this decoder until it is done."""
        self._decoder = decoder
        self._decoding = None
        self.decode()

    def feed(self, data: bytes) -> bool:
        """Take the next bytes; False where they only gather, and nothing waits to be taken."""
        self._held += len(data)
        if self._gather is not None:
            try:
                if self._gather(data):
                    return bool(self.frames)
            except Exception as error:
                self.undecodable, self._gather = error, None
                self.wake()
                return True
        self.chunks.append(data)
        if self._decoding is None:
            self.decode()
        return True

    def decode(self) -> None:
        """Decode the bytes so far, up to the next pause for other tasks."""
        self._gather = None
        while (decoder := self._decoder) is not None and self.undecodable is None:
            if self._decoding is None:
                if not self.chunks:
                    self._gather = getattr(decoder, "gather", None)  # it has taken all that came before
                    break
                self._decoding = decoder.feed(self.chunks.popleft())
            try:
                for frame in self._decoding:
                    if frame is None:
                        self.wake()
                        return
                    self.frames.append(frame)  # whole frames before a failure of the decoder count
            except Exception as error:
                self.undecodable = error
            self._decoding = None
            if decoder.done:
                self._decoder = None
        if self.frames or self.chunks or self._decoder is None or self.undecodable is not None:
            self.wake()  # else the event gathers

    def close(self, broken: Exception | None = None) -> None:
        """Note that no byte will follow."""
        self.over, self.broken = True, broken
        self.wake()

    def take(self, ready: deque[T]) -> T:
        """Take the next of `frames` or `chunks`. After the last of them, no waiting bytes are counted."""
        item = ready.popleft()
        if not ready:
            self._held = 0
        return item

    def wake(self) -> None:
        """Wake the waiting task."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def changed(self) -> None:
        """Return when there may be something to take. Only one task may wait."""
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None


class Answer:
    """A provider's answer: its head, and its body, which can be read once. `uploaded`: all of the request is sent.

    `release` is called once, with whether the connection can be used again.
    """

    head: Head
    uploaded = False

    def __init__(
        self, connection: Connection, deadlines: Deadlines, ends_at: float, release: Callable[[Connection, bool], None]
    ) -> None:
        self._connection = connection
        self._deadlines = deadlines
        self._ends_at = ends_at
        self._release: Callable[[Connection, bool], None] | None = release
        self._loop = asyncio.get_running_loop()
        self._alarm = Alarm(self._late)
        self._parser = Parser(self)
        self._intake = Intake()
        self._answered = False
        self._busy = 0.0
        self._resumed = monotonic()
        self._sending: asyncio.Task[None] | None = None

    # What the task that asked does.

    def ask(self, first: bytes, rest: AsyncIterable[bytes] | None) -> None:
        """Send the request: its first bytes at once, the rest as the connection takes it."""
        self._connection.carry(self, first)
        self._sent()
        if rest is None:
            self.uploaded = True
        else:
            self._sending = self._loop.create_task(self._send(rest))

    async def arrival(self) -> None:
        """Return when the head is there. Raises ProxyError otherwise."""
        while not self._answered:
            if self._intake.broken is not None:
                raise self._intake.broken
            await self._intake.changed()

    @property
    def at_end(self) -> bool:
        """Whether all of it has been read, to an end as it should be."""
        intake = self._intake
        return intake.over and intake.broken is None and not intake.chunks

    async def chunk(self) -> bytes | None:
        """The next bytes of the body; None at its end."""
        intake = self._intake
        await self.turn()
        while not intake.chunks:
            if intake.broken is not None:
                raise intake.broken
            if intake.over:
                return None
            self.read_on()
            await self.changed()
        return intake.take(intake.chunks)

    async def body(self, limit: int, within: float | None = None) -> bytes:
        """The whole body, or the part of it that comes `within` so many seconds.

        Raises ProxyError(RESPONSE_BODY_SIZE) over `limit` bytes.
        """
        chunks: list[bytes] = []
        size = 0
        with anyio.move_on_after(within):
            while (chunk := await self.chunk()) is not None:
                size += len(chunk)
                if size > limit:
                    raise ProxyError(Failure.RESPONSE_BODY_SIZE, f"The provider's answer is over {limit} bytes.")
                chunks.append(chunk)
        return b"".join(chunks)

    def frames(self, decoder: Decoder[T]) -> Frames[T]:
        """The frames that `decoder` makes of the body."""
        self._intake.decode_with(decoder)
        return Frames(self, self._intake, decoder)

    async def turn(self) -> None:
        """Let other tasks run, and a cancellation in, if this task has been busy for TURN.

        If bytes arrive faster than they are taken, no wait ever blocks, and a cancellation would not be delivered.
        """
        now = monotonic()  # not the event loop's clock: uvloop's stands still until the loop has its turn
        self._busy += now - self._resumed
        self._resumed = now
        if self._busy >= TURN:
            await _turn()
            self._busy = 0.0
            self._resumed = monotonic()

    async def decode_on(self) -> None:
        """Continue a decoder that has paused, after a turn of other tasks."""
        await _turn()
        self._resumed = monotonic()
        self._intake.decode()

    async def changed(self) -> None:
        """Return when there may be something to take."""
        await self._intake.changed()
        self._resumed = monotonic()

    def read_on(self) -> None:
        """Resume reading: the task asks for more, so it is done with the frame before.

        The idle deadline starts anew, since the silence was ours and not the provider's.
        """
        if self._connection.resume() and not self._intake.over:
            self._heard()

    async def aclose(self) -> None:
        """Give the connection back for the next request if the answer is over; otherwise close it."""
        release, self._release = self._release, None
        if release is None:
            return
        self._alarm.cancel()
        self._intake.decode_with(None)  # frees half an event now, not when reference cycles are collected
        try:
            if self._sending is not None and self._sending.cancel():
                with anyio.CancelScope(shield=True, deadline=anyio.current_time() + CLOSE_SECONDS):
                    await asyncio.wait([self._sending])
        finally:
            release(self._connection, self.uploaded and self._parser.over and self._parser.keeps_alive)

    async def _send(self, pieces: AsyncIterable[bytes]) -> None:
        try:
            async for piece in pieces:
                await self._connection.writable()
                if not self._connection.open:
                    return  # which has been told
                self._connection.write(piece)
                self._sent()
            self.uploaded = True
        except Exception as error:
            self._break(error)

    def _sent(self) -> None:
        """Note that bytes of the request were sent. The deadline for the answer, or for more of it, starts anew."""
        if not self._answered:
            self._alarm.set(min(self._loop.time() + self._deadlines.first_byte, self._ends_at))
        elif not self._intake.over and not self._intake.full:
            self._heard()

    # What the connection tells, in the event loop's callback.

    def receive(self, data: memoryview) -> None:
        """Take the next bytes. Their memory is reused after this returns."""
        try:
            whole = self._parser.receive(data)
        except ProxyError as error:
            self._break(error)
            return
        if not whole:
            self._connection.overrun()
        elif self._answered and not self._intake.over and not self._intake.full:
            self._heard()

    def ended(self, error: Exception | None) -> None:
        """Note that the connection has ended, cleanly or by this error."""
        if self._intake.over:
            return
        if not self._answered:
            self._break(self._unanswered())
        elif error is not None:
            message = "The provider reset the connection in the middle of its answer."
            self._break(ProxyError(Failure.STREAM_RESET, message))
        else:
            try:
                self._parser.end()
            except ProxyError as incomplete:
                self._break(incomplete)

    def on_head(self, status: int, headers: tuple[Header, ...]) -> None:
        items = ((name.lower().decode("latin-1"), _text(value.strip(b" \t"))) for name, value in headers)
        self.head = Head(status, tuple(items))
        self._answered = True
        self._heard()
        self._intake.wake()

    def on_body(self, data: bytes) -> None:
        intake = self._intake
        if intake.over or not intake.feed(data):
            return  # `over`: the answer was given up, and this is the rest of a read
        if intake.undecodable is not None:
            self._break(intake.undecodable)
        elif intake.full:
            self._connection.pause()
            self._alarm.set(self._ends_at)  # the silence is ours

    def on_end(self) -> None:
        self._alarm.cancel()
        self._intake.close()

    def _heard(self) -> None:
        self._alarm.set(min(self._loop.time() + self._deadlines.idle, self._ends_at))

    def _late(self) -> None:
        """Fail by the deadline that has passed."""
        if self._loop.time() >= self._ends_at:
            self._break(took_too_long(self._deadlines.total))
        elif self._answered:
            self._break(fell_silent(self._deadlines.idle))
        else:
            self._break(did_not_answer(self._deadlines.first_byte))

    def _break(self, error: Exception) -> None:
        """Give the answer up, and close its connection."""
        if not self._intake.over:
            self._alarm.cancel()
            self._intake.close(error)
            self._connection.abort()

    def _unanswered(self) -> ProxyError:
        if self.uploaded:
            message = "The provider closed the connection before it answered."
            return ProxyError(Failure.CONNECTION_TERMINATED, message)
        return ProxyError(
            Failure.UPLOAD_REJECTED,
            "The provider closed the connection while the request was still being sent, without an answer. "
            "The upload may be too large for it.",
        )


class Frames(Generic[T]):
    """The frames of one answer, in order, for `async for`.

    Where the answer breaks off, the whole frames come before the failure. A last event without its blank line counts as
    whole.
    """

    def __init__(self, answer: Answer, intake: Intake, decoder: Decoder[T]) -> None:
        self._answer = answer
        self._intake = intake
        self._decoder = decoder
        self._last: Iterator[T] | None = None

    def __aiter__(self) -> Frames[T]:
        return self

    async def __anext__(self) -> T:
        intake = self._intake
        await self._answer.turn()
        while not intake.frames:
            if intake.interrupted:
                await self._answer.decode_on()
                continue
            if intake.undecodable is not None:
                raise intake.undecodable
            if self._decoder.done and self._last is None:
                raise StopAsyncIteration
            if intake.over:
                return self._left()
            self._answer.read_on()
            await self._answer.changed()
        frame: T = intake.take(intake.frames)
        return frame

    def _left(self) -> T:
        """The frames that the decoder makes of the answer's end."""
        if self._last is None:
            self._last = self._decoder.finish()
        try:
            return next(self._last)
        except StopIteration:
            if self._intake.broken is not None and not self._decoder.done:
                raise self._intake.broken from None
            raise StopAsyncIteration from None
        except ProxyError as error:
            raise self._intake.broken or error from None


async def _turn() -> None:
    await anyio.lowlevel.checkpoint()
    await anyio.lowlevel.checkpoint_if_cancelled()  # waits for a cancellation that the one before just missed


def _text(value: bytes) -> str:
    """Decode a header's value: UTF-8 if it is valid, else Latin-1, as RFC 2616 had it."""
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value.decode("latin-1")
