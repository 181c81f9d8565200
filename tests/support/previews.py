"""Events with a real picture, and how its small previews look: 128 pixels wide, and saying so."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from io import BytesIO
from typing import Any, Final

import orjson
from PIL import Image

from streamproxy.simulator import pictures
from streamproxy.simulator.script import event
from tests.support.provider import COMPLETED, PREVIEW, USAGE

PICTURE: Final = pictures.encode(pictures.draw("a lighthouse at dusk", 768, 512), "png")
SHA: Final = hashlib.sha256(PICTURE).hexdigest()
SMALL: Final = "preview=128"


def shown(kind: str, **members: object) -> bytes:
    """An event with the picture."""
    b64 = base64.b64encode(PICTURE).decode()
    said = {"size": "768x512", "output_format": "png", "quality": "high"}
    return event(kind, orjson.dumps({"type": kind, "b64_json": b64, **said, **members}))


FIRST: Final = (shown(PREVIEW, partial_image_index=0),)
REST: Final = (shown(COMPLETED, usage=USAGE),)


def image_of(b64: object) -> tuple[str | None, tuple[int, int]]:
    """Format and size of the picture that is there."""
    image = Image.open(BytesIO(base64.b64decode(str(b64))))
    return image.format, image.size


def is_small(data: Mapping[str, Any], kind: str = "webp") -> None:
    """The event says what its picture is."""
    assert image_of(data["b64_json"]) == (kind.upper(), (128, 85))
    assert (data["size"], data["output_format"], data["quality"]) == ("128x85", kind, "high")
    assert data["partial_image_index"] == 0
    assert data["type"] == PREVIEW


def is_whole(data: Mapping[str, Any]) -> None:
    assert hashlib.sha256(base64.b64decode(data["b64_json"])).hexdigest() == SHA
    assert (data["size"], data["output_format"]) == ("768x512", "png")
