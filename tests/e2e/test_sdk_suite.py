"""openai-python's own tests of its images, unmodified, against the proxy and the simulator.

They are in the sdist only, and need packages of their own. `.ci/run` unpacks it, and installs them in an environment
beside it; `OPENAI_SUITE` names the unpacked sdist, in which that environment is `venv`.
"""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path
from typing import Final

import anyio
import pytest

from streamproxy.simulator import running
from tests.support.proxy import running_proxy

SUITE: Final = os.environ.get("OPENAI_SUITE", "")
WITHIN: Final = 120.0
"""Seconds; it takes some 20."""

MODELS: Final = ("sim/plain", "gpt-image-1.5", "gpt-image-2.5-flare")
"""The default, and those that the suite names."""

LEAST: Final = 80
"""Tests of generations and edits in openai-python 3.52."""

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.soak,
    pytest.mark.skipif(not SUITE, reason="OPENAI_SUITE does not name an unpacked sdist of openai; .ci/run makes one"),
]


async def test_all_but_variations_pass() -> None:
    deployed = {"deployments": dict.fromkeys(MODELS, "sim/plain")}
    python = Path(SUITE, "venv", "bin", "python")
    options = ["-q", "-o", "addopts=", "-p", "no:cacheprovider", "-k", "not create_variation"]
    with anyio.fail_after(WITHIN):
        async with (
            running(pace=0) as simulated,
            running_proxy(simulated.url, provider=deployed, default_model=MODELS[0]) as proxy,
        ):
            ran = await anyio.run_process(
                [python, "-m", "pytest", *options, "tests/api_resources/test_images.py"],
                stderr=subprocess.STDOUT,
                check=False,
                cwd=SUITE,
                env={**os.environ, "TEST_API_BASE_URL": f"{proxy.url}/v1"},
            )
            said = ran.stdout.decode()
            assert ran.returncode == 0, said[-3000:]
            passed = re.search(r"(\d+) passed", said.splitlines()[-1])
            assert passed is not None, said[-3000:]
            assert int(passed[1]) >= LEAST
            assert simulated.calls >= LEAST
