"""Answers that are none: what comes instead of a provider's sound head, and how the caller is told."""

from __future__ import annotations

import pytest

from streamproxy.simulator import running
from streamproxy.simulator.script import Fin, Reset, Script, Send, Stall
from tests.support.faults import IMAGE, STREAMED, Refusal, provider
from tests.support.proxy import no_leaks, running_proxy

pytestmark = pytest.mark.anyio

PROTOCOL = Refusal(502, "http_protocol_error", "upstream_protocol")
TERMINATED = Refusal(502, "connection_terminated", "upstream_reset")
SILENT = Refusal(504, "first_byte_timeout", "ttfb_timeout")
CODING = Refusal(502, "content_coding", "upstream_encoding")

FAULTS = {
    "no-bytes": SILENT,
    "half-head-stall": SILENT,
    "reset-before-head": TERMINATED,
    "fin-before-head": TERMINATED,
    "fin-inside-head": TERMINATED,
    "bad-status-line": PROTOCOL,
    "not-http": PROTOCOL,
    "status-1000": PROTOCOL,
    "huge-head": Refusal(502, "header_section_size", "upstream_protocol"),
    "many-headers": Refusal(502, "header_section_size", "upstream_protocol"),
    "cr-in-header": PROTOCOL,
    "conflicting-content-length": PROTOCOL,
    "content-length-and-chunked": PROTOCOL,
    "many-100-continue": PROTOCOL,
    "switching-101": PROTOCOL,
    "redirect": Refusal(502, "unexpected_redirect", "upstream_redirect"),
    "html-200": Refusal(502, "unexpected_content_type", "upstream_protocol"),
    "gzip": CODING,
    "gzip-corrupt": CODING,
    "refused-500": Refusal(502, "provider_failed", "provider_5xx"),
    "html-500": Refusal(502, "provider_failed", "provider_5xx"),
    "no-content": Refusal(502, "no_image", "no_image"),
}


@STREAMED
@pytest.mark.parametrize("fault", FAULTS)
async def test_a_fault_before_the_head_is_an_http_status(fault: str, stream: bool) -> None:
    async with no_leaks(), running(pace=0) as sim, running_proxy(sim.url, first_byte_timeout=0.3) as proxy:
        answer = await proxy.generate(model=f"sim/fault-{fault}", stream=stream)
        await FAULTS[fault].check(proxy, answer)
        assert sim.calls == 1
        # The connection is gone, or clean: the next request has its own answer.
        assert (await proxy.generate(size="64x64")).status_code == 200
        assert sim.calls == 2
