"""What the bench's provider answers, made once, and the check that a peer delivered it.

One answer is four events in the layout of OpenAI's images surface: three previews and one completed image. A peer's
first answer is read event by event; the later ones only have to equal it, which costs one memcmp per chunk.
"""

from __future__ import annotations

import base64
import json
import random
import re
from dataclasses import dataclass
from functools import cached_property
from typing import Final

PREVIEWS: Final = 3  # the most that `partial_images` allows
PREVIEW_BYTES: Final = 1_500_000  # of base64: a 1024 x 1024 PNG
COMPLETED_BYTES: Final = 2_000_000
CHUNK: Final = 64 * 1024  # bytes per chunk of HTTP's chunked framing
SEED: Final = 7

HEAD: Final = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n"
LAST_CHUNK: Final = b"0\r\n\r\n"
BLANK_LINE: Final = re.compile(rb"\r?\n\r?\n")


class Void(Exception):
    """What a peer delivered is not what the provider sent, so that its numbers mean nothing."""


@dataclass(frozen=True)
class Answer:
    """The provider's answer. `scale` shrinks its images, for a quick look."""

    scale: float = 1.0

    @cached_property
    def events(self) -> tuple[tuple[str, bytes], ...]:
        """Name and data of each event."""
        source = random.Random(SEED)
        previews = [self._data(source, number) for number in range(PREVIEWS)]
        return (
            *(("image_generation.partial_image", data) for data in previews),
            ("image_generation.completed", self._data(source, None)),
        )

    def _data(self, source: random.Random, preview: int | None) -> bytes:
        size = int((COMPLETED_BYTES if preview is None else PREVIEW_BYTES) * self.scale)
        kind = "completed" if preview is None else "partial_image"
        usage = {
            "total_tokens": 100,
            "input_tokens": 50,
            "output_tokens": 50,
            "input_tokens_details": {"text_tokens": 50, "image_tokens": 0},
        }
        members = {
            "type": f"image_generation.{kind}",
            "b64_json": base64.b64encode(source.randbytes(size * 3 // 4)).decode(),
            "created_at": 1_795_248_000,
            "size": "1024x1024",
            "quality": "low",
            "background": "opaque",
            "output_format": "png",
        }
        members |= {"usage": usage} if preview is None else {"partial_image_index": preview}
        return json.dumps(members, separators=(",", ":")).encode()

    @cached_property
    def frames(self) -> tuple[bytes, ...]:
        """Each event as the provider lays it out."""
        return tuple(b"event: %b\ndata: %b\n\n" % (name.encode(), data) for name, data in self.events)

    @cached_property
    def writes(self) -> tuple[bytes, ...]:
        """Each frame in HTTP's chunked framing: a provider flushes at the end of an event."""
        return tuple(b"".join(map(_chunk, _cut(frame))) for frame in self.frames)

    def frame_ends(self, body: bytes) -> tuple[int, ...]:
        """Where each event ends in the body that a peer delivered; raises Void where it is not this answer.

        Previews have to be there byte for byte; to the completed event members may have been added.
        """
        ends: list[int] = []
        start = 0
        for blank in BLANK_LINE.finditer(body):
            lines = body[start : blank.start()].splitlines()
            start = blank.end()
            fields = dict(line.split(b": ", 1) for line in lines if line and not line.startswith(b":"))
            if not fields:
                continue
            if len(ends) == len(self.events):
                raise Void("it delivered more events than were sent")
            name, data = self.events[len(ends)]
            if fields.get(b"event") != name.encode() or not _holds(fields.get(b"data", b""), data, "completed" in name):
                raise Void(f"event {len(ends) + 1} is not the one that was sent")
            ends.append(start)
        if len(ends) != len(self.events) or ends[-1] != len(body):
            raise Void(f"it delivered {len(ends)} of {len(self.events)} events, or bytes behind the last")
        return tuple(ends)


def _holds(received: bytes, sent: bytes, may_add: bool) -> bool:
    if not may_add or received == sent:
        return received == sent
    try:
        members = json.loads(received)
    except ValueError:
        return False
    return isinstance(members, dict) and members.items() >= json.loads(sent).items()


def _cut(frame: bytes) -> list[bytes]:
    return [frame[start : start + CHUNK] for start in range(0, len(frame), CHUNK)]


def _chunk(piece: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(piece), piece)
