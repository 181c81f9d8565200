"""Every setting, once: name, default, limits and meaning, and where values come from.

    Settings(...)   holds values; constructing one reads nothing but its arguments
    load(...)       flags > environment > secret files > TOML > defaults, as layers that pydantic-settings merges

Wrong configuration is refused at start, all of it at once: each ConfigurationProblem says what happened, which setting
it is by its TOML and its environment name, and the fix. It never says the value: that may be a misplaced key.
`OPENAI_BASE_URL` is never read: callers point it at this proxy, which would then call itself.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Final, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, InitSettingsSource, PydanticBaseSettingsSource, SettingsConfigDict

from streamproxy.setting_types import (
    GIB,
    MIB,
    Bytes,
    CallerKeys,
    ConfigurationError,
    ConfigurationProblem,
    Count,
    CredentialReference,
    Grace,
    Host,
    ModelNames,
    Names,
    Origins,
    PathTemplate,
    Port,
    ProviderName,
    Seconds,
    Secret,
    StoreUrl,
    Text,
    Token,
    Url,
    Workers,
)

__all__ = ["ConfigurationError", "ConfigurationProblem", "ProviderSettings", "Settings", "describe", "load"]

PREFIX: Final = "STREAMPROXY_"
LIMIT_OF_FILES: Final = MIB  # bytes; a configuration is a few KiB, so more is the wrong file: refused

# STREAMPROXY_CONFIG names the TOML file itself. The rest is what Kubernetes puts into every pod of a namespace that has
# a Service called "streamproxy" (kubernetes.io, "Discovering services"): not the operator's: neither read nor refused.
CONFIG_ENV: Final = PREFIX + "CONFIG"
KUBERNETES: Final = re.compile(PREFIX + r"(SERVICE_(HOST|PORT(_\w+)?)|PORT_\d+_(TCP|UDP|SCTP)(_PROTO|_PORT|_ADDR)?)")


class ProviderSettings(BaseModel):
    """What configuration says about one provider. None leaves what the catalogue's row of that name says."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    base_url: Url | None = Field(None, description="address requests go to, path included")
    adapter: Token | None = Field(None, description="the wire form it speaks")
    credential: CredentialReference | None = Field(
        None,
        description="where its key is: env:NAME, file:PATH, dir:NAME (in $CREDENTIALS_DIRECTORY), caller (the caller's "
        "own) or none; default: the catalogue's variable, from the environment or that directory",
    )
    auth_header: Token | None = Field(None, description="header that carries the key")
    auth_scheme: Text | None = Field(None, description='what precedes the key, like "Bearer "')
    names: Literal["bare", "full", "written"] | None = Field(
        None, description="gpt-image-2, openai/gpt-image-2, or as the caller wrote it"
    )
    generations: PathTemplate | None = Field(None, description="path of generations, below base_url; may hold {model}")
    edits: PathTemplate | None = Field(None, description="path of edits, below base_url; may hold {model}")
    edit_input: Literal["images", "image"] | None = Field(None, description="member that carries the images of an edit")
    query: Text | None = Field(None, description="query of every request, like api-version=preview")
    streams: bool | None = Field(None, description="whether it can be asked to stream")
    models: Names | None = Field(None, description='models it serves; "*" is every model')
    deployments: dict[str, str] | None = Field(None, description="its own name for a model, by model")
    strict_headers: bool = Field(False, description="only allowed extra_headers pass, instead of all but refused ones")
    allow_headers: Names = Field((), description="extra_headers to let through that are refused otherwise")


class Settings(BaseSettings):
    """Every setting of the proxy. Units are in the descriptions; `describe` lists them."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, frozen=True, extra="forbid", hide_input_in_errors=True, validate_default=False
    )

    host: Host = Field("127.0.0.1", description="address to listen on")
    port: Port = Field(8080, description="TCP port to listen on; 0 takes any free one")
    workers: Workers = Field(1, description="processes that serve; more than one need a store that they share")
    upstream: Url | None = Field(None, description="base URL to pass every model to, with the caller's own key")
    providers: dict[ProviderName, ProviderSettings] = Field(
        {}, description="providers by name; empty: each known one whose key is in the environment"
    )
    caller_keys: CallerKeys = Field(
        (), description="hashes (sha256:...) of the keys callers may use; empty: anybody who can connect", repr=False
    )
    cors_origins: Origins = Field((), description='origins whose pages may call; "*" alone is every origin')
    connect_timeout: Seconds = Field(5.0, description="seconds to connect to a provider")
    first_byte_timeout: Seconds = Field(180.0, description="seconds a provider has until its response head")
    idle_timeout: Seconds = Field(300.0, description="seconds a provider's response may be silent")
    total_timeout: Seconds = Field(600.0, description="seconds one provider request may take")
    pool_timeout: Seconds = Field(1.0, description="seconds to wait for one of max_connections")
    commit_after: Seconds = Field(2.0, description="seconds until a stream's head is sent without the provider's")
    heartbeat: Annotated[Seconds, Field(ge=1)] = Field(15.0, description="seconds of silence between comments")
    receive_timeout: Seconds = Field(30.0, description="seconds a caller may pause while it sends a request body")
    send_timeout: Seconds = Field(20.0, description="seconds a caller has to take one slice of a response")
    drain_timeout: Seconds = Field(30.0, description="seconds streams have to end when the process is asked to stop")
    secret: Secret | None = Field(
        None, description="key that signs stream URLs; random per process unless given", repr=False
    )
    token_seconds: Seconds = Field(86400.0, description="seconds a stream URL is valid")
    store: StoreUrl = Field(
        "memory", description="where streams are kept: memory, or a redis:// or rediss:// URL", repr=False
    )
    store_bytes: Bytes = Field(256 * MIB, description="bytes the memory store keeps; the oldest finished go first")
    linger: Seconds = Field(900.0, description="seconds a finished stream is kept")
    disconnect_grace: Grace = Field(15.0, description="seconds until a stream that nobody follows is cancelled")
    finish_models: ModelNames = Field((), description="models whose generations run to the end though nobody follows")
    stream_n: bool = Field(False, description="whether n > 1 with stream becomes n requests where the model takes one")
    max_streams: Count = Field(1000, description="generations that run at a time")
    max_viewers: Count = Field(1000, description="readers of one stream")
    max_viewers_per_caller: Count = Field(2000, description="readers of all streams of one caller")
    max_event_bytes: Bytes = Field(64 * MIB, description="bytes of one event from a provider")
    max_json_bytes: Bytes = Field(24 * MIB, description="bytes of a JSON request body")
    max_upload_bytes: Bytes = Field(GIB, description="bytes of a multipart request body")
    max_response_bytes: Bytes = Field(256 * MIB, description="bytes of one provider response")
    max_connections: Count = Field(1000, description="connections to one provider at a time")
    trust_env_proxies: bool = Field(False, description="whether HTTP_PROXY and its like apply to provider requests")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="least level that is logged")
    log_format: Literal["json", "text"] = Field("json", description="form of a log line")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Arguments only: what the process happens to have in its environment is for `load` to read."""
        return (init_settings,)


class Described(NamedTuple):
    """One setting as the README lists it. `env` is "" where only TOML can say it."""

    name: str
    env: str
    default: str
    meaning: str


def describe() -> list[Described]:
    """Every setting in the order of the source, then those of a provider as `providers.<name>.x`."""
    rows = [
        Described(name, PREFIX + name.upper() if name != "providers" else "", _default(field), field.description or "")
        for name, field in Settings.model_fields.items()
    ]
    return rows + [
        Described(f"providers.<name>.{name}", "", _default(field), field.description or "")
        for name, field in ProviderSettings.model_fields.items()
    ]


def _default(field: FieldInfo) -> str:
    value = field.default
    return "" if value is None or value in ((), {}) else str(value).lower() if isinstance(value, bool) else str(value)


ROWS: Final = {row.name: row for row in describe()}


def load(flags: Mapping[str, object], environ: Mapping[str, str], config: Path | None) -> Settings:
    """Settings from all layers. A flag that is None and an empty environment value count as not given.

    Secret files are those of `$CREDENTIALS_DIRECTORY` (systemd's LoadCredential=) that are named like the environment
    names. Raises ConfigurationError with every problem of every layer.
    """
    problems: list[ConfigurationProblem] = []
    layers: dict[str, dict[str, object]] = {
        "a flag": {name: value for name, value in flags.items() if value is not None},
        "the environment": _known(dict(environ), "environment variable", problems),
        "a secret file": _known(_secret_files(environ, problems), "secret file", problems),
        "the TOML file": _toml(config, problems) if config else {},
    }
    try:
        settings = _merged(layers)
    except ValidationError as error:
        details = error.errors(include_input=False, include_url=False)
        problems += [_problem(detail, layers) for detail in details]
        sound = _merged({layer: _without(values, details) for layer, values in layers.items()})
        raise ConfigurationError(problems, sound) from None  # pydantic's own error would name the values' surroundings
    if problems:
        raise ConfigurationError(problems, settings)
    return settings


def _merged(layers: Mapping[str, dict[str, object]]) -> Settings:
    return Settings(_build_sources=(tuple(InitSettingsSource(Settings, layer) for layer in layers.values()), {}))


def _without(values: dict[str, object], details: Iterable[ErrorDetails]) -> dict[str, object]:
    """A layer less what was refused: a whole setting, or one provider."""
    kept = dict(values)
    for loc in (detail["loc"] for detail in details):
        providers = kept.get("providers")
        if loc[0] == "providers" and len(loc) > 1 and isinstance(providers, dict):
            kept["providers"] = {name: row for name, row in providers.items() if name != loc[1]}
        else:
            kept.pop(str(loc[0]), None)
    return kept


def _known(named: Mapping[str, str], kind: str, problems: list[ConfigurationProblem]) -> dict[str, object]:
    """The values whose name is a setting's; each other STREAMPROXY_* name is a problem, not a value to ignore."""
    names = {row.env: row.name for row in ROWS.values() if row.env}
    values: dict[str, object] = {}
    for name, value in named.items():
        if name in names:
            if value.strip():
                values[names[name]] = value.strip()
        elif name.upper().startswith(PREFIX) and name != CONFIG_ENV and not KUBERNETES.fullmatch(name):
            problems.append(ConfigurationProblem(name, f"no setting has this {kind}", _meant(name.upper(), names)))
    if values.get("port", "") and re.match(r"tcp://", str(values["port"])):
        del values["port"]  # Kubernetes again: a Service's address under the very name of our port
    return values


def _meant(name: str, known: Iterable[str]) -> str:
    nearest = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f"did you mean {nearest[0]}? Otherwise remove it" if nearest else "remove it; README.md lists all settings"


def _secret_files(environ: Mapping[str, str], problems: list[ConfigurationProblem]) -> dict[str, str]:
    files: dict[str, str] = {}
    directory = environ.get("CREDENTIALS_DIRECTORY", "")
    try:
        for path in sorted(Path(directory).iterdir()) if directory else ():
            if path.name.upper().startswith(PREFIX):
                with path.open(encoding="utf-8") as file:
                    files[path.name] = file.read(LIMIT_OF_FILES)
    except (OSError, UnicodeDecodeError) as error:
        fix = "make the directory and its files readable UTF-8, or unset CREDENTIALS_DIRECTORY"
        problems.append(ConfigurationProblem("CREDENTIALS_DIRECTORY", f"unreadable ({type(error).__name__})", fix))
    return files


def _toml(config: Path, problems: list[ConfigurationProblem]) -> dict[str, object]:
    try:
        with config.open("rb") as file:
            raw = file.read(LIMIT_OF_FILES + 1)
        if len(raw) > LIMIT_OF_FILES:
            raise ValueError(f"it has more than {LIMIT_OF_FILES} bytes")
        return tomllib.loads(raw.decode())
    except OSError as error:
        happened = f"the file cannot be read: {error.strerror}"
    except UnicodeDecodeError:
        happened = "the file is not UTF-8"
    except ValueError as error:
        # tomllib says a place, never a value; a duplicate key's message does name the key.
        happened = f"the file is not valid TOML: {error}"
    problems.append(ConfigurationProblem("--config", happened, "correct the file or its path", CONFIG_ENV))
    return {}


def _problem(detail: ErrorDetails, layers: Mapping[str, dict[str, object]]) -> ConfigurationProblem:
    """pydantic's finding in our words: `loc` (("providers", "azure", "query")) becomes the TOML name."""
    loc = [str(part) for part in detail["loc"] if not isinstance(part, int)]
    loc = loc[:1] if "[key]" in loc else loc
    inside = loc[0] == "providers" and len(loc) > 2
    setting = ".".join(loc[: 3 if inside else 2 if loc[0] == "providers" else 1])
    row = ROWS.get(f"providers.<name>.{loc[2]}" if inside else loc[0])
    if detail["type"] == "extra_forbidden":
        known = ProviderSettings.model_fields if inside else Settings.model_fields
        return ConfigurationProblem(setting, "no setting has this name", _meant(loc[-1], known))
    ctx = detail.get("ctx", {})
    origin = next((layer for layer, values in layers.items() if loc[0] in values), "")
    meaning = (
        f"its meaning: {row.meaning}{f' (default {row.default})' if row.default else ''}" if row else "see README.md"
    )
    happened = str(ctx.get("happened") or detail["msg"])
    return ConfigurationProblem(
        setting, f"{happened}, says {origin}", str(ctx.get("fix") or meaning), row.env if row else ""
    )
