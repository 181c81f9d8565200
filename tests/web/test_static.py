"""The browser's files: how they are served, and the npm package of them."""

from __future__ import annotations

import io
import json
import re
import tarfile
from importlib.metadata import version

import pytest

from streamproxy.web.static import MODULES, PACKAGE, package, read_files
from tests.support.proxy import no_leaks, running_proxy

pytestmark = pytest.mark.anyio

NOBODY = "http://127.0.0.1:9"
FOREIGN = {"origin": "https://any.test"}


async def test_every_page_may_import_the_modules() -> None:
    keys = (f"sha256:{'0' * 64}",)
    async with no_leaks(), running_proxy(NOBODY, caller_keys=keys, cors_origins=("https://own.test",)) as proxy:
        for name in (*MODULES, PACKAGE):
            answer = await proxy.client.get(f"{proxy.url}/{name}", headers=FOREIGN)
            assert answer.status_code == 200
            assert answer.headers["access-control-allow-origin"] == "*"
            assert answer.headers["cross-origin-resource-policy"] == "cross-origin"
            assert answer.headers["cache-control"] == "public, no-cache"
            if name.endswith(".js"):
                assert answer.headers["content-type"].startswith("text/javascript")
            again = await proxy.client.get(f"{proxy.url}/{name}", headers={"if-none-match": answer.headers["etag"]})
            assert (again.status_code, again.content) == (304, b"")
            assert again.headers["etag"] == answer.headers["etag"]


async def test_the_page_is_there_with_the_setting_only() -> None:
    async with no_leaks(), running_proxy(NOBODY) as without, running_proxy(NOBODY, playground=True) as proxy:
        absent = await without.client.get(f"{without.url}/")
        assert absent.status_code == 404
        assert {"playground", "/v1"} <= set(re.findall(r"playground|/v1\b", absent.json()["error"]["message"]))
        page = await proxy.client.get(f"{proxy.url}/", headers=FOREIGN)
        assert page.status_code == 200
        assert page.headers["content-type"] == "text/html; charset=utf-8"
        assert "access-control-allow-origin" not in page.headers
        policy = page.headers["content-security-policy"]
        assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self';")
        assert "unsafe" not in policy
        named = re.findall(r'(?:src|href)="([^"]+)"', page.text)
        for name in named:
            if not name.startswith("data:"):
                assert (await proxy.client.get(f"{proxy.url}/{name}")).status_code == 200


def test_nothing_is_loaded_from_elsewhere() -> None:
    """It works without a network: no file names another host, but for the examples in comments."""
    for path, file in read_files().items():
        if path != f"/{PACKAGE}":
            hosts = set(re.findall(r"https?://([a-z0-9.-]+)", file.body.decode()))
            assert hosts <= {"proxy.example", "127.0.0.1"}, path


def test_the_package_has_the_proxys_version() -> None:
    files = read_files()
    with tarfile.open(fileobj=io.BytesIO(files[f"/{PACKAGE}"].body)) as archive:
        held = {member.name: archive.extractfile(member) for member in archive}
        bodies = {name.removeprefix("package/"): body.read() for name, body in held.items() if body}
    manifest = json.loads(bodies.pop("package.json"))
    assert manifest["version"] == version("streamproxy")
    assert bodies == {name: files[f"/{name}"].body for name in MODULES}
    named = {path.removeprefix("./") for entry in manifest["exports"].values() for path in entry.values()}
    assert named == set(MODULES)


def test_the_package_is_always_the_same_bytes() -> None:
    modules = {"a.js": b"1", "b.js": b"2"}
    assert package(modules) == package(modules)
    assert package(modules) != package({"a.js": b"1", "b.js": b"3"})
