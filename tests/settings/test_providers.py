"""Settings, catalogue and environment together: providers, credentials, and refusals at the start."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import trustme

from streamproxy.auth import Credential
from streamproxy.core import schema
from streamproxy.core.catalogue import Provider
from streamproxy.core.headers import HeaderPolicy
from streamproxy.providers import ADAPTERS
from streamproxy.settings import (
    CallerSettings,
    ConfigurationError,
    ConfigurationProblem,
    ProviderSettings,
    Settings,
    values,
)
from streamproxy.settings.providers import Providers, configure, place_of, read_catalogue, read_secret, warnings
from streamproxy.settings.values import shown_origin
from tests.support.google import service_account

CATALOGUE = read_catalogue()
KNOWN = [row for row in CATALOGUE.providers.values() if row.base_url]
FIXED = [row for row in KNOWN if "{" not in row.base_url]
POLICY = HeaderPolicy.load()
CANARY = "sk-Canary0123456789"
HASH = "sha256:" + "0" * 64
OPENAI = {"OPENAI_API_KEY": CANARY}


def configured(settings: Settings, environ: dict[str, str]) -> Providers:
    return configure(settings, CATALOGUE, environ, POLICY, adapters=ADAPTERS)


def problems(settings: Settings, environ: dict[str, str]) -> list[ConfigurationProblem]:
    with pytest.raises(ConfigurationError) as caught:
        configured(settings, environ)
    assert CANARY not in str(caught.value) + repr(caught.value.problems)
    return list(caught.value.problems)


def provider(name: str, row: ProviderSettings) -> Settings:
    return Settings(providers={name: row})


def test_one_key_in_the_environment_is_enough() -> None:
    result = configured(Settings(), OPENAI)
    assert result.providers == (CATALOGUE.providers["openai"],)
    assert result.credentials["openai"].present([]) == Credential("authorization", f"Bearer {CANARY}")
    assert CANARY not in repr(result)


@pytest.mark.parametrize("name", [row.name for row in KNOWN if row.key_env and row.signing == "key"])
def test_each_known_host_comes_with_its_variable(name: str) -> None:
    row = CATALOGUE.providers[name]
    credential = configured(Settings(), {row.key_env: CANARY}).credentials[name].credential
    assert credential == Credential(row.auth_header, row.auth_scheme + CANARY)


def test_configured_providers_exclude_the_environments() -> None:
    sim = ProviderSettings(base_url="http://127.0.0.1:1/v1")
    assert [row.name for row in configured(provider("sim", sim), OPENAI).providers] == ["sim"]
    assert [row.name for row in configured(Settings(upstream="http://gateway/v1"), OPENAI).providers] == ["upstream"]


def test_nothing_configured_says_what_to_do() -> None:
    [problem] = problems(Settings(), {"OPENAI_API_KEY": " "})
    assert problem.setting == "providers"
    assert all(way in problem.fix for way in ("OPENAI_API_KEY", "--upstream", "[providers.<name>]", "streamproxy demo"))


def test_the_upstream_setting_passes_the_callers_own_key() -> None:
    result = configured(Settings(upstream="http://gateway/v1", host="0.0.0.0"), {})
    assert result.providers[0] == replace(CATALOGUE.providers["upstream"], base_url="http://gateway/v1")
    assert result.credentials["upstream"].kind == "caller"


def test_configuration_replaces_only_given_fields() -> None:
    row = ProviderSettings(
        base_url="https://mine.example",
        auth_header="X-Key",
        auth_scheme="",
        streams=False,
        query="",
        models=("a",),
        deployments={"gpt-image-2": "mine"},
        credential="env:MINE",
    )
    [result] = configured(provider("azure", row), {"MINE": CANARY}).providers
    assert result == replace(
        CATALOGUE.providers["azure"],
        base_url="https://mine.example",
        auth_header="x-key",
        streams=False,
        query="",
        models=("a",),
        deployments=(("gpt-image-2", "mine"),),
    )


def test_a_new_name_starts_from_the_upstream_row() -> None:
    row = ProviderSettings(base_url="https://mine.example", credential="none")
    [result] = configured(provider("mine", row), {}).providers
    assert result == replace(CATALOGUE.providers["upstream"], name="mine", base_url="https://mine.example")


def test_credentials_from_every_place(tmp_path: Path) -> None:
    (tmp_path / "key").write_text(f"{CANARY}-file\n")
    (tmp_path / "OPENAI_API_KEY").write_text(f"{CANARY}-directory\r\n")
    environ = {"CREDENTIALS_DIRECTORY": str(tmp_path), "MINE": f"{CANARY}-environment"}
    for reference, kind in [
        ("env:MINE", "environment"),
        (f"file:{tmp_path / 'key'}", "file"),
        ("dir:OPENAI_API_KEY", "directory"),
        (None, "directory"),
    ]:
        source = configured(provider("openai", ProviderSettings(credential=reference)), environ).credentials["openai"]
        assert (source.kind, source.present([])) == (kind, Credential("authorization", f"Bearer {CANARY}-{kind}"))


def test_a_key_s_file_chooses_its_provider(tmp_path: Path) -> None:
    (tmp_path / "OPENAI_API_KEY").write_text(CANARY)
    found = configured(Settings(), {"CREDENTIALS_DIRECTORY": str(tmp_path), "FAL_KEY": CANARY})
    assert {name: source.kind for name, source in found.credentials.items()} == {
        "openai": "directory",
        "fal": "environment",
    }


def test_the_environment_precedes_credential_files(tmp_path: Path) -> None:
    (tmp_path / "OPENAI_API_KEY").write_text("other")
    environ = {**OPENAI, "CREDENTIALS_DIRECTORY": str(tmp_path)}
    assert configured(provider("openai", ProviderSettings()), environ).credentials["openai"].kind == "environment"


@pytest.mark.parametrize(
    "key", ["a\nb", "a b", "ключ", "a\x00b", "\x7f", "", " \n", f"{CANARY}\nX-Other: 1", f"{CANARY}é"], ids=ascii
)
def test_an_unusable_key_is_refused_and_not_shown(tmp_path: Path, key: str) -> None:
    (tmp_path / "key").write_text(key)
    [problem] = problems(provider("openai", ProviderSettings(credential=f"file:{tmp_path / 'key'}")), {})
    assert problem.setting == "providers.openai.credential"
    assert "visible ASCII" in problem.happened


@pytest.mark.parametrize(
    ("reference", "environ", "word"),
    [
        (None, {}, "OPENAI_API_KEY is not set"),
        ("env:NOPE", {}, "NOPE is not set"),
        ("env:MY_KEY_2", {}, "MY_KEY_2 is not set"),
        ("env:Canary0123456789", {}, "it names is not set"),
        ("dir:key", {}, "CREDENTIALS_DIRECTORY is not set"),
        ("dir:key", {"CREDENTIALS_DIRECTORY": "/nonexistent"}, "No such file"),
        ("file:/nonexistent/Canary0123456789", {}, "No such file"),
    ],
)
def test_a_missing_credential_is_a_problem(reference: str | None, environ: dict[str, str], word: str) -> None:
    [problem] = problems(provider("openai", ProviderSettings(credential=reference)), environ)
    assert problem.setting == "providers.openai.credential"
    assert word in problem.happened
    assert "Canary" not in str(problem)
    assert "OPENAI_API_KEY" not in str(problem) or reference is None


@pytest.mark.parametrize(
    "key", ["AKIAIOSFODNN7EXAMPLE", "A1B2C3D4E5F6A7B8", "ABCDEFGHIJKLMNOPQRSTUVWX", "akey", "A" * 65]
)
def test_a_misplaced_key_is_not_repeated(key: str) -> None:
    [problem] = problems(provider("openai", ProviderSettings(credential=f"env:{key}")), {})
    assert key not in str(problem)


def test_a_secret_file_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / "key").write_text(CANARY, encoding="utf-8-sig")
    assert read_secret(str(tmp_path / "key")) == CANARY


def test_a_secret_file_has_a_size(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_text("a" * 65_536)
    assert len(read_secret(str(path))) == 65_536
    path.write_text("a" * 65_537)
    [problem] = problems(provider("openai", ProviderSettings(credential=f"file:{path}")), {})
    assert "too large" in problem.happened


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "proxy.example"])
def test_strangers_cannot_spend_a_configured_credential(host: str) -> None:
    [problem] = problems(Settings(host=host), OPENAI)
    assert (problem.setting, problem.env) == ("caller_keys", "STREAMPROXY_CALLER_KEYS")
    assert all(line in problem.fix for line in ("streamproxy hash-key", "caller_keys = [", 'host = "127.0.0.1"'))
    assert configured(Settings(host=host, caller_keys=(HASH,)), OPENAI)


@pytest.mark.parametrize("credential", ["caller", "none"])
def test_without_a_configured_credential_any_host_is_fine(credential: str) -> None:
    row = ProviderSettings(credential=credential)
    assert configured(Settings(host="0.0.0.0", providers={"openai": row}), OPENAI)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "localhost"])
def test_a_credential_on_loopback_needs_no_caller_keys(host: str) -> None:
    assert configured(Settings(host=host), OPENAI)


def test_keys_of_this_proxy_never_go_upstream() -> None:
    [problem] = problems(Settings(upstream="https://gateway/v1", caller_keys=(HASH,)), {})
    assert problem.setting == "providers.upstream.credential"
    assert "env:NAME" in problem.fix


def test_a_credential_does_not_cross_a_network_in_the_clear() -> None:
    for url, refused in [("http://gateway/v1", True), ("http://127.0.0.1:1", False), ("https://gateway/v1", False)]:
        settings = provider("openai", ProviderSettings(base_url=url))
        if refused:
            [problem] = problems(settings, OPENAI)
            assert (problem.setting, "https://" in problem.fix) == ("providers.openai.base_url", True)
        else:
            assert configured(settings, OPENAI)


def test_a_credential_header_cannot_be_allowed() -> None:
    assert configured(provider("openai", ProviderSettings(allow_headers=("openai-organization",))), OPENAI)
    for header in ("authorization", "cookie", "x-api-key", "transfer-encoding", "host", "no header"):
        [problem] = problems(provider("openai", ProviderSettings(allow_headers=(header,))), OPENAI)
        assert problem.setting == "providers.openai.allow_headers"


SECRET = "0123456789abcdef"
STORE = "redis://user:Canary-password@store.example:6380/1"


def sharing(store: str, secret: str | None = SECRET, workers: int = 1) -> Settings:
    return Settings(upstream="http://gateway/v1", store=store, secret=secret, workers=workers)


def test_several_processes_need_a_store_that_they_share() -> None:
    [problem] = problems(sharing("memory", workers=2), {})
    assert (problem.setting, problem.env) == ("workers", "STREAMPROXY_WORKERS")
    assert all(word in problem.fix for word in ("workers = 1", "redis://", "secret"))
    assert configured(sharing("memory", None), {})
    assert configured(sharing(STORE, workers=2), {})


@pytest.mark.parametrize("workers", [1, 4])
@pytest.mark.parametrize("scheme", ["redis", "rediss", "valkey", "valkeys"])
def test_a_shared_store_needs_a_shared_secret(scheme: str, workers: int) -> None:
    store = STORE.replace("redis", scheme)
    [problem] = problems(sharing(store, None, workers), {})
    assert (problem.setting, problem.env) == ("secret", "STREAMPROXY_SECRET")
    assert "openssl rand -hex 32" in problem.fix
    assert "STREAMPROXY_SECRET" in problem.fix
    assert configured(sharing(store, SECRET, workers), {})


@pytest.mark.parametrize(
    "store",
    [
        "redis://:Canary@host:99999",
        "redis://:Canary@",
        "redis://:Canary@host/Canary",
        "redis://:Canary@host?Canary=1",
        "redis://:Canary@[::1",
        "redis://:a@b?Canary@host",
        "redis://:a@b#Canary@host",
        "redis://:Canary@host?ssl_ca_certs=Canary",
    ],
)
def test_an_unusable_store_is_refused_and_not_shown(store: str) -> None:
    [problem] = problems(sharing(store), {})
    assert (problem.setting, problem.env) == ("store", "STREAMPROXY_STORE")
    assert "redis://127.0.0.1:6379/0" in problem.fix
    assert "Canary" not in str(problem)


def test_a_missing_client_library_says_the_fix(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "redis"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delitem(sys.modules, "streamproxy.hub.valkey.client", raising=False)
    monkeypatch.setitem(sys.modules, "redis", None)  # what makes an import fail as if it were not there
    [problem] = problems(sharing(STORE), {})
    assert problem.setting == "store"
    assert problem.fix.endswith("pip install '.[valkey]'")
    assert configured(sharing("memory"), {})


def test_trust_that_cannot_be_loaded_is_a_problem(tmp_path: Path) -> None:
    (tmp_path / "none.pem").write_text("no certificate")
    trustme.CA().cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    upstream = Settings(upstream="https://gateway/v1")
    for name, path, word in [
        ("SSL_CERT_FILE", "absent.pem", "No such file"),
        ("SSL_CERT_FILE", "none.pem", "no certificate in PEM form"),
        ("SSL_CERT_FILE", "", "cannot be read"),  # a directory
        ("SSL_CERT_DIR", "absent", "no such directory"),
    ]:
        [problem] = problems(upstream, {name: str(tmp_path / path)})
        assert (problem.setting, word in problem.happened) == (name, True), problem.happened
        assert "certifi" in problem.fix
    for environ in (
        {"SSL_CERT_FILE": str(tmp_path / "ca.pem")},
        {"SSL_CERT_DIR": str(tmp_path)},
        {"SSL_CERT_FILE": ""},
    ):
        assert configured(upstream, environ)


def warned(settings: Settings, environ: dict[str, str], *flags: str) -> list[str]:
    return warnings(settings, configured(settings, environ), CATALOGUE, flags)


@pytest.mark.parametrize("row", [row for row in FIXED if urlsplit(row.base_url).path], ids=lambda row: row.name)
def test_a_known_host_without_its_path_is_warned_of(row: Provider) -> None:
    bare = shown_origin(row.base_url)
    [line] = warned(Settings(upstream=bare), {})
    assert line.startswith(f"upstream: this host's API is at {row.base_url};")
    [line] = warned(provider("mine", ProviderSettings(base_url=f"{bare}/v0", credential="none")), {})
    assert line.startswith("providers.mine.base_url: ")
    for url in (row.base_url, f"{row.base_url}/", "https://gateway.example"):
        assert warned(Settings(upstream=url), {}) == []


def test_a_path_below_the_hosts_own_is_not_warned_of() -> None:
    routed = ProviderSettings(base_url="https://router.huggingface.co/together/v1", credential="none")
    assert warned(provider("together", routed), {}) == []


def test_a_secret_on_the_command_line_is_warned_of() -> None:
    assert warned(sharing(STORE), {}, "port") == []
    said = warned(sharing(STORE), {}, "secret", "store")
    assert [line.partition(": ")[0] for line in said] == ["secret", "store"]
    assert all(f"prefer STREAMPROXY_{name}" in line for name, line in zip(("SECRET", "STORE"), said, strict=True))
    assert warned(sharing("redis://store.example"), {}, "store") == []
    assert "Canary" not in "".join(said)


@pytest.mark.parametrize("path", ["/images/generations", "/images/edits"])
def test_an_endpoints_address_is_its_apis(path: str) -> None:
    for settings in (
        Settings(upstream=f"https://gateway/v1{path}/"),
        provider("mine", ProviderSettings(base_url=f"https://gateway/v1{path}", credential="none")),
    ):
        [row] = configured(settings, {}).providers
        assert row.base_url == "https://gateway/v1"
    bare = ProviderSettings(base_url=f"https://gateway/v1{path}", credential="none", generations="", edits="")
    [row] = configured(provider("mine", bare), {}).providers
    assert row.base_url == f"https://gateway/v1{path}"


def test_webhooks_need_a_secret() -> None:
    settings = Settings(upstream="http://gateway/v1", webhook_origins=("https://hooks.example.com",))
    [problem] = problems(settings, {})
    assert (problem.setting, problem.env) == ("webhook_secret", "STREAMPROXY_WEBHOOK_SECRET")
    assert "openssl" in problem.fix


def test_webhooks_of_the_memory_store_are_warned_of() -> None:
    origins = ("https://hooks.example.com",)
    settings = Settings(upstream="http://gateway/v1", webhook_origins=origins, webhook_secret=f"whsec_{'A' * 32}")
    [line] = warned(settings, {})
    assert line.startswith("webhook_origins: the store is memory")
    assert warned(replace(settings, store=STORE, secret=SECRET), {}) == []


def test_a_bucket_needs_its_library(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings(upstream="http://gateway/v1", results="s3://bucket")
    assert configured(settings, {})
    monkeypatch.setattr("streamproxy.settings.providers.find_spec", lambda name: None)
    [problem] = problems(settings, {})
    assert problem.setting == "results"
    assert ".[s3]" in problem.fix


def test_a_bucket_that_its_library_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SKIP_SIGNATURE", CANARY)
    [problem] = problems(Settings(upstream="http://gateway/v1", results="s3://bucket"), {})
    assert problem.setting == "results"
    assert "AWS_" in problem.fix


def test_a_place_is_shown_without_its_secrets() -> None:
    assert place_of("memory") == "memory"
    assert place_of(STORE) == "redis  store.example:6380"
    assert place_of("rediss://:Canary@[::1]/3?ssl_ca_certs=/Canary") == "rediss  [::1]"


def test_all_problems_are_said_at_once() -> None:
    settings = Settings(
        host="0.0.0.0",
        upstream="http://gateway/v1",
        providers={
            "upstream": ProviderSettings(base_url="http://other"),
            "azure": ProviderSettings(credential="none"),
            "openai": ProviderSettings(adapter="telex", allow_headers=("cookie",)),
            "mine": ProviderSettings(base_url="https://mine"),
            "sim": ProviderSettings(base_url="http://sim", credential="env:OPENAI_API_KEY"),
        },
    )
    assert sorted(problem.setting for problem in problems(settings, OPENAI)) == [
        "caller_keys",
        "providers.azure.base_url",
        "providers.mine.credential",
        "providers.openai.adapter",
        "providers.openai.allow_headers",
        "providers.sim.base_url",
        "providers.sim.credential",
        "providers.upstream.base_url",
    ]


def test_a_host_without_an_address_asks_for_it() -> None:
    [problem] = problems(provider("azure", ProviderSettings()), {"AZURE_OPENAI_API_KEY": CANARY})
    assert problem.setting == "providers.azure.base_url"


# ------------------------------------------------------------------------------------------------------------ Vertex AI

ACCOUNT = service_account("https://oauth2.googleapis.com/token")
GLOBAL = "https://aiplatform.googleapis.com/v1/projects/{}/locations/global/publishers/google"
REGIONAL = "https://{1}-aiplatform.googleapis.com/v1/projects/{0}/locations/{1}/publishers/google"


@pytest.fixture
def account(tmp_path: Path) -> dict[str, str]:
    """An environment that names a service account's key."""
    (tmp_path / "key.json").write_text(json.dumps(ACCOUNT))
    return {"GOOGLE_APPLICATION_CREDENTIALS": str(tmp_path / "key.json")}


def test_a_service_accounts_key_is_enough_for_vertex(account: dict[str, str]) -> None:
    result = configured(Settings(), account)
    [vertex], source = result.providers, result.credentials["vertex"]
    assert (vertex.name, vertex.base_url) == ("vertex", GLOBAL.format("sim"))
    assert (source.kind, source.configured, source.present([])) == ("environment", True, None)
    assert "PRIVATE KEY" not in repr(result)


@pytest.mark.parametrize(
    ("row", "environ", "expected"),
    [
        ({"project": "mine"}, {}, GLOBAL.format("mine")),
        ({"location": "europe-west4"}, {}, REGIONAL.format("sim", "europe-west4")),
        ({}, {"GOOGLE_CLOUD_PROJECT": "theirs"}, GLOBAL.format("theirs")),
        ({}, {"GOOGLE_CLOUD_LOCATION": "us-central1"}, REGIONAL.format("sim", "us-central1")),
        ({"project": "mine"}, {"GOOGLE_CLOUD_PROJECT": "theirs"}, GLOBAL.format("mine")),
        ({"base_url": "https://gateway.example/v1"}, {}, "https://gateway.example/v1"),
    ],
)
def test_where_vertex_is(row: dict[str, str], environ: dict[str, str], expected: str, account: dict[str, str]) -> None:
    chosen = provider("vertex", ProviderSettings(**row))  # type: ignore[arg-type]
    assert configured(chosen, account | environ).providers[0].base_url == expected


def test_a_key_in_a_variable_and_adc() -> None:
    in_text = provider("vertex", ProviderSettings(credential="env:ACCOUNT"))
    source = configured(in_text, {"ACCOUNT": json.dumps(ACCOUNT)}).credentials["vertex"]
    assert json.loads(source.signing_key or "") == ACCOUNT
    adc = ProviderSettings(credential="adc")
    [problem] = problems(provider("vertex", adc), {})
    assert (problem.setting, "GOOGLE_CLOUD_PROJECT" in problem.fix) == ("providers.vertex.project", True)
    found = configured(provider("vertex", adc), {"GOOGLE_CLOUD_PROJECT": "theirs"})
    assert (found.credentials["vertex"].kind, found.credentials["vertex"].signing_key) == ("machine", "")


@pytest.mark.parametrize(
    ("name", "credential", "environ", "word"),
    [
        ("openai", "adc", {}, "takes a key"),
        ("vertex", "env:KEY", {"KEY": "{}"}, "no key for Google's OAuth"),
        ("vertex", "env:KEY", {"KEY": '{"type":"external_account","x":"' + CANARY + '"}'}, "no key for Google's OAuth"),
        ("vertex", "env:KEY", {"KEY": '{"type":"service_account","x":"' + CANARY + '"}'}, "no key for Google's OAuth"),
        ("vertex", "env:KEY", {"KEY": "/nonexistent"}, "No such file"),
        ("vertex", None, {}, "GOOGLE_APPLICATION_CREDENTIALS is not set"),
    ],
)
def test_what_is_no_credential_of_googles(name: str, credential: str, environ: dict[str, str], word: str) -> None:
    [problem] = problems(provider(name, ProviderSettings(credential=credential)), environ)
    assert (problem.setting, word in problem.happened) == (f"providers.{name}.credential", True), problem.happened


SIGNED = ProviderSettings(signing="aws")
AWS = {"AWS_ACCESS_KEY_ID": "AKIDEXAMPLE", "AWS_SECRET_ACCESS_KEY": f"{CANARY}/+="}


@pytest.mark.parametrize(
    ("row", "environ", "location"),
    [
        ({}, {}, "us-west-2"),
        ({}, {"AWS_DEFAULT_REGION": "eu-west-1"}, "eu-west-1"),
        ({}, {"AWS_REGION": "us-east-1", "AWS_DEFAULT_REGION": "eu-west-1"}, "us-east-1"),
        ({"location": "us-east-2"}, {"AWS_REGION": "us-east-1"}, "us-east-2"),
    ],
)
@pytest.mark.parametrize("signing", ["key", "aws"])
def test_where_bedrock_is(row: dict[str, str], environ: dict[str, str], location: str, signing: str) -> None:
    chosen = provider("bedrock", ProviderSettings(**row, signing=signing))  # type: ignore[arg-type]
    [found] = configured(chosen, {**AWS, "AWS_BEARER_TOKEN_BEDROCK": CANARY, **environ}).providers
    assert (found.location, found.base_url) == (location, f"https://bedrock-runtime.{location}.amazonaws.com")


def test_an_address_of_its_own_has_a_location_to_sign_for() -> None:
    row = replace(SIGNED, base_url="https://vpce.example", location="eu-west-1")
    [found] = configured(provider("bedrock", row), AWS).providers
    assert (found.location, found.base_url) == ("eu-west-1", "https://vpce.example")


def test_one_key_of_bedrocks_serves_both_wires() -> None:
    found = configured(Settings(), {"AWS_BEARER_TOKEN_BEDROCK": CANARY})
    assert [row.name for row in found.providers] == ["bedrock", "nova"]
    assert {source.credential for source in found.credentials.values()} == {
        Credential("authorization", f"Bearer {CANARY}")
    }


@pytest.mark.parametrize(
    ("credential", "environ", "key"),
    [
        (None, AWS, f"AKIDEXAMPLE:{CANARY}/+="),
        (None, {**AWS, "AWS_SESSION_TOKEN": "token"}, f"AKIDEXAMPLE:{CANARY}/+=:token"),
        ("env:KEY", {"KEY": f"AKID:{CANARY}", "AWS_SESSION_TOKEN": "another's"}, f"AKID:{CANARY}"),
        ("env:KEY", {"KEY": f"AKID:{CANARY}:token"}, f"AKID:{CANARY}:token"),
        ("adc", {}, ""),
    ],
)
def test_a_signing_key_of_aws(credential: str | None, environ: dict[str, str], key: str) -> None:
    result = configured(provider("bedrock", replace(SIGNED, credential=credential)), environ)
    source = result.credentials["bedrock"]
    assert (source.signing_key, source.credential, source.configured) == (key, None, True)
    assert CANARY not in repr(result)


@pytest.mark.parametrize(
    ("credential", "environ", "word"),
    [
        (None, {}, "AWS_ACCESS_KEY_ID is not set"),
        (None, {"AWS_ACCESS_KEY_ID": CANARY}, "no signing key of AWS"),
        ("env:KEY", {"KEY": f"{CANARY}::x"}, "no signing key of AWS"),
        ("env:KEY", {"KEY": f"a b:{CANARY}"}, "no signing key of AWS"),
    ],
)
def test_what_is_no_signing_key(credential: str | None, environ: dict[str, str], word: str) -> None:
    [problem] = problems(provider("bedrock", replace(SIGNED, credential=credential)), environ)
    assert (problem.setting, word in problem.happened) == ("providers.bedrock.credential", True), problem.happened


def test_without_botocore_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streamproxy.settings.providers.find_spec", lambda name: None)
    [problem] = problems(provider("nova", SIGNED), AWS)
    assert "pip install '.[aws]'" in problem.fix


def test_vertex_wants_callers_to_have_keys_too(account: dict[str, str]) -> None:
    assert [problem.setting for problem in problems(Settings(host="0.0.0.0"), account)] == ["caller_keys"]
    plain = ProviderSettings(base_url="http://gateway.example/v1")
    assert [problem.setting for problem in problems(provider("vertex", plain), account)] == [
        "providers.vertex.base_url"
    ]


def test_without_google_auth_it_says_what_to_install(account: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streamproxy.settings.providers.find_spec", lambda name: None)
    [problem] = problems(Settings(), account)
    assert "pip install '.[google]'" in problem.fix


GPT, NANO, CORE = "openai/gpt-image-2", "google/gemini-3-pro-image", "stabilityai/stable-image-core"
SEVERAL = {name: ProviderSettings(credential="none") for name in ("openai", "gemini", "stability")}
MISTAKES: dict[str, tuple[dict[str, Any], str, str]] = {
    "unknown": ({"fallbacks": {GPT: (NANO, CANARY)}}, "fallbacks", "row 1, name 3: no configured provider serves it"),
    "of an unknown": ({"fallbacks": {CANARY: (NANO,)}}, "fallbacks", "row 1, name 1: no configured provider serves it"),
    "itself": ({"fallbacks": {GPT: (NANO, "gpt-image-2")}}, "fallbacks", "row 1, two names are the same model"),
    "twice": ({"fallbacks": {GPT: (NANO, NANO)}}, "fallbacks", "row 1, two names are the same model"),
    "auto": ({"fallbacks": {GPT: ("auto",)}}, "fallbacks", "row 1, name 2: no configured provider serves it"),
    "auto of auto": ({"auto": (NANO, "auto")}, "auto", "name 2: no configured provider serves it"),
    "auto of unknown": ({"auto": (CANARY,)}, "auto", "name 1: no configured provider serves it"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_models_to_choose_from_are_served_and_differ(mistake: str) -> None:
    chosen, setting, happened = MISTAKES[mistake]
    [problem] = problems(Settings(providers=SEVERAL, **chosen), {})
    assert (problem.setting, problem.happened[: len(happened)]) == (setting, happened)


def test_the_settings_name_as_many_fallbacks_as_a_request() -> None:
    assert values.MAX_FALLBACKS == schema.MAX_FALLBACKS


@pytest.mark.parametrize("others", [(), ("a",) * 6])
def test_fallbacks_of_a_model_are_one_to_five(others: tuple[str, ...]) -> None:
    with pytest.raises(ConfigurationError) as caught:
        Settings(fallbacks={GPT: others})
    assert [problem.setting for problem in caught.value.problems] == ["fallbacks"]


def test_a_fallback_that_cannot_edit_is_warned_of() -> None:
    assert warned(Settings(providers=SEVERAL, fallbacks={GPT: (NANO,)}), {}) == []
    [line] = warned(Settings(providers=SEVERAL, fallbacks={GPT: (NANO, CORE)}), {})
    assert line.startswith(f"fallbacks: {CORE} does not edit")


OTHER = "sha256:" + "1" * 64


def named(**callers: CallerSettings) -> Settings:
    return Settings(host="0.0.0.0", caller_keys=(HASH,), callers=callers)


def test_callers_with_names_are_keys_enough() -> None:
    assert configured(Settings(host="0.0.0.0", callers={"a": CallerSettings(key=HASH)}), OPENAI)
    settings = Settings(upstream="https://gateway/v1", callers={"a": CallerSettings(key=HASH)})
    [problem] = problems(settings, {})
    assert problem.setting == "providers.upstream.credential"
    assert "callers" in problem.fix


@pytest.mark.parametrize("first", ["caller_keys", "callers.a"])
def test_two_callers_with_one_key(first: str) -> None:
    key = HASH if first == "caller_keys" else OTHER
    settings = named(a=CallerSettings(key=OTHER), b=CallerSettings(key=key))
    [problem] = problems(settings, OPENAI)
    assert (problem.setting, problem.happened) == ("callers.b.key", f"{first} has the same key")
    assert key[7:] not in str(problem)


def test_a_callers_providers_are_configured() -> None:
    assert configured(named(a=CallerSettings(key=OTHER, providers=("openai",))), OPENAI)
    [problem] = problems(named(a=CallerSettings(key=OTHER, providers=("openai", "bfl"))), OPENAI)
    assert problem.setting == "callers.a.providers"
    assert "openai" in problem.fix


@pytest.mark.parametrize(("store", "count"), [("memory", 1), ("redis://127.0.0.1:6379/0", 0)])
def test_a_budget_in_memory_is_warned_of(store: str, count: int) -> None:
    for limits, expected in (({"usd_per_day": 1.0}, count), ({"streams": 1}, 0)):
        settings = Settings.of({"store": store, "callers": {"a": {"key": HASH, **limits}}})
        found = warnings(settings, configured(Settings(), OPENAI), CATALOGUE, ())
        assert len([line for line in found if "forgets" in line]) == expected
