"""The documentation as it is served: pages as HTML and as Markdown, and their list for language models."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Final
from urllib.parse import urljoin

import pytest

from streamproxy.web.docs import PAGES, anchor, read_page, rendered
from tests.support.proxy import Proxy, no_leaks, running_proxy

pytestmark = pytest.mark.anyio

NOBODY: Final = "http://127.0.0.1:9"
FOLDER: Final = Path(__file__).parents[2] / "streamproxy" / "docs"
README: Final = (FOLDER.parents[1] / "README.md").read_text("utf-8")
KEYS: Final = (f"sha256:{'0' * 64}",)


class Read(HTMLParser):
    """What a page links to, its ids, and the tags that are open at its end."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.ids: list[str] = []
        self.tags: set[str] = set()
        self.open: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.tags.add(tag)
        self.links += [found[name] or "" for name in ("href", "src") if name in found]
        self.ids += [found["id"] or ""] if "id" in found else []
        if tag not in ("meta", "link", "hr", "br", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_every_page_is_listed() -> None:
    assert {path.stem for path in FOLDER.iterdir()} == PAGES.keys()


def test_the_readme_lists_the_pages() -> None:
    listed = re.findall(r"^\* \[(.+)\]\(streamproxy/docs/(\w+)\.md\): (.+)$", README, re.MULTILINE)
    assert listed == [(read_page(name).title, name, line) for name, line in PAGES.items()]


async def html(proxy: Proxy, path: str) -> Read:
    answer = await proxy.client.get(proxy.url + path)
    assert answer.status_code == 200, path
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    read = Read(answer.text)
    assert read.open == []
    return read


async def test_every_link_leads_somewhere() -> None:
    """From the list to all pages, and to the headings that are named."""
    async with no_leaks(), running_proxy(NOBODY) as proxy:
        pages = {path: await html(proxy, path) for path in ("/docs", *(f"/docs/{name}" for name in PAGES))}
        assert {f"docs/{name}" for name in PAGES} <= {*pages["/docs"].links}
        for path, read in pages.items():
            for link in read.links:
                place, _, heading = urljoin(path, link).partition("#")
                if not link.startswith(("data:", "https:", "http:")):
                    assert (await proxy.client.get(proxy.url + place)).status_code == 200, (path, link)
                    assert not heading or heading in pages[place].ids, (path, link)


async def test_pages_hold_no_program_and_nothing_from_elsewhere() -> None:
    async with no_leaks(), running_proxy(NOBODY) as proxy:
        for name in PAGES:
            answer = await proxy.client.get(f"{proxy.url}/docs/{name}")
            policy = answer.headers["content-security-policy"]
            assert policy.startswith("default-src 'none'; style-src 'self'; img-src data:;")
            assert not Read(answer.text).tags & {"script", "style", "iframe", "img", "form"}
            assert " style=" not in answer.text


@pytest.mark.parametrize("name", PAGES)
async def test_a_page_is_there_as_markdown(name: str) -> None:
    async with running_proxy(NOBODY) as proxy:
        answer = await proxy.client.get(f"{proxy.url}/docs/{name}.md")
    assert answer.headers["content-type"] == "text/markdown; charset=utf-8"
    assert answer.text == (FOLDER / f"{name}.md").read_text("utf-8")


async def test_llms_txt() -> None:
    async with no_leaks(), running_proxy(NOBODY) as proxy:
        answer = await proxy.client.get(f"{proxy.url}/llms.txt")
        assert answer.headers["content-type"] == "text/plain; charset=utf-8"
        title, summary = answer.text.splitlines()[:3:2]
        assert (title, summary[:2]) == ("# streamproxy", "> ")
        links = re.findall(r"\]\((\S+)\)", answer.text)
        assert links == [*(f"docs/{name}.md" for name in PAGES), "openapi.json"]
        for link in links:
            assert (await proxy.client.get(f"{proxy.url}/{link}")).status_code == 200


async def test_no_key_is_needed_and_a_page_is_sent_once() -> None:
    async with no_leaks(), running_proxy(NOBODY, caller_keys=KEYS) as proxy:
        for path in ("/docs", "/docs/streams", "/docs/streams.md", "/docs.css", "/llms.txt", "/openapi.json"):
            answer = await proxy.client.get(proxy.url + path)
            again = await proxy.client.get(proxy.url + path, headers={"if-none-match": answer.headers["etag"]})
            assert (answer.status_code, again.status_code, again.content) == (200, 304, b""), path


@pytest.mark.parametrize("name", ["", "nothing", "streams.html", "streams.md.md", "..%2fapp.py", "%2e%2e/streams"])
async def test_no_such_page(name: str) -> None:
    async with running_proxy(NOBODY) as proxy:
        answer = await proxy.client.get(f"{proxy.url}/docs/{name}")
    assert answer.status_code == 404
    assert answer.json()["error"]["code"] == "not_found"


def test_markdown_as_html() -> None:
    page = "## A `b` (c)\n\n<b>&</b> [x](streams.md#small-previews) [y](docs/api.md) [z](https://a.test/streams.md)\n"
    assert rendered(page) == (
        '<h2 id="a-b-c">A <code>b</code> (c)</h2>\n<p>&lt;b&gt;&amp;&lt;/b&gt; <a href="streams#small-previews">x</a> '
        '<a href="docs/api">y</a> <a href="https://a.test/streams.md">z</a></p>\n'
    )
    assert rendered("| a |\n|---|\n| b |\n").startswith('<table tabindex="0">\n<thead>')


def test_headings_of_a_page_have_different_ids() -> None:
    for name in PAGES:
        headings = re.findall(r"^##+ (.+)$", read_page(name).markdown, re.MULTILINE)
        assert len({anchor(heading) for heading in headings}) == len(headings), name
