"""Packages that add adapters and surfaces: installed for real, as files on the path with their metadata."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from streamproxy.app import create_app
from streamproxy.extensions import adapters, surfaces
from streamproxy.providers import ADAPTERS
from streamproxy.settings import Settings
from streamproxy.settings.values import ConfigurationError
from streamproxy.simulator.received import Received
from streamproxy.simulator.script import Script, json_answer
from streamproxy.simulator.server import serve
from tests.support.proxy import NO_TRUST, events, serving

MODULE = "acme_pictures"

SOURCE = """
import base64

from streamproxy.core.completion import finals
from streamproxy.core.conversation import Accepted, Picture, body, post_json, send
from streamproxy.web.responses import json_response
from streamproxy.web.routes import RouteRow


class Acme:
    def at_once(self, request, route):
        return 1

    def not_applied(self, job):
        return ()

    def converse(self, job):
        yield from send(post_json(job, f"{job.provider.base_url}/draw", {"text": job.request.prompt}))
        raw = yield from body(job.limits.answer)
        yield Accepted()
        yield from finals(job, [Picture((base64.b64encode(raw),), "image/png")])


async def hello(request, context):
    return json_response({"models": [provider.name for provider in context.providers]})


ADAPTER = Acme()
ROUTES = (RouteRow("GET", "/acme/hello", hello, "Says hello", surface=False),)
TAKEN = (RouteRow("POST", "/images/generations", hello, "Not its own"),)
NOTHING = object()
"""

Install = Callable[..., None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Install the package with these entry points: `group="name = module:object"`."""

    def installed(source: str = SOURCE, **groups: str) -> None:
        (tmp_path / f"{MODULE}.py").write_text(source)
        info = tmp_path / f"{MODULE}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: acme-pictures\nVersion: 1.0\n")
        sections = (f"[streamproxy.{group}]\n{line}\n" for group, line in groups.items())
        (info / "entry_points.txt").write_text("\n".join(sections))
        monkeypatch.syspath_prepend(tmp_path)

    yield installed
    sys.modules.pop(MODULE, None)


@pytest.mark.anyio
async def test_a_package_adds_a_provider_and_a_route(install: Install) -> None:
    install(adapters="acme = acme_pictures:ADAPTER", surfaces="acme = acme_pictures:ROUTES")
    seen: list[Received] = []

    def handler(received: Received) -> Script:
        seen.append(received)
        return json_answer(200, b"\x89PNG, and the rest of a picture")

    async with serve(handler) as server:
        row = {"base_url": server.url, "adapter": "acme", "credential": "none", "models": ["acme/sketch"]}
        settings = Settings.of({"port": 0, "providers": {"acme": row}})
        app = create_app(settings, environ={}, ssl_context=NO_TRUST)
        async with serving(app, settings) as proxy:
            answer = await proxy.generate(model="acme/sketch", stream=True)
            assert [event.event for event in events(answer.content)] == ["image_generation.completed"]
            assert (await proxy.client.get(f"{proxy.url}/acme/hello")).json() == {"models": ["acme"]}
    assert [one.target for one in seen] == ["/draw"]


def test_without_packages_there_are_only_our_own() -> None:
    assert adapters() == ADAPTERS
    assert surfaces() == ()


WRONG = {
    "gone": ("adapters", "acme = acme_nowhere:ADAPTER", "cannot be imported (ModuleNotFoundError: acme_nowhere)"),
    "attribute": ("adapters", "acme = acme_pictures:OTHER", "cannot be imported (AttributeError)"),
    "taken": ("adapters", "openai = acme_pictures:ADAPTER", "the name is taken"),
    "no adapter": ("adapters", "acme = acme_pictures:NOTHING", "it is no adapter"),
    "route": ("surfaces", "acme = acme_pictures:TAKEN", "POST /images/generations is taken"),
    "no routes": ("surfaces", "acme = acme_pictures:ADAPTER", "it is no sequence of routes"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_package_is_refused_by_name(install: Install, wrong: str) -> None:
    group, line, said = WRONG[wrong]
    install(**{group: line})
    with pytest.raises(ConfigurationError) as caught:
        create_app(Settings(upstream="http://127.0.0.1:1"), environ={}, ssl_context=NO_TRUST)
    [problem] = caught.value.problems
    assert problem.setting == f"streamproxy.{group}: {line.partition(' ')[0]}"
    assert problem.happened.startswith("acme-pictures: ")
    assert said in problem.happened
    assert problem.fix


def test_a_package_that_breaks_tells_no_secret(install: Install) -> None:
    install("raise ValueError('sk-Canary')", adapters="acme = acme_pictures:ADAPTER")
    with pytest.raises(ConfigurationError) as caught:
        adapters()
    assert "ValueError" in str(caught.value)
    assert "Canary" not in str(caught.value)
