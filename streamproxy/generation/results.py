"""Completed pictures in a bucket: put there beside their delivery, and found there again by any process.

    keep(record, frame)     put the pictures of a frame, in the background
    urls(id, created)       signed URLs of a stream's pictures that are there
    forget(id, created)     delete them, in the background

A picture's key is `<date>/<stream>/<image>.<format>`. A bucket that fails costs a caller at most WAIT_SECONDS, and
after a failure nothing for REST_SECONDS: then the URLs are the proxy's own, as without a bucket.
"""

from __future__ import annotations

import re
from collections import Counter, OrderedDict
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Final

import anyio
from anyio import to_thread
from anyio.abc import TaskGroup

from streamproxy.core.eventdata import answer_items, image_bytes, taken_apart
from streamproxy.core.events import ANSWER, ERROR, Frame
from streamproxy.core.images import SNIFFED, decoded, sniff
from streamproxy.core.sse import Piece
from streamproxy.hub.log import Record
from streamproxy.observe import Observer
from streamproxy.signals import Signal
from streamproxy.upstream.bucket import Bucket, BucketError

UPLOADS: Final = 8
"""At a time. Each holds one frame's pictures, decoded."""

HELD_BYTES: Final = 128 * 1024 * 1024
"""Event data of frames whose pictures wait to be put. A picture beyond that is not put."""

WAIT_SECONDS: Final = 2.0
"""What an answer with URLs waits for its last picture to be in the bucket: 2 MB take some 100 ms."""

REST_SECONDS: Final = 30.0
"""After a failure no answer waits for the bucket for so long, unless a picture has been put meanwhile."""

KNOWN: Final = 10_000
"""Streams whose keys are remembered, some 300 bytes each."""

DAYS: Final = 3
"""Where pictures are looked for if the stream is not known any more: its token and its linger have a day at most."""

_NAME: Final = re.compile(r"([0-9]{1,3})\.[a-z0-9]{1,5}")


class Results:
    """See the module's text. `tasks` is the app's task group."""

    def __init__(self, bucket: Bucket, *, tasks: TaskGroup, observer: Observer) -> None:
        self._bucket = bucket
        self._tasks = tasks
        self._observer = observer
        self._turns = anyio.Semaphore(UPLOADS)
        self._keys: OrderedDict[str, dict[int, str]] = OrderedDict()
        self._pending: Counter[str] = Counter()
        self._held = 0
        self._changed = Signal()
        self._rests_until = 0.0

    def keep(self, record: Record, frame: Frame) -> None:
        """Put a frame's pictures into the bucket, in the background, if it has any."""
        if not frame.final or frame.sums or frame.type == ERROR:
            return
        if self._held + frame.size > HELD_BYTES:
            self._observer.result("skipped", record.id, "too many pictures wait to be put")
            return
        self._held += frame.size
        self._pending[record.id] += 1
        self._tasks.start_soon(self._put, record, frame)

    async def urls(self, id: str, created: int | None) -> Mapping[int, str]:
        """Signed URLs of the pictures that are there, by their index. `created`: None where it is not known."""
        if anyio.current_time() < self._rests_until:
            return {}
        try:
            with anyio.move_on_after(WAIT_SECONDS):
                await self._put_all(id)
                keys = dict(self._keys.get(id) or await self._listed(id, created))
                signed = await self._bucket.signed(list(keys.values())) if keys else []
                return dict(zip(keys, signed, strict=True))
        except BucketError as error:
            self._failed("unlinked", id, str(error))
            return {}
        self._failed("slow", id, "it takes too long")
        return {}

    def forget(self, id: str, created: int) -> None:
        """Delete a stream's pictures, in the background."""
        self._tasks.start_soon(self._forget, id, created)

    async def _forget(self, id: str, created: int) -> None:
        try:
            await self._put_all(id)
            keys = self._keys.pop(id, None) or await self._listed(id, created)
            self._keys.pop(id, None)
            if keys:
                await self._bucket.delete(list(keys.values()))
        except BucketError as error:
            self._failed("undeleted", id, str(error))

    async def settled(self, within: float) -> None:
        """Return when no picture waits any more, or after `within` seconds."""
        until = anyio.current_time() + within
        while self._pending and await self._changed.wait(until):
            pass

    async def _put_all(self, id: str) -> None:
        """Return when all pictures of a stream of this process are there that will be."""
        while id in self._pending:
            await self._changed.wait()

    async def _listed(self, id: str, created: int | None) -> dict[int, str]:
        found: dict[int, str] = {}
        for folder in _folders(id, created):
            for name in await self._bucket.names(folder):
                if match := _NAME.fullmatch(name):
                    found[int(match[1])] = f"{folder}/{name}"
            if found:
                break
        if created is None:  # of a stream that was let go no further picture comes
            self._remember(id, found)
        return found

    async def _put(self, record: Record, frame: Frame) -> None:
        try:
            async with self._turns:
                folder = _folder(record.id, record.created)
                for index, picture in await to_thread.run_sync(_pictures, frame):
                    media_type = sniff(picture[:SNIFFED]) or "application/octet-stream"
                    key = f"{folder}/{index}.{_FORMATS.get(media_type, 'bin')}"
                    await self._bucket.put(key, picture, media_type)
                    self._remember(record.id, {index: key})
                    self._rests_until = 0.0
                    self._observer.result("stored", record.id)
        except BucketError as error:
            self._failed("failed", record.id, str(error))
        except Exception as error:  # in the app's task group it would end the app
            self._observer.unexpected(error, record.id)
        finally:
            self._held -= frame.size
            self._pending[record.id] -= 1
            if not self._pending[record.id]:
                del self._pending[record.id]
            self._changed.set()

    def _failed(self, outcome: str, id: str, reason: str) -> None:
        self._rests_until = anyio.current_time() + REST_SECONDS
        self._observer.result(outcome, id, reason)

    def _remember(self, id: str, keys: Mapping[int, str]) -> None:
        self._keys.setdefault(id, {}).update(keys)
        self._keys.move_to_end(id)
        if len(self._keys) > KNOWN:
            self._keys.popitem(last=False)


_FORMATS: Final = {
    "image/png": "png",
    "image/jpeg": "jpg",
    "image/webp": "webp",
    "image/gif": "gif",
    "image/avif": "avif",
    "image/heic": "heic",
}


def _pictures(frame: Frame) -> list[tuple[int, bytes]]:
    """A frame's pictures, decoded. One that is only at a URL is not among them."""
    if frame.type == ANSWER:
        found = [(index, _picture((item,))) for index, item in enumerate(answer_items(frame.data))]
    else:
        found = [(frame.image, _picture(frame.data))]
    return [(index, picture) for index, picture in found if picture]


def _picture(data: tuple[Piece, ...]) -> bytes | None:
    """The picture of an event, or of an answer's item."""
    _, base64 = taken_apart(data)
    text = b"".join(base64)
    try:
        return image_bytes(data) if b"\\" in text else decoded(text)  # some encoders escape the slash
    except ValueError:
        return None


def _folder(id: str, created: float) -> str:
    return f"{datetime.fromtimestamp(created, UTC):%Y-%m-%d}/{id}"


def _folders(id: str, created: int | None) -> Iterator[str]:
    """Where a stream's pictures may be."""
    if created is not None:
        yield _folder(id, created)
        return
    today = datetime.now(UTC).timestamp()
    for day in range(DAYS):
        yield _folder(id, today - 86_400 * day)
