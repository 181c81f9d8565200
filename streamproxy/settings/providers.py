"""Providers and credentials from settings, catalogue and environment.

    configure(settings, catalogue, environ, policy, adapters=...)    Providers, or ConfigurationError

A provider is the catalogue's row of its name with the configuration's values over it. Secrets are read, stripped and
checked at start: otherwise the HTTP library would find a newline in a key, and print the key. This module also refuses
what no single setting shows: a credential that strangers could spend, or that would cross a network unencrypted.
"""

from __future__ import annotations

import os
import re
import ssl
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from functools import cache
from importlib import resources
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import orjson

from streamproxy.auth import Credential, CredentialSource, SourceKind
from streamproxy.core.catalogue import AUTO, EVERYTHING, Catalogue, Provider, Route, parse
from streamproxy.core.headers import HeaderPolicy
from streamproxy.errors import ProxyError
from streamproxy.settings import PREFIX, ProviderSettings, Settings
from streamproxy.settings.values import ConfigurationError, ConfigurationProblem, Refused, is_loopback, shown_origin
from streamproxy.upstream.bucket import Bucket, BucketError
from streamproxy.upstream.signing import google_credentials

LIMIT_OF_SECRETS: Final = 64 * 1024  # bytes of a secret file; nginx takes 32 KiB for all headers of a request
MEMORY: Final = "memory"  # the store of one process
EXAMPLE: Final = "redis://127.0.0.1:6379/0"
VARIABLE: Final = re.compile(r"(?=.{1,64}$)[A-Z]{1,16}[0-9]{0,2}(_([A-Z]{1,16}[0-9]{0,2}|[0-9]{1,2}))*")
"""The usual form of a variable's name: words in capitals. A key in capitals has digits among its letters."""
PROJECT: Final = "GOOGLE_CLOUD_PROJECT"
LOCATIONS: Final = {"google": ("GOOGLE_CLOUD_LOCATION",)}
REGIONS: Final = ("AWS_REGION", "AWS_DEFAULT_REGION")
"""Where Google's and AWS's own libraries look for what a provider's `base_url` names; the first that is set counts."""

AWS_ID, AWS_SECRET, AWS_TOKEN = "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"
"""Where AWS's own libraries look for the parts of a signing key."""
UPSTREAM: Final = "upstream"  # the provider made by the setting of that name, and the row that new providers start from


@dataclass(frozen=True, slots=True)
class Providers:
    """All providers in the order of the configuration, and the source of each one's credential by its name."""

    providers: tuple[Provider, ...]
    credentials: Mapping[str, CredentialSource]


def read_secret(path: str) -> str:
    """The text of a secret file. Raises OSError; ValueError for one that is too large or not UTF-8."""
    with Path(path).open("rb") as file:
        raw = file.read(LIMIT_OF_SECRETS + 1)
    if len(raw) > LIMIT_OF_SECRETS:
        raise ValueError("too large")
    return raw.decode("utf-8-sig")


@cache
def read_catalogue() -> Catalogue:
    """The catalogue that ships with the package. It never changes, so that a process parses it once."""
    return parse(resources.files("streamproxy").joinpath("catalogue.toml").read_text("utf-8"))


def configure(
    settings: Settings,
    catalogue: Catalogue,
    environ: Mapping[str, str],
    policy: HeaderPolicy,
    *,
    adapters: Collection[str],
) -> Providers:
    """Providers and credentials, ready to use. `adapters`: the known wire forms.

    Raises ConfigurationError with every problem of the settings, the catalogue and the environment together.
    """
    problems: list[ConfigurationProblem] = []
    providers = _providers(settings, catalogue, environ, problems)
    credentials = _credentials(settings, providers, environ, problems)
    providers = tuple(_placed(provider, credentials.get(provider.name), environ, problems) for provider in providers)
    for provider in providers:
        if provider.adapter not in adapters:
            fix = f"choose one of {', '.join(sorted(adapters))}"
            problems.append(_problem(provider, "adapter", "no adapter has this name", fix))
    problems += _header_problems(settings, policy)
    problems += _caller_problems(settings, {provider.name for provider in providers})
    if any(source.configured for source in credentials.values()) and not settings.has_callers:
        problems += _exposed(settings.host)
    if not problems:
        problems += _choice_problems(settings, catalogue, providers)
    problems += _store_problems(settings)
    problems += _webhook_problems(settings)
    problems += _result_problems(settings)
    problems += _trust_problems(environ)
    if problems:
        raise ConfigurationError(problems)
    return Providers(providers, credentials)


def _problem(provider: Provider, field: str, happened: str, fix: str, env: str = "") -> ConfigurationProblem:
    return ConfigurationProblem(f"providers.{provider.name}.{field}", happened, fix, env)


def _header_problems(settings: Settings, policy: HeaderPolicy) -> Iterator[ConfigurationProblem]:
    happened = "one of the names is not a header, or of a kind that is always refused (credentials, framing)"
    fix = "list only account selection and routing headers"
    for name, row in settings.providers.items():
        if not all(map(policy.allowable, row.allow_headers)):
            yield ConfigurationProblem(f"providers.{name}.allow_headers", happened, fix)


def _caller_problems(settings: Settings, providers: Collection[str]) -> Iterator[ConfigurationProblem]:
    seen = dict.fromkeys(settings.caller_keys, "caller_keys")
    for name, caller in settings.callers.items():
        place = f"callers.{name}"
        if caller.key in seen:
            yield ConfigurationProblem(f"{place}.key", f"{seen[caller.key]} has the same key", "give each its own")
        seen.setdefault(caller.key, place)
        if not {*providers, EVERYTHING}.issuperset(caller.providers):
            fix = f"choose of {', '.join(sorted(providers))}"
            yield ConfigurationProblem(f"{place}.providers", "one of them is not configured", fix)


def _exposed(host: str) -> list[ConfigurationProblem]:
    if is_loopback(host):
        return []
    happened = "anyone who reaches host could spend the configured credential: host is not loopback, there are no keys"
    fix = (
        "either give every caller a key, or listen on this machine only:\n"
        "    streamproxy hash-key                 # reads a key from stdin, prints its hash\n"
        '    caller_keys = ["sha256:<the hash>"]  # in TOML, or STREAMPROXY_CALLER_KEYS\n'
        '    host = "127.0.0.1"                   # or --host 127.0.0.1'
    )
    return [ConfigurationProblem("caller_keys", happened, fix, "STREAMPROXY_CALLER_KEYS")]


def _choice_problems(
    settings: Settings, catalogue: Catalogue, providers: tuple[Provider, ...]
) -> Iterator[ConfigurationProblem]:
    """Problems of the models that a request may be given to, which must all be served, and differ."""
    rows = [("auto", "", settings.auto)]
    for number, (model, others) in enumerate(settings.fallbacks.items(), 1):
        rows.append(("fallbacks", f"row {number}, ", (model, *others)))
    for setting, where, names in rows:
        routes = [_route(name, catalogue, providers) for name in names]
        for place, route in enumerate(routes, 1):
            if route is None:
                happened = f"{where}name {place}: no configured provider serves it"
                yield ConfigurationProblem(setting, happened, "write a name that `streamproxy models` lists")
        found = [(route.provider.name, route.model.id) for route in routes if route is not None]
        if len(set(found)) < len(found):
            happened = f"{where}two names are the same model at the same provider"
            yield ConfigurationProblem(setting, happened, "remove one of them")


def _route(name: str, catalogue: Catalogue, providers: tuple[Provider, ...]) -> Route | None:
    try:
        return None if name == AUTO else catalogue.resolve(name, providers)
    except ProxyError:
        return None


def _store_problems(settings: Settings) -> list[ConfigurationProblem]:
    """Problems of a store that processes share. No text has its URL, which may have a password."""
    if settings.store == MEMORY:
        if settings.workers == 1:
            return []
        happened = "each process would keep its own streams: the store is memory"
        fix = f'set workers = 1, or store = "{EXAMPLE}" and a secret'
        return [ConfigurationProblem("workers", happened, fix, "STREAMPROXY_WORKERS")]
    problems: list[ConfigurationProblem] = []
    if settings.secret is None:
        happened = "each process that shares the store would sign stream URLs with its own key"
        fix = "make one with `openssl rand -hex 32`, and give STREAMPROXY_SECRET to every process"
        problems.append(ConfigurationProblem("secret", happened, fix, "STREAMPROXY_SECRET"))
    try:
        from streamproxy.hub.valkey.client import parse_address

        parse_address(settings.store)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "redis":
            raise
        fix = "in streamproxy's source directory: pip install '.[valkey]'"
        problems.append(ConfigurationProblem("store", "its client library is not installed", fix, "STREAMPROXY_STORE"))
    except ValueError as error:
        problems.append(ConfigurationProblem("store", str(error), f"write it like {EXAMPLE}", "STREAMPROXY_STORE"))
    return problems


def _webhook_problems(settings: Settings) -> list[ConfigurationProblem]:
    if settings.webhook_origins and settings.webhook_secret is None:
        fix = "make one with `echo whsec_$(openssl rand -base64 32)`, and give it to the receivers"
        happened = "webhooks are signed, and there is no key"
        return [ConfigurationProblem("webhook_secret", happened, fix, "STREAMPROXY_WEBHOOK_SECRET")]
    return []


def _result_problems(settings: Settings) -> list[ConfigurationProblem]:
    if settings.results is None:
        return []
    if find_spec("obstore") is None:
        happened, fix = "its client library is not installed", "in streamproxy's source directory: pip install '.[s3]'"
        return [ConfigurationProblem("results", happened, fix, "STREAMPROXY_RESULTS")]
    try:
        Bucket(settings.results, endpoint=settings.results_endpoint, seconds=settings.token_seconds)
    except BucketError as error:
        fix = "look at results_endpoint, and at the variables of the environment that begin with AWS_"
        return [ConfigurationProblem("results", f"the client library refuses it ({error})", fix, "STREAMPROXY_RESULTS")]
    return []


def _trust_problems(environ: Mapping[str, str]) -> list[ConfigurationProblem]:
    """Problems of the trusted certificates. upstream.default_ssl_context reads the same variables."""
    file, directory = environ.get("SSL_CERT_FILE"), environ.get("SSL_CERT_DIR")
    if file:
        try:
            ssl.create_default_context(cafile=file)
        except ssl.SSLError:
            happened = "the file has no certificate in PEM form"
        except OSError as error:
            happened = f"the file cannot be read: {error.strerror}"
        else:
            return []
        fix = "name a file of trusted certificates (PEM), or unset it to use certifi's"
        return [ConfigurationProblem("SSL_CERT_FILE", happened, fix)]
    if directory and not any(Path(part).is_dir() for part in directory.split(os.pathsep)):
        fix = "name a directory of trusted certificates, or unset it to use certifi's"
        return [ConfigurationProblem("SSL_CERT_DIR", "there is no such directory", fix)]
    return []


def warnings(settings: Settings, configured: Providers, catalogue: Catalogue, flags: Collection[str]) -> list[str]:
    """Lines about settings that work but are probably mistakes. `flags`: names of the settings on the command line."""
    found = []
    for provider in configured.providers:
        for row in catalogue.providers.values():
            known, given = urlsplit(row.base_url), urlsplit(provider.base_url)
            if known.hostname and known.hostname == given.hostname and not given.path.startswith(known.path):
                by_flag = settings.upstream is not None and provider.name == UPSTREAM
                setting = UPSTREAM if by_flag else f"providers.{provider.name}.base_url"
                found.append(f"{setting}: this host's API is at {row.base_url}; requests elsewhere may find nothing")
    for model, others in settings.fallbacks.items():
        first, *rest = (_route(name, catalogue, configured.providers) for name in (model, *others))
        for route in rest:
            if first is not None and route is not None and first.model.edits and not route.model.edits:
                what = f"{route.model.id} does not edit, so edits do not go there when {first.model.id} fails"
                found.append(f"fallbacks: {what}")
    if settings.webhook_origins and settings.store == MEMORY:
        found.append(
            "webhook_origins: the store is memory, so webhooks that are not delivered yet end with the process"
        )
    if settings.store == MEMORY and any(caller.usd_per_day is not None for caller in settings.callers.values()):
        found.append(
            f'callers: the store is memory, so a restart forgets what was spent today; store = "{EXAMPLE}" keeps it'
        )
    has_password = "@" in settings.store
    for name in flags:
        if name in ("secret", "webhook_secret") or (name == "store" and has_password):
            found.append(f"{name}: every user of this machine can read a command line; prefer {PREFIX}{name.upper()}")
    return list(dict.fromkeys(found))  # two rows may have the same host


def place_of(store: str) -> str:
    """SourceKind and host of the setting `store`, without the parts that may be secret."""
    if store == MEMORY:
        return MEMORY
    return shown_origin(store).replace("://", "  ", 1)


def _providers(
    settings: Settings, catalogue: Catalogue, environ: Mapping[str, str], problems: list[ConfigurationProblem]
) -> tuple[Provider, ...]:
    """The catalogue's rows with the configuration's values over them; a new name starts from the row `upstream`.

    With neither `providers` nor `upstream`: every row whose `key_env` is set in the environment, or is the name of a
    file of `$CREDENTIALS_DIRECTORY`.
    """
    chosen = dict(settings.providers)
    if settings.upstream is not None:
        row = chosen.get(UPSTREAM, ProviderSettings())
        if row.base_url is not None:
            happened = "the setting upstream gives this provider another address"
            problems.append(ConfigurationProblem(f"providers.{UPSTREAM}.base_url", happened, "remove one of the two"))
        chosen[UPSTREAM] = replace(row, base_url=settings.upstream)
    if not chosen:
        rows = catalogue.providers.values()
        chosen = {row.name: ProviderSettings() for row in rows if row.base_url and _place_of_key(row.key_env, environ)}
    providers = tuple(_with_workflows(_merged(name, row, catalogue), problems) for name, row in chosen.items())
    for provider in providers:
        if not provider.base_url:
            fix = f'[providers.{provider.name}] base_url = "https://..."'
            problems.append(_problem(provider, "base_url", "it has no address", fix))
    if not providers:
        fix = "set OPENAI_API_KEY, or --upstream URL, or [providers.<name>] in TOML; `streamproxy demo` needs none"
        problems.append(ConfigurationProblem("providers", "no provider is configured", fix))
    return providers


def _merged(name: str, row: ProviderSettings, catalogue: Catalogue) -> Provider:
    known = catalogue.providers.get(name) or catalogue.providers[UPSTREAM]
    same = {field.name for field in fields(Provider)} & {field.name for field in fields(row)}
    given: dict[str, Any] = {field: value for field in same if (value := getattr(row, field)) is not None}
    for pairs in ("deployments", "workflows"):
        if pairs in given:
            given[pairs] = tuple(given[pairs].items())
    provider = replace(known, name=name, **given)
    provider = replace(provider, auth_header=provider.auth_header.lower())
    base_url = provider.base_url
    for path in (
        provider.generations,
        provider.edits,
        provider.chat,
        provider.responses,
    ):  # where an endpoint's whole address was given
        base_url = base_url.removesuffix(path)
    return replace(provider, base_url=base_url)


def _with_workflows(provider: Provider, problems: list[ConfigurationProblem]) -> Provider:
    """The provider with the text of each workflow in place of its file's path."""
    texts: list[tuple[str, str]] = []
    for model, path in provider.workflows:
        try:
            text = Path(path).read_text(encoding="utf-8")
            if not isinstance(orjson.loads(text), dict):
                raise ValueError
        except OSError as error:
            happened, fix = f"the file cannot be read ({type(error).__name__})", "write the path of a readable file"
        except ValueError:
            happened, fix = "the file is not a JSON object", "save the workflow with Export (API) in ComfyUI"
        else:
            texts.append((model, text))
            continue
        problems.append(_problem(provider, f"workflows.{model}", happened, fix))
    models = dict.fromkeys((*provider.models, *dict(provider.workflows)))
    return replace(provider, workflows=tuple(texts), models=tuple(models))


def _placed(
    provider: Provider,
    source: CredentialSource | None,
    environ: Mapping[str, str],
    problems: list[ConfigurationProblem],
) -> Provider:
    """The provider with its location, and with that and its project in `base_url`."""
    if source is None or not (provider.home or "{" in provider.base_url):
        return provider
    variables = LOCATIONS.get(provider.signing, REGIONS)
    said = next((text for name in variables if (text := environ.get(name, "").strip())), "")
    location = provider.location or said or provider.home or "global"
    provider = replace(provider, location=location)
    if "{" not in provider.base_url:
        return provider
    project = provider.project or environ.get(PROJECT, "").strip() or _project_of(source)
    if not project and "{project}" in provider.base_url:
        fix = f'set {PROJECT}, or [providers.{provider.name}] project = "..."'
        problems.append(_problem(provider, "project", "the configuration does not say which project", fix))
    base_url = provider.base_url.replace("{region}", "" if location == "global" else f"{location}-")
    base_url = base_url.replace("{project}", project).replace("{location}", location)
    return replace(provider, base_url=base_url, project=project)


def _project_of(source: CredentialSource) -> str:
    """The project that a service account's key names; "" for any other credential."""
    key = source.signing_key or ""
    found = orjson.loads(key).get("project_id", "") if key.startswith("{") else ""
    return found if isinstance(found, str) else ""


def _credentials(
    settings: Settings,
    providers: tuple[Provider, ...],
    environ: Mapping[str, str],
    problems: list[ConfigurationProblem],
) -> dict[str, CredentialSource]:
    """The source of each provider's credential by its name, without those that are missing."""
    sources: dict[str, CredentialSource] = {}
    for provider in providers:
        reference = settings.providers.get(provider.name, ProviderSettings()).credential or _default(provider, environ)
        try:
            kind, secret = _secret(reference, environ)
            match provider.signing:
                case "google":
                    secret = _google_key(kind, secret)
                case "aws":
                    secret = _aws_key(kind, secret, environ)
                case "key":
                    secret = _key(kind, secret)
        except Refused as refused:
            variable = _variable(reference)
            problems.append(_problem(provider, "credential", refused.happened, refused.fix, variable))
            continue
        if kind == "caller" and settings.has_callers:
            named = "caller_keys" if settings.caller_keys else "callers"
            happened = f"callers' own keys would go to this provider, but {named} makes them keys of this proxy"
            problems.append(_problem(provider, "credential", happened, f'give it "env:NAME", or remove {named}'))
        if secret or kind == "machine":
            problems += _misplaced(provider)
        header, scheme = provider.auth_header, provider.auth_scheme
        source = CredentialSource(kind, header, scheme)
        if provider.signing != "key" and kind not in ("caller", "none"):
            source = replace(source, signing_key=secret)
        elif secret:
            source = replace(source, credential=Credential(header, scheme + secret))
        sources[provider.name] = source
    return sources


def _misplaced(provider: Provider) -> Iterator[ConfigurationProblem]:
    """Problems of a provider that cannot carry its credential, or not safely."""
    if not provider.auth_header:
        fix = 'give it auth_header = "authorization", or credential = "none"'
        yield _problem(provider, "credential", "this provider has no header to carry it in", fix)
    if provider.base_url.startswith("http:") and not is_loopback(urlsplit(provider.base_url).hostname or ""):
        happened = "the credential would cross the network unencrypted"
        yield _problem(provider, "base_url", happened, "use https://, or a loopback address")


def _default(provider: Provider, environ: Mapping[str, str]) -> str:
    """The default reference of a credential: the variable of the catalogue's row, or a file of that name."""
    if provider.key_env:
        name = AWS_ID if provider.signing == "aws" else provider.key_env
        return f"{_place_of_key(name, environ) or 'env'}:{name}"
    if not provider.auth_header:
        return "none"
    return "caller" if provider.name == UPSTREAM else ""


def _place_of_key(name: str, environ: Mapping[str, str]) -> str:
    """The scheme of the place that has a key of this name: "env", "dir", or "" where none has it."""
    if not name:
        return ""
    if environ.get(name, "").strip():
        return "env"
    directory = environ.get("CREDENTIALS_DIRECTORY", "")
    return "dir" if directory and Path(directory, name).exists() else ""


def _variable(reference: str) -> str:
    """The variable named by `env:NAME`, where NAME looks like one; otherwise "", since it may be a misplaced key."""
    scheme, _, name = reference.partition(":")
    return name if scheme == "env" and VARIABLE.fullmatch(name) else ""


def _secret(reference: str, environ: Mapping[str, str]) -> tuple[SourceKind, str]:
    """A credential's kind, and the secret or "". Raises Refused, without the secret in its texts."""
    scheme, _, name = reference.partition(":")
    directory = environ.get("CREDENTIALS_DIRECTORY", "")
    kind: SourceKind
    match scheme:
        case "caller":
            return "caller", ""
        case "none":
            return "none", ""
        case "adc":
            return "machine", ""
        case "env":
            kind, secret = "environment", environ.get(name, "")
            if not secret.strip():
                known = _variable(reference) or "it names"
                raise Refused(f"the environment variable {known} is not set", "set it, or say where the credential is")
        case "file":
            kind, secret = "file", _secret_of(name)
        case "dir":
            if not directory:
                fix = "set it (systemd: LoadCredential=), or use file:PATH"
                raise Refused("CREDENTIALS_DIRECTORY is not set", fix)
            kind, secret = "directory", _secret_of(str(Path(directory, name)))
        case _:
            fix = 'write "env:NAME", "file:PATH", "caller", "adc" or "none"'
            raise Refused("the configuration does not say where the credential is", fix)
    return kind, secret.strip()


def _key(kind: SourceKind, secret: str) -> str:
    """A key that is sent as it stands. Raises Refused."""
    if kind == "machine":
        raise Refused("adc finds Google's and AWS's credentials, and this provider takes a key", "say where its key is")
    if kind not in ("caller", "none") and not re.fullmatch(r"[\x21-\x7e]+", secret):
        raise Refused("the key must be visible ASCII without spaces and line ends", "store the bare key")
    return secret


def _google_key(kind: SourceKind, text: str) -> str:
    """A key for Google's OAuth as JSON; `text` may be that or the path of its file. Raises Refused."""
    if kind in ("caller", "none"):
        return text
    try:
        installed = find_spec("google.auth") is not None
    except ModuleNotFoundError:
        installed = False
    if not installed:
        raise Refused("google-auth is not installed", "in streamproxy's source directory: pip install '.[google]'")
    if kind == "machine":
        return text
    key = text if text.startswith("{") else _secret_of(text)
    try:
        google_credentials(key)
    except ValueError:
        fix = "give it one of type service_account or authorized_user, or use adc, which takes every other"
        raise Refused("it is no key for Google's OAuth", fix) from None
    return key


def _aws_key(kind: SourceKind, text: str, environ: Mapping[str, str]) -> str:
    """A signing key of AWS as `ID:SECRET` or `ID:SECRET:TOKEN`. The rest of an ID alone is in AWS's own variables.

    Raises Refused.
    """
    if kind in ("caller", "none"):
        return text
    if find_spec("botocore") is None:
        raise Refused("botocore is not installed", "in streamproxy's source directory: pip install '.[aws]'")
    if kind == "machine":
        return text
    if ":" not in text:
        parts = (environ.get(name, "").strip() for name in (AWS_SECRET, AWS_TOKEN))
        text = ":".join(filter(None, (text, *parts)))
    if not re.fullmatch(r"[!-9;-~]+:[!-9;-~]+(:[!-9;-~]+)?", text):
        fix = f"set {AWS_ID} and {AWS_SECRET}, or write <id>:<secret> into what credential names"
        raise Refused("it is no signing key of AWS", fix)
    return text


def _secret_of(path: str) -> str:
    try:
        return read_secret(path)
    except OSError as error:
        raise Refused(f"its file cannot be read: {error.strerror}", "correct the path or its rights") from None
    except ValueError:
        raise Refused("its file is too large or not UTF-8", "let the file contain the key only") from None
