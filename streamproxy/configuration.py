"""From settings to what a request needs: the providers, and the source of each one's credential.

    configure(settings, catalogue, environ, policy) -> Configured, or ConfigurationError with every problem

A provider is the catalogue's row of its name with configuration's overrides. Secrets are read, stripped and checked at
start: a newline in a key would otherwise be found, and printed, by the HTTP library. What only shows when settings,
catalogue and environment come together is refused here too: a credential that strangers could spend, or that would
cross a network in the clear.
"""

from __future__ import annotations

import os
import re
import ssl
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from importlib import resources
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import orjson

from streamproxy.auth import Credential, CredentialSource, Kind
from streamproxy.core.catalogue import Catalogue, Provider, parse
from streamproxy.core.headers import HeaderPolicy
from streamproxy.setting_types import ConfigurationError, ConfigurationProblem, is_loopback, shown_origin
from streamproxy.settings import PREFIX, ProviderSettings, Settings
from streamproxy.upstream.signing import google_credentials

LIMIT_OF_SECRETS: Final = 64 * 1024  # bytes of a secret file, nginx's default for all headers of a request twice over
MEMORY: Final = "memory"  # the store of one process
EXAMPLE: Final = "redis://127.0.0.1:6379/0"
VARIABLE: Final = re.compile(r"(?=.{1,64}$)[A-Z]{1,16}[0-9]{0,2}(_([A-Z]{1,16}[0-9]{0,2}|[0-9]{1,2}))*")
"""A variable's name as people write it: words in capitals. Keys of capitals only have digits among their letters."""
ON_MACHINE: Final = {"project": "GOOGLE_CLOUD_PROJECT", "location": "GOOGLE_CLOUD_LOCATION"}
"""Where Google's own libraries look for what a provider's `base_url` names."""
UPSTREAM: Final = "upstream"  # the provider that the setting of that name makes, and the row new providers start from


@dataclass(frozen=True, slots=True)
class Configured:
    """All providers in the order of configuration, and a source for each by its name."""

    providers: tuple[Provider, ...]
    credentials: Mapping[str, CredentialSource]


def read_secret(path: str) -> str:
    """The text of a secret file. Raises OSError; ValueError for one that is too large or not UTF-8."""
    with Path(path).open("rb") as file:
        raw = file.read(LIMIT_OF_SECRETS + 1)
    if len(raw) > LIMIT_OF_SECRETS:
        raise ValueError("too large")
    return raw.decode("utf-8-sig")


def read_catalogue() -> Catalogue:
    """The catalogue that ships with the package."""
    return parse(resources.files("streamproxy").joinpath("catalogue.toml").read_text("utf-8"))


def configure(
    settings: Settings,
    catalogue: Catalogue,
    environ: Mapping[str, str],
    policy: HeaderPolicy,
    *,
    adapters: Collection[str] | None = None,
    read_file: Callable[[str], str] = read_secret,
) -> Configured:
    """Providers and credentials, ready to use. `adapters`: the known wire forms, where they shall be checked.

    Raises ConfigurationError with all that is wrong between the settings, the catalogue and the environment.
    """
    problems: list[ConfigurationProblem] = []
    providers: list[Provider] = []
    credentials: dict[str, CredentialSource] = {}
    for provider in _assembled(settings, catalogue, environ, problems):
        try:
            found = resolve_credentials(settings, (provider,), environ, read_file)
            credentials |= found
            providers.append(_placed(provider, found[provider.name], environ))
        except ConfigurationError as error:
            problems += error.problems
        if adapters is not None and provider.adapter not in adapters:
            fix = f"choose one of {', '.join(sorted(adapters))}"
            problems.append(ConfigurationProblem(f"providers.{provider.name}.adapter", "no adapter has this name", fix))
    for name, row in settings.providers.items():
        for header in row.allow_headers:
            if not policy.allowable(header):
                happened = "one of the names is no header, or of a kind that is always refused (credentials, framing)"
                fix = "list only account selection and routing headers"
                problems.append(ConfigurationProblem(f"providers.{name}.allow_headers", happened, fix))
    if any(source.configured for source in credentials.values()) and not settings.caller_keys:
        problems += _exposed(settings.host)
    problems += _store_problems(settings)
    problems += _trust_problems(environ)
    if problems:
        raise ConfigurationError(dict.fromkeys(problems), settings)
    return Configured(tuple(providers), credentials)


def _exposed(host: str) -> list[ConfigurationProblem]:
    if is_loopback(host):
        return []
    happened = (
        "callers beyond this machine could spend the configured credential: host is not loopback, there are no keys"
    )
    fix = (
        "either give every caller a key, or listen on this machine only:\n"
        "    streamproxy hash-key                 # reads a key from stdin, prints its hash\n"
        '    caller_keys = ["sha256:<the hash>"]  # in TOML, or STREAMPROXY_CALLER_KEYS\n'
        '    host = "127.0.0.1"                   # or --host 127.0.0.1'
    )
    return [ConfigurationProblem("caller_keys", happened, fix, "STREAMPROXY_CALLER_KEYS")]


def _store_problems(settings: Settings) -> list[ConfigurationProblem]:
    """What keeps several processes from sharing the store. No text holds its URL: that may hold a password."""
    if settings.store == MEMORY:
        if settings.workers == 1:
            return []
        happened = "each process would keep streams of its own: the store is memory"
        fix = f'set workers = 1, or store = "{EXAMPLE}" and a secret'
        return [ConfigurationProblem("workers", happened, fix, "STREAMPROXY_WORKERS")]
    problems: list[ConfigurationProblem] = []
    if settings.secret is None:
        happened = (
            "a stream's URL must hold at every process that shares the store, and each would sign with its own key"
        )
        fix = "make one with `openssl rand -hex 32`, and give STREAMPROXY_SECRET to every process"
        problems.append(ConfigurationProblem("secret", happened, fix, "STREAMPROXY_SECRET"))
    try:
        from streamproxy.hub.valkey_client import parse_address

        parse_address(settings.store)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "redis":
            raise
        fix = "in streamproxy's source directory: pip install '.[valkey]'"
        problems.append(ConfigurationProblem("store", "its client library is not installed", fix, "STREAMPROXY_STORE"))
    except ValueError as error:
        problems.append(ConfigurationProblem("store", str(error), f"write it like {EXAMPLE}", "STREAMPROXY_STORE"))
    return problems


def _trust_problems(environ: Mapping[str, str]) -> list[ConfigurationProblem]:
    """Trusted certificates that cannot be loaded. upstream.default_ssl_context reads the same variables."""
    file, directory = environ.get("SSL_CERT_FILE"), environ.get("SSL_CERT_DIR")
    if file:
        try:
            ssl.create_default_context(cafile=file)
        except ssl.SSLError:
            happened = "the file holds no certificate in PEM form"
        except OSError as error:
            happened = f"the file cannot be read: {error.strerror}"
        else:
            return []
        fix = "name a file of trusted certificates (PEM), or unset it: certifi's are used then"
        return [ConfigurationProblem("SSL_CERT_FILE", happened, fix)]
    if directory and not any(Path(part).is_dir() for part in directory.split(os.pathsep)):
        fix = "name a directory of trusted certificates, or unset it: certifi's are used then"
        return [ConfigurationProblem("SSL_CERT_DIR", "there is no such directory", fix)]
    return []


def warnings(settings: Settings, configured: Configured, catalogue: Catalogue, flags: Collection[str]) -> list[str]:
    """Lines about settings that work and are probably not meant. `flags`: the settings that the command line says."""
    found = []
    for provider in configured.providers:
        for row in catalogue.providers.values():
            known, given = urlsplit(row.base_url), urlsplit(provider.base_url)
            if known.hostname and known.hostname == given.hostname and known.path != given.path:
                by_flag = settings.upstream is not None and provider.name == UPSTREAM
                setting = UPSTREAM if by_flag else f"providers.{provider.name}.base_url"
                found.append(f"{setting}: this host's API is at {row.base_url}; requests elsewhere may find nothing")
    has_password = "@" in settings.store
    for name in flags:
        if name == "secret" or (name == "store" and has_password):
            found.append(f"{name}: every user of this machine sees a command line; prefer {PREFIX}{name.upper()}")
    return list(dict.fromkeys(found))  # two rows may have the same host


def place_of(store: str) -> str:
    """Kind and host of the setting `store`, fit to be shown: without user, password and parameters."""
    if store == MEMORY:
        return MEMORY
    return shown_origin(store).replace("://", "  ", 1)


def configured_providers(settings: Settings, catalogue: Catalogue, environ: Mapping[str, str]) -> tuple[Provider, ...]:
    """The catalogue's rows with configuration's overrides; a new name starts from the row `upstream`.

    With neither `providers` nor `upstream`: every row whose `key_env` the environment holds. Raises ConfigurationError.
    """
    problems: list[ConfigurationProblem] = []
    providers = _assembled(settings, catalogue, environ, problems)
    if problems:
        raise ConfigurationError(problems, settings)
    return providers


def _assembled(
    settings: Settings, catalogue: Catalogue, environ: Mapping[str, str], problems: list[ConfigurationProblem]
) -> tuple[Provider, ...]:
    chosen = dict(settings.providers)
    if settings.upstream is not None:
        row = chosen.get(UPSTREAM, ProviderSettings())
        if row.base_url is not None:
            happened = "the setting upstream says an address for this provider too"
            problems.append(ConfigurationProblem(f"providers.{UPSTREAM}.base_url", happened, "remove one of the two"))
        chosen[UPSTREAM] = replace(row, base_url=settings.upstream)
    if not chosen:
        rows = catalogue.providers.values()
        chosen = {row.name: ProviderSettings() for row in rows if row.base_url and environ.get(row.key_env, "").strip()}
    providers = tuple(_with_workflows(_merged(name, row, catalogue), problems) for name, row in chosen.items())
    for provider in providers:
        if not provider.base_url:
            fix = f'[providers.{provider.name}] base_url = "https://..."'
            problems.append(ConfigurationProblem(f"providers.{provider.name}.base_url", "it has no address", fix))
    if not providers:
        fix = (
            "set OPENAI_API_KEY, or --upstream URL, or write [providers.<name>] in TOML; `streamproxy demo` needs none"
        )
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
    for path in (provider.generations, provider.edits):  # an endpoint's whole address was given: it would come twice
        base_url = base_url.removesuffix(path)
    return replace(provider, base_url=base_url)


def _with_workflows(provider: Provider, problems: list[ConfigurationProblem]) -> Provider:
    """The provider with the text of each workflow in place of its file's path."""
    texts: list[tuple[str, str]] = []
    for model, path in provider.workflows:
        where = f"providers.{provider.name}.workflows.{model}"
        try:
            text = Path(path).read_text(encoding="utf-8")
            if not isinstance(orjson.loads(text), dict):
                raise ValueError
        except OSError as error:
            happened = f"the file cannot be read ({type(error).__name__})"
            problems.append(ConfigurationProblem(where, happened, "write the path of a file that can be read"))
        except ValueError:
            fix = "save the workflow with Export (API) in ComfyUI"
            problems.append(ConfigurationProblem(where, "the file holds no JSON object", fix))
        else:
            texts.append((model, text))
    models = dict.fromkeys((*provider.models, *dict(provider.workflows)))
    return replace(provider, workflows=tuple(texts), models=tuple(models))


def _placed(provider: Provider, source: CredentialSource, environ: Mapping[str, str]) -> Provider:
    """The provider with its project and location in `base_url`. Raises ConfigurationError where one is not known."""
    if "{" not in provider.base_url:
        return provider
    said = {name: environ.get(variable, "").strip() for name, variable in ON_MACHINE.items()}
    project = provider.project or said["project"] or _project_of(source)
    location = provider.location or said["location"] or "global"
    if not project:
        fix = f'set {ON_MACHINE["project"]}, or [providers.{provider.name}] project = "..."'
        problem = ConfigurationProblem(f"providers.{provider.name}.project", "nothing says which project", fix)
        raise ConfigurationError([problem])
    base_url = provider.base_url.replace("{region}", "" if location == "global" else f"{location}-")
    base_url = base_url.replace("{project}", project).replace("{location}", location)
    return replace(provider, base_url=base_url, project=project, location=location)


def _project_of(source: CredentialSource) -> str:
    """The project that a service account's key names; "" for any other credential."""
    found = orjson.loads(source.signing_key).get("project_id", "") if source.signing_key else ""
    return found if isinstance(found, str) else ""


def resolve_credentials(
    settings: Settings, providers: Sequence[Provider], environ: Mapping[str, str], read_file: Callable[[str], str]
) -> dict[str, CredentialSource]:
    """A source for each provider by name. Raises ConfigurationError for each credential that is missing or unusable."""
    sources: dict[str, CredentialSource] = {}
    problems: list[ConfigurationProblem] = []
    for provider in providers:
        setting = f"providers.{provider.name}.credential"
        reference = settings.providers.get(provider.name, ProviderSettings()).credential or _default(provider, environ)
        try:
            kind, secret = _secret(reference, environ, read_file)
            secret = _google_key(kind, secret, read_file) if provider.signing == "google" else _key(kind, secret)
        except ValueError as error:
            happened, fix = error.args
            problems.append(ConfigurationProblem(setting, happened, fix, _variable(reference)))
            continue
        if kind == "caller" and settings.caller_keys:
            happened = "callers' own keys would go to this provider, and caller_keys makes them keys of this proxy"
            problems.append(ConfigurationProblem(setting, happened, 'give it "env:NAME", or remove caller_keys'))
        if secret and not provider.auth_header:
            fix = 'give it auth_header = "authorization", or credential = "none"'
            problems.append(ConfigurationProblem(setting, "this provider has no header to carry it in", fix))
        if (
            (secret or kind == "machine")
            and provider.base_url.startswith("http:")
            and not is_loopback(urlsplit(provider.base_url).hostname or "")
        ):
            happened = "the credential would cross the network unencrypted"
            problems.append(
                ConfigurationProblem(
                    f"providers.{provider.name}.base_url", happened, "use https://, or a loopback address"
                )
            )
        scheme = provider.auth_scheme
        source = CredentialSource(kind, provider.auth_header, scheme)
        if provider.signing != "key" and kind not in ("caller", "none"):
            source = replace(source, signing_key=secret)
        elif secret:
            source = replace(source, credential=Credential(provider.auth_header, scheme + secret))
        sources[provider.name] = source
    if problems:
        raise ConfigurationError(problems, settings)
    return sources


def _default(provider: Provider, environ: Mapping[str, str]) -> str:
    """Where the credential is if configuration does not say: the row's variable, else a file of that name."""
    if provider.key_env:
        directory = environ.get("CREDENTIALS_DIRECTORY", "")
        in_file = (
            not environ.get(provider.key_env, "").strip() and directory and Path(directory, provider.key_env).exists()
        )
        return f"{'dir' if in_file else 'env'}:{provider.key_env}"
    if not provider.auth_header:
        return "none"
    return "caller" if provider.name == UPSTREAM else ""


def _variable(reference: str) -> str:
    """The variable that `env:NAME` names, fit to be shown: "" unless NAME looks like one. It may be a misplaced key."""
    scheme, _, name = reference.partition(":")
    return name if scheme == "env" and VARIABLE.fullmatch(name) else ""


def _secret(reference: str, environ: Mapping[str, str], read_file: Callable[[str], str]) -> tuple[Kind, str]:
    """(kind, the secret's text or ""). Raises ValueError(what happened, the fix), neither of which holds the secret."""
    scheme, _, name = reference.partition(":")
    kind: Kind
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
                raise ValueError(
                    f"the environment variable {known} is not set", "set it, or say where the credential is"
                )
        case "file" | "dir":
            kind, directory = (
                ("file", "") if scheme == "file" else ("directory", environ.get("CREDENTIALS_DIRECTORY", ""))
            )
            if scheme == "dir" and not directory:
                raise ValueError(
                    "CREDENTIALS_DIRECTORY is not set", "set it (systemd: LoadCredential=), or use file:PATH"
                )
            try:
                secret = read_file(str(Path(directory, name)))
            except OSError as error:
                raise ValueError(
                    f"its file cannot be read: {error.strerror}", "correct the path or its rights"
                ) from None
            except ValueError:
                raise ValueError("its file is too large or not UTF-8", "let the file hold the key only") from None
        case _:
            raise ValueError(
                "it is not said where the credential is", 'write "env:NAME", "file:PATH", "caller", "adc" or "none"'
            )
    return kind, secret.strip()


def _key(kind: Kind, secret: str) -> str:
    """A key that is sent as it stands. Raises ValueError(what happened, the fix)."""
    if kind == "machine":
        raise ValueError("adc finds Google's credentials, and this provider takes a key", "say where its key is")
    if kind not in ("caller", "none") and not re.fullmatch(r"[\x21-\x7e]+", secret):
        raise ValueError(
            "the key is empty or holds spaces, line ends or other than visible ASCII", "store the bare key"
        )
    return secret


def _google_key(kind: Kind, text: str, read_file: Callable[[str], str]) -> str:
    """A key for Google's OAuth as JSON; `text` may be that or the path of its file. Raises ValueError as `_key`."""
    if kind in ("caller", "none"):
        return text
    try:
        installed = find_spec("google.auth") is not None
    except ModuleNotFoundError:
        installed = False
    if not installed:
        raise ValueError("google-auth is not installed", "in streamproxy's source directory: pip install '.[google]'")
    if kind == "machine":
        return text
    try:
        key = text if text.startswith("{") else read_file(text)
        google_credentials(key)
    except OSError as error:
        raise ValueError(f"its file cannot be read: {error.strerror}", "correct the path or its rights") from None
    except ValueError:
        fix = "give it one of type service_account or authorized_user, or use adc, which takes every other"
        raise ValueError("it is no key for Google's OAuth", fix) from None
    return key
