"""The caller's side of each exchange: requests to the edge, and what came back of the proxy's answers, and when."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final
from uuid import uuid4

import anyio
import httpx

from streamproxy.doctor.witness import PROBE, Exchange, Witness

GENERATIONS: Final = "/v1/images/generations"
EDITS: Final = "/v1/images/edits"
MODEL: Final = "sim/gpt-image"
MARGIN_SECONDS: Final = 30.0
"""Most seconds of an answer beyond those that it is known to take."""

_TRACE: Final = f"00-{'1' * 32}-{'2' * 16}-01"


@dataclass(slots=True, eq=False)
class Answer:
    """An answer as it came through the edge. Times are `time.monotonic()`. `status` 0: there was none.

    `cut`: what ended it before its end. `exchanges`: its request at the proxy, once or several times or never.
    """

    asked: Mapping[str, str] = field(repr=False)
    body: str
    exchanges: list[Exchange]
    began: float = field(default_factory=time.monotonic)
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    pieces: list[tuple[float, bytes]] = field(default_factory=list, repr=False)
    cut: str = ""
    ended: float = 0.0

    @property
    def data(self) -> bytes:
        """The body so far."""
        return b"".join(data for _, data in self.pieces)

    @property
    def whole(self) -> bool:
        """Whether it is a 200, with its end."""
        return self.status == httpx.codes.OK and not self.cut

    @property
    def word(self) -> str:
        """How it failed, for a table."""
        return "cut" if self.status in (0, httpx.codes.OK) else str(self.status)


@dataclass(frozen=True, slots=True)
class Limits:
    """When a caller closes its connection: after `leave_after` seconds, or MARGIN_SECONDS after those of `patience`."""

    patience: float = 0.0
    leave_after: float | None = None

    @property
    def seconds(self) -> float:
        return self.patience + MARGIN_SECONDS if self.leave_after is None else self.leave_after


@dataclass(frozen=True, slots=True)
class Caller:
    """Asks by the edge's URL. `answers` holds all answers so far."""

    client: httpx.AsyncClient
    url: str
    key: str = field(repr=False)
    witness: Witness
    answers: list[Answer] = field(default_factory=list, repr=False)

    async def order(
        self, prompt: str, *, stream: bool, limits: Limits = Limits(), encodings: str = "identity"
    ) -> Answer:
        """Order the image of a script, and read the answer."""
        body = {"model": MODEL, "prompt": prompt, "stream": stream, **({"partial_images": 3} if stream else {})}
        headers = {
            "accept-encoding": encodings,
            "content-type": "application/json",
            "idempotency-key": uuid4().hex,
            "x-request-id": f"doctor-{uuid4().hex}",
            "traceparent": _TRACE,
        }
        return await self.ask("POST", GENERATIONS, headers, json.dumps(body).encode(), limits)

    async def ask(
        self, method: str, path: str, headers: Mapping[str, str], body: bytes = b"", limits: Limits = Limits()
    ) -> Answer:
        """Send a request and read its answer."""
        probe = uuid4().hex
        sent = {"authorization": f"Bearer {self.key}", "accept-encoding": "identity", **headers}
        answer = Answer(sent, hashlib.sha256(body).hexdigest(), self.witness.expect(probe))
        request = self.client.build_request(
            method, self.url + path, params={PROBE: probe}, headers=sent, content=body or None
        )
        with anyio.move_on_after(limits.seconds) as scope:
            try:
                await self._read(request, answer)
            except httpx.HTTPError as error:
                answer.cut = type(error).__name__
        if scope.cancelled_caught:
            answer.cut = "no end"
        answer.ended = time.monotonic()
        self.answers.append(answer)
        return answer

    async def _read(self, request: httpx.Request, answer: Answer) -> None:
        response = await self.client.send(request, stream=True)
        try:
            answer.status = response.status_code
            answer.headers = dict(response.headers.items())
            async for data in response.aiter_raw():
                answer.pieces.append((time.monotonic(), data))
        finally:
            await response.aclose()
