"""deploy/kubernetes is held true by Kubernetes' schemas, by the proxy's own tables, and by `streamproxy check`.

No cluster runs here: whether the pods of these files become ready was not tested.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from streamproxy.settings import Settings
from streamproxy.web.routes import ROUTES
from tests.support.proxy import BOUND
from tests.support.starting import checked, credentials

FOLDER: Final = Path(__file__).parent.parent.parent / "deploy" / "kubernetes"
FILES: Final = ("deployment.yaml", "sidecar.yaml")
VERSIONS: Final = ("1.30.0", "1.37.0")
"""The first one with a `sleep` in preStop that needs no feature gate, and the newest one whose schemas there are."""

Pod = dict[str, Any]


def documents(name: str) -> dict[str, Any]:
    """The objects of a file by their kinds."""
    found = list(yaml.safe_load_all((FOLDER / name).read_text("utf-8")))
    return {document["kind"]: document for document in found}


def pod(name: str) -> Pod:
    spec: Pod = documents(name)["Deployment"]["spec"]["template"]["spec"]
    return spec


def container(name: str) -> dict[str, Any]:
    """The proxy's container."""
    spec = pod(name)
    (found,) = [it for it in (*spec.get("initContainers", ()), *spec["containers"]) if it["name"] == "streamproxy"]
    return dict(found)


def environment(name: str) -> dict[str, str]:
    return {row["name"]: row["value"] for row in container(name).get("env", ())}


def grace(name: str) -> float:
    """Seconds that the proxy's own grace leaves beyond the drain."""
    drain = float(environment(name).get("STREAMPROXY_DRAIN_TIMEOUT", Settings().drain_timeout))
    before = float(container(name).get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0))
    return float(pod(name)["terminationGracePeriodSeconds"]) - drain - before


def test_every_file_is_checked() -> None:
    assert sorted(path.name for path in FOLDER.iterdir()) == sorted(FILES)


@pytest.mark.parametrize("version", VERSIONS)
def test_they_are_valid_by_the_schemas(version: str) -> None:
    paths = [str(FOLDER / name) for name in FILES]
    command = [sys.executable, "-m", "kubernetes_validate", "--strict", "-k", version, *paths]
    done = subprocess.run(command, capture_output=True, text=True, timeout=BOUND, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (done.stdout + done.stderr).count(" passed for resource ") == 4


@pytest.mark.parametrize("name", FILES)
def test_labels_select_the_pods(name: str) -> None:
    found = documents(name)
    labels = found["Deployment"]["spec"]["template"]["metadata"]["labels"].items()
    selectors = [found["Deployment"]["spec"]["selector"]["matchLabels"]]
    if "Service" in found:
        selectors += [
            found["Service"]["spec"]["selector"],
            found["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"],
        ]
        assert found["Service"]["spec"]["ports"][0]["targetPort"] == container(name)["ports"][0]["name"]
    assert all(selector.items() <= labels for selector in selectors)


@pytest.mark.parametrize("name", FILES)
def test_the_probes_ask_what_is_served(name: str) -> None:
    served = {row.path for row in ROUTES}
    port = container(name)["ports"][0]
    assert port["containerPort"] == Settings().port
    probes = {kind: container(name)[f"{kind}Probe"]["httpGet"] for kind in ("startup", "liveness", "readiness")}
    assert {probe["path"] for probe in probes.values()} <= served
    assert probes["readiness"]["path"] == "/readyz"
    assert probes["startup"]["path"] == probes["liveness"]["path"] == "/livez", "a drain must not end in a restart"
    assert {probe["port"] for probe in probes.values()} == {port["name"]}


@pytest.mark.parametrize("name", FILES)
def test_prometheus_finds_the_metrics(name: str) -> None:
    annotations = documents(name)["Deployment"]["spec"]["template"]["metadata"]["annotations"]
    port = environment(name).get("STREAMPROXY_METRICS_PORT", str(Settings().port))
    assert annotations == {"prometheus.io/scrape": "true", "prometheus.io/port": port}
    assert int(port) in [row["containerPort"] for row in container(name)["ports"]]


@pytest.mark.parametrize("name", FILES)
def test_the_grace_is_longer_than_the_drain(name: str) -> None:
    assert grace(name) >= 5


def test_no_request_comes_after_sigterm() -> None:
    """A pod that is stopped is taken out of its Service after SIGTERM, so that waits."""
    assert container("deployment.yaml")["lifecycle"] == {"preStop": {"sleep": {"seconds": 10}}}


def test_the_sidecar_outlives_the_application() -> None:
    (sidecar,) = pod("sidecar.yaml")["initContainers"]
    assert sidecar["name"] == "streamproxy"
    assert sidecar["restartPolicy"] == "Always"
    (app,) = pod("sidecar.yaml")["containers"]
    assert {"name": "OPENAI_BASE_URL", "value": f"http://127.0.0.1:{Settings().port}/v1"} in app["env"]


@pytest.mark.parametrize("name", FILES)
def test_it_runs_without_root(name: str) -> None:
    spec, it = pod(name), container(name)
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    user = {**spec["securityContext"], **it["securityContext"]}["runAsUser"]
    image = (FOLDER.parent / "Dockerfile").read_text("utf-8")
    assert f"\nUSER {user}:{user}\n" in image
    assert it["securityContext"]["allowPrivilegeEscalation"] is False
    assert it["securityContext"]["readOnlyRootFilesystem"] is True
    assert it["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    writable = [mount["mountPath"] for mount in it["volumeMounts"] if not mount.get("readOnly")]
    assert writable == ["/tmp"]
    assert {mount["name"] for mount in it["volumeMounts"]} == {volume["name"] for volume in spec["volumes"]}


@pytest.mark.parametrize("name", FILES)
def test_the_image_is_the_reader_s_own(name: str) -> None:
    assert re.fullmatch(r"registry\.example\.com/streamproxy:[0-9.]+", container(name)["image"])


def test_the_deployment_starts_with_its_secret(tmp_path: Path) -> None:
    text = (FOLDER / "deployment.yaml").read_text("utf-8")
    names = re.findall(r"--from-literal=(\w+)=", text)
    assert len(names) == 4
    (mount,) = [mount for mount in container("deployment.yaml")["volumeMounts"] if mount["name"] == "credentials"]
    assert environment("deployment.yaml")["CREDENTIALS_DIRECTORY"] == mount["mountPath"]
    done = checked(
        container("deployment.yaml")["args"], {**environment("deployment.yaml"), **credentials(tmp_path, names)}
    )
    assert done.exit_code == 0, done.output
    assert "callers    1 keys" in done.output
    assert "store      redis" in done.output


def test_the_sidecar_starts_without_a_secret() -> None:
    done = checked(container("sidecar.yaml")["args"], environment("sidecar.yaml"))
    assert done.exit_code == 0, done.output
    assert "credential: caller" in done.output
