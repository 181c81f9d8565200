"""The command line: what it prints, what it never prints, and how it ends.

What serves, and what a terminal sees of the whole, are processes; the rest is called, which takes a tenth of the time.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import chdir, contextmanager
from importlib.metadata import version
from pathlib import Path

import pytest
from click.testing import CliRunner

import streamproxy
from streamproxy.cli import cli
from streamproxy.settings import SWITCH, describe
from streamproxy.simulator.faults import FAULTS
from streamproxy.simulator.openai import MODELS

CANARY = "sk-Canary0123456789"
SECONDS = 60
PROVIDER = [row.name.rpartition(".")[2] for row in describe() if row.name.startswith("providers.")]
COMMANDS = ("generate", "demo", "serve", "healthcheck", "check", "models", "simulate", "doctor", "hash-key")
MINE = ("OPENAI_API_KEY", "EDENAI_API_KEY", "OCTEN_API_KEY", "AZURE_OPENAI_API_KEY", "CREDENTIALS_DIRECTORY")


def environment(extra: dict[str, str]) -> dict[str, str]:
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith("STREAMPROXY_") and name not in MINE
    }
    return {**kept, **extra}


def run(
    *words: str, environ: dict[str, str] | None = None, stdin: str = "", cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """In a process of its own."""
    command = [sys.executable, "-m", "streamproxy", *words]
    env = environment(environ or {})
    return subprocess.run(command, input=stdin, capture_output=True, text=True, env=env, cwd=cwd, timeout=SECONDS)


def call(
    *words: str, environ: dict[str, str] | None = None, stdin: str = "", cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """In this process."""
    env = {**dict.fromkeys(os.environ), **environment(environ or {})}
    with chdir(cwd or Path.cwd()):
        result = CliRunner().invoke(cli, words, input=stdin, env=env, prog_name="streamproxy")
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return subprocess.CompletedProcess(words, result.exit_code, result.stdout, result.stderr)


@contextmanager
def started(*words: str, environ: dict[str, str], cwd: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A running command and its API base URL; both outputs go to one pipe."""
    command = [sys.executable, "-m", "streamproxy", *words]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment(environ), cwd=cwd
    )
    assert process.stdout is not None
    try:
        said = ""
        while (found := re.search(r"API base URL: (\S+)", said)) is None:
            line = process.stdout.readline()
            assert line, f"it ended: {said}"
            said += line
        yield process, found[1]
    finally:
        process.kill()
        process.communicate(timeout=SECONDS)


def test_help_names_every_command() -> None:
    result = run("--help")
    assert result.returncode == 0
    assert all(re.search(rf"^  {name} ", result.stdout, re.M) for name in COMMANDS)
    for name in COMMANDS:
        assert call(name, "--help").returncode == 0


def test_help_costs_little_more_than_click() -> None:
    """CPU time, the best of several runs of each in turn: 1.8 times was measured, with all imports it would be 10."""

    def seconds(*words: str) -> float:
        before = os.times()
        subprocess.run([sys.executable, *words], stdout=subprocess.DEVNULL, timeout=SECONDS, check=True)
        after = os.times()
        return after.children_user + after.children_system - before.children_user - before.children_system

    pairs = [(seconds("-c", "import click"), seconds("-m", "streamproxy", "--help")) for _ in range(5)]
    assert min(ours for _, ours in pairs) < 3 * min(bare for bare, _ in pairs)


def test_the_example_of_a_single_key(tmp_path: Path) -> None:
    result = run("check", environ={"OPENAI_API_KEY": CANARY}, cwd=tmp_path)
    assert (result.returncode, result.stderr) == (0, "")
    assert "127.0.0.1 port 8080" in result.stdout
    assert re.search(r"provider +openai +https://api.openai.com +credential: environment", result.stdout)
    assert CANARY not in result.stdout
    assert result.stdout.endswith("\nconfiguration is valid\n")


def flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


SOUND = {  # what a setting is given where its default is none, or may not stand beside the others
    "memory_limit": "1073741824",
    "default_model": "sim/plain",
    "metrics_port": "9464",
    **{"upstream": "https://gateway.example/v1", "secret": "0123456789abcdef", "finish_models": "a,b"},
    **{"cors_origins": "https://a.example", "caller_keys": "", "public_url": "https://a.example/v1"},
    **{"webhook_origins": "https://a.example", "webhook_secret": f"whsec_{'A' * 32}"},
    **{"results": "s3://bucket", "results_endpoint": "https://s3.example", "results_seconds": "60"},
}


def test_every_setting_is_a_flag_with_its_meaning() -> None:
    settings = [row for row in describe() if row.env]
    said = " ".join(call("check", "--help").stdout.split())
    for row in settings:
        assert f"{flag(row.name)} {row.takes} {row.meaning[0].upper()}{row.meaning[1:]}." in said
    words = [word for row in settings for word in (flag(row.name), SOUND.get(row.name, row.default))]
    result = call("check", *words)
    assert (result.returncode, result.stderr) == (0, "")
    wrong = call("check", "--upstream", "http://h/v1", *(w for row in settings for w in (flag(row.name), "\n")))
    refused = set(re.findall(r"^([a-z_]+) \(.*it comes from a flag$", wrong.stderr, re.M))
    assert refused >= {row.name for row in settings if row.takes == "N"}


def test_a_switch_needs_no_value() -> None:
    rows = [row for row in describe() if row.env and row.takes == SWITCH]
    assert rows
    for row in rows:
        for words, status in (((), 0), (("false",), 0), (("maybe",), 1)):
            assert call("check", "--upstream", "http://h/v1", flag(row.name), *words).returncode == status


def test_warnings_are_lines_of_their_own_and_do_not_fail() -> None:
    result = call("check", "--upstream", "https://api.openai.com", "--secret", f"{CANARY}-secret")
    assert (result.returncode, result.stderr) == (0, "")
    *_, first, second, last = result.stdout.splitlines()
    assert first.startswith("warning: upstream: ")
    assert second.startswith("warning: secret: ")
    assert last == "configuration is valid"
    assert CANARY not in result.stdout


def test_an_address_of_ipv6_is_shown_in_brackets() -> None:
    assert "  http://[::1]:9  " in call("check", "--upstream", "http://[::1]:9").stdout


@pytest.mark.parametrize("command", ["check", "serve"])
def test_trust_that_cannot_be_loaded_is_said_in_words(command: str, tmp_path: Path) -> None:
    result = run(command, "--upstream", "https://h/v1", environ={"SSL_CERT_FILE": str(tmp_path / "absent.pem")})
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.startswith("The configuration has 1 problem:\n\nSSL_CERT_FILE: ")


def test_the_version_is_the_packages() -> None:
    result = run("--version")
    assert (result.returncode, result.stdout) == (0, f"streamproxy {version('streamproxy')}\n")


def test_the_simulators_models_are_listed_with_every_fault() -> None:
    result = run("simulate", "--list")
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.splitlines() == [f"sim/{name}" for name in MODELS]
    assert f"sim/fault-{[*FAULTS][-1]}" in result.stdout


SHARED = {
    "OPENAI_API_KEY": "sk-0123456789abcdef",
    "STREAMPROXY_SECRET": f"{CANARY}-secret",
    "STREAMPROXY_STORE": f"rediss://user:{CANARY}@store.example:6380/1?ssl_ca_certs=/{CANARY}",
}


def test_check_says_the_store_and_the_workers() -> None:
    alone = call("check", environ={"OPENAI_API_KEY": CANARY})
    assert re.search(r"^workers +1\nstore +memory$", alone.stdout, re.M)
    result = call("check", "--workers", "3", environ=SHARED)
    assert (result.returncode, result.stderr) == (0, "")
    assert re.search(r"^workers +3\nstore +rediss +store.example:6380$", result.stdout, re.M)
    assert CANARY not in result.stdout


@pytest.mark.parametrize(
    ("store", "secret", "setting"),
    [
        (f"redis://:{CANARY}@host:99999", f"{CANARY}-secret", "store"),
        (f"redis://:{CANARY}@host/{CANARY}", f"{CANARY}-secret", "store"),
        (f"redis//:{CANARY}@host", f"{CANARY}-secret", "store"),
        (f"redis://:{CANARY}@host", None, "secret"),
        (f"redis://:{CANARY}@host", "Canary", "secret"),
    ],
)
def test_an_unusable_store_is_said_without_its_password(store: str, secret: str | None, setting: str) -> None:
    environ = {"OPENAI_API_KEY": "sk-0123456789abcdef", "STREAMPROXY_STORE": store}
    result = call("check", environ=environ if secret is None else {**environ, "STREAMPROXY_SECRET": secret})
    assert result.returncode == 1
    assert re.search(rf"^{setting} \(STREAMPROXY_{setting.upper()}\): ", result.stderr, re.M)
    assert "Canary" not in result.stdout + result.stderr


def test_workers_need_a_shared_store() -> None:
    result = run("serve", "--workers", "2", environ={"OPENAI_API_KEY": CANARY})
    assert result.returncode == 1
    assert "store is memory" in result.stderr
    assert "workers = 1" in result.stderr


def test_models_of_a_provider_are_listed() -> None:
    result = call("models", environ={"OPENAI_API_KEY": CANARY})
    assert result.returncode == 0
    words = "previews, edits with masks, n 10, sizes, png/jpeg/webp, text_input=5 image_input=8 image_output=30"
    assert re.search(rf"^openai/gpt-image-2 +{words}$", result.stdout, re.M)
    assert "google/" not in result.stdout
    words = "completed only, edits, n 1, sizes, png/jpeg, chats, text_input=2 .*, until 2027-05-28"
    assert re.search(
        rf"^google/gemini-3-pro-image +{words}$", call("models", environ={"GEMINI_API_KEY": CANARY}).stdout, re.M
    )


def test_the_models_of_an_upstream_are_its_own_to_list(tmp_path: Path) -> None:
    result = call("models", "--upstream", "https://gateway.example/v1")
    assert (result.returncode, result.stdout) == (0, "")
    assert result.stderr.startswith("upstream: every name is passed on; ")
    config = tmp_path / "c.toml"
    config.write_text('[providers.mine]\nbase_url = "https://h/v1"\ncredential = "none"\nmodels = ["lab/a", "*"]')
    assert call("models", "--config", str(config)).stdout == "lab/a\n"


def test_all_problems_come_at_once_without_followers(tmp_path: Path) -> None:
    config = tmp_path / "c.toml"
    config.write_text(
        'heartbet = 1\ncaller_keys = ["plain"]\n[providers.openai]\nadapter = "telex"\n[providers.a]\nx = 1\n'
    )
    words = ("--config", str(config), "--host", "0.0.0.0", "--port", "x", "--idle-timeout", "-1")
    result = call("check", *words, environ={"OPENAI_API_KEY": CANARY, "STREAMPROXY_LOG_LVEL": "info"})
    assert (result.returncode, result.stdout) == (1, "")
    assert re.findall(r"^(\S+?)(?: \(.*\))?: (?!.*problems)", result.stderr, re.M) == [
        *("STREAMPROXY_LOG_LVEL", "port", "providers.a.x", "caller_keys", "idle_timeout", "heartbet"),
        "providers.openai.adapter",
    ]
    assert result.stderr.count("\n  fix: ") == 7
    assert (
        run("serve", *words, environ={"OPENAI_API_KEY": CANARY, "STREAMPROXY_LOG_LVEL": "info"}).stderr == result.stderr
    )


def test_callers_and_their_limits_are_shown(tmp_path: Path) -> None:
    config = tmp_path / "c.toml"
    digits = "0123456789abcdef" * 4
    config.write_text(f'[callers.app]\nkey = "sha256:{digits}"\nmodels = ["a/*", "b"]\nusd_per_day = 2.5\n')
    result = call("check", "--config", str(config), environ={"OPENAI_API_KEY": CANARY})
    assert "callers    1 keys\ncaller     app  models: a/*,b  providers: *  usd_per_day: 2.5\n" in result.stdout
    assert "warning: callers: the store is memory, so a restart forgets" in result.stdout
    assert digits[:12] not in result.stdout + result.stderr


def test_a_wrong_caller_is_not_a_missing_key_too(tmp_path: Path) -> None:
    config = tmp_path / "c.toml"
    config.write_text(f'[callers.app]\nkey = "{CANARY}"\n[callers.other]\nusd_per_day = "{CANARY}"\n')
    words = ("--config", str(config), "--host", "0.0.0.0")
    result = call("check", *words, environ={"OPENAI_API_KEY": "not-a-key-but-long-enough"})
    assert (result.returncode, result.stdout) == (1, "")
    assert re.findall(r"^(\S+?): (?!.*problems)", result.stderr, re.M) == [
        *("callers.app.key", "callers.other.usd_per_day", "callers.other.key"),
    ]
    assert CANARY not in result.stderr


def test_the_environment_may_name_the_configuration(tmp_path: Path) -> None:
    config = tmp_path / "c.toml"
    config.write_text("port = 1234")
    result = call("check", environ={"OPENAI_API_KEY": CANARY, "STREAMPROXY_CONFIG": str(config)})
    assert "port 1234" in result.stdout
    assert call("check", "--config", str(tmp_path / "absent")).returncode == 1


def planted(tmp: Path) -> list[tuple[list[str], dict[str, str]]]:
    """A secret in every place that takes a value, one place at a time."""
    places: list[tuple[list[str], dict[str, str]]] = []
    config = tmp / "c.toml"
    config.write_text("")
    top = [row for row in describe() if row.env]
    places.append(([], {row.env: CANARY + "\n" for row in top}))
    places.append(([word for row in top for word in (flag(row.name), f"{CANARY} ")], {}))
    places.append((["--upstream", f"http://user:{CANARY}@host/"], {}))
    places.append((["--upstream", f"http://host/?key={CANARY}"], {}))
    for number, text in enumerate(
        [
            "\n".join(f'{row.name} = "{CANARY} "' for row in top),
            "\n".join(f"{row.name} = ['{CANARY} ']" for row in top),
            "[providers.openai]\n" + "\n".join(f'{name} = "{CANARY}\\n"' for name in PROVIDER),
            *(f'[providers.openai]\ncredential = "{kind}{CANARY}"' for kind in ("", "env:", "file:", "dir:", "env:A")),
            f'[providers.openai]\nallow_headers = ["{CANARY}"]',
            f'[providers.openai]\nbase_url = "https://host/{CANARY}/v1"',
            f'[providers.openai]\nadapter = "{CANARY}"',
            f'host = "{CANARY}"\nport = {CANARY}',
            f'host = "{CANARY}',
        ]
    ):
        path = tmp / f"{number}.toml"
        path.write_text(text)
        places.append((["--config", str(path)], {"OPENAI_API_KEY": CANARY, "CREDENTIALS_DIRECTORY": str(tmp)}))
    (tmp / "OPENAI_API_KEY").write_text(CANARY + "\nX-Other: 1")
    (tmp / "STREAMPROXY_CALLER_KEYS").write_text(CANARY)
    places.append(([], {"CREDENTIALS_DIRECTORY": str(tmp)}))
    places.append(([], {"OPENAI_API_KEY": CANARY + "\n" + CANARY}))
    return places


def test_no_secret_is_ever_printed(tmp_path: Path) -> None:
    for words, environ in planted(tmp_path):
        result = call("check", *words, environ=environ, cwd=tmp_path)
        assert CANARY not in result.stdout + result.stderr, (words, environ)
        assert "Unexpected" not in result.stderr
        assert "Traceback" not in result.stderr


def test_a_key_is_hashed_from_stdin_only() -> None:
    result = call("hash-key", stdin=CANARY + "\n")
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout == f"sha256:{hashlib.sha256(CANARY.encode()).hexdigest()}\n"
    assert "guessed" in call("hash-key", stdin="short").stderr
    for unusable in ("", "a b", "a\nb", "ключ"):
        refused = call("hash-key", stdin=unusable)
        assert (refused.returncode, refused.stdout) == (1, "")
    assert call("hash-key", CANARY).returncode == 2


def test_a_busy_port_is_said_without_a_traceback(tmp_path: Path) -> None:
    environ = {"OPENAI_API_KEY": CANARY}
    with started("serve", "--port", "0", environ=environ, cwd=tmp_path) as (_, url):
        port = url.split(":")[2].split("/")[0]
        result = run("serve", "--port", port, environ=environ)
    assert result.returncode == 1
    assert "already in use" in result.stderr
    assert "--port" in result.stderr
    assert "Traceback" not in result.stderr


def test_the_doctor_finds_no_fault_without_an_edge() -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        address = f"127.0.0.1:{probe.getsockname()[1]}"
        taken = call("doctor", "http://127.0.0.1:1", "--listen", address)
    assert (taken.returncode, taken.stdout) == (1, "")
    assert re.search(rf"--listen: {address}: .*in use .* Stop the proxy there", taken.stderr)
    page = (Path(streamproxy.__file__).parent / "docs" / "edges.md").read_text("utf-8")
    (line,) = re.findall(r"^streamproxy (doctor .*)$", page, re.M)
    there = {"https://images.example.com": f"http://{address}/", "127.0.0.1:8080": address}
    well = run(*(there.get(word, word) for word in line.split()), "--silence", "1")
    assert (well.returncode, well.stderr) == (0, "")
    assert re.search(r"^  previews +one by one$", well.stdout, re.M)
    assert well.stdout.endswith("\nNo fault was found.\n")


def test_the_doctor_reports_to_programs() -> None:
    result = call("doctor", "http://127.0.0.1:1", "--listen", "127.0.0.1:0", "--json", "--edge", "nginx")
    report = json.loads(result.stdout)
    assert (result.returncode, report["edge"], report["checks"]) == (1, "nginx", {"reached by": "nothing"})
    assert [(fault["fault"], bool(fault["cures"])) for fault in report["faults"]] == [("unreachable", True)]


@pytest.mark.parametrize(
    "words",
    [
        ("http://h",),
        ("h", "--listen", "a:1"),
        ("http://h", "--listen", "1"),
        ("http://h", "--listen", ":1"),
        ("http://h", "--listen", "a:65536"),
        ("http://h", "--listen", "a:1", "--edge", "abacus"),
    ],
)
def test_wrong_usage_of_the_doctor(words: tuple[str, ...]) -> None:
    assert call("doctor", *words).returncode == 2


def test_a_signal_ends_the_doctor() -> None:
    with socket.create_server(("127.0.0.1", 0)) as hangs:  # it takes connections, and never answers
        url = f"http://127.0.0.1:{hangs.getsockname()[1]}"
        command = [sys.executable, "-m", "streamproxy", "doctor", url, "--listen", "127.0.0.1:0"]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        hangs.settimeout(SECONDS)
        with hangs.accept()[0]:
            process.send_signal(signal.SIGINT)
            said, _ = process.communicate(timeout=SECONDS)
    assert (process.returncode, said) == (130, "")


@pytest.mark.parametrize("command", ["serve", "simulate", "demo"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_quietly(tmp_path: Path, command: str, number: signal.Signals) -> None:
    environ = {"OPENAI_API_KEY": CANARY} if command == "serve" else {}
    words = (command, "--port", "0") + (() if command == "serve" else ("--pace", "0"))
    with started(*words, environ=environ, cwd=tmp_path) as (process, _):
        if command == "demo":
            assert process.stdout is not None
            while "Serving until" not in process.stdout.readline():
                assert process.poll() is None
        process.send_signal(number)
        said, _ = process.communicate(timeout=SECONDS)
    assert "Traceback" not in said
    assert "Aborted" not in said
    expected = {0} if command != "simulate" else {130, -number}
    assert process.returncode in expected


def test_healthcheck_asks_what_is_configured(tmp_path: Path) -> None:
    with started("serve", "--port", "0", environ={"OPENAI_API_KEY": CANARY}, cwd=tmp_path) as (process, line):
        found = re.search(r"127\.0\.0\.1:(\d+)", line)
        assert found is not None
        environ = {"STREAMPROXY_PORT": found[1], "STREAMPROXY_HOST": "0.0.0.0", "HTTP_PROXY": "http://127.0.0.1:1"}
        healthy = call("healthcheck", environ=environ)
        assert (healthy.returncode, healthy.stdout) == (0, "ready\n")
        process.send_signal(signal.SIGTERM)
        process.wait(SECONDS)
    gone = call("healthcheck", environ=environ)
    assert (gone.returncode, gone.stdout) == (1, "")
    assert "does not answer" in gone.stderr


def test_a_proxy_that_is_not_ready_is_not_healthy() -> None:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port: int = sock.getsockname()[1]

        def refuse() -> None:
            connection, _ = sock.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n")

        answering = threading.Thread(target=refuse)
        answering.start()
        said = call("healthcheck", "--port", str(port))
        answering.join(SECONDS)
    assert said.returncode == 1
    assert "503" in said.stderr


def test_wrong_usage_has_a_status_of_its_own() -> None:
    assert call("check", "--no-such-option").returncode == 2
    assert call("check", "--heartbeat").returncode == 2
    misspelt = call("check", "--cors-origin", "*")
    assert (misspelt.returncode, "--cors-origins" in misspelt.stderr) == (2, True)
    assert call("nonsense").returncode == 2


@pytest.mark.parametrize("debug", [True, False])
def test_tracebacks_are_for_debugging(tmp_path: Path, debug: bool) -> None:
    words = ("--debug",) if debug else ()
    result = run(*words, "check", "--config", str(tmp_path / "absent.toml"))
    assert result.returncode == 1
    assert ("Traceback" in result.stderr) is debug


def test_one_picture_of_a_provider(tmp_path: Path) -> None:
    """Its previews are files, in the format that the name asks for; the key is sent where callers bring their own."""
    config = tmp_path / "c.toml"
    with started("simulate", "--port", "0", "--pace", "0", environ={}, cwd=tmp_path) as (_, url):
        config.write_text(f'[providers.sim]\nbase_url = "{url}"\ncredential = "caller"')
        words = ("generate", "a red boat", "-o", "boat.webp", "--config", "c.toml", "--key-env", "MINE")
        result = run(*words, "--model", "sim/gpt-image", "--previews", "1", environ={"MINE": CANARY}, cwd=tmp_path)
    assert (result.returncode, result.stderr) == (0, "")
    assert CANARY not in result.stdout
    assert re.search(r"^It", result.stdout, re.M)
    made = sorted(path.name for path in tmp_path.iterdir() if path.suffix == ".webp")
    assert made == ["boat.preview-1.webp", "boat.webp"]
    assert all((tmp_path / name).read_bytes()[8:12] == b"WEBP" for name in made)


def test_a_picture_needs_a_model_and_a_key_that_is_there() -> None:
    unnamed = call("generate", "a", "--upstream", "http://h/v1")
    assert (unnamed.returncode, "--model" in unnamed.stderr) == (2, True)
    absent = call("generate", "a", "--upstream", "http://h/v1", "--model", "m", "--key-env", "NO_SUCH_KEY")
    assert (absent.returncode, "NO_SUCH_KEY" in absent.stderr) == (2, True)
