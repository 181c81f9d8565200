"""deploy/compose.yaml is held true by its schema, by the files that it names, and by `streamproxy check`.

No container is started: that needs a daemon, and images of a registry.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from streamproxy.settings import ROWS
from tests.support.proxy import BOUND
from tests.support.starting import checked, credentials
from tests.support.valkey import valkey_server

ROOT: Final = Path(__file__).parent.parent.parent
FILE: Final = ROOT / "deploy" / "compose.yaml"
COMPOSE: Final[dict[str, Any]] = yaml.safe_load(FILE.read_text("utf-8"))
SERVICES: Final[dict[str, dict[str, Any]]] = COMPOSE["services"]
PROXY: Final = SERVICES["proxy"]


def seconds(text: str) -> int:
    match = re.fullmatch(r"(\d+)s", text)
    assert match, text
    return int(match[1])


def test_it_is_valid_by_the_schema_of_compose() -> None:
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", str(FILE)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=BOUND, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_what_it_mounts_and_builds_is_here() -> None:
    build = PROXY["build"]
    context = FILE.parent / build["context"]
    assert context.resolve() == ROOT
    assert (context / build["dockerfile"]).is_file()
    mounts = [mount.split(":") for service in SERVICES.values() for mount in service.get("volumes", ())]
    files = [FILE.parent / source for source, *_ in mounts if source.startswith(".")]
    assert len(files) == 3
    assert [path for path in files if not path.exists()] == []
    assert {source for source, *_ in mounts if not source.startswith(".")} == COMPOSE["volumes"].keys()


def test_grafana_finds_its_board_and_prometheus() -> None:
    mounted = {mount.split(":")[1] for mount in SERVICES["grafana"]["volumes"]}
    provisioning = FILE.parent / "grafana" / "provisioning"
    (folder,) = yaml.safe_load((provisioning / "dashboards" / "streamproxy.yaml").read_text("utf-8"))["providers"]
    assert f"{folder['options']['path']}/streamproxy.json" in mounted
    (source,) = yaml.safe_load((provisioning / "datasources" / "prometheus.yaml").read_text("utf-8"))["datasources"]
    assert source["url"] == "http://prometheus:9090"
    config = FILE.parent / "prometheus" / "prometheus.yaml"
    assert f"--config.file=/etc/prometheus/{config.name}" in SERVICES["prometheus"]["command"]
    (job,) = yaml.safe_load(config.read_text("utf-8"))["scrape_configs"]
    environment = PROXY["environment"]
    assert job["static_configs"] == [{"targets": [f"proxy:{environment['STREAMPROXY_METRICS_PORT']}"]}]
    assert environment["STREAMPROXY_METRICS_HOST"] == "0.0.0.0"


def test_secrets_are_files_that_git_ignores() -> None:
    secrets = COMPOSE["secrets"]
    used = {name for service in SERVICES.values() for name in service.get("secrets", ())}
    assert used == secrets.keys()
    assert {name: row["file"] for name, row in secrets.items()} == {name: f"./secrets/{name}" for name in secrets}
    assert "/deploy/secrets/" in (ROOT / ".gitignore").read_text("utf-8").splitlines()
    secret = {row.env for row in ROWS.values() if row.name in ("secret", "caller_keys")}
    assert secret <= set(PROXY["secrets"])
    written = {*re.findall(r"> secrets/(\S+)", FILE.read_text("utf-8"), re.MULTILINE)}
    assert written == secrets.keys()


def test_the_proxy_starts_with_them(tmp_path: Path) -> None:
    environment = {**PROXY["environment"], **credentials(tmp_path, PROXY["secrets"])}
    done = checked(["serve", "--host", "0.0.0.0"], environment)
    assert done.exit_code == 0, done.output
    assert "warning" not in done.output
    assert done.output.count("credential: directory") == 1


@pytest.mark.parametrize("name", ["STREAMPROXY_SECRET", "STREAMPROXY_CALLER_KEYS"])
def test_it_does_not_start_without(name: str, tmp_path: Path) -> None:
    environment = {**PROXY["environment"], **credentials(tmp_path, [it for it in PROXY["secrets"] if it != name])}
    done = checked(["serve", "--host", "0.0.0.0"], environment)
    assert done.exit_code == 1
    assert name in done.output


def test_each_service_says_whether_it_is_healthy() -> None:
    image = (ROOT / "deploy" / "Dockerfile").read_text("utf-8")
    healthy = {name for name, service in SERVICES.items() if "healthcheck" in service}
    assert "\nHEALTHCHECK " in image
    assert healthy | {"proxy"} == SERVICES.keys()


def test_only_this_machine_reaches_its_ports() -> None:
    ports = [port for service in SERVICES.values() for port in service.get("ports", ())]
    assert ports
    assert [port for port in ports if not port.startswith("127.0.0.1:")] == []


def test_only_the_proxy_reaches_valkey() -> None:
    assert COMPOSE["networks"]["store"] == {"internal": True}
    assert [name for name, service in SERVICES.items() if "store" in service.get("networks", ())] == ["proxy", "valkey"]
    assert SERVICES["valkey"]["networks"] == ["store"]


def test_the_grace_is_longer_than_the_drain() -> None:
    assert seconds(PROXY["stop_grace_period"]) > float(PROXY["environment"]["STREAMPROXY_DRAIN_TIMEOUT"])


def test_the_proxy_writes_only_to_tmp() -> None:
    assert PROXY["read_only"] is True
    assert [mount.partition(":")[0] for mount in PROXY["tmpfs"]] == ["/tmp"]
    assert PROXY["cap_drop"] == ["ALL"]
    assert PROXY["security_opt"] == ["no-new-privileges:true"]


def test_valkey_takes_its_options() -> None:
    server, *options = SERVICES["valkey"]["command"]
    assert server == "valkey-server"
    with valkey_server(*options) as valkey:
        assert b"noeviction" in valkey.command("CONFIG", "GET", "maxmemory-policy")
        assert b"1073741824" in valkey.command("CONFIG", "GET", "maxmemory")
