"""The provider of the checks: a simulated one, whose answer is a row of a table, chosen by a word of the prompt."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from streamproxy.simulator.received import Received
from streamproxy.simulator.script import Script, Send, Wait, error_answer, event, json_answer, sse

PREVIEW_CHARACTERS: Final = 256
"""Base64 of one preview: so small that only a flush, and no full buffer, sends it on."""

IMAGE_CHARACTERS: Final = 64 * 1024
LEFT_HEARTBEATS: Final = 6
"""Length of the answers that callers leave, in heartbeats: longer than anything waits for them."""


@dataclass(frozen=True, slots=True)
class Times:
    """Seconds: of silence that an answer has, between two comments, and between two previews."""

    silence: float = 70.0  # above the defaults of nginx (60), Apache (60), HAProxy in most examples (50) and ALB (60)
    heartbeat: float = 5.0  # the setting's default
    pace: float = 1.0


def _preview(number: int) -> bytes:
    name = "image_generation.partial_image"
    data = {"type": name, "b64_json": "A" * PREVIEW_CHARACTERS, "created_at": 0, "partial_image_index": number}
    return event(name, json.dumps(data).encode())


def _completed() -> bytes:
    name = "image_generation.completed"
    return event(name, json.dumps({"type": name, "b64_json": "A" * IMAGE_CHARACTERS, "created_at": 0}).encode())


def _answer() -> Script:
    return json_answer(200, {"created": 0, "data": [{"b64_json": "A" * IMAGE_CHARACTERS}]})


def _left(times: Times) -> Wait:
    return Wait(LEFT_HEARTBEATS * times.heartbeat)


_ERROR: Final = b'{"type":"error","error":{"message":"A simulated failure.","type":"server_error","code":"simulated"}}'

SCRIPTS: Final[Mapping[str, Callable[[Times], Script]]] = MappingProxyType(
    {
        "previews": lambda times: sse((*map(_preview, range(3)), _completed()), waits=(times.pace,) * 4),
        "resume": lambda _: sse((*map(_preview, range(3)), _completed())),
        "failing": lambda _: sse((_preview(0), event("error", _ERROR))),
        "refused": lambda _: error_answer(400, "A simulated refusal.", param="prompt", code="simulated"),
        "broken": lambda _: error_answer(500, "A simulated failure.", type="server_error"),
        "silent-stream": lambda times: sse((_completed(),), waits=(times.silence,)),
        "silent-answer": lambda times: (Wait(times.silence), *_answer()),
        "left-stream": lambda times: (*sse((), end=()), _left(times), Send(b"0\r\n\r\n")),
        "left-answer": lambda times: (_left(times), *_answer()),
    }
)


def provider(times: Times) -> Callable[[Received], Script]:
    """The handler. An edit is answered at once."""

    def handle(received: Received) -> Script:
        if received.target.startswith("/v1/images/edits"):
            return _answer()
        return SCRIPTS[json.loads(received.body)["prompt"]](times)

    return handle
