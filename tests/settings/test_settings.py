"""Settings: which layer wins, what is refused, and that no value is ever repeated."""

from __future__ import annotations

import itertools
import re
import tomllib
from dataclasses import FrozenInstanceError, fields
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from streamproxy.settings import (
    CallerSettings,
    ConfigurationError,
    ConfigurationProblem,
    Described,
    ProviderSettings,
    Settings,
    describe,
    read,
)
from streamproxy.settings.sources import load

CANARY = "sk-Canary0123456789"
EXAMPLE = Path(__file__).parents[2] / "deploy" / "streamproxy.toml"
TOP = [row for row in describe() if row.env]
ALL = [field.name for field in fields(Settings)]
OF_PROVIDER = [field.name for field in fields(ProviderSettings)]
OF_CALLER = [field.name for field in fields(CallerSettings)]
LAYERS = ("flag", "environment", "secret", "toml")


def loaded(
    tmp: Path | None = None,
    *,
    flags: dict[str, object] | None = None,
    environ: dict[str, str] | None = None,
    secrets: dict[str, str] | None = None,
    toml: str | None = None,
) -> tuple[Settings, list[ConfigurationProblem]]:
    environ = dict(environ or {})
    if secrets is not None:
        assert tmp is not None
        directory = tmp / "secrets"
        directory.mkdir()
        for name, value in secrets.items():
            (directory / name).write_text(value)
        environ["CREDENTIALS_DIRECTORY"] = str(directory)
    config = None
    if toml is not None:
        assert tmp is not None
        config = tmp / "streamproxy.toml"
        config.write_text(toml)
    return load(flags or {}, environ, config)


def load_with(tmp: Path | None = None, **layers: Any) -> Settings:
    settings, problems = loaded(tmp, **layers)
    assert not problems
    return settings


def refused(tmp: Path | None = None, **layers: Any) -> list[ConfigurationProblem]:
    _, problems = loaded(tmp, **layers)
    assert problems
    return problems


def said(problems: list[ConfigurationProblem]) -> str:
    return str(ConfigurationError(problems))


@pytest.mark.parametrize("given", [c for n in range(5) for c in itertools.combinations(LAYERS, n)])
def test_the_highest_layer_that_speaks_wins(tmp_path: Path, given: tuple[str, ...]) -> None:
    settings = load_with(
        tmp_path,
        flags={"port": "1"} if "flag" in given else {"port": None},
        environ={"STREAMPROXY_PORT": "2"} if "environment" in given else {},
        secrets={"STREAMPROXY_PORT": "3\n"} if "secret" in given else None,
        toml="port = 4" if "toml" in given else "",
    )
    assert settings.port == (LAYERS.index(given[0]) + 1 if given else 8080)


def test_layers_are_joined_setting_by_setting(tmp_path: Path) -> None:
    settings = load_with(tmp_path, flags={"port": 1}, environ={"STREAMPROXY_HEARTBEAT": "2"}, toml="idle_timeout = 3")
    assert (settings.port, settings.heartbeat, settings.idle_timeout) == (1, 2.0, 3.0)


def test_providers_are_merged_by_member_across_layers(tmp_path: Path) -> None:
    """Only TOML can say them today; a caller of `load` may give them as flags."""
    below = """
        [providers.a]
        query = "x=1"
        names = "bare"
        deployments = { m = "1", n = "2" }
        [providers.b]
        streams = false
    """
    above = {"a": {"names": "full", "deployments": {"n": "3", "o": "4"}}, "c": {"streams": True}}
    settings = load_with(tmp_path, flags={"providers": above}, toml=below)
    assert settings.providers == {
        "a": ProviderSettings(query="x=1", names="full", deployments={"m": "1", "n": "3", "o": "4"}),
        "b": ProviderSettings(streams=False),
        "c": ProviderSettings(streams=True),
    }
    replaced = load_with(flags={"providers": {"a": ProviderSettings(streams=True)}})
    assert replaced.providers == {"a": ProviderSettings(streams=True)}


CALLER = f'[callers.app]\nkey = "sha256:{"0" * 64}"\n'


def test_callers_have_limits(tmp_path: Path) -> None:
    text = CALLER + 'models = ["openai/*"]\nproviders = ["openai"]\nstreams = 3\nusd_per_day = 2.5'
    assert load_with(tmp_path, toml=text).callers == {
        "app": CallerSettings(
            key="sha256:" + "0" * 64, models=("openai/*",), providers=("openai",), streams=3, usd_per_day=2.5
        )
    }


@pytest.mark.parametrize(
    ("text", "setting"),
    [
        (CALLER + f'budget = "{CANARY}"', "callers.app.budget"),
        (CALLER + f'usd_per_day = "{CANARY}"', "callers.app.usd_per_day"),
        (CALLER + "usd_per_day = -1", "callers.app.usd_per_day"),
        (CALLER + "usd_per_day = nan", "callers.app.usd_per_day"),
        (CALLER + "streams = 0", "callers.app.streams"),
        (CALLER + f'models = ["{CANARY} "]', "callers.app.models"),
        (f'[callers.app]\nkey = "{CANARY}"', "callers.app.key"),
        ("[callers.app]\nstreams = 1", "callers.app.key"),
        (f'[callers."{CANARY}"]\nkey = "sha256:{"0" * 64}"', "callers"),
        (f'[callers]\napp = "{CANARY}"', "callers.app"),
        (f'callers = "{CANARY}"', "callers"),
    ],
)
def test_wrong_callers_are_named_not_shown(tmp_path: Path, text: str, setting: str) -> None:
    [problem] = refused(tmp_path, toml=text)
    assert problem.setting == setting
    assert CANARY not in str(problem)
    assert problem.fix


def test_constructing_converts_and_checks_its_arguments() -> None:
    settings = Settings(caller_keys="sha256:" + "0" * 64, port="1", idle_timeout=3, upstream="http://h/")  # type: ignore[arg-type]
    assert settings.caller_keys == ("sha256:" + "0" * 64,)
    assert (settings.port, settings.upstream) == (1, "http://h")
    assert type(settings.idle_timeout) is float
    with pytest.raises(ConfigurationError) as caught:
        Settings(port=-1, workers=9, log_level=CANARY, providers={"B": ProviderSettings()})  # type: ignore[arg-type]
    assert [problem.setting for problem in caught.value.problems] == ["port", "providers", "log_level"]
    with pytest.raises(ConfigurationError) as caught:
        ProviderSettings(base_url=CANARY, query="\n", names="bare")
    assert [problem.setting for problem in caught.value.problems] == ["base_url", "query"]
    assert CANARY not in str(caught.value)
    with pytest.raises(TypeError):
        Settings(prot=1)  # type: ignore[call-arg]


def test_a_mapping_gives_what_its_members_give() -> None:
    values: dict[str, Any] = {"port": 1, "providers": {"a": {"streams": False}, "b": ProviderSettings(query="q")}}
    rows = {"a": ProviderSettings(streams=False), "b": ProviderSettings(query="q")}
    settings = Settings.of(values)
    assert settings == Settings(port=1, providers=rows)
    values["providers"].clear()
    assert settings.providers == rows
    with pytest.raises(ConfigurationError) as caught:
        Settings.of({"prot": 1, "port": -1, "workers": 3})
    assert [problem.setting for problem in caught.value.problems] == ["port", "prot"]
    settings, problems = read({"prot": 1, "port": -1, "workers": 3})
    assert settings == Settings(workers=3)
    assert problems == list(caught.value.problems)


@pytest.mark.parametrize(
    ("providers", "settings"),
    [
        (3, ["providers"]),
        ({"a": 3, "b": {"x": 1, "query": 1}}, ["providers.a", "providers.b.query", "providers.b.x"]),
        ({CANARY: {"base_url": "x", "qery": 1}}, ["providers", "providers.<name>.base_url", "providers.<name>.qery"]),
        ({CANARY: 3}, ["providers", "providers.<name>"]),
        ({CANARY: ProviderSettings()}, ["providers"]),
    ],
)
def test_providers_that_are_no_tables_or_misnamed(providers: object, settings: list[str]) -> None:
    kept, problems = loaded(flags={"providers": providers})
    assert [problem.setting for problem in problems] == settings
    assert all(problem.happened.endswith("from a flag") for problem in problems)
    assert CANARY not in said(problems)
    assert kept == Settings()


def test_constructing_settings_reads_no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STREAMPROXY_PORT", "1")
    assert Settings().port == 8080


def test_an_empty_environment_value_is_not_given() -> None:
    assert load_with(environ={"STREAMPROXY_UPSTREAM": "", "STREAMPROXY_PORT": " "}) == Settings()


def test_the_openai_base_url_is_never_read() -> None:
    assert load_with(environ={"OPENAI_BASE_URL": "http://127.0.0.1:8080/v1"}) == Settings()


def test_environment_lists_are_comma_separated() -> None:
    settings = load_with(environ={"STREAMPROXY_CORS_ORIGINS": "https://a.example, https://b.example:8443,"})
    assert settings.cors_origins == ("https://a.example", "https://b.example:8443")


def test_variables_that_kubernetes_adds_are_no_mistake() -> None:
    link = {
        "STREAMPROXY_SERVICE_HOST": "10.0.0.1",
        "STREAMPROXY_SERVICE_PORT": "8080",
        "STREAMPROXY_SERVICE_PORT_HTTP": "8080",
        "STREAMPROXY_PORT": "tcp://10.0.0.1:8080",
        "STREAMPROXY_PORT_8080_TCP": "tcp://10.0.0.1:8080",
        "STREAMPROXY_PORT_8080_TCP_ADDR": "10.0.0.1",
        "STREAMPROXY_PORT_8080_TCP_PROTO": "tcp",
    }
    assert load_with(environ=link) == Settings()
    for service in ("VALKEY", "API", "STORE", "MAX_STREAMS"):
        of_another = {name.replace("STREAMPROXY_", f"STREAMPROXY_{service}_"): value for name, value in link.items()}
        assert load_with(environ={**link, **of_another, "STREAMPROXY_HEARTBEAT": "9"}) == Settings(heartbeat=9)


@pytest.mark.parametrize(
    ("name", "value"),
    [("STREAMPROXY_VALKEY_PORT", "6379"), ("STREAMPROXY_SERVICE", "x"), ("STREAMPROXY_PORT_6379_SSL", "x")],
)
def test_what_only_resembles_a_service_is_a_misspelt_name(name: str, value: str) -> None:
    [problem] = refused(environ={name: value})
    assert problem.setting == name


def test_files_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / "marked.toml").write_text("port = 1", encoding="utf-8-sig")
    settings, _ = load({}, {}, tmp_path / "marked.toml")
    assert settings.port == 1
    (tmp_path / "STREAMPROXY_PORT").write_text("2", encoding="utf-8-sig")
    settings, _ = load({}, {"CREDENTIALS_DIRECTORY": str(tmp_path)}, None)
    assert settings.port == 2


def test_a_choice_may_be_written_in_capitals() -> None:
    assert load_with(environ={"STREAMPROXY_LOG_LEVEL": "WARNING"}).log_level == "warning"


def without_one_letter(name: str) -> str:
    return name[: len(name) // 2] + name[len(name) // 2 + 1 :]


@pytest.mark.parametrize("row", [row for row in TOP if len(row.name) > 6], ids=lambda row: str(row.name))
def test_a_misspelt_name_is_refused_and_the_right_one_said(tmp_path: Path, row: Described) -> None:
    name = without_one_letter(row.name)
    env = "STREAMPROXY_" + name.upper()
    [problem] = refused(environ={env: "1"})
    assert (problem.setting, problem.fix.split("?")[0]) == (env, f"did you mean {row.env}")
    [problem] = refused(tmp_path, toml=f"{name} = 1")
    assert (problem.setting, problem.fix.split("?")[0]) == (name, f"did you mean {row.name}")


@pytest.mark.parametrize("name", OF_PROVIDER)
def test_a_misspelt_provider_setting_is_told_the_right_one(tmp_path: Path, name: str) -> None:
    wrong = without_one_letter(name)
    [problem] = refused(tmp_path, toml=f"[providers.azure]\n{wrong} = 1")
    assert (problem.setting, problem.fix.split("?")[0]) == (f"providers.azure.{wrong}", f"did you mean {name}")


def test_misspelt_files_and_variables_are_refused(tmp_path: Path) -> None:
    problems = refused(tmp_path, secrets={"STREAMPROXY_CALLER_KEY": ""}, environ={"streamproxy_port": "1"})
    assert [problem.fix.split("?")[0] for problem in problems] == [
        "did you mean STREAMPROXY_PORT",
        "did you mean STREAMPROXY_CALLER_KEYS",
    ]


def test_all_problems_of_all_layers_are_said_at_once(tmp_path: Path) -> None:
    settings, problems = loaded(
        tmp_path,
        flags={"port": "70000", "prot": "1"},
        environ={"STREAMPROXY_HEARTBEAT": "0.5", "STREAMPROXY_HOSTT": "x"},
        secrets={"STREAMPROXY_CALLER_KEYS": "plain"},
        toml='log_level = "loud"\n[providers.a]\nnames = "short"\nqery = ""\n[providers.B]\n',
    )
    assert {problem.setting for problem in problems} == {
        *("port", "prot", "heartbeat", "STREAMPROXY_HOSTT", "caller_keys", "log_level"),
        *("providers.a.names", "providers.a.qery", "providers"),
    }
    assert settings == Settings()


def test_what_is_sound_survives_what_is_not(tmp_path: Path) -> None:
    settings, _ = loaded(
        tmp_path, toml='heartbeat = 9\nport = "x"\n[providers.a]\nnames = "x"\n[providers.b]\nstreams = true'
    )
    assert settings == Settings(heartbeat=9, providers={"b": ProviderSettings(streams=True)})


def test_a_problem_comes_from_the_highest_layer(tmp_path: Path) -> None:
    problems = refused(
        tmp_path,
        flags={"port": "x", "stream": "x"},
        environ={"STREAMPROXY_PORT": "y", "STREAMPROXY_HEARTBEAT": "y"},
        secrets={"STREAMPROXY_HEARTBEAT": "z", "STREAMPROXY_LINGER": "z"},
        toml='linger = "w"\nstream_n = "w"\n"a.b" = 1',
    )
    origins = {problem.setting: problem.happened.rpartition(" from ")[2] for problem in problems}
    assert origins == {
        "port": "a flag",
        "stream": "a flag",
        "heartbeat": "the environment",
        "linger": "a secret file",
        "stream_n": "the TOML file",
        "a.b": "the TOML file",
    }


def test_each_problem_names_setting_layer_and_fix() -> None:
    text = said(refused(environ={"STREAMPROXY_IDLE_TIMEOUT": "-1"}))
    assert re.search(r"^idle_timeout \(STREAMPROXY_IDLE_TIMEOUT\): .*environment\n  fix: .*seconds.*300", text)


@pytest.mark.parametrize("row", TOP, ids=lambda row: str(row.name))
@pytest.mark.parametrize("layer", LAYERS)
def test_a_refused_value_is_never_repeated(tmp_path: Path, row: Described, layer: str) -> None:
    value = "http://user:" + CANARY + "@host" if row.name == "upstream" else f"{CANARY} /"
    problems = refused(
        tmp_path,
        flags={row.name: value} if layer == "flag" else {},
        environ={row.env: value} if layer == "environment" else {},
        secrets={row.env: value} if layer == "secret" else None,
        toml=f'{row.name} = "{value}"' if layer == "toml" else None,
    )
    assert [problem.setting for problem in problems] == [row.name]
    assert CANARY not in said(problems) + repr(problems)


@pytest.mark.parametrize("name", OF_PROVIDER)
def test_a_refused_provider_value_is_never_repeated(tmp_path: Path, name: str) -> None:
    problems = refused(tmp_path, toml=f"[providers.azure]\n{name} = {{ a = ['{CANARY}'] }}")
    assert {problem.setting for problem in problems} == {f"providers.azure.{name}"}
    assert CANARY not in said(problems)


@pytest.mark.parametrize(
    ("toml", "word"),
    [("port = ", "not valid TOML"), ("a = 1\na = 2", "not valid TOML"), ("#" * 2**20 + "#", "more than 1048576 bytes")],
)
def test_a_file_that_cannot_be_parsed(tmp_path: Path, toml: str, word: str) -> None:
    [problem] = refused(tmp_path, toml=toml)
    assert problem.setting == "--config"
    assert word in problem.happened


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "latin1.toml").write_bytes(b"host = '\xe9'")
    for path, word in [(tmp_path / "absent.toml", "No such file"), (tmp_path / "latin1.toml", "not UTF-8")]:
        [problem] = load({}, {}, path)[1]
        assert word in problem.happened
    [problem] = load({}, {"CREDENTIALS_DIRECTORY": str(tmp_path / "absent")}, None)[1]
    assert problem.setting == "CREDENTIALS_DIRECTORY"


GRACES = ("disconnect_grace", "failure_hold", "json_heartbeat")
NUMBERS = [
    field.name
    for field in fields(Settings)
    # A grace may be 0, and 1e9 bytes a second is a rate.
    if isinstance(field.default, float) and field.name not in (*GRACES, "receive_rate")
]
SIZES = [name for name in ALL if name.endswith("_bytes")]


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("value", ["0", "-1", "nan", "inf", "-inf", "1e9", "five", True])
def test_a_duration_is_finite_and_positive(name: str, value: object) -> None:
    [problem] = refused(flags={name: value})
    assert problem.setting == name


@pytest.mark.parametrize("name", GRACES)
def test_a_grace_may_be_nothing(name: str) -> None:
    assert getattr(load_with(flags={name: "0"}), name) == 0
    for value in ("-1", "nan", "1e9", True):
        [problem] = refused(flags={name: value})
        assert problem.setting == name


@pytest.mark.parametrize("value", ["memory", "redis://h", "rediss://u:p@h:1/2?ssl_ca_certs=/f", "valkey://[::1]:6379"])
def test_a_store_is_memory_or_a_url(value: str) -> None:
    settings = load_with(environ={"STREAMPROXY_STORE": value})
    assert settings.store == value


def test_what_is_secret_hides_in_the_repr() -> None:
    keys, signing = ("sha256:" + "0" * 64,), f"whsec_{'A' * 32}"
    callers = {"app": CallerSettings(key="sha256:" + "1" * 64)}
    store = f"redis://:{CANARY}@h"
    shown = repr(Settings(caller_keys=keys, callers=callers, store=store, secret=CANARY, webhook_secret=signing))
    assert "port=8080" in shown
    assert not re.search(f"caller_keys|sha256|store=|secret=|whsec_|{CANARY}", shown)


@pytest.mark.parametrize("value", ["memcached://h", "redis:/h", "redis://", "redis://a b", "Memory", "http://h"])
def test_another_store_is_refused(value: str) -> None:
    [problem] = refused(environ={"STREAMPROXY_STORE": value})
    assert (problem.setting, "redis://127.0.0.1:6379/0" in problem.fix) == ("store", True)


@pytest.mark.parametrize("value", ["0", "257", "1.5", "many", True])
def test_workers_are_a_sensible_number(value: object) -> None:
    [problem] = refused(flags={"workers": value})
    assert (problem.setting, problem.env) == ("workers", "STREAMPROXY_WORKERS")


@pytest.mark.parametrize("value", ["Canary", "0123456789abcde ", "0123456789abcd\u00e9f"])
def test_a_secret_is_long_and_visible(value: str) -> None:
    [problem] = refused(flags={"secret": value})
    assert (problem.setting, "openssl rand -hex 32" in problem.fix) == ("secret", True)
    assert value not in str(problem)


@pytest.mark.parametrize("name", SIZES)
def test_a_limit_is_at_least_64_kib(name: str) -> None:
    assert getattr(load_with(flags={name: 65_536}), name) == 65_536
    for value in (65_535, 0, -1, "64 KiB", True):
        [problem] = refused(flags={name: value})
        assert problem.setting == name


def test_settings_are_frozen() -> None:
    with pytest.raises(FrozenInstanceError):
        Settings().port = 1  # type: ignore[misc]


def test_every_setting_is_described_with_a_meaning() -> None:
    rows = describe()
    expected = [*ALL, *(f"providers.<name>.{name}" for name in OF_PROVIDER)]
    expected += [f"callers.<name>.{name}" for name in OF_CALLER]
    assert [row.name for row in rows] == expected
    assert all(row.meaning for row in rows)
    assert {row.name for row in rows if not row.env and "." not in row.name} == {"providers", "callers", "fallbacks"}
    assert {row.env for row in TOP} == {"STREAMPROXY_" + row.name.upper() for row in TOP}


@pytest.mark.parametrize("row", [row for row in TOP if row.default], ids=lambda row: str(row.name))
def test_a_described_default_is_what_the_setting_takes(row: Described) -> None:
    assert load_with(environ={row.env: row.default}) == Settings()


def test_the_example_has_every_setting_and_default(tmp_path: Path) -> None:
    text = EXAMPLE.read_text()
    assert load({}, {}, EXAMPLE) == (Settings(), [])
    for row in TOP:
        assert re.search(rf"^(# )?{row.name} = ", text, re.M), row.name
    rows = re.sub(r"^# (\[(?:providers|callers)\.|upstream = |\w+ = )", r"\1", text, flags=re.M)
    rows = rows.replace("caller_keys = []", "").replace("<64 hex digits>", "0" * 64).replace("<resource>", "mine")
    rows = rows.replace("whsec_<base64>", f"whsec_{'A' * 32}")
    everything = load_with(tmp_path, toml=rows)
    assert set(tomllib.loads(rows)["callers"]["app"]) == set(OF_CALLER)
    row = tomllib.loads(rows)["providers"]["gateway"]
    assert set(row) >= set(OF_PROVIDER) - {"query", "deployments"}
    assert everything.providers["gateway"].strict_headers is False


@settings(suppress_health_check=[HealthCheck.too_slow])  # a cold first draw makes tables of all text
@given(st.dictionaries(st.sampled_from(ALL), st.one_of(st.none(), st.text(), st.floats(), st.booleans())))
def test_any_flags_give_settings_or_problems(flags: dict[str, object]) -> None:
    settings, problems = load(flags, {}, None)
    assert {problem.setting for problem in problems} <= set(flags)
    assert isinstance(settings, Settings)
