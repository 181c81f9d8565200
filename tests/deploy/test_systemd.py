"""deploy/systemd/streamproxy.service is held true by systemd's own analysis, and by `streamproxy check`."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

from streamproxy.settings import Settings
from tests.support.proxy import BOUND
from tests.support.starting import checked, credentials

DEPLOY: Final = Path(__file__).parent.parent.parent / "deploy"
UNIT: Final = DEPLOY / "systemd" / "streamproxy.service"
TEXT: Final = UNIT.read_text("utf-8")
INSTALLED: Final = "/opt/streamproxy/bin/streamproxy"
EXPOSED: Final = 13
"""Most exposure, in tenths of 0 to 10, that `systemd-analyze security` may find. What is left is mostly the network."""

analysed: Final = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed: apt-get install systemd"
)


def values(name: str) -> list[str]:
    return re.findall(rf"^{name}=(.*)$", TEXT, re.MULTILINE)


def analyse(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `systemd-analyze` on the unit, with a program that is here in place of the one that it runs."""
    unit = folder / UNIT.name
    unit.write_text(TEXT.replace(INSTALLED, sys.executable))
    command = ["systemd-analyze", *arguments, str(unit)]
    return subprocess.run(command, capture_output=True, text=True, timeout=BOUND, check=False)


@analysed
def test_systemd_has_nothing_to_say(tmp_path: Path) -> None:
    done = analyse(tmp_path, "verify", "--man=no", "--recursive-errors=no")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@analysed
def test_it_is_exposed_to_little(tmp_path: Path) -> None:
    done = analyse(tmp_path, "security", "--offline=true", f"--threshold={EXPOSED}")
    assert done.returncode == 0, done.stdout


def test_the_grace_is_longer_than_the_drain() -> None:
    (grace,) = values("TimeoutStopSec")
    assert int(grace) > Settings().drain_timeout


def test_workers_drain_by_the_first_process() -> None:
    assert values("KillMode") == ["mixed"]
    assert values("ExecReload") == ["/bin/kill -HUP $MAINPID"]


def test_it_checks_what_it_runs() -> None:
    """With the file that its text installs, and the credentials that it loads."""
    program, serve, *flags = shlex.split(values("ExecStart")[0])
    assert (program, serve) == (INSTALLED, "serve")
    assert shlex.split(values("ExecStartPre")[0]) == [INSTALLED, "check", *flags]
    assert flags == ["--config", "/etc/streamproxy/streamproxy.toml"]
    assert "install -m 644 deploy/streamproxy.toml /etc/streamproxy/" in TEXT


def test_it_starts_with_its_credentials(tmp_path: Path) -> None:
    loaded = dict(value.split(":", 1) for value in values("LoadCredential"))
    folder = "/etc/streamproxy/credentials"
    assert loaded == {name: f"{folder}/{name}" for name in loaded}
    assert [name for name in loaded if f"install -m 600 /dev/stdin {folder}/{name}\n" not in TEXT] == []
    config = ["--config", str(DEPLOY / "streamproxy.toml")]
    done = checked(["serve", *config], credentials(tmp_path, list(loaded)))
    assert done.exit_code == 0, done.output
    assert "provider   openai" in done.output
    assert checked(["serve", *config], {}).exit_code == 1


def test_the_program_is_installed_from_here() -> None:
    assert f"{Path(INSTALLED).parent}/pip install '.[valkey]'" in TEXT
