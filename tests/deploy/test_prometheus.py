"""The rules of deploy/prometheus and the board of deploy/grafana are held true by the real Prometheus.

Each query of theirs names metrics and labels that there are, and returns numbers after a few requests. No Grafana runs
here: whether it draws the board was not tested.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import shutil
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import anyio
import httpx
import pytest
import yaml
from anyio.streams.text import TextReceiveStream

from streamproxy.errors import Failure
from streamproxy.observe import Observer
from streamproxy.simulator import running
from streamproxy.simulator.script import json_answer
from streamproxy.simulator.server import serve
from tests.support.proxy import BOUND, NO_TRUST, Proxy, running_proxy

ROOT: Final = Path(__file__).parent.parent.parent
CONFIG: Final = ROOT / "deploy" / "prometheus" / "prometheus.yaml"
ALERTS: Final = ROOT / "deploy" / "prometheus" / "alerts.yaml"
TESTS: Final = Path(__file__).parent / "alerts.yaml"
BOARD: Final[dict[str, Any]] = json.loads((ROOT / "deploy" / "grafana" / "board.json").read_text("utf-8"))
RULES: Final[list[dict[str, Any]]] = [
    rule for group in yaml.safe_load(ALERTS.read_text("utf-8"))["groups"] for rule in group["rules"]
]
QUERIES: Final[dict[str, str]] = {
    f"{panel['title']}, {target['refId']}": target["expr"] for panel in BOARD["panels"] for target in panel["targets"]
}
ENDINGS: Final = {"counter": ("_total",), "gauge": ("",), "histogram": ("_bucket", "_sum", "_count")}
"""What a metric's series are named after its name."""

prometheus: Final = pytest.mark.skipif(
    shutil.which("prometheus") is None, reason="Prometheus is not installed: apt-get install prometheus"
)


KEY: Final = "a-caller-s-key-0123456789"
CALLERS: Final = {"app": {"key": "sha256:" + hashlib.sha256(KEY.encode()).hexdigest()}}
PRICED_MODEL: Final = "openai/gpt-image-1"
PRICED: Final = json_answer(200, {"created": 1, "data": [{"b64_json": "aW1hZ2U="}], "cost": 0.05})


def providers(simulated: str, priced: str) -> dict[str, dict[str, object]]:
    """The simulator, and a provider that says what its pictures cost."""
    row: dict[str, object] = {"credential": "none"}
    return {
        "priced": {**row, "base_url": f"{priced}/v1", "models": [PRICED_MODEL]},
        "sim": {**row, "base_url": f"{simulated}/v1"},
    }


def series() -> set[str]:
    """The names of all series of the proxy."""
    families = [family for family in Observer().registry.collect() if family.name.startswith("streamproxy")]
    return {family.name + ending for family in families for ending in ENDINGS[family.type]}


def expressions() -> dict[str, str]:
    """Every PromQL expression, of the board and of the rules, by what it is for."""
    return {**QUERIES, **{rule.get("alert") or rule["record"]: rule["expr"] for rule in RULES}}


@pytest.mark.parametrize("name", expressions())
def test_a_query_names_metrics_that_there_are(name: str) -> None:
    expression = expressions()[name]
    recorded = {rule["record"] for rule in RULES if "record" in rule}
    named = set(re.findall(r"\bstreamproxy[a-z0-9_:]+", re.sub(r'"[^"]*"', "", expression)))
    assert named or expression.startswith(("up", "sum(up"))
    assert named - series() - recorded == set()


def test_the_legends_show_labels_that_the_queries_keep() -> None:
    for panel in BOARD["panels"]:
        for target in panel["targets"]:
            for label in re.findall(r"\{\{(\w+)\}\}", target.get("legendFormat", "")):
                assert re.search(rf"by \([^)]*\b{label}\b", target["expr"]), panel["title"]


def matched(expression: str) -> set[str]:
    """The failure labels that the selectors of `label` in an expression match."""
    known = {failure.value.label for failure in Failure}
    found: set[str] = set()
    for selector in re.findall(r"\{([^}]*)\}", expression):
        kept = set(known)
        for operator, pattern in re.findall(r"\blabel(=~|!~|=)\"([^\"]*)\"", selector):
            if operator != "!~":
                unknown = [it for it in pattern.split("|") if not any(re.fullmatch(it, label) for label in known)]
                assert unknown == [], "no failure has this label"
            kept = {label for label in kept if bool(re.fullmatch(pattern, label)) is (operator != "!~")}
        found |= kept if kept != known else set()
    return found


def test_the_alerts_are_for_failures_that_there_are() -> None:
    failing = [rule for rule in RULES if "alert" in rule and "streamproxy:failures" in rule["expr"]]
    labels = {rule["alert"]: matched(rule["expr"]) for rule in failing}
    assert [name for name, found in labels.items() if not found] == []
    charged = {failure.value.label for failure in Failure if failure.value.charged}
    callers = {"client_gone", "client_stall", "cancelled", "moderation"}
    own = {"internal", "drain", "producer_lost", "overload"}
    assert labels["StreamproxyPaidForNothing"] == charged - callers - own
    assert labels["StreamproxyProviderUnreachable"] & charged == set()
    assert labels["StreamproxyFull"] & charged <= own


def promtool(*arguments: str) -> str:
    command = ["promtool", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=BOUND, check=False, cwd=TESTS.parent)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def configuration(folder: Path, port: int) -> Path:
    """Write Prometheus' configuration with its files and the proxy where they are here, and a scrape every 100 ms."""
    config = yaml.safe_load(CONFIG.read_text("utf-8"))
    config["global"] = {"scrape_interval": "100ms", "scrape_timeout": "100ms", "evaluation_interval": "100ms"}
    config["rule_files"] = [str(ALERTS)]
    (job,) = config["scrape_configs"]
    job["static_configs"] = [{"targets": [f"127.0.0.1:{port}"]}]
    job["authorization"] = {"credentials": KEY}  # /metrics is on the callers' port here
    path = folder / "prometheus.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


@prometheus
def test_prometheus_takes_the_configuration(tmp_path: Path) -> None:
    assert yaml.safe_load(CONFIG.read_text("utf-8"))["rule_files"] == [ALERTS.name]
    assert f"{len(RULES)} rules found" in promtool("check", "config", str(configuration(tmp_path, 1)))


@prometheus
def test_every_alert_fires_when_it_should() -> None:
    assert "SUCCESS" in promtool("test", "rules", TESTS.name)
    cases = yaml.safe_load(TESTS.read_text("utf-8"))["tests"]
    fired = {row["alertname"] for case in cases for row in case.get("alert_rule_test", ()) if row["exp_alerts"]}
    assert fired == {rule["alert"] for rule in RULES if "alert" in rule}


@asynccontextmanager
async def running_prometheus(target: Proxy, folder: Path) -> AsyncIterator[str]:
    """Run Prometheus, and yield its URL."""
    path = configuration(folder, target.port)
    command = [
        "prometheus",
        f"--config.file={path}",
        f"--storage.tsdb.path={folder}",
        "--web.listen-address=127.0.0.1:0",
    ]
    async with (
        await anyio.open_process(command, stdout=subprocess.DEVNULL) as process,
        anyio.create_task_group() as tasks,
    ):
        try:
            assert process.stderr is not None
            log = TextReceiveStream(process.stderr)
            with anyio.fail_after(BOUND):
                url = await listening(log)
            tasks.start_soon(discard, log)
            yield url
        finally:
            process.terminate()
            with anyio.CancelScope(shield=True):
                with anyio.move_on_after(5):
                    await process.wait()
                if process.returncode is None:
                    process.kill()
            tasks.cancel_scope.cancel()


async def listening(log: TextReceiveStream) -> str:
    """The URL, from the line in which Prometheus says on which port it listens."""
    text = ""
    async for piece in log:
        text += piece
        if found := re.search(r'msg="Listening on".* address=(\S+)\n', text):
            return f"http://{found[1]}"
    raise AssertionError(text[-2000:])


async def discard(log: TextReceiveStream) -> None:
    async for _ in log:
        pass


async def numbers(client: httpx.AsyncClient, url: str, expression: str) -> list[float]:
    """The numbers of a query's answer, each with the labels by which the query groups."""
    answer = await client.get(f"{url}/api/v1/query", params={"query": expression})
    assert answer.status_code == 200, answer.text
    rows = answer.json()["data"]["result"]
    grouped = re.match(r"[a-z]+ by \(([^)]*)\)", expression)
    labels = set(grouped[1].split(", ")) if grouped else set()
    assert [row["metric"] for row in rows if not labels <= row["metric"].keys()] == []
    return [float(row["value"][1]) for row in rows]


def asked(expression: str) -> str:
    """A query as it can be asked here: Grafana's variables have values, and an alert's threshold is left out."""
    expression = expression.replace("$__rate_interval", "10s").replace("$job", ".+")
    return re.sub(r"\s(>|==) [0-9.]+\s*$", "", expression)


@prometheus
@pytest.mark.anyio
async def test_every_query_has_numbers_after_some_requests(tmp_path: Path) -> None:
    """The requests are repeated until then: a rate needs a counter that grows between two scrapes."""
    rare = {rule["alert"] for rule in RULES if "alert" in rule} - {"StreamproxyDown", "StreamproxyPaidForNothing"}
    waiting = {name: asked(expression) for name, expression in expressions().items() if name not in rare}
    async with (
        running(pace=0) as simulated,
        serve(lambda _: PRICED) as priced,
        running_proxy(simulated.url, providers=providers(simulated.url, priced.url), callers=CALLERS) as proxy,
        running_prometheus(proxy, tmp_path) as url,
        httpx.AsyncClient(timeout=BOUND, trust_env=False, verify=NO_TRUST) as client,
    ):
        proxy.client.headers["authorization"] = f"Bearer {KEY}"
        with anyio.move_on_after(BOUND):
            while waiting:
                for model in ("sim/gpt-image", "sim/fault-data-after-terminal", "sim/fault-no-image"):
                    await proxy.generate(model=model, stream=True, partial_images=1, size="256x256")
                await proxy.generate(model=PRICED_MODEL)
                for name, expression in list(waiting.items()):
                    found = await numbers(client, url, expression)
                    if found and not any(map(math.isnan, found)):
                        del waiting[name]
        assert waiting == {}
        for name in rare:
            await numbers(client, url, asked(expressions()[name]))
