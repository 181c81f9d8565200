"""What the value of a setting may look like, one annotated type per kind of value, and what is said where it does not.

Each check refuses with what happened and the fix, and never repeats the value: it may be a key in the wrong place.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Final
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field
from pydantic_core import PydanticCustomError

if TYPE_CHECKING:
    from streamproxy.settings import Settings

KIB: Final = 1024
MIB: Final = 1024 * KIB
GIB: Final = 1024 * MIB
DAY: Final = 86_400.0  # seconds; a longer timeout is a unit mistaken (milliseconds)
HASH_COMMAND: Final = "make its hash with `streamproxy hash-key` (it reads the key from stdin) and configure that"


@dataclass(frozen=True, slots=True)
class ConfigurationProblem:
    """One thing wrong: `setting` is the TOML name, `env` the environment name ("" where there is none)."""

    setting: str
    happened: str
    fix: str
    env: str = ""

    def __str__(self) -> str:
        return f"{self.setting}{f' ({self.env})' if self.env else ''}: {self.happened}\n  fix: {self.fix}"


class ConfigurationError(Exception):
    """Everything wrong with a configuration. `sound` is what remains without it, to look for further problems in."""

    def __init__(self, problems: Iterable[ConfigurationProblem], sound: Settings | None = None) -> None:
        self.problems = tuple(problems)
        self.sound = sound
        super().__init__("\n".join(map(str, self.problems)))


def refused(happened: str, fix: str) -> PydanticCustomError:
    """The error of a value that will not do, with its fix."""
    return PydanticCustomError("refused", "{happened}", {"happened": happened, "fix": fix})


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach `host`: 127.0.0.0/8, ::1 or localhost."""
    try:
        address = ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return host.lower() == "localhost"
    return (getattr(address, "ipv4_mapped", None) or address).is_loopback


def _listed(value: object) -> object:
    return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value


def _number(value: object) -> object:
    if isinstance(value, bool):  # pydantic would read true as 1
        raise refused("a number is expected", "write a number without quotes")
    return value


def _base_url(value: str) -> str:
    try:
        url = urlsplit(value)
        whole = url.scheme in ("http", "https") and bool(url.hostname) and (url.port is None or url.port > 0)
    except ValueError:
        whole = False
    if not whole or not re.fullmatch(r"[\x21-\x7e]+", value) or "\\" in value:
        raise refused("it is not an http(s) address", "write it like https://api.example.com/v1")
    if "@" in url.netloc or "?" in value or "#" in value:
        raise refused(
            "it holds a user, a query or a fragment", "leave only scheme, host and path; keys belong in `credential`"
        )
    return value.rstrip("/")


def _host(value: str) -> str:
    try:
        whole = (
            bool(ipaddress.ip_address(value)) if ":" in value else bool(re.fullmatch(r"[A-Za-z0-9._-]{1,253}", value))
        )
    except ValueError:
        whole = False
    if not whole:
        raise refused("it is not a host name or address", "write only the host, like 127.0.0.1 or ::, without a scheme")
    return value


def _caller_keys(value: tuple[str, ...]) -> tuple[str, ...]:
    for place, key in enumerate(value, 1):
        if not re.fullmatch(r"sha256:[0-9a-f]{64}", key):
            raise refused(f"entry {place} is not a hash (sha256: and 64 hex digits)", f"if it is a key, {HASH_COMMAND}")
    return value


def _origins(value: tuple[str, ...]) -> tuple[str, ...]:
    if "*" in value and len(value) > 1:
        raise refused('"*" stands beside other origins', 'leave "*" alone, or list the origins without it')
    for place, origin in enumerate(value, 1):
        if origin != "*" and not re.fullmatch(r"https?://([a-z0-9.-]+|\[[0-9a-f:]+\])(:\d{1,5})?", origin):
            raise refused(f"entry {place} is not an origin", "write origins like https://app.example.com, no path")
    return value


def _model_names(value: tuple[str, ...]) -> tuple[str, ...]:
    for place, name in enumerate(value, 1):
        if not re.fullmatch(r"[\x21-\x7e]+", name):
            raise refused(f"entry {place} is not a model's name", "write names as callers do, like openai/gpt-image-2")
    return value


def _credential(value: str) -> str:
    if not re.fullmatch(r"env:[A-Za-z_][A-Za-z0-9_]*|file:[^\0]+|dir:[A-Za-z0-9_][A-Za-z0-9_.-]*|caller|none", value):
        raise refused(
            "it does not say where the credential is",
            "write env:NAME, file:PATH, dir:NAME, caller or none; never the key",
        )
    return value


def _provider_name(value: str) -> str:
    if not re.fullmatch(r"[a-z0-9][a-z0-9_.-]{0,31}", value):
        raise refused("a provider has an unusable name", "use up to 32 lower case letters, digits, ., - and _")
    return value


def _secret(value: str) -> str:
    if not re.fullmatch(r"[\x21-\x7e]{16,1024}", value):
        raise refused("it is too short, or not visible ASCII", "make one with `openssl rand -hex 32`")
    return value


def _store(value: str) -> str:
    if value != "memory" and not re.fullmatch(r"(redis|rediss|valkey|valkeys)://[\x21-\x7e]+", value):
        raise refused("it is neither memory nor the address of a store", "write it like redis://127.0.0.1:6379/0")
    return value


Url = Annotated[str, AfterValidator(_base_url)]
Secret = Annotated[str, AfterValidator(_secret)]
StoreUrl = Annotated[str, AfterValidator(_store)]
Grace = Annotated[float, BeforeValidator(_number), Field(ge=0, le=DAY, allow_inf_nan=False)]
Names = Annotated[tuple[str, ...], BeforeValidator(_listed)]
ModelNames = Annotated[Names, AfterValidator(_model_names)]
Seconds = Annotated[float, BeforeValidator(_number), Field(gt=0, le=DAY, allow_inf_nan=False)]
Bytes = Annotated[int, BeforeValidator(_number), Field(ge=64 * KIB, le=1024 * GIB)]
Token = Annotated[str, Field(pattern=r"^[A-Za-z0-9-]{0,64}$")]
PathTemplate = Annotated[str, Field(pattern=r"^(/[\x21-\x7e]*)?$")]
Text = Annotated[str, Field(pattern=r"^[\x20-\x7e]{0,256}$")]
Host = Annotated[str, AfterValidator(_host)]
Port = Annotated[int, BeforeValidator(_number), Field(ge=0, le=65_535)]
Count = Annotated[int, BeforeValidator(_number), Field(ge=1, le=65_535)]
Workers = Annotated[int, BeforeValidator(_number), Field(ge=1, le=256)]
CallerKeys = Annotated[Names, AfterValidator(_caller_keys)]
Origins = Annotated[Names, AfterValidator(_origins)]
CredentialReference = Annotated[str, AfterValidator(_credential)]
ProviderName = Annotated[str, AfterValidator(_provider_name)]
