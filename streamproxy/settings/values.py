"""The types of settings' values with their checks, and the errors for values that fail them.

Strategy: `converted` has msgspec bring a value to the plain type, from text if necessary, and then calls the checks in
the annotation. Each check says what is wrong and the fix. No error repeats the value, which may be a misplaced key, so
msgspec's own messages, which do, are not used.
"""

from __future__ import annotations

import base64
import ipaddress
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from stringprep import in_table_a1
from types import NoneType, UnionType
from typing import Annotated, Any, Final, Literal, Union, get_args, get_origin
from urllib.parse import urlsplit

import msgspec

KIB: Final = 1024
MIB: Final = 1024 * KIB
GIB: Final = 1024 * MIB
DAY: Final = 86_400  # seconds; a longer timeout was probably meant in milliseconds
HOST_NAME: Final = r"([a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?\.)*[a-z]([a-z0-9_-]{0,61}[a-z0-9_])?"
"""A name in lower case whose last label starts with a letter. A number there makes the whole an IPv4 address, octal and
hexadecimal too (WHATWG URL 3.5)."""
MAX_FALLBACKS: Final = 5
"""As many as a request may name."""
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
    """Everything wrong with a configuration."""

    def __init__(self, problems: Iterable[ConfigurationProblem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(map(str, self.problems)))


class Refused(Exception):
    """An unusable value. `fix` is "" where the meaning of the setting is the best help."""

    def __init__(self, happened: str, fix: str = "") -> None:
        self.happened = happened
        self.fix = fix
        super().__init__(happened)


def converted(value: object, hint: Any) -> Any:
    """Convert a value to the annotation's type, from text if necessary, and check it. Raises Refused.

    The functions in `Annotated` after the type are called with the converted value, in order. Texts there are ignored.
    """
    if get_origin(hint) is Annotated:
        hint, *checks = get_args(hint)
        value = converted(value, hint)
        for check in checks:
            value = check(value) if callable(check) else value
        return value
    if get_origin(hint) in (Union, UnionType):
        [alone] = (kind for kind in get_args(hint) if kind is not NoneType)
        return None if value is None else converted(value, alone)
    try:
        return msgspec.convert(_read(value, hint) if isinstance(value, str) else value, hint, strict=False)
    except msgspec.ValidationError:
        pass  # raised outside this block: an exception's context would hold the value
    if get_origin(hint) is Literal:
        raise Refused(f"it must be one of {', '.join(get_args(hint))}")
    raise Refused(f"it must be {EXPECTED[hint]}")


EXPECTED: Final[dict[object, str]] = {
    str: "text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    tuple[str, ...]: "a list of texts",
    dict[str, str]: "a table of texts",
    dict[str, tuple[str, ...]]: "a table with a list of models for each model",
}
SPOKEN: Final = {"yes": "true", "y": "true", "on": "true", "no": "false", "n": "false", "off": "false"}
"""Other spellings of booleans than those of msgspec: true, 1, false and 0."""


def _read(text: str, hint: object) -> object:
    """Text of the environment or a flag in the form that msgspec converts."""
    if hint == tuple[str, ...]:
        return tuple(part.strip() for part in text.split(",") if part.strip())
    if hint is bool:
        return SPOKEN.get(text.strip().lower(), text.strip())
    if hint in (int, float):
        return re.sub(r"(?<=\d)_(?=\d)", "", text.strip())  # 1_000, as TOML has it
    if get_origin(hint) is Literal:
        return text.strip().lower()  # choices are lower-case; logging writes LOG_LEVEL=INFO
    return text


@dataclass(frozen=True, slots=True)
class Within:
    """Check that a number is finite, at least `low` (with `above`: more than `low`) and at most `high`."""

    low: int
    high: int
    above: bool = False

    def __call__(self, value: float) -> float:
        if not math.isfinite(value):
            raise Refused("it must be a finite number")
        if value < self.low or (self.above and value == self.low):
            raise Refused(f"it must be {'more than' if self.above else 'at least'} {self.low}")
        if value > self.high:
            raise Refused(f"it must be at most {self.high}")
        return value


@dataclass(frozen=True, slots=True)
class Matching:
    """Check that a whole text matches a pattern; `expected` is the pattern in words."""

    pattern: str
    expected: str

    def __call__(self, value: str) -> str:
        if not re.fullmatch(self.pattern, value):
            raise Refused(f"it must be {self.expected}")
        return value


def is_loopback(host: str) -> bool:
    """Whether `host` is reachable from this machine only: 127.0.0.0/8, ::1 or localhost."""
    try:
        address = ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return host.lower() == "localhost"
    return (getattr(address, "ipv4_mapped", None) or address).is_loopback


def ascii_host(host: str) -> str:
    """Convert a host name to the form of DNS and browsers: non-ASCII labels become `xn--...`. Raises Refused.

    The standard library has IDNA 2003. Where IDNA 2008 gives another host (the four deviations of UTS 46 section 4), or
    a character is newer than IDNA 2003, the name must be written in its `xn--` form.
    """
    if host.isascii():
        return host
    try:
        if not any(character in DEVIATIONS or in_table_a1(character) for character in host):
            return host.encode("idna").decode("ascii")
    except UnicodeError:
        pass
    raise Refused("its host name is ambiguous: two standards encode it differently", "write the host in its xn-- form")


DEVIATIONS: Final = frozenset("\u00df\u03c2\u200c\u200d")


def shown_origin(url: str) -> str:
    """Scheme, host and port of a URL, without the parts that may be secret. IPv6 addresses stand in brackets."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    return f"{parts.scheme}://{f'[{host}]' if ':' in host else host}{f':{parts.port}' if parts.port else ''}"


def _base_url(value: str) -> str:
    try:
        host = urlsplit(value).hostname or ""
        if not host.isascii():
            value = re.sub(re.escape(host), ascii_host(host), value, count=1, flags=re.IGNORECASE)
        url = urlsplit(value)
        whole = url.scheme in ("http", "https") and bool(url.hostname) and (url.port is None or url.port > 0)
    except ValueError:
        whole = False
    if not whole or not re.fullmatch(r"[\x21-\x7e]+", value) or "\\" in value:
        raise Refused("it is not an http(s) address", "write it like https://api.example.com/v1")
    if "@" in url.netloc or "?" in value or "#" in value:
        fix = "leave only scheme, host and path; keys belong in `credential`"
        raise Refused("it has a user, a query or a fragment", fix)
    return value.rstrip("/")


def _host(value: str) -> str:
    value = ascii_host(value)
    if not (_is_ipv6(value) if ":" in value else re.fullmatch(r"[A-Za-z0-9._-]{1,253}", value)):
        raise Refused("it is not a host name or address", "write only the host, like 127.0.0.1 or ::, without a scheme")
    return value


def _is_ipv6(value: str) -> bool:
    try:
        ipaddress.IPv6Address(value)
    except ValueError:
        return False
    return True


def _caller_key(value: str) -> str:
    if not re.fullmatch(r"sha256:[0-9a-f]{64}", value):
        raise Refused("it is not a hash (sha256: and 64 hex digits)", f"if it is a key, {HASH_COMMAND}")
    return value


def _caller_keys(value: tuple[str, ...]) -> tuple[str, ...]:
    for place, key in enumerate(value, 1):
        if not re.fullmatch(r"sha256:[0-9a-f]{64}", key):
            raise Refused(f"entry {place} is not a hash (sha256: and 64 hex digits)", f"if it is a key, {HASH_COMMAND}")
    return value


def _origins(value: tuple[str, ...]) -> tuple[str, ...]:
    if "*" in value and len(value) > 1:
        raise Refused('it has "*" and other origins', 'write "*" alone, or list the origins without it')
    value = tuple(map(_ascii_origin, value))
    for place, origin in enumerate(value, 1):
        if origin != "*" and not re.fullmatch(r"https?://([a-z0-9.-]+|\[[0-9a-f:]+\])(:(\d{1,5}|\*))?", origin):
            raise Refused(f"entry {place} is not an origin", "write origins like https://app.example.com, no path")
    return value


def _hosts(value: tuple[str, ...]) -> tuple[str, ...]:
    for place, name in enumerate(value, 1):
        if not re.fullmatch(r"(\*\.)?[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*|[0-9A-Fa-f:]*:[0-9A-Fa-f:.]*", name):
            fix = "write names without scheme and port, like app.example.com"
            raise Refused(f"entry {place} is not a host name", fix)
    return value


def _ascii_origin(value: str) -> str:
    scheme, mark, rest = value.partition("://")
    host, colon, port = rest.partition(":")
    return value if rest.isascii() else f"{scheme}{mark}{ascii_host(host)}{colon}{port}"


def _query(value: str) -> str:
    if "#" in value:
        raise Refused("it has a fragment", "remove the # and everything after it")
    return value.lstrip("?&")


def _fetch_hosts(value: tuple[str, ...]) -> tuple[str, ...]:
    hosts = [_fetch_host(entry.lower()) for entry in value]
    if "" in hosts:
        place = hosts.index("") + 1
        raise Refused(f"entry {place} is not a host", "write cdn.internal, *.lan, 10.0.0.5:8188 or [fd00::1]")
    return tuple(hosts)


def _fetch_host(entry: str) -> str:
    """An entry in the form that hosts of URLs are compared in, IPv6 at its shortest; "" where it is not a host."""
    name, v6, v4 = rf"(?P<name>(\*\.)?{HOST_NAME})", r"\[(?P<v6>[^]]*)\]", r"(?P<v4>[^:]*)"
    match = re.fullmatch(rf"({name}|{v6}|{v4})(?P<port>:[1-9][0-9]{{0,4}})?", entry)
    port = (match["port"] or "") if match else ""
    if match is None or int(port[1:] or 1) > 65_535:
        return ""
    try:
        if match["v6"] is not None:
            return f"[{ipaddress.IPv6Address(match['v6'])}]{port}"
        return (match["name"] or str(ipaddress.IPv4Address(match["v4"]))) + port
    except ValueError:
        return ""


def _webhook_origins(value: tuple[str, ...]) -> tuple[str, ...]:
    found = [_webhook_origin(entry.lower()) for entry in value]
    if "" in found:
        place = found.index("") + 1
        fix = 'write https://hooks.example.com, or "http://10.0.0.5:8080 internal" for a host of an internal network'
        raise Refused(f"entry {place} is not an origin", fix)
    return tuple(found)


def _webhook_origin(entry: str) -> str:
    """An entry in the form that URLs are compared in, without its scheme's default port; "" where it is none."""
    match = re.fullmatch(r"(https?)://([^/?#@\\ ]+)( internal)?", entry)
    if match is None:
        return ""
    scheme, host, internal = match[1], _fetch_host(match[2]), match[3] or ""
    if not host or host.startswith("*"):
        return ""
    default = ":443" if scheme == "https" else ":80"
    return f"{scheme}://{host.removesuffix(default)}{internal}"


def _webhook_secret(value: str) -> str:
    try:
        size = len(base64.b64decode(value.removeprefix("whsec_"), validate=True))
    except ValueError:
        size = 0
    if not value.startswith("whsec_") or not 24 <= size <= 64:
        fix = "make one with `echo whsec_$(openssl rand -base64 32)`"
        raise Refused("it must be whsec_ and 24 to 64 bytes as base64", fix)
    return value


def _bucket(value: str) -> str:
    if not re.fullmatch(r"s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/[A-Za-z0-9!_.*'()/-]*)?", value):
        raise Refused("it is not a bucket's URL", "write it like s3://bucket/prefix, without credentials")
    return value.rstrip("/")


def _model_names(value: tuple[str, ...]) -> tuple[str, ...]:
    for place, name in enumerate(value, 1):
        if not re.fullmatch(r"[\x21-\x7e]+", name):
            raise Refused(f"entry {place} is not a model's name", "write names as in requests, like openai/gpt-image-2")
    return value


def _fallbacks(value: dict[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
    for place, (model, others) in enumerate(value.items(), 1):
        _model_names((model, *others))
        if not 1 <= len(others) <= MAX_FALLBACKS:
            raise Refused(f"entry {place} has no models, or over {MAX_FALLBACKS}", "list the best ones, or remove it")
    return value


def _credential(value: str) -> str:
    places = r"env:[A-Za-z_][A-Za-z0-9_]*|file:[^\0]+|dir:[A-Za-z0-9_][A-Za-z0-9_.-]*|caller|adc|none"
    if not re.fullmatch(places, value):
        fix = "write env:NAME, file:PATH, dir:NAME, caller, adc or none; never the key"
        raise Refused("it does not say where the credential is", fix)
    return value


def _provider_name(value: str) -> str:
    if not re.fullmatch(r"[a-z0-9][a-z0-9_.-]{0,31}", value):
        raise Refused("the name of a provider is invalid", "use up to 32 lower case letters, digits, ., - and _")
    return value


def _caller_name(value: str) -> str:
    if not re.fullmatch(r"[a-z0-9][a-z0-9_.-]{0,31}", value):
        raise Refused("the name of a caller is invalid", "use up to 32 lower case letters, digits, ., - and _")
    return value


def _secret(value: str) -> str:
    if not re.fullmatch(r"[\x21-\x7e]{16,1024}", value):
        raise Refused("it must be 16 to 1024 visible ASCII characters", "make one with `openssl rand -hex 32`")
    return value


def _store(value: str) -> str:
    if value != "memory" and not re.fullmatch(r"(redis|rediss|valkey|valkeys)://[\x21-\x7e]+", value):
        raise Refused("it is neither memory nor a store's URL", "write it like redis://127.0.0.1:6379/0")
    return value


Text = Annotated[str, Matching(r"[\x20-\x7e]{0,256}", "a line of at most 256 ASCII characters")]
Query = Annotated[Text, _query]
Token = Annotated[str, Matching(r"[A-Za-z0-9-]{0,64}", "a word of at most 64 letters, digits and -")]
PathTemplate = Annotated[str, Matching(r"(/[\x21-\x7e]*)?", "a path in ASCII that starts with /, or empty")]
Url = Annotated[str, _base_url]
Host = Annotated[str, _host]
Hosts = Annotated[tuple[str, ...], _hosts]
Secret = Annotated[str, _secret]
StoreUrl = Annotated[str, _store]
CredentialReference = Annotated[str, _credential]
ProviderName = Annotated[str, _provider_name]
Port = Annotated[int, Within(0, 65_535)]
Count = Annotated[int, Within(1, 65_535)]
Pixels = Annotated[int, Within(16, 2048)]
Workers = Annotated[int, Within(1, 256)]
Bytes = Annotated[int, Within(64 * KIB, 1024 * GIB)]
Seconds = Annotated[float, Within(0, DAY, above=True)]
Lifetime = Annotated[float, Within(0, 30 * DAY, above=True)]
Grace = Annotated[float, Within(0, DAY)]
Rate = Annotated[float, Within(1, GIB)]
Silence = Annotated[float, Within(1, DAY)]
Model = Annotated[str, Matching(r"[\x21-\x7e]{1,256}", "a model's name")]
Names = tuple[str, ...]
ModelNames = Annotated[Names, _model_names]
Fallbacks = Annotated[dict[str, Names], _fallbacks]
CallerName = Annotated[str, _caller_name]
CallerKey = Annotated[str, _caller_key]
CallerKeys = Annotated[Names, _caller_keys]
Dollars = Annotated[float, Within(0, 1_000_000)]
Origins = Annotated[Names, _origins]
FetchHosts = Annotated[Names, _fetch_hosts]
WebhookOrigins = Annotated[Names, _webhook_origins]
WebhookSecret = Annotated[str, _webhook_secret]
BucketUrl = Annotated[str, _bucket]
SignedLifetime = Annotated[float, Within(1, 7 * DAY)]  # Signature Version 4 takes no longer ones
