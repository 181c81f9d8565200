"""`streamproxy doctor` behind real edges: it names the faults of each stock form, and finds none behind our files.

The table of `docs/edges.md` is what these runs find. Here, limits of silence are shortened. The soak waits for the real
ones, behind all edges at a time.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

import anyio
import pytest

from streamproxy.doctor import Report, examine
from streamproxy.doctor.checks import NAMES
from streamproxy.doctor.cures import EDGES, Fault, cures
from streamproxy.doctor.provider import Times
from streamproxy.server.listening import listen
from tests.support.chains import CHAINS, FILES, OURS, STOCK, Chain, chained
from tests.support.proxy import BOUND

pytestmark = pytest.mark.anyio

DOCS: Final = (Path(__file__).parents[2] / "streamproxy" / "docs" / "edges.md").read_text("utf-8")
README: Final = (Path(__file__).parents[2] / "README.md").read_text("utf-8")
GOOD: Final = {"HTTP/1.1", "yes", "one by one", "passes", "arrives", "arrive", "at once", "next comment"}
LIMIT: Final = 2
QUICK: Final = Times(silence=1.5 * LIMIT, heartbeat=LIMIT / 2, pace=0.4)
"""HAProxy holds events for 0.2 s. A comment has to come within the limit."""

BRIEF: Final = Times(silence=0.2, heartbeat=1, pace=0.2)
"""For faults that have no limit of silence in them."""


async def examined(chain: Chain, text: str, times: Times = QUICK) -> Report:
    with listen("127.0.0.1", 0) as sock, anyio.fail_after(2 * BOUND + times.silence):
        async with chained(chain, text, sock.getsockname()[1]) as url:
            report = await examine(url, sock, times=times)
    assert report is not None
    return report


def rows(text: str, first: str) -> dict[str, list[str]]:
    """The table whose header begins with this cell, by its first cell."""
    lines = text[text.index(f"| {first} |") :].split("\n\n")[0].splitlines()
    cells = [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in lines if not line.startswith("|-")]
    assert len({len(row) for row in cells}) == 1, cells
    return {row[0]: row[1:] for row in cells}


def code_of(report: Report, name: str) -> set[str]:
    """The lines of this edge against the faults that were found."""
    lines = {line for finding in report.faults for line in cures(finding.fault, EDGES[name])}
    return {line.removeprefix(f"{name}: ").partition("   (")[0] for line in lines}


@pytest.mark.parametrize("name", CHAINS)
async def test_a_stock_edge_and_its_faults(name: str) -> None:
    report = await examined(CHAINS[name], CHAINS[name].text(STOCK, LIMIT))
    assert rows(DOCS, "Edge")[f"{name}, stock"] == [report.outcomes[check] for check in NAMES]
    assert report.edge in (EDGES[name], None)
    cured = code_of(report, name)
    wrong = [f"{check}: {report.outcomes[check]}" for check in NAMES if report.outcomes[check] not in GOOD]
    file = f"deploy/edge/{EDGES[name].file}"
    said, lines = rows(DOCS, "File")[f"`{file}`"]
    assert said == ("; ".join(wrong) or "nothing wrong")
    assert set(re.findall(r"`([^`]+)`", lines)) == cured
    assert rows(README, "Edge").get(f"[{name}]({file})", [said, lines]) == [said, lines]
    text = (FILES / EDGES[name].file).read_text("utf-8")
    assert [line for line in cured if line not in text] == []


@pytest.mark.parametrize("name", CHAINS)
async def test_our_file_leaves_no_fault(name: str) -> None:
    report = await examined(CHAINS[name], CHAINS[name].text(OURS, None))
    assert rows(DOCS, "Edge")[f"{name}, ours"] == [report.outcomes[check] for check in NAMES]
    assert report.faults == []
    assert {finding.fault for finding in report.notes} == EDGES[name].cannot


def nginx(of_location: str, *, of_http: str = "") -> str:
    """A stock nginx with more in it."""
    text = CHAINS["nginx"].text(STOCK, None)
    return text.replace("location / {", f"location / {{ {of_location}").replace("server {", f"{of_http} server {{", 1)


SPOILT: Final[dict[str, tuple[str, set[Fault]]]] = {
    "held": ("proxy_ignore_headers X-Accel-Buffering;", {Fault.BUFFERED}),
    "compressed": ("gzip on; gzip_types *; gzip_proxied any;", {Fault.COMPRESSED}),
    "lost request header": ("proxy_set_header Last-Event-ID '';", {Fault.REQUEST_HEADERS}),
    "lost key": ("proxy_set_header Authorization '';", {Fault.REQUEST_HEADERS}),
    "lost answer header": ("proxy_hide_header Stream-Id;", {Fault.ANSWER_HEADERS}),
    "own pages": ("proxy_intercept_errors on; error_page 400 502 /own.html;", {Fault.ERROR_PAGES}),
    "unnoticed": ("proxy_ignore_client_abort on;", {Fault.STREAM_LEFT, Fault.ANSWER_LEFT}),
    "rewritten": (
        "sub_filter_types *; sub_filter b64_json b64-json; proxy_set_body '$request_body ';",
        {Fault.REQUEST_BODY, Fault.ANSWER_BODY},
    ),
}
"""What a location can do to streams, and its faults."""

STOCK_FAULTS: Final = {Fault.BODY_LIMIT, Fault.OLD_HTTP}


@pytest.mark.parametrize("name", SPOILT)
async def test_a_spoilt_location(name: str) -> None:
    line, faults = SPOILT[name]
    report = await examined(CHAINS["nginx"], nginx(line), BRIEF)
    found = {finding.fault for finding in report.faults} - STOCK_FAULTS
    assert found >= faults, report.as_text()
    assert found <= faults | {Fault.UNREACHABLE}, report.as_text()
    assert report.edge is EDGES["nginx"]
    known = faults & set(EDGES["nginx"].cures)
    assert all(line.startswith("nginx: ") for fault in known for line in cures(fault, report.edge))


async def test_an_edge_that_asks_twice() -> None:
    """The second server of its pool is the first one again."""
    of_http = "upstream two { server 127.0.0.1:ORIGIN; server localhost:ORIGIN; }"
    text = nginx("proxy_next_upstream error http_502 non_idempotent;", of_http=of_http)
    report = await examined(CHAINS["nginx"], text.replace("http://127.0.0.1:ORIGIN;", "http://two;"), BRIEF)
    assert Fault.REPEATED in [finding.fault for finding in report.faults], report.as_text()


async def test_an_edge_that_leads_elsewhere() -> None:
    text = CHAINS["nginx"].text(OURS, None).replace("proxy_pass http://127.0.0.1:ORIGIN", "return 404")
    report = await examined(CHAINS["nginx"], text)
    assert (report.outcomes, [finding.fault for finding in report.faults]) == (
        {"reached by": "nothing"},
        [Fault.UNREACHABLE],
    )


def test_the_words_for_each_fault() -> None:
    """Every fault has a cure behind an edge that is not known, and there every edge's lines are said."""
    for fault in Fault:
        lines = cures(fault, None)
        assert len(lines) == 1 + sum(fault in edge.cures for edge in EDGES.values())
        assert "\n" not in "".join(lines)
    assert {edge.file for edge in EDGES.values()} == {file.name for file in FILES.iterdir()}
    assert list(EDGES) == list(CHAINS)


@pytest.mark.soak
@pytest.mark.parametrize("form", [STOCK, OURS])
async def test_all_edges_with_their_real_limits(form: str) -> None:
    """70 s of silence behind all edges at a time: the table holds for the limits that the programs really have."""
    reports: dict[str, Report] = {}

    async def run(name: str) -> None:
        chain = CHAINS[name]
        reports[f"{name}, {form}"] = await examined(chain, chain.text(form, chain.default), Times())

    async with anyio.create_task_group() as tasks:
        for name in CHAINS:
            tasks.start_soon(run, name)
    table = rows(DOCS, "Edge")
    found = {row: [report.outcomes[check] for check in NAMES] for row, report in reports.items()}
    assert found == {row: cells for row, cells in table.items() if row in found}
    assert len(found) == len(CHAINS)
