"""OpenAI-shaped hosts, simulated with their differences from OpenAI. Base URL: {server}/hosts/<name>/v1.

Each takes only its own members, and answers in its own shape: without `created`, with URLs, or with an error that is a
string. The model `fault-moderated` is refused by moderation.
"""

from __future__ import annotations

import base64
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any, Final, Literal
from uuid import uuid4

import anyio
import msgspec
import orjson
from anyio.to_thread import run_sync

from streamproxy.errors import ProxyError
from streamproxy.simulator import pictures
from streamproxy.simulator.multipart import parts
from streamproxy.simulator.received import Received
from streamproxy.simulator.script import Script, Send, head, json_answer

PREFIX: Final = "/hosts/"
MAX_FILES: Final = 100
MODERATED: Final = "fault-moderated"

Members = frozenset[str]


@dataclass(frozen=True, slots=True)
class Host:
    """One host. `takes`: its members; `edits`: their path; `form`: edits are a form; `image`: its member of an image.

    `answers`: base64, or URLs. `error`: its refusal by moderation.
    """

    takes: Members
    edits: str
    form: bool
    image: str
    answers: Literal["b64_json", "url"]
    error: object
    generations: str = "images/generations"


BASE: Final = frozenset({"model", "prompt", "n"})
HOSTS: Final[Mapping[str, Host]] = MappingProxyType(
    {
        "together": Host(
            BASE | {"width", "height", "steps", "seed", "response_format", "output_format", "image_url"},
            *("images/generations", False, "image_url", "b64_json"),
            {"error": {"message": "NSFW", "type": "invalid_request_error", "param": None, "code": "nsfw"}},
        ),
        "deepinfra": Host(
            BASE | {"size", "user", "response_format", "mask"},
            *("images/edits", True, "image", "b64_json"),
            {"detail": {"error": "NSFW"}},
        ),
        "recraft": Host(
            BASE | {"size", "style", "response_format", "strength", "random_seed"},
            *("images/imageToImage", True, "image", "url"),
            {"code": "nsfw", "message": "The prompt is refused."},
        ),
        "zai": Host(
            BASE | {"size", "quality", "user_id", "watermark_enabled", "response_format"},
            *("", False, "", "url"),
            {"error": {"code": "1301", "message": "The content is sensitive."}},
        ),
        "sd-cpp": Host(
            BASE | {"size", "output_format", "output_compression", "mask"},
            *("images/edits", True, "image", "b64_json"),
            {"error": "prompt refused"},
        ),
    }
)


class Hosts:
    """The handler: see `simulator.Form`."""

    prefix = PREFIX

    def __init__(self, pace: float) -> None:
        self._files: OrderedDict[str, bytes] = OrderedDict()
        self._drawing = anyio.CapacityLimiter(4)

    async def __call__(self, received: Received) -> Script:
        name, _, path = received.target.removeprefix(PREFIX).partition("/v1/")
        if path.startswith("files/"):
            return self._file(path.removeprefix("files/"))
        host = HOSTS.get(name)
        if host is None or path not in (host.generations, host.edits):
            return json_answer(404, {"error": "There is no such path."})
        try:
            members, shown = _read(received, host)
        except (ValueError, msgspec.DecodeError, ProxyError) as error:
            return json_answer(400, {"error": str(error)})
        strange = sorted(members.keys() - host.takes)
        if strange:
            return json_answer(400, {"error": f"Unknown members: {', '.join(strange)}."})
        if members["model"] == MODERATED:
            return json_answer(400, host.error)
        files = await run_sync(partial(_drawn, members, shown), limiter=self._drawing)
        base = f"http://{received.header('host')}{PREFIX}{name}/v1/"
        data = [{"b64_json": base64.b64encode(file).decode()} for file in files]
        if host.answers == "url":
            data = [{"url": self._keep(file, base)} for file in files]
        return json_answer(200, _answer(name, str(members["model"]), data))

    def _keep(self, file: bytes, base: str) -> str:
        name = f"{uuid4().hex}.png"
        self._files[name] = file
        if len(self._files) > MAX_FILES:
            self._files.popitem(last=False)
        return f"{base}files/{name}"

    def _file(self, name: str) -> Script:
        file = self._files.get(name)
        if file is None:
            return json_answer(404, {"error": "There is no such file."})
        return (Send(head(200, (("Content-Type", "image/png"),), length=len(file))), Send(file))


def _read(received: Received, host: Host) -> tuple[dict[str, Any], bytes | None]:
    """The members, and the first input image. Raises ValueError, msgspec.DecodeError."""
    kind = received.header("content-type") or ""
    if not kind.startswith("multipart/form-data"):
        members: dict[str, Any] = msgspec.json.decode(received.body, type=dict[str, Any])
        shown = members.get(host.image)
        return members, pictures.from_data_url(shown) if isinstance(shown, str) else None
    if not host.form:
        raise ValueError("Edits are JSON.")
    members, images = {}, []
    for part in parts(received.body, kind):
        if part.name == host.image:
            images.append(part.data)
        else:
            members[part.name] = part.data.decode("utf-8", "replace") if part.name != "mask" else part.data
    return members, images[0] if images else None


def _answer(name: str, model: str, data: list[dict[str, str]]) -> bytes:
    match name:
        case "together":  # as recorded: indented, and without `created`
            items = [{"index": index, **item, "timings": {"inference": 1}} for index, item in enumerate(data)]
            body: dict[str, object] = {"id": "1", "model": model, "object": "list", "data": items}
            return orjson.dumps(body, option=orjson.OPT_INDENT_2)
        case "recraft":
            return orjson.dumps({"created": 1, "credits": 35, "data": data})
        case "zai":
            return orjson.dumps({"created": 1, "data": data, "content_filter": [{"role": "user", "level": 3}]})
    return orjson.dumps({"created": 1, "data": data})


def _drawn(members: dict[str, Any], shown: bytes | None) -> list[bytes]:
    size = (int(members.get("width", 512)), int(members.get("height", 512)))
    wide, _, high = str(members.get("size", "")).partition("x")
    if wide.isdecimal() and high.isdecimal():
        size = int(wide), int(high)
    prompts = [f"{members['prompt']} #{number}" for number in range(int(members.get("n", 1)))]
    drawn = (pictures.draw(text, *size) if shown is None else pictures.edit(text, *size, shown) for text in prompts)
    return [pictures.encode(picture, "png") for picture in drawn]
