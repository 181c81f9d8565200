"""Settings: which layer wins, what is refused, and that no value is ever repeated."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from streamproxy.settings import ConfigurationError, Described, ProviderSettings, Settings, describe, load

CANARY = "sk-Canary0123456789"
EXAMPLE = Path(__file__).parents[1] / "deploy" / "streamproxy.toml"
TOP = [row for row in describe() if not row.name.startswith("providers")]
LAYERS = ("flag", "environment", "secret", "toml")


def load_with(
    tmp: Path | None = None,
    *,
    flags: dict[str, object] | None = None,
    environ: dict[str, str] | None = None,
    secrets: dict[str, str] | None = None,
    toml: str | None = None,
) -> Settings:
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


def refused(
    *,
    tmp: Path | None = None,
    flags: dict[str, object] | None = None,
    environ: dict[str, str] | None = None,
    secrets: dict[str, str] | None = None,
    toml: str | None = None,
) -> ConfigurationError:
    with pytest.raises(ConfigurationError) as caught:
        load_with(tmp, flags=flags, environ=environ, secrets=secrets, toml=toml)
    return caught.value


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


def test_what_kubernetes_adds_for_a_service_of_our_name_is_nobodys_mistake() -> None:
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


def without_one_letter(name: str) -> str:
    return name[: len(name) // 2] + name[len(name) // 2 + 1 :]


@pytest.mark.parametrize("row", [row for row in TOP if len(row.name) > 6], ids=lambda row: str(row.name))
def test_a_misspelt_name_is_refused_and_the_right_one_said(tmp_path: Path, row: Described) -> None:
    name = without_one_letter(row.name)
    env = "STREAMPROXY_" + name.upper()
    [problem] = refused(environ={env: "1"}).problems
    assert (problem.setting, problem.fix.split("?")[0]) == (env, f"did you mean {row.env}")
    [problem] = refused(tmp=tmp_path, toml=f"{name} = 1").problems
    assert (problem.setting, problem.fix.split("?")[0]) == (name, f"did you mean {row.name}")


@pytest.mark.parametrize("name", ProviderSettings.model_fields)
def test_a_misspelt_provider_setting_is_refused_and_the_right_one_said(tmp_path: Path, name: str) -> None:
    wrong = without_one_letter(name)
    [problem] = refused(tmp=tmp_path, toml=f"[providers.azure]\n{wrong} = 1").problems
    assert (problem.setting, problem.fix.split("?")[0]) == (f"providers.azure.{wrong}", f"did you mean {name}")


def test_a_misspelt_secret_file_and_a_lower_case_variable_are_refused(tmp_path: Path) -> None:
    error = refused(tmp=tmp_path, secrets={"STREAMPROXY_CALLER_KEY": ""}, environ={"streamproxy_port": "1"})
    assert [problem.fix.split("?")[0] for problem in error.problems] == [
        "did you mean STREAMPROXY_PORT",
        "did you mean STREAMPROXY_CALLER_KEYS",
    ]


def test_all_problems_of_all_layers_are_said_at_once(tmp_path: Path) -> None:
    error = refused(
        tmp=tmp_path,
        flags={"port": "70000", "prot": "1"},
        environ={"STREAMPROXY_HEARTBEAT": "0.5", "STREAMPROXY_HOSTT": "x"},
        secrets={"STREAMPROXY_CALLER_KEYS": "plain"},
        toml='log_level = "loud"\n[providers.a]\nnames = "short"\nqery = ""\n[providers.B]\n',
    )
    assert {problem.setting for problem in error.problems} == {
        *("port", "prot", "heartbeat", "STREAMPROXY_HOSTT", "caller_keys", "log_level"),
        *("providers.a.names", "providers.a.qery", "providers"),
    }
    assert error.sound == Settings()


def test_what_is_sound_survives_what_is_not(tmp_path: Path) -> None:
    error = refused(
        tmp=tmp_path, toml='heartbeat = 9\nport = "x"\n[providers.a]\nnames = "x"\n[providers.b]\nstreams = true'
    )
    assert error.sound == Settings(heartbeat=9, providers={"b": ProviderSettings(streams=True)})


def test_each_problem_names_the_setting_twice_its_layer_and_a_fix() -> None:
    said = str(refused(environ={"STREAMPROXY_IDLE_TIMEOUT": "-1"}))
    assert re.search(r"^idle_timeout \(STREAMPROXY_IDLE_TIMEOUT\): .*environment\n  fix: .*seconds.*300", said)


@pytest.mark.parametrize("row", TOP, ids=lambda row: str(row.name))
@pytest.mark.parametrize("layer", LAYERS)
def test_a_refused_value_is_never_repeated(tmp_path: Path, row: Described, layer: str) -> None:
    value = "http://user:" + CANARY + "@host" if row.name == "upstream" else f"{CANARY} /"
    error = refused(
        tmp=tmp_path,
        flags={row.name: value} if layer == "flag" else {},
        environ={row.env: value} if layer == "environment" else {},
        secrets={row.env: value} if layer == "secret" else None,
        toml=f'{row.name} = "{value}"' if layer == "toml" else None,
    )
    assert [problem.setting for problem in error.problems] == [row.name]
    assert CANARY not in str(error) + repr(error) + repr(error.problems)
    assert error.__cause__ is None


@pytest.mark.parametrize("name", ProviderSettings.model_fields)
def test_a_refused_provider_value_is_never_repeated(tmp_path: Path, name: str) -> None:
    error = refused(tmp=tmp_path, toml=f"[providers.azure]\n{name} = {{ a = ['{CANARY}'] }}")
    assert {problem.setting for problem in error.problems} == {f"providers.azure.{name}"}
    assert CANARY not in str(error)


@pytest.mark.parametrize(
    ("toml", "word"),
    [("port = ", "not valid TOML"), ("a = 1\na = 2", "not valid TOML"), ("#" * 2**20 + "#", "more than 1048576 bytes")],
)
def test_a_file_that_cannot_be_parsed(tmp_path: Path, toml: str, word: str) -> None:
    [problem] = refused(tmp=tmp_path, toml=toml).problems
    assert problem.setting == "--config"
    assert word in problem.happened


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "latin1.toml").write_bytes(b"host = '\xe9'")
    for path, word in [(tmp_path / "absent.toml", "No such file"), (tmp_path / "latin1.toml", "not UTF-8")]:
        with pytest.raises(ConfigurationError, match=word):
            load({}, {}, path)
    with pytest.raises(ConfigurationError, match="CREDENTIALS_DIRECTORY"):
        load({}, {"CREDENTIALS_DIRECTORY": str(tmp_path / "absent")}, None)


NUMBERS = [
    name
    for name, field in Settings.model_fields.items()
    if isinstance(field.default, float) and name != "disconnect_grace"  # which may be 0
]
SIZES = [name for name in Settings.model_fields if name.endswith("_bytes")]


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("value", ["0", "-1", "nan", "inf", "-inf", "1e9", "five", True])
def test_a_duration_is_finite_and_positive(name: str, value: object) -> None:
    [problem] = refused(flags={name: value}).problems
    assert problem.setting == name


def test_a_grace_may_be_nothing() -> None:
    assert load_with(flags={"disconnect_grace": "0"}).disconnect_grace == 0
    for value in ("-1", "nan", "1e9", True):
        [problem] = refused(flags={"disconnect_grace": value}).problems
        assert problem.setting == "disconnect_grace"


@pytest.mark.parametrize("value", ["memory", "redis://h", "rediss://u:p@h:1/2?ssl_ca_certs=/f", "valkey://[::1]:6379"])
def test_a_store_is_memory_or_a_url(value: str) -> None:
    settings = load_with(environ={"STREAMPROXY_STORE": value})
    assert settings.store == value
    assert "store=" not in repr(settings)
    assert "secret=" not in repr(Settings(secret="0123456789abcdef"))


@pytest.mark.parametrize("value", ["memcached://h", "redis:/h", "redis://", "redis://a b", "Memory", "http://h"])
def test_another_store_is_refused(value: str) -> None:
    [problem] = refused(environ={"STREAMPROXY_STORE": value}).problems
    assert (problem.setting, "redis://127.0.0.1:6379/0" in problem.fix) == ("store", True)


@pytest.mark.parametrize("value", ["0", "257", "1.5", "many", True])
def test_workers_are_a_sensible_number(value: object) -> None:
    [problem] = refused(flags={"workers": value}).problems
    assert (problem.setting, problem.env) == ("workers", "STREAMPROXY_WORKERS")


@pytest.mark.parametrize("value", ["Canary", "0123456789abcde ", "0123456789abcd\u00e9f"])
def test_a_secret_is_long_and_visible(value: str) -> None:
    [problem] = refused(flags={"secret": value}).problems
    assert (problem.setting, "openssl rand -hex 32" in problem.fix) == ("secret", True)
    assert value not in str(problem)


@pytest.mark.parametrize("name", SIZES)
def test_a_limit_is_at_least_64_kib(name: str) -> None:
    assert getattr(load_with(flags={name: 65_536}), name) == 65_536
    for value in (65_535, 0, -1, "64 KiB", True):
        [problem] = refused(flags={name: value}).problems
        assert problem.setting == name


def test_settings_are_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Settings().port = 1  # type: ignore[misc]


def test_every_setting_is_described_with_a_meaning() -> None:
    rows = describe()
    expected = [*Settings.model_fields, *(f"providers.<name>.{name}" for name in ProviderSettings.model_fields)]
    assert [row.name for row in rows] == expected
    assert all(row.meaning for row in rows)
    assert {row.env for row in TOP} == {"STREAMPROXY_" + row.name.upper() for row in TOP}


@pytest.mark.parametrize("row", [row for row in TOP if row.default], ids=lambda row: str(row.name))
def test_a_described_default_is_what_the_setting_takes(row: Described) -> None:
    assert load_with(environ={row.env: row.default}) == Settings()


def test_the_example_says_every_setting_and_no_other_default(tmp_path: Path) -> None:
    text = EXAMPLE.read_text()
    assert load({}, {}, EXAMPLE) == Settings()
    for row in TOP:
        assert re.search(rf"^(# )?{row.name} = ", text, re.M), row.name
    rows = re.sub(r"^# (\[providers\.|upstream = |\w+ = )", r"\1", text, flags=re.M)
    rows = rows.replace("caller_keys = []", "").replace("<64 hex digits>", "0" * 64).replace("<resource>", "mine")
    everything = load_with(tmp_path, toml=rows)
    assert set(everything.providers["gateway"].model_fields_set) >= set(ProviderSettings.model_fields) - {
        "query",
        "deployments",
    }
    assert everything.providers["gateway"].strict_headers is False


@given(
    st.dictionaries(
        st.sampled_from(list(Settings.model_fields)), st.one_of(st.none(), st.text(), st.floats(), st.booleans())
    )
)
def test_any_flags_give_settings_or_problems(flags: dict[str, object]) -> None:
    wrong: set[str] = set()
    try:
        load(flags, {}, None)
    except ConfigurationError as error:
        wrong = {problem.setting for problem in error.problems}
        sound = error.sound
    else:
        sound = load(flags, {}, None)
    assert wrong <= set(flags)
    assert isinstance(sound, Settings)
