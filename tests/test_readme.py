"""README and pages are held true: their tables by the code they describe, their snippets by being run against a proxy.

Tables are compared whole, row by row and in order, so a row that is missing on either side fails. The snippets run as
they stand, but for the address.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import anyio
import pytest

from streamproxy.cli import cli
from streamproxy.core.headers import HeaderPolicy
from streamproxy.core.rawjson import parse
from streamproxy.core.webhooks import Outcome, StreamUrls, message
from streamproxy.demo import MODEL
from streamproxy.errors import Failure
from streamproxy.observe.metrics import GAUGES, HISTOGRAMS, METRICS
from streamproxy.server.framing import HEAD_BYTES
from streamproxy.server.guard import HEAD_SECONDS
from streamproxy.settings import describe
from streamproxy.settings.providers import read_catalogue
from streamproxy.simulator import running
from streamproxy.simulator.pictures import draw, encode
from streamproxy.simulator.received import Received, Server
from streamproxy.simulator.script import Script, error_answer, json_answer
from streamproxy.simulator.server import serve
from streamproxy.surfaces import chat
from streamproxy.web.routes import PREFIXES, ROUTES
from tests.support import abilities
from tests.support.faults import IMAGE_BODY
from tests.support.proxy import BOUND, Proxy, events, running_proxy
from tests.test_layers import LAYERS

ROOT: Final = Path(__file__).parent.parent
README: Final = (ROOT / "README.md").read_text("utf-8")
PAGES: Final = {path.stem: path.read_text("utf-8") for path in sorted((ROOT / "streamproxy" / "docs").glob("*.md"))}
ALL: Final = "\n".join((README, *PAGES.values()))
NODE_SDK: Final = ROOT / "tests" / "e2e" / "node"
ADDRESS: Final = "http://127.0.0.1:8080"
KEY_HASH: Final = "sha256:" + "0" * 64
PROVIDER_ROW: Final = "providers.<name>."
CALLER_ROW: Final = "callers.<name>."
RUN: Final = "python3 -m venv .venv && .venv/bin/pip install -q . && .venv/bin/streamproxy demo"
TEST: Final = "python3 -m venv .venv && .venv/bin/pip install -q -e '.[dev]' && .venv/bin/pytest -q"

Table = list[tuple[str, ...]]


def table(first: str, *others: str) -> Table:
    """The rows of the table with this header, which is on one page only."""
    lines = ALL.splitlines()
    header = "| " + " | ".join((first, *others)) + " |"
    assert lines.count(header) == 1, header
    at = lines.index(header) + 1
    assert re.fullmatch(r"\|(---\|)+", lines[at])
    rows: Table = []
    for line in lines[at + 1 :]:
        if not line.startswith("|"):
            break
        cells = tuple(cell.strip() for cell in line[1:-1].split("|"))
        assert len(cells) == 1 + len(others), line
        rows.append(cells)
    return rows


def code(text: str) -> str:
    return f"`{text}`" if text else ""


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", ALL, re.MULTILINE | re.DOTALL)


def test_the_two_commands_stand_there_exactly() -> None:
    assert README.splitlines().count(f"Run: `{RUN}`") == 1
    assert README.splitlines().count(f"Test: `{TEST}`") == 1


def test_routes() -> None:
    expected = [
        (row.method, code((PREFIXES[0] if row.surface else "") + row.path.replace(":path}", "}")), row.meaning)
        for row in ROUTES
    ]
    assert table("Method", "Path", "What it is") == expected
    assert all(f"`{prefix}`" in PAGES["api"] for prefix in PREFIXES)


def test_settings() -> None:
    expected = [
        (code(row.name), code(row.env), code(row.default), row.meaning)
        for row in describe()
        if not row.name.startswith((PROVIDER_ROW, CALLER_ROW))
    ]
    assert table("Setting", "Environment", "Default", "What it is") == expected


def test_settings_of_a_provider() -> None:
    expected = [
        (code(row.name.removeprefix(PROVIDER_ROW)), code(row.default), row.meaning)
        for row in describe()
        if row.name.startswith(PROVIDER_ROW)
    ]
    assert table("Setting", "Default", "What it is") == expected


def test_settings_of_a_caller() -> None:
    expected = [
        (code(row.name.removeprefix(CALLER_ROW)), code(row.default), row.meaning)
        for row in describe()
        if row.name.startswith(CALLER_ROW)
    ]
    assert table("Of a caller", "Default", "What it is") == expected


def test_failures() -> None:
    rows = table("Code", "Status", "Label", "May have been charged", "What happened")
    expected = [
        (code(row.code), str(row.status), code(row.label), "yes" if row.charged else "no")
        for row in (failure.value for failure in Failure)
    ]
    assert [row[:4] for row in rows] == expected
    assert all(row[4] for row in rows)


def test_metrics() -> None:
    counters = [(code(name), "counter", ", ".join(map(code, labels)), text) for name, text, labels in METRICS]
    histograms = [(code(row[0]), "histogram", ", ".join(map(code, row[2])), row[1]) for row in HISTOGRAMS]
    gauges = [(code(row[0]), "gauge", ", ".join(map(code, row[2])), row[1]) for row in GAUGES]
    assert table("Metric", "Kind", "Labels", "What it is") == counters + histograms + gauges


def test_commands() -> None:
    expected = [
        (f"`streamproxy {name}`", (command.help or "").strip().splitlines()[0])
        for name, command in cli.commands.items()
    ]
    assert table("Command", "What it does") == expected


def test_names_of_settings_in_the_text_exist() -> None:
    known = {row.name.removeprefix(PROVIDER_ROW).removeprefix(CALLER_ROW) for row in describe()}
    cells = {row[4] for row in table("Code", "Status", "Label", "May have been charged", "What happened")}
    named = {name for cell in cells for name in re.findall(r"`([a-z]+(?:_[a-z]+)+)`", cell)}
    assert named - known == {"extra_headers", "request_id", "stream_url", "cancel_url"}
    prose = "\n".join(line for line in ALL.splitlines() if not line.startswith("|"))
    said = set(re.findall(r"`((?:max|cors|caller|strict|allow)_\w+|\w+_(?:timeout|after))`", prose))
    assert {"caller_keys", "allow_headers", "commit_after"} <= said <= known


def test_numbers_in_the_text() -> None:
    rules = HeaderPolicy.load().rules
    text = " ".join(ALL.split())
    assert f"at most {rules.max_headers} names and string values, " in text
    assert f"{rules.max_name_bytes} and {rules.max_value_bytes} bytes each, {rules.max_total_bytes >> 10} KiB" in text
    assert f"not complete within {HEAD_SECONDS:g} s" in text
    assert f"more than {HEAD_BYTES >> 10} KiB" in text


def test_providers_known_by_name() -> None:
    (said,) = re.findall(r"Providers known by name:\n(.*?)\.\n", PAGES["providers"], re.DOTALL)
    assert re.findall(r"`([a-z][a-z0-9-]*)`", said) == list(read_catalogue().providers)


def test_what_each_provider_can_do() -> None:
    assert table(*abilities.HEADER) == abilities.rows(), abilities.written()


def test_links_to_files_lead_somewhere() -> None:
    links = [link for link in re.findall(r"\]\(([^)#]+)", README) if "://" not in link]
    assert links
    assert [link for link in links if not (ROOT / link).is_file()] == []
    assert {f"streamproxy/docs/{name}.md" for name in PAGES} <= {*links}
    assert (ROOT / "deploy" / "previews.webp").stat().st_size < 60_000


def environment(**more: str) -> dict[str, str]:
    """The process's, without what would configure a proxy or a client, or lead a request anywhere else."""
    unwanted = re.compile(r"STREAMPROXY_.*|OPENAI_.*|CREDENTIALS_DIRECTORY|NODE_OPTIONS|.*_proxy", re.IGNORECASE)
    return {name: value for name, value in os.environ.items() if not unwanted.fullmatch(name)} | more


SERVED: Final = list(
    dict.fromkeys(line for block in blocks("sh") for line in block.splitlines() if "streamproxy serve" in line)
)


def test_there_are_command_lines_that_serve() -> None:
    assert len(SERVED) == 4


@pytest.mark.parametrize("line", SERVED)
def test_a_command_line_that_serves_has_no_problems(line: str) -> None:
    words = shlex.split(line.replace("sha256:...", KEY_HASH).replace("=...", "=not-a-key-but-long-enough"))
    at = words.index("streamproxy")
    given = dict(word.split("=", 1) for word in words[:at])
    checked = [sys.executable, "-m", "streamproxy", *("check" if word == "serve" else word for word in words[at + 1 :])]
    done = subprocess.run(
        checked, env=environment(**given), capture_output=True, text=True, timeout=BOUND, check=False, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    assert "provider " in done.stdout


def test_the_configuration_has_no_problems(tmp_path: Path) -> None:
    toml, callers = sorted(blocks("toml"), key=lambda block: "[callers." in block)
    key, file = tmp_path / "key", tmp_path / "streamproxy.toml"
    key.write_text("not-a-key-but-long-enough\n")
    assert "/run/secrets/gateway-key" in toml
    file.write_text(toml.replace("/run/secrets/gateway-key", str(key)) + callers)
    done = subprocess.run(
        [sys.executable, "-m", "streamproxy", "check", "--config", str(file)],
        env=environment(OPENAI_API_KEY="not-a-key-but-long-enough"),
        capture_output=True,
        text=True,
        timeout=BOUND,
        check=False,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    assert "gateway.example.com  credential: file" in done.stdout
    assert "callers    2 keys\n" in done.stdout


@asynccontextmanager
async def proxied() -> AsyncIterator[Proxy]:
    async with running(pace=0) as simulated, running_proxy(simulated.url) as proxy:
        yield proxy


async def ran(command: Sequence[str], cwd: Path) -> bytes:
    with anyio.fail_after(BOUND):
        done = await anyio.run_process(command, check=False, cwd=cwd, env=environment())
    assert done.returncode == 0, done.stderr.decode()[-2000:]
    return done.stdout


def only(language: str, mark: str, proxy: Proxy) -> str:
    """The one snippet in this language that holds `mark`, with the running proxy's address."""
    (found,) = {block for block in blocks(language) if mark in block}
    assert found.count(ADDRESS) == 1
    assert MODEL in found
    return found.replace(ADDRESS, proxy.url)


PREVIEWS: Final = ["image_generation.partial_image"] * 3
TYPES: Final = [*PREVIEWS, "image_generation.completed"]


@pytest.mark.anyio
async def test_curl(tmp_path: Path) -> None:
    async with proxied() as proxy:
        command = only("sh", "curl", proxy).replace("curl ", "curl --noproxy '*' -D head ", 1)
        out = await ran(["sh", "-c", command], tmp_path)
    assert [event.event for event in events(out)] == TYPES
    assert "x-accel-buffering: no" in (tmp_path / "head").read_text().lower()


@pytest.mark.anyio
async def test_openai_python(tmp_path: Path) -> None:
    async with proxied() as proxy:
        out = await ran([sys.executable, "-c", only("python", "for event in", proxy)], tmp_path)
    assert [line.split()[0] for line in out.decode().splitlines()] == TYPES
    assert (tmp_path / "lighthouse.png").read_bytes().startswith(b"\x89PNG")


def node() -> str:
    found = shutil.which("node")
    if found is None:
        pytest.skip("there is no node")
    return found


@pytest.mark.anyio
async def test_an_upload(tmp_path: Path) -> None:
    (tmp_path / "lighthouse.png").write_bytes(encode(draw("a lighthouse", 64, 64), "png"))
    (snippet,) = [block for block in blocks("python") if "files.create" in block]
    async with proxied() as proxy:
        client = f"import openai\nclient = openai.OpenAI(api_key='none', base_url='{proxy.url}/v1', max_retries=0)\n"
        out = await ran([sys.executable, "-c", client + snippet], tmp_path)
    assert out.startswith(b"iVBORw0K")


@pytest.mark.anyio
async def test_openai_node() -> None:
    if not (NODE_SDK / "node_modules" / "openai").is_dir():
        pytest.skip("the node SDK is not installed: npm install --prefix tests/e2e/node")
    async with proxied() as proxy:
        snippet = only("ts", "OpenAI", proxy)
        out = await ran([node(), "--input-type=module", "-e", snippet], NODE_SDK)
    assert [line.split()[0] for line in out.decode().splitlines()] == TYPES


PAGE: Final = """
const shown = [];
const document = { querySelector: () => ({ set src(url) { shown.push(url); } }) };
process.on("exit", () => console.log(shown.map((url) => url.slice(0, 22)).join("\\n")));
"""


@pytest.mark.anyio
async def test_a_page(tmp_path: Path) -> None:
    async with proxied() as proxy:
        snippet = PAGE + only("js", "function* events", proxy)
        out = await ran([node(), "--input-type=module", "-e", snippet], tmp_path)
    assert out.decode().splitlines() == ["data:image/png;base64,"] * 4


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("fault", "pictures"),
    [("refused-400", 0), ("eof-inside-event", 1)],
    ids=["before the head, by a status", "after it, by the final event"],
)
async def test_a_page_says_that_a_stream_failed(fault: str, pictures: int, tmp_path: Path) -> None:
    async with proxied() as proxy:
        snippet = PAGE + only("js", "function* events", proxy).replace(MODEL, f"sim/fault-{fault}")
        answered = await proxy.generate(model=f"sim/fault-{fault}", stream=True)
        error = answered.json() if pictures == 0 else events(answered.content)[-1].json
        with anyio.fail_after(BOUND):
            command = [node(), "--input-type=module", "-e", snippet]
            done = await anyio.run_process(command, check=False, cwd=tmp_path, env=environment())
    assert done.returncode == 1
    assert len(done.stdout.split()) == pictures
    assert isinstance(error["error"], dict)
    assert f"Error: {error['error']['message']}" in done.stderr.decode()


ONE_BYTE_AT_A_TIME: Final = """
const text = ':\\nevent: a\\ndata: {"say":"häß €😀"}\\n\\n:\\n:\\nevent: b\\ndata: {"n":2}\\n\\n';
const wire = new TextEncoder().encode(text);
let cancelled = false;
const body = () => new ReadableStream({
  start(controller) { for (const byte of wire) controller.enqueue(Uint8Array.of(byte)); },
  cancel() { cancelled = true; },
});
const two = [];
for await (const event of events(body())) { two.push(event); if (two.length === 2) break; }
console.log(JSON.stringify([two, cancelled]));
"""


@pytest.mark.anyio
async def test_the_parser_of_the_page_takes_chunks_as_they_come(tmp_path: Path) -> None:
    (snippet,) = [block for block in blocks("js") if "async function* events" in block]
    parser = snippet.partition("\nconst response")[0]
    out = await ran([node(), "--input-type=module", "-e", parser + ONE_BYTE_AT_A_TIME], tmp_path)
    assert out.decode().strip() == '[[{"say":"häß €😀"},{"n":2}],true]'


def line_with(language: str, mark: str) -> str:
    """The one line with `mark` of this language's blocks."""
    (found,) = [line for block in blocks(language) for line in block.splitlines() if mark in line]
    return found


@asynccontextmanager
async def failing_twice() -> AsyncIterator[Server]:
    """A server that takes every third request, so that an SDK repeats the two before it."""
    left = [0]

    def handler(received: Received) -> Script:
        left[0] += 1
        return error_answer(500, "Broken.") if left[0] % 3 else json_answer(200, IMAGE_BODY)

    async with serve(handler) as server:
        yield server


def each_call_has_a_key_of_its_own(server: Server) -> None:
    """Of two calls of three requests each."""
    keys = [received.header("idempotency-key") for received in server.received]
    assert len(keys) == 6
    assert all(keys)
    assert len(set(keys[:3])) == len(set(keys[3:])) == 1
    assert keys[0] != keys[3]


@pytest.mark.anyio
async def test_the_line_that_gives_a_call_of_openai_python_a_key() -> None:
    async with failing_twice() as server:
        script = f"""
from openai import OpenAI
client = OpenAI(base_url="{server.url}/v1", api_key="k")
{line_with("python", "_idempotency_header")}
for _ in range(2): client.images.generate(model="{MODEL}", prompt="p")
"""
        await ran([sys.executable, "-c", script], ROOT)
    each_call_has_a_key_of_its_own(server)


@pytest.mark.anyio
async def test_the_line_that_gives_a_call_of_openai_node_a_key() -> None:
    if not (NODE_SDK / "node_modules" / "openai").is_dir():
        pytest.skip("the node SDK is not installed: npm install --prefix tests/e2e/node")
    async with failing_twice() as server:
        script = f"""
import OpenAI from "openai";
const client = new OpenAI({{ baseURL: "{server.url}/v1", apiKey: "k" }});
{line_with("ts", "idempotencyHeader")}
for (const _ of [1, 2]) await client.images.generate({{ model: "{MODEL}", prompt: "p" }});
"""
        await ran([node(), "--input-type=module", "-e", script], NODE_SDK)
    each_call_has_a_key_of_its_own(server)


TESTED: Final[Mapping[str, tuple[str, ...]]] = {
    "sh": (
        "curl -sN",
        "streamproxy serve",
        "streamproxy generate",
        "streamproxy hash-key",
        "streamproxy doctor",
        "docker ",
        "from_environment",
    ),
    "python": ("for event in", "files.create", "_idempotency_header", "respond-async", "lifespan_context"),
    "ts": ("stream: true", "idempotencyHeader"),
    "js": ("function* events", "new EventSource"),
    "html": ("<progressive-image",),
    "toml": ("[providers.", "[callers."),
    "json": ("image_config", "cost_unknown", "image.stream.completed"),
    "": ("<- open this", "GET /v1/streams?", "__main__ > cli"),
}
"""A part of each snippet that a test runs, here or in tests/e2e (those of pages, in Chromium)."""

OWN_TESTS: Final = frozenset({"recipes"})
"""Pages whose snippets have a test file of their own."""


def test_every_snippet_is_run() -> None:
    text = "\n".join((README, *(page for name, page in PAGES.items() if name not in OWN_TESTS)))
    found = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    parts = [(language, part) for language, block in found for part in statements(language, block)]
    assert [part for language, part in parts if not any(mark in part for mark in TESTED[language])] == []
    assert all(any(mark in part for _, part in parts) for marks in TESTED.values() for mark in marks)


def statements(language: str, block: str) -> list[str]:
    """The commands of a shell snippet; any other is one."""
    return block.replace("\\\n", "").splitlines() if language == "sh" else [block]


def test_the_demos_words(tmp_path: Path) -> None:
    """The README shows what the demo prints, but for its numbers."""
    (shown,) = [block for block in blocks("") if "<- open this" in block]
    command = [sys.executable, "-m", "streamproxy", "demo", "--once", "--pace", "0", "--port", "0"]
    done = subprocess.run(
        command, env=environment(), capture_output=True, text=True, timeout=BOUND, check=True, cwd=tmp_path
    )
    printed = without_numbers(done.stdout)
    assert [line for line in without_numbers(shown) if line not in printed] == []


def without_numbers(text: str) -> list[str]:
    return [" ".join(re.sub(r"\d+", "N", line).split()) for line in text.splitlines()]


@pytest.mark.anyio
async def test_generate(tmp_path: Path) -> None:
    command = only_line("streamproxy generate")
    async with running(pace=0) as simulated:
        (tmp_path / "c.toml").write_text(
            f'default_model = "openai/gpt-image"\n[providers.openai]\nbase_url = "{simulated.url}/v1"\n'
        )
        key, *words = shlex.split(command.replace("=...", "=not-a-key-but-long-enough"))
        given = environment(STREAMPROXY_CONFIG="c.toml", **dict([key.split("=", 1)]))
        with anyio.fail_after(BOUND):
            run = [sys.executable, "-m", *words]
            done = await anyio.run_process(run, check=False, cwd=tmp_path, env=given)
        assert done.returncode == 0, done.stderr.decode()
        assert simulated.calls == 1
    assert (tmp_path / "lighthouse.png").read_bytes().startswith(b"\x89PNG")


def only_line(mark: str) -> str:
    """The one command with `mark`."""
    (found,) = {line for block in blocks("sh") for line in statements("sh", block) if mark in line}
    return found


def test_a_callers_key(tmp_path: Path) -> None:
    command = only_line("streamproxy hash-key").replace("streamproxy hash-key", '"$PYTHON" -m streamproxy hash-key')
    done = subprocess.run(
        ["sh", "-c", command.replace("openssl rand -hex 32", "printf %064d 7")],
        env=environment(PYTHON=sys.executable),
        capture_output=True,
        text=True,
        timeout=BOUND,
        check=True,
        cwd=tmp_path,
    )
    key = (tmp_path / "caller.key").read_text().strip()
    assert done.stdout.strip() == f"sha256:{hashlib.sha256(key.encode()).hexdigest()}"


def test_the_containers_commands_are_the_dockerfiles() -> None:
    dockerfile = (ROOT / "deploy" / "Dockerfile").read_text("utf-8")
    commands = [line for block in blocks("sh") for line in statements("sh", block) if line.startswith("docker ")]
    assert len(commands) == 2
    assert [command for command in commands if f"#   {command}\n" not in dockerfile] == []


def test_a_chats_body() -> None:
    (body,) = [block for block in blocks("json") if "image_config" in block]
    read = parse(body.encode())
    model = read_catalogue().find(str(read.decode("model")))
    assert model is not None
    wanted = chat.request(read, model)
    assert wanted.options == {"image_config": read.decode("image_config")}


def test_a_webhooks_message() -> None:
    (shown,) = [block for block in blocks("json") if "image.stream" in block]
    ended = Outcome("completed", (0,), 0.04, b'{"total_tokens":1106}')
    urls = StreamUrls("https://...", "https://...", ("https://...",))
    made_by = {"provider": "openai", "model": "openai/gpt-image-2"}
    at = datetime(2026, 11, 27, 12, tzinfo=UTC).timestamp()
    assert json.loads(shown) == json.loads(message("str_...", ended, urls, at=at, made_by=made_by))


def test_the_figures_are_those_of_their_page() -> None:
    rows = table("What", "streamproxy", "A peer")
    assert len(rows) == 5
    page = set(re.findall(r"\d+(?:\.\d+)?", PAGES["figures"]))
    assert set(re.findall(r"\d+(?:\.\d+)?", " ".join(" ".join(row) for row in rows))) <= page


def test_the_layers() -> None:
    (shown,) = [block for block in blocks("") if "__main__ > cli" in block]
    layers = [{*layer.replace("|", " ").split()} for layer in shown.split(">")]
    assert layers == [{*line} - {"__init__", "settings.providers"} for line in LAYERS]


def test_the_readme_is_short() -> None:
    assert len(README.splitlines()) <= 168
