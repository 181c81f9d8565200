"""xAI over real sockets: refusals under 200 are refusals, and what is left of a request is delivered."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import pytest

from tests.e2e.test_wires import KEY, wired
from tests.support.proxy import PROMPT, events

pytestmark = pytest.mark.anyio

FAULTS: Final = {
    "submit-429": (429, "rate_limit_exceeded", None),
    "key": (502, "provider_auth", None),
    "unknown": (404, "model_unavailable", None),
    "moderated": (400, "moderation_blocked", "invalid-argument"),
    "all-blocked": (400, "moderation_blocked", "respect_moderation"),
    "blocked": (400, "moderation_blocked", "respect_moderation"),
}


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("fault", FAULTS)
async def test_faults(fault: str, stream: bool, tmp_path: Path) -> None:
    status, code, provider_code = FAULTS[fault]
    async with wired("xai", tmp_path) as setup:
        body = {"model": f"xai/fault-{fault}", "prompt": PROMPT, "stream": stream}
        answer = await setup.proxy.client.post(f"{setup.proxy.url}/v1/images/generations", json=body)
        told: Any = answer.json()["error"]
        assert (answer.status_code, told["code"], told.get("provider_code")) == (status, code, provider_code)
        assert len(setup.posts) == 1
        assert PROMPT not in answer.text
        assert KEY not in answer.text


@pytest.mark.parametrize("stream", [True, False])
async def test_what_moderation_leaves_is_delivered(stream: bool, tmp_path: Path) -> None:
    async with wired("xai", tmp_path, stream_n=True) as setup:
        body = {"model": "xai/fault-blocked", "prompt": PROMPT, "n": 2, "stream": stream}
        answer = await setup.proxy.client.post(f"{setup.proxy.url}/v1/images/generations", json=body)
        assert answer.status_code == 200, answer.text
        whole: Any = answer.json() if not stream else events(answer.content)[0].json
        [image] = whole["data"] if not stream else [whole]
        assert "moderation" in image["warning"]
        assert whole["cost"] == 0.08
