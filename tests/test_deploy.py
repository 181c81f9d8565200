"""The deployment files are held true: the lock by pyproject.toml, the image's instructions one by one.

No image is built here: that needs a base image of a registry. What an instruction runs is run as it stands: the
health check against a proxy, the command line by `streamproxy check`.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Final

import anyio
import pytest

from streamproxy.settings import Settings, describe
from streamproxy.settings.sources import load
from streamproxy.simulator import running
from tests.support.proxy import BOUND, running_proxy
from tests.support.starting import VALUES, checked

ROOT: Final = Path(__file__).parent.parent
DEPLOY: Final = ROOT / "deploy"
LOCKS: Final = ("requirements.lock", "build.lock")
PROJECT: Final = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
EXTRA: Final[list[str]] = PROJECT["project"]["optional-dependencies"]["valkey"]
PIN: Final = re.compile(r"([a-z0-9-]+)==([0-9][0-9.]*)(?: ; ([^\\]+?))?((?: --hash=sha256:[0-9a-f]{64})+)")


def pins(name: str) -> dict[str, str]:
    """The versions of a lock by their names; every line must be a comment or a pin with hashes."""
    text = (DEPLOY / name).read_text("utf-8")
    lines = [" ".join(line.split()) for line in text.replace("\\\n", " ").splitlines() if not line.startswith("#")]
    found = {}
    for line in lines:
        match = PIN.fullmatch(line)
        assert match, line[:80]
        assert match[1] not in found
        found[match[1]] = match[2]
    return found


def release(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")))


def satisfies(version: str, ranges: str) -> bool:
    """Whether a release is within `>=1.2,<2`; those two signs are all that pyproject.toml uses."""
    for bound in ranges.split(","):
        match = re.fullmatch(r"(>=|<)([0-9.]+)", bound)
        assert match, bound
        length = max(len(release(version)), len(release(match[2])))
        have, limit = (release(text) + (0,) * (length - len(release(text))) for text in (version, match[2]))
        if not (have >= limit if match[1] == ">=" else have < limit):
            return False
    return True


@pytest.mark.parametrize(
    ("version", "ranges", "expected"),
    [("1.10.0", ">=1.10,<2", True), ("1.9", ">=1.10,<2", False), ("2.0", ">=1.10,<2", False), ("13", ">=12", True)],
)
def test_what_satisfies_means(version: str, ranges: str, expected: bool) -> None:
    assert satisfies(version, ranges) is expected


def dependencies(lines: list[str]) -> dict[str, str]:
    named = [re.fullmatch(r"([A-Za-z0-9-]+)([<>=0-9.,]+)(;.*)?", line.strip()) for line in lines]
    assert all(named), lines
    return {match[1].lower(): match[2] for match in named if match}


def test_the_lock_pins_every_dependency_within_its_range() -> None:
    pinned = pins("requirements.lock")
    wanted = dependencies([*PROJECT["project"]["dependencies"], *EXTRA])
    assert {name for name in wanted if name not in pinned} == set()
    assert {name: pinned[name] for name, ranges in wanted.items() if not satisfies(pinned[name], ranges)} == {}


def test_the_lock_holds_only_what_dependencies_need() -> None:
    pinned = set(pins("requirements.lock"))
    assert {"h11", "httpcore", "idna", "certifi"} <= pinned
    tools = set(dependencies(PROJECT["project"]["optional-dependencies"]["dev"])) - set(dependencies(EXTRA))
    assert not pinned & (tools | {"pip", "hatchling"})


def test_nothing_is_installed_by_name_without_a_hash() -> None:
    """The package is on no index: `pip install` of its name would run whatever is registered under it."""
    sources = (ROOT / "streamproxy").rglob("*.[mp][dy]")
    paths = [path for path in (ROOT / "README.md", *DEPLOY.rglob("*"), *sources) if path.is_file()]
    texts = {path: path.read_text("utf-8") for path in paths if path.suffix != ".webp"}
    assert any("pip install" in text for text in texts.values())
    by_name = re.compile(r"['\"]streamproxy\[|pip install[^\n&`]*\sstreamproxy\b")
    assert [path for path, text in texts.items() if by_name.search(text)] == []


def test_the_build_lock_pins_the_build_backend() -> None:
    pinned = pins("build.lock")
    for name, ranges in dependencies(PROJECT["build-system"]["requires"]).items():
        assert satisfies(pinned[name], ranges)


def test_compiled_dependencies_have_all_hashes() -> None:
    """A wheel for each of three Pythons on two kinds of processor: with one hash or two, a lock was made from one."""
    text = (DEPLOY / "requirements.lock").read_text("utf-8").replace("\\\n", " ")
    for name in ("httptools", "msgspec", "orjson", "pillow", "uvloop", "websockets"):
        (line,) = [line for line in text.splitlines() if line.startswith(f"{name}==")]
        assert line.count("--hash=") >= 6, name


@pytest.mark.parametrize("name", LOCKS)
def test_locks_name_no_place(name: str) -> None:
    text = (DEPLOY / name).read_text("utf-8")
    assert not re.search(
        r"://|file:|@ |--index|--find|--extra|--trusted",
        text.replace("--no-emit-index-url", "").replace("--extra valkey", ""),
    )


@dataclass(frozen=True, slots=True)
class Instruction:
    """One instruction of a Dockerfile, on one line."""

    name: str
    rest: str

    @property
    def words(self) -> list[str]:
        """The exec form of ENTRYPOINT, CMD and HEALTHCHECK's CMD; fails for a shell form."""
        words = json.loads(self.rest[self.rest.index("[") :])
        assert all(isinstance(word, str) for word in words)
        return list(words)


def stages() -> list[list[Instruction]]:
    lines = [line for line in (DEPLOY / "Dockerfile").read_text("utf-8").splitlines() if not line.startswith("#")]
    found: list[list[Instruction]] = []
    for line in "\n".join(lines).replace("\\\n", " ").splitlines():
        if line.strip():
            name, _, rest = line.partition(" ")
            if name == "FROM":
                found.append([])
            found[-1].append(Instruction(name, " ".join(rest.split())))
    return found


def the(name: str) -> Instruction:
    """The final stage's only instruction of this name."""
    (found,) = [instruction for instruction in stages()[-1] if instruction.name == name]
    return found


def test_hadolint_has_nothing_to_say() -> None:
    command = [str(Path(sys.executable).with_name("hadolint")), "--no-color", str(DEPLOY / "Dockerfile")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=BOUND, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_final_stage_has_no_root_and_no_build_tools() -> None:
    build, final = stages()
    assert build[0].rest == "python:3.13-slim AS build"
    assert final[0].rest == "python:3.13-slim"
    assert re.fullmatch(r"[1-9][0-9]*:[1-9][0-9]*", the("USER").rest)
    assert the("STOPSIGNAL").rest == "SIGTERM"
    assert [instruction for instruction in final if instruction.name in ("RUN", "ADD")] == []
    assert the("COPY").rest == "--from=build /opt/streamproxy /opt/streamproxy"


def test_everything_is_installed_by_its_hash() -> None:
    """What is not, our own wheel apart, is without an index; and no source distribution runs its setup."""
    installs = [
        command
        for instruction in stages()[0]
        if instruction.name == "RUN"
        for command in instruction.rest.split("&&")
        if re.search(r"\bpip\b.* (install|wheel) ", command)
    ]
    assert len(installs) == 4
    for command in installs:
        by_hash = "--require-hashes" in command and "--only-binary :all:" in command and "-r deploy/" in command
        assert by_hash or ("--no-index" in command and "--no-deps" in command), command


def test_what_is_copied_exists_and_is_let_into_the_build() -> None:
    rules = [line for line in (ROOT / ".dockerignore").read_text("utf-8").split("\n") if line and line[0] != "#"]
    assert rules[0] == "*"
    kept = [rule[1:] for rule in rules if rule.startswith("!")]
    sources = [
        source for instruction in stages()[0] if instruction.name == "COPY" for source in instruction.rest.split()[:-1]
    ]
    assert sources
    for source in sources:
        assert (ROOT / source).exists(), source
        assert any(fnmatch(source, pattern) for pattern in kept), source
    for pattern in kept:
        assert any(fnmatch(source, pattern) for source in sources), f"{pattern} is let in for nothing"


def test_what_the_wheel_is_made_of_is_copied() -> None:
    sources = " ".join(instruction.rest for instruction in stages()[0] if instruction.name == "COPY").split()
    project = PROJECT["project"]
    wanted = [
        project["readme"],
        *project["license-files"],
        *PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"],
    ]
    assert {name for name in wanted if name not in sources} == set()


@pytest.mark.parametrize(
    ("environment", "more", "problem"),
    [
        ({name: VALUES[name] for name in ("OPENAI_API_KEY", "STREAMPROXY_CALLER_KEYS")}, [], ""),
        ({}, ["--upstream", "https://gateway.example.com/v1"], ""),
        ({"OPENAI_API_KEY": VALUES["OPENAI_API_KEY"]}, [], "caller_keys"),
    ],
    ids=["keys", "sidecar", "anybody could spend the key"],
)
def test_the_command_starts_as_the_text_above_it_says(
    environment: dict[str, str], more: list[str], problem: str
) -> None:
    assert the("ENTRYPOINT").words == [next(iter(PROJECT["project"]["scripts"]))]
    serve, *flags = the("CMD").words
    done = checked([serve, *flags, *more], environment)
    assert (done.exit_code, problem in done.output) == (1 if problem else 0, True), done.output


@pytest.mark.anyio
async def test_the_health_check_knows_a_proxy_that_serves() -> None:
    program, *arguments = the("HEALTHCHECK").words
    assert program == "streamproxy"
    command = [sys.executable, "-m", "streamproxy", *arguments]
    async with running(pace=0) as simulated:
        async with running_proxy(simulated.url) as proxy:
            nowhere = {"http_proxy": simulated.url, "no_proxy": "", "STREAMPROXY_PORT": str(proxy.port)}
            with anyio.fail_after(BOUND):
                serving = await anyio.run_process(command, env={**os.environ, **nowhere}, check=False)
            before = simulated.calls
        with anyio.fail_after(BOUND):
            gone = await anyio.run_process(command, env={**os.environ, **nowhere}, check=False)
        assert simulated.calls == before == 0
    assert (serving.returncode, gone.returncode) == (0, 1)
    assert b"does not answer (ConnectionRefusedError)" in gone.stderr


def test_the_usual_port_is_exposed() -> None:
    assert the("EXPOSE").rest == str(Settings().port)


def test_the_example_is_what_the_defaults_are() -> None:
    """Every setting stands in streamproxy.toml, and what is not behind a `#` is its default."""
    example = DEPLOY / "streamproxy.toml"
    text = example.read_text("utf-8")
    assert load({}, {}, example) == (Settings(), [])
    for row in describe():
        name = row.name.rpartition(".")[2]
        assert re.search(rf"^(# )?{name} = |^# \[{name}\.", text, re.MULTILINE), row.name


def test_the_script_of_the_checks_is_valid_bash() -> None:
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    assert script.read_text("utf-8").startswith("#!/usr/bin/env bash\n")
    done = subprocess.run(["bash", "-n", str(script)], capture_output=True, text=True, timeout=BOUND, check=False)
    assert done.returncode == 0, done.stderr
