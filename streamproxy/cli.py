"""The command line: demo, serve, healthcheck, generate, check, models, simulate, doctor, hash-key.

Only click and small parts of the standard library are imported here; each command imports what it runs, so that
`--help` and a mistyped command answer at once. Every setting is an option, made from the setting's own row. Every error
says what happened, which setting, and the fix, without a traceback unless `--debug` asks for it. Exit status: 0, 1 for
an error, 2 for wrong usage, 130 after Ctrl-C.
"""

from __future__ import annotations

import logging
import os
import re
import sys
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

if TYPE_CHECKING:
    from streamproxy.core.catalogue import Catalogue
    from streamproxy.settings import ConfigurationProblem, Settings
    from streamproxy.settings.providers import Providers

CTRL_C: Final = 130  # 128 + SIGINT, as shells report it
HEALTH_SECONDS: Final = 2.0  # for an answer; under the 3 s that deploy/Dockerfile gives the command
SHORT_KEY: Final = 16  # characters; below, a leaked hash gives the key away by trying all
Result = TypeVar("Result")


class _Commands(click.Group):
    """Turns what a command raises into a message and an exit status."""

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except (click.exceptions.Exit, click.ClickException):
            raise
        except (KeyboardInterrupt, click.Abort):
            ctx.exit(CTRL_C)
        except Exception as error:
            if ctx.params.get("debug"):
                sys.excepthook = sys.__excepthook__  # the log's has no traceback
                raise
            click.echo(_words(error), err=True)
            ctx.exit(1)


def _words(error: BaseException) -> str:
    """The words for an exception. An unknown one may hold anything, so only its type is shown."""
    from streamproxy.errors import ProxyError
    from streamproxy.settings.values import ConfigurationError

    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    match error:
        case ConfigurationError():
            count = len(error.problems)
            header = f"The configuration has {count} problem{'s' if count > 1 else ''}:"
            return "\n\n".join([header, *map(str, error.problems)])
        case ProxyError():
            return error.message
        case OSError() if error.strerror:
            where = f": {error.filename}" if isinstance(error.filename, str) else ""
            return f"{error.strerror}{where}"
        case _:
            return f"Unexpected {type(error).__name__}. `streamproxy --debug ...` shows where; please report it."


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--debug", is_flag=True, help="Show tracebacks. They may hold secrets.")
@click.version_option(package_name="streamproxy", message="%(prog)s %(version)s")
def cli(debug: bool) -> None:
    """Makes every image model stream, to every client: an OpenAI-compatible proxy with progressive previews."""


def main() -> None:
    """The entry point of `streamproxy` and `python -m streamproxy`."""
    try:
        cli(prog_name="streamproxy")
    except KeyboardInterrupt:  # before or after click's own part
        sys.exit(CTRL_C)


def _keep(ctx: click.Context, param: click.Parameter, value: str | None) -> None:
    if value is not None and param.name:
        ctx.ensure_object(dict)[param.name] = value


class _SettingsCommand(click.Command):
    """A command that reads the configuration. Each setting is an option of it, whose value goes into the context's obj.

    The options are made when the command is used: their rows stand in modules that `streamproxy --help` does not need.
    """

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        known = {param.name for param in self.params}
        self.params += [option for option in _setting_options() if option.name not in known]
        return super().get_params(ctx)


def _setting_options() -> list[click.Option]:
    from streamproxy.settings import SWITCH, describe

    alone: dict[str, Any] = {"is_flag": False, "flag_value": "true"}  # `--stream-n` is `--stream-n true`
    return [
        click.Option(
            [f"--{row.name.replace('_', '-')}"],
            callback=_keep,
            expose_value=False,
            metavar=row.takes,
            help=f"{row.meaning[0].upper()}{row.meaning[1:]}.{f'  [{row.default}]' if row.default else ''}",
            **(alone if row.takes == SWITCH else {}),
        )
        for row in describe()
        if row.env  # providers and callers, and their own settings, are for TOML
    ]


LOOPBACK: Final = {"0.0.0.0": "127.0.0.1", "::": "::1"}
"""Where a proxy that listens on all addresses is asked."""

CONFIG: Final = click.option(
    "--config", type=click.Path(path_type=Path), envvar="STREAMPROXY_CONFIG", help="TOML file with settings."
)


def _checked(ctx: click.Context, config: Path | None) -> tuple[Settings, Catalogue, Providers]:
    """Settings, catalogue and providers. Raises ConfigurationError with the problems of all three together."""
    from streamproxy.core.headers import HeaderPolicy
    from streamproxy.extensions import adapters
    from streamproxy.settings import ConfigurationError
    from streamproxy.settings.providers import configure, read_catalogue
    from streamproxy.settings.sources import load

    catalogue = read_catalogue()
    settings, problems = load(ctx.obj or {}, os.environ, config)
    try:
        configured = configure(settings, catalogue, os.environ, HeaderPolicy.load(), adapters=adapters())
    except ConfigurationError as error:
        raise ConfigurationError([*problems, *_not_caused_by(problems, error.problems)]) from None
    if problems:
        raise ConfigurationError(problems)
    return settings, catalogue, configured


CAUSES: Final = {"providers": r"providers|upstream|--config", "caller_keys": r"callers|--config"}
"""Settings that seem to be missing where one of those was refused."""


def _not_caused_by(
    earlier: Sequence[ConfigurationProblem], later: Sequence[ConfigurationProblem]
) -> list[ConfigurationProblem]:
    """Without what only follows from a setting that was refused, and so is missing, already."""
    refused = {problem.setting for problem in earlier}
    unread = {name for name, causes in CAUSES.items() if any(re.match(causes, setting) for setting in refused)}
    return [problem for problem in later if problem.setting not in refused | unread]


def _refuse_store(store: str) -> None:
    """Raise ConfigurationError where the store's server is of a kind that cannot be one."""
    from streamproxy.settings.providers import MEMORY
    from streamproxy.settings.values import ConfigurationError, ConfigurationProblem

    if store == MEMORY:
        return
    from streamproxy.hub.valkey.client import unsuitable

    kind = _run(lambda: unsuitable(store))
    if kind is not None:
        fix = "name a single Valkey or Redis server that is written to; it may have replicas"
        raise ConfigurationError([ConfigurationProblem("store", f"its server is {kind}", fix, "STREAMPROXY_STORE")])


def _run(function: Callable[[], Coroutine[Any, Any, Result]]) -> Result:
    from importlib.util import find_spec

    import anyio

    return anyio.run(function, backend_options={"use_uvloop": find_spec("uvloop") is not None})  # none on PyPy


@cli.command(cls=_SettingsCommand)
@CONFIG
@click.pass_context
def serve(ctx: click.Context, config: Path | None) -> None:
    """Run the proxy."""
    settings, catalogue, configured = _checked(ctx, config)

    from streamproxy.app import create_app
    from streamproxy.observe.log import configure_logging, say
    from streamproxy.server import hooks_of
    from streamproxy.server import serve as serve_on
    from streamproxy.server.listening import listen, url_of
    from streamproxy.server.memory import tune_allocator
    from streamproxy.server.reloading import Reload
    from streamproxy.server.workers import supervise
    from streamproxy.settings.providers import warnings

    several = settings.workers > 1
    configure_logging(settings.log_level, settings.log_format, pid=several)
    for line in warnings(settings, configured, catalogue, ctx.obj or {}):
        logging.getLogger("streamproxy").warning(line)
    names = ", ".join(provider.name for provider in configured.providers)

    def ready(url: str) -> None:
        if metrics_sock is not None:
            say(f"Metrics: {url_of(metrics_sock)}/metrics", settings.log_format)
        say(f"API base URL: {url}/v1   ({names})", settings.log_format)

    def read() -> Settings:
        return _checked(ctx, config)[0]

    _refuse_store(settings.store)
    sock = listen(settings.host, settings.port)
    metrics_sock = None
    if settings.metrics_port is not None:
        metrics_sock = listen(settings.metrics_host, settings.metrics_port, of="metrics_")
    if several:
        ctx.exit(_run(lambda: supervise(settings, (sock, metrics_sock), ready=ready, read=read)))
    tune_allocator()
    app = create_app(settings)
    hooks = hooks_of(app, ready=ready, reload=Reload(read, app.state.reload), metrics=metrics_sock)
    ctx.exit(_run(lambda: serve_on(app, settings, sock, hooks)))


@cli.command(cls=_SettingsCommand)
@CONFIG
@click.pass_context
def healthcheck(ctx: click.Context, config: Path | None) -> None:
    """Ask the proxy at the configured host and port whether it takes requests. Exit status 0, or 1."""
    from http.client import HTTPConnection, HTTPException

    from streamproxy.settings.sources import load

    settings, _ = load(ctx.obj or {}, os.environ, config)  # what is wrong in them, `serve` has said
    host = LOOPBACK.get(settings.host, settings.host)
    connection = HTTPConnection(host, settings.port, timeout=HEALTH_SECONDS)  # by no proxy of the environment
    try:
        connection.request("GET", "/readyz")
        status = connection.getresponse().status
    except (OSError, HTTPException) as error:
        raise click.ClickException(f"{host} port {settings.port} does not answer ({type(error).__name__}).") from None
    finally:
        connection.close()
    if status != 200:
        raise click.ClickException(f"{host} port {settings.port} takes no requests (status {status}).")
    click.echo("ready")


@cli.command(cls=_SettingsCommand)
@CONFIG
@click.pass_context
def check(ctx: click.Context, config: Path | None) -> None:
    """Say whether the configuration is right, or everything that is wrong."""
    from streamproxy.settings.providers import place_of, warnings
    from streamproxy.settings.values import shown_origin

    settings, catalogue, configured = _checked(ctx, config)
    keys = len(settings.caller_keys) + len(settings.callers)
    callers = f"{keys} keys" if keys else "anybody who can connect"
    click.echo(f"listening  {settings.host} port {settings.port}\ncallers    {callers}")
    if settings.metrics_port is not None:
        click.echo(f"metrics    {settings.metrics_host} port {settings.metrics_port}")
    for name, caller in settings.callers.items():
        limits = {
            "models": ",".join(caller.models),
            "providers": ",".join(caller.providers),
            "streams": caller.streams,
            "usd_per_day": caller.usd_per_day,
        }
        said = "  ".join(f"{limit}: {value}" for limit, value in limits.items() if value is not None)
        click.echo(f"caller     {name}  {said}")
    click.echo(f"workers    {settings.workers}\nstore      {place_of(settings.store)}")
    for provider in configured.providers:
        place = shown_origin(provider.base_url)  # without its path: some addresses hold a secret in it
        click.echo(f"provider   {provider.name}  {place}  credential: {configured.credentials[provider.name].kind}")
    for line in warnings(settings, configured, catalogue, ctx.obj or {}):
        click.echo(f"warning: {line}")
    click.echo("configuration is valid")


@cli.command(cls=_SettingsCommand)
@CONFIG
@click.pass_context
def models(ctx: click.Context, config: Path | None) -> None:
    """List the models that the configured providers serve, and what each of them can do."""
    from datetime import UTC, datetime

    from streamproxy.extensions import adapters
    from streamproxy.generation.abilities import abilities, in_words

    _, catalogue, configured = _checked(ctx, config)
    for provider in configured.providers:
        if provider.unlisted:
            click.echo(f"{provider.name}: every name is passed on; GET /v1/models asks it for its own list", err=True)
    named = [provider.only_named() for provider in configured.providers]
    known = adapters()
    for model, served in catalogue.listed(named, datetime.now(UTC).date()):
        route = catalogue.resolve(served, configured.providers)
        words = in_words(model, abilities(known[route.provider.adapter], route))
        click.echo(f"{served:45} {words}".rstrip())


@cli.command(cls=_SettingsCommand)
@CONFIG
@click.argument("prompt")
@click.option(
    "-o", "--output", type=click.Path(path_type=Path, dir_okay=False), default=Path("picture.png"), show_default=True
)
@click.option("--model", help="Name of the model.  [default_model, or the first one with previews]")
@click.option("--previews", type=click.IntRange(0, 3), default=3, show_default=True, help="How many previews.")
@click.option("--key-env", metavar="NAME", help='Variable with the key to send, where `credential` is "caller".')
@click.pass_context
def generate(
    ctx: click.Context, config: Path | None, prompt: str, output: Path, model: str | None, previews: int, key_env: str
) -> None:
    """Order one picture from a configured provider, and show its previews and its cost."""
    settings, catalogue, configured = _checked(ctx, config)

    from streamproxy.demo import FORMATS, Order, Shown, terminal_pictures
    from streamproxy.demo import generate as run_generate
    from streamproxy.observe.log import configure_logging

    named = model or settings.default_model or _first_with_previews(catalogue, configured)
    if named is None:
        raise click.UsageError("The providers' models are not known here: say which with --model.")
    if key_env and not os.environ.get(key_env):
        raise click.UsageError(f"--key-env: there is no variable {key_env}, or it is empty.")
    configure_logging("error", "text")
    key = os.environ[key_env] if key_env else ""
    order = Order(prompt=prompt, model=named, previews=previews, format=FORMATS.get(output.suffix.lower(), ""), key=key)
    click.echo(f"Asking {named} for: {prompt}")
    shown = Shown(output, click.echo, terminal_pictures(os.environ, tty=sys.stdout.isatty()))
    _run(lambda: run_generate(order, settings, shown))


def _first_with_previews(catalogue: Catalogue, configured: Providers) -> str | None:
    """The first model that is listed and makes previews, else the first one; None where none is listed."""
    from datetime import UTC, datetime

    named = [provider.only_named() for provider in configured.providers]
    listed = catalogue.listed(named, datetime.now(UTC).date())
    with_previews = [served for model, served in listed if model.streams and model.partial_images]
    return next(iter([*with_previews, *(served for _, served in listed)]), None)


@cli.command()
@click.option("--prompt", default="a lighthouse at dusk", show_default=True, help="What to draw.")
@click.option(
    "--output", type=click.Path(path_type=Path, dir_okay=False), default=Path("streamproxy-demo.png"), show_default=True
)
@click.option("--once", is_flag=True, help="End after the picture instead of serving on.")
@click.option("--port", type=click.IntRange(0, 65_535), help="Port of the proxy.  [8080, or any free one]")
@click.option("--pace", type=click.FloatRange(0, 100), default=1.0, show_default=True, help="1: as slow as a model.")
def demo(prompt: str, output: Path, once: bool, port: int | None, pace: float) -> None:
    """Watch one picture arrive through the proxy. Needs no key: a simulator plays the provider."""
    from streamproxy.demo import Options
    from streamproxy.demo import demo as run_demo
    from streamproxy.observe.log import configure_logging

    configure_logging("warning", "text")
    options = Options(prompt=prompt, output=output, port=port, pace=pace, once=once)
    _run(lambda: run_demo(options, click.echo))


@cli.command()
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option("--port", type=click.IntRange(0, 65_535), default=8090, show_default=True)
@click.option("--pace", type=click.FloatRange(0, 100), default=1.0, show_default=True, help="1: as slow as a model.")
@click.option("--list", "listed", is_flag=True, help="Say the names of all models, faults included, and end.")
def simulate(host: str, port: int, pace: float, listed: bool) -> None:
    """Run only the simulator: a provider in a box, to develop against."""
    import anyio

    from streamproxy import simulator

    if listed:
        click.echo("\n".join(simulator.model_names()))
        return

    async def simulated() -> None:
        async with simulator.running(host=host, port=port, pace=pace) as server:
            click.echo(f"{simulator.BANNER.rstrip()}\nAPI base URL: {server.url}/v1")
            await anyio.sleep_forever()

    _run(simulated)


@cli.command()
@click.argument("url")
@click.option("--listen", "address", metavar="HOST:PORT", required=True, help="Address that the edge forwards to.")
@click.option("--edge", "named", metavar="NAME", help="The edge's name, where its answers do not say it.")
@click.option(
    "--silence", type=click.FloatRange(0.1, 3600), default=70.0, show_default=True, help="Seconds without an answer."
)
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
@click.pass_context
def doctor(ctx: click.Context, url: str, address: str, named: str | None, silence: float, as_json: bool) -> None:
    """Say what the edges in front of the proxy do to streams, and which lines cure it."""
    import json

    from streamproxy.doctor import examine
    from streamproxy.doctor.cures import EDGES
    from streamproxy.doctor.provider import Times
    from streamproxy.observe.log import configure_logging
    from streamproxy.server.listening import listen
    from streamproxy.settings import ConfigurationError

    given = re.fullmatch(r"(.+):(\d{1,5})", address)
    if given is None or int(given[2]) >= 1 << 16:
        raise click.UsageError("--listen: give host and port, like 127.0.0.1:8080.")
    if not re.match(r"https?://[^/]", url):
        raise click.UsageError("URL: give the edge's address as callers know it, like https://images.example.com.")
    if named is not None and named not in EDGES:
        raise click.UsageError(f"--edge: known are {', '.join(EDGES)}.")
    configure_logging("critical", "text")
    try:
        sock = listen(given[1].strip("[]"), int(given[2]))
    except ConfigurationError as error:
        happened = error.problems[0].happened
        fix = "Stop the proxy there, or let the edge forward to another address meanwhile."
        raise click.ClickException(f"--listen: {address}: {happened}. {fix}") from None
    edge = EDGES[named] if named is not None else None
    report = _run(lambda: examine(url, sock, times=Times(silence=silence), edge=edge))
    if report is None:
        ctx.exit(CTRL_C)
    click.echo(json.dumps(report.as_json(), indent=2) if as_json else report.as_text())
    ctx.exit(1 if report.faults else 0)


@cli.command("hash-key")
def hash_key() -> None:
    """Read a caller's key from stdin and print the hash to put into caller_keys."""
    import hashlib

    terminal = sys.stdin.isatty()
    key = (click.prompt("Key", hide_input=True) if terminal else sys.stdin.read(64 * 1024)).strip()
    if not re.fullmatch(r"[\x21-\x7e]+", key):
        raise click.ClickException("The key is empty or holds spaces or other than visible ASCII: give the bare key.")
    if len(key) < SHORT_KEY:
        click.echo(
            f"This key has fewer than {SHORT_KEY} characters and could be guessed: openssl rand -hex 32", err=True
        )
    click.echo("sha256:" + hashlib.sha256(key.encode()).hexdigest())
