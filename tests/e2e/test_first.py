import pytest
from streamproxy.simulator import running
from tests.support.proxy import events, no_leaks, running_proxy

pytestmark = pytest.mark.anyio


async def test_a() -> None:
    async with no_leaks(), running(pace=0) as sim, running_proxy(sim.url) as proxy:
        got = events((await proxy.generate(stream=True, partial_images=2, size="256x256")).content)
        assert [e.event for e in got] == ["image_generation.partial_image"] * 2 + ["image_generation.completed"]
        assert sim.calls == 1
