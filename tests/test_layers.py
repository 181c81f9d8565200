"""The shape of the code, read from its source: which layer may import which, and where each foreign library is touched.

Everything here is a table of what is allowed. The syntax trees must stay within it.
"""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import cache
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).parent.parent
PACKAGE: Final = ROOT / "streamproxy"

LAYERS: Final[tuple[frozenset[str], ...]] = tuple(
    frozenset(line.split())
    for line in (
        "__main__",
        "cli",
        "demo doctor __init__",  # __init__: the public API, gives out `create_app` and `Settings` when asked
        "server",  # the process, or several, that serve
        "app",
        "extensions",  # what other packages add
        "web simulator settings.providers",  # settings.providers: settings and catalogue -> providers, credentials
        "generation",
        "surfaces providers hub upstream auth",  # surfaces: the callers' wires; providers: the providers' wires
        "observe",
        "account",  # one generation's figures
        "core",
        "errors settings signals memory",  # signals: a wake-up for tasks; memory: of the process
    )
)
"""From the top. Imports point down, and neighbours on a line do not import each other."""

ANNOTATED: Final = {
    ("upstream.signing", "google"),  # google-auth's credentials are handed through
}
"""Imports against the rules below for the sake of an annotation: they must stand under TYPE_CHECKING."""

SEAMS: Final[dict[str, frozenset[str]]] = {
    library: frozenset(modules.split())
    for library, modules in {
        "aiohappyeyeballs": "upstream.connecting",
        "botocore": "upstream.signing",
        "click": "cli",
        "httptools": "simulator.connection server.guard upstream.parsing",
        "google": "upstream.signing",
        "httpx": "doctor doctor.caller upstream upstream.fetch upstream.posting upstream.signing upstream.transport",
        "itsdangerous": "auth",
        "markdown_it": "web.docs",
        "obstore": "upstream.bucket",
        "PIL": "generation.converting simulator.pictures",
        "opentelemetry": "observe.traces",
        "prometheus_client": "observe observe.metrics",
        "python_multipart": "simulator.multipart web.body",
        "redis": "hub.valkey.client",
        "sse_starlette": "web.writing",
        "structlog": "observe.log",
        "uvicorn": "server server.guard",
        "websockets": "upstream.websocket",
    }.items()
}
"""Each foreign library in its one place, so that a move to another is one file."""

WIDE: Final[dict[str, frozenset[str]]] = {
    library: frozenset(layers.split())
    for library, layers in {
        "anyio": "cli demo doctor app server web simulator generation hub upstream",
        "msgspec": "server web simulator surfaces core providers settings",
        "orjson": "app generation settings.providers server web simulator observe core providers",
        "starlette": "doctor app server web",
    }.items()
}
"""The vocabulary of whole layers."""

CLIENTS: Final = {"langchain_community", "langchain_openai", "litellm"}
"""What programs below tests/e2e/python import, which run in environments of their own."""

PURE: Final = ("core", "providers", "surfaces")
IMPURE: Final = {
    *("asyncio", "concurrent", "http", "io", "logging", "multiprocessing", "os", "pathlib", "queue", "random"),
    *("secrets", "select", "selectors", "shutil", "signal", "socket", "ssl", "subprocess", "sys", "tempfile"),
    *("threading", "time", "uuid", "warnings"),
}
CLOCKS: Final = frozenset({"now", "today", "utcnow"})

DISTRIBUTIONS: Final = {
    "pillow": "PIL",
    "google-auth": "google",
    "google-genai": "google",
    "opentelemetry-sdk": "opentelemetry",
    "opentelemetry-exporter-otlp-proto-http": "opentelemetry",
    "opentelemetry-proto": "opentelemetry",
    "markdown-it-py": "markdown_it",
    "pyyaml": "yaml",
}
"""Where a distribution's module has another name than the distribution."""

NAMED: Final = {"uvloop": "server"}
"""Never imported by us: the event loop that uvicorn and anyio are told to use by name."""

TOP_LEVEL: Final = frozenset({"pyproject.toml", "README.md", "LICENSE", "streamproxy", "tests", "deploy"})


@dataclass(frozen=True, slots=True)
class Import:
    """One imported module: where it stands, and whether it is there for annotations only."""

    importer: str
    module: str
    annotation: bool
    line: int


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text("utf-8"))


def name_of(path: Path) -> str:
    """`streamproxy/web/images.py` is `web.images`, `streamproxy/hub/__init__.py` is `hub`."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


SOURCES: Final = {name_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}
RANK: Final = {name: rank for rank, line in enumerate(LAYERS) for name in line}


def layer_of(module: str) -> str:
    """A module's own row, otherwise that of its folder."""
    return module if module in RANK else module.partition(".")[0]


def imports_of(path: Path, importer: str) -> Iterator[Import]:
    """Every import of a file, those inside functions too; `from streamproxy import x` is an import of streamproxy.x."""
    for node, annotation in walk(tree(path), False):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(importer, alias.name, annotation, node.lineno)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import"
            module = node.module or ""
            for alias in node.names:
                inside = ROOT.joinpath(*module.split("."), alias.name)
                is_module = inside.with_suffix(".py").exists() or (inside / "__init__.py").exists()
                yield Import(importer, f"{module}.{alias.name}" if is_module else module, annotation, node.lineno)


def walk(node: ast.AST, annotation: bool) -> Iterator[tuple[ast.AST, bool]]:
    yield node, annotation
    if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
        for statement in node.body:
            yield from walk(statement, True)
        for statement in node.orelse:
            yield from walk(statement, annotation)
        return
    for child in ast.iter_child_nodes(node):
        yield from walk(child, annotation)


@cache
def all_imports() -> tuple[Import, ...]:
    return tuple(found for name, path in SOURCES.items() for found in imports_of(path, name))


def excepted(found: Import) -> bool:
    return found.annotation and any(
        found.importer == importer and (found.module + ".").startswith(module + ".") for importer, module in ANNOTATED
    )


def foreign() -> Iterator[tuple[Import, str]]:
    for found in all_imports():
        top = layer_of(found.module)
        if top not in sys.stdlib_module_names and top != "streamproxy":
            yield found, top


def test_every_module_has_its_layer() -> None:
    assert {layer_of(name) for name in SOURCES} <= RANK.keys()


def test_imports_point_down() -> None:
    wrong = []
    for found in all_imports():
        if layer_of(found.module) != "streamproxy" or excepted(found):
            continue
        target = layer_of(found.module.partition(".")[2] or "__init__")
        source = layer_of(found.importer)
        if target != source and RANK[target] <= RANK[source]:
            wrong.append(f"{found.importer}:{found.line} imports {found.module}")
    assert not wrong


def test_each_foreign_library_is_touched_in_its_place_only() -> None:
    for found, library in foreign():
        if not excepted(found):
            place = layer_of(found.importer) if library in WIDE else found.importer
            allowed = WIDE.get(library) or SEAMS.get(library, frozenset())
            assert place in allowed, f"{found.importer}:{found.line} imports {library}"


@pytest.mark.parametrize("layer", PURE)
def test_the_core_is_pure(layer: str) -> None:
    """No clock, chance, loop, socket, log or file but the package's own data; no await."""
    for name, path in SOURCES.items():
        if layer_of(name) != layer:
            continue
        for found in imports_of(path, name):
            assert layer_of(found.module) not in IMPURE, f"{name}:{found.line} imports {found.module}"
        for node in ast.walk(tree(path)):
            where = f"{name}:{getattr(node, 'lineno', 0)}"
            assert not isinstance(node, ast.AsyncFunctionDef | ast.Await | ast.AsyncFor | ast.AsyncWith), where
            if isinstance(node, ast.Call):
                call = node.func
                clock = isinstance(call, ast.Attribute) and call.attr in CLOCKS
                opens = isinstance(call, ast.Name) and call.id in ("open", "print", "input")
                assert not clock, f"{where} asks for the time"
                assert not opens, f"{where} does I/O"


def declared(extra: str | None = None) -> set[str]:
    """The modules of the dependencies that pyproject.toml names."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    lines: list[str] = project["optional-dependencies"][extra] if extra else project["dependencies"]
    names = [re.split(r"[^A-Za-z0-9._-]", line, maxsplit=1)[0].lower() for line in lines]
    return {DISTRIBUTIONS.get(name, name.replace("-", "_")) for name in names}


def test_imports_and_declared_dependencies_are_the_same() -> None:
    imported = {library for found, library in foreign() if not found.annotation}
    extras = declared("valkey") | declared("aws") | declared("google") | declared("s3") | declared("otel")
    assert imported == (declared() | extras) - NAMED.keys()


@pytest.mark.parametrize(("library", "module"), NAMED.items())
def test_dependencies_without_an_import_are_named(library: str, module: str) -> None:
    strings = [node.value for node in ast.walk(tree(SOURCES[module])) if isinstance(node, ast.Constant)]
    assert library in strings


def test_tests_import_only_what_is_declared() -> None:
    known = declared() | declared("dev") | {"streamproxy", "tests"} | CLIENTS
    unknown = {
        f"{path.relative_to(ROOT)}: {found.module}"
        for path in sorted((ROOT / "tests").rglob("*.py"))
        if "node_modules" not in path.parts
        for found in imports_of(path, path.stem)
        if layer_of(found.module) not in sys.stdlib_module_names and layer_of(found.module) not in known
    }
    assert not unknown


@pytest.mark.parametrize("name", SOURCES)
def test_a_module_says_what_it_is(name: str) -> None:
    assert ast.get_docstring(tree(SOURCES[name]))


@pytest.mark.parametrize("name", SOURCES)
def test_a_module_has_no_state_and_no_import_effects(name: str) -> None:
    module = tree(SOURCES[name])
    assert not [node.lineno for node in ast.walk(module) if isinstance(node, ast.Global)], "`global` is state"
    for node in module.body:
        if isinstance(node, ast.Expr):
            assert isinstance(node.value, ast.Constant), f"line {node.lineno} does something"
        elif isinstance(node, ast.If):
            assert ast.unparse(node.test) in ("TYPE_CHECKING", "__name__ == '__main__'"), f"line {node.lineno}"
        elif isinstance(node, ast.AnnAssign):
            final = ast.unparse(node.annotation).partition("[")[0] == "Final"
            assert final or not mutable(node.value), f"line {node.lineno}: a table is Final"
        elif isinstance(node, ast.Assign):
            plain = [target.id for target in node.targets if isinstance(target, ast.Name)]
            assert plain == ["__all__"] or not mutable(node.value), f"line {node.lineno}: a table is Final"
        else:
            allowed = ast.Import | ast.ImportFrom | ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
            assert isinstance(node, allowed), f"line {node.lineno} does something"


def mutable(value: ast.expr | None) -> bool:
    if isinstance(value, ast.Call):
        return ast.unparse(value.func).rpartition(".")[2] in {"dict", "list", "set", "deque", "defaultdict", "Event"}
    return isinstance(value, ast.Dict | ast.List | ast.Set | ast.DictComp | ast.ListComp | ast.SetComp)


IMPORT_ALL: Final = """
import importlib, logging, signal, sys, threading

READ = (".py", ".pyc", ".so")
ACTS = ("socket.connect", "socket.bind", "socket.getaddrinfo", "subprocess.", "os.", "tempfile.", "signal.")
LOOKS = ("os.listdir", "os.scandir")  # how modules are found
seen = []

def responsible():
    # Of what runs now, the innermost that is not the standard library.
    frame = sys._getframe(2)
    while frame and (frame.f_globals.get("__name__") or "").partition(".")[0] in STANDARD:
        frame = frame.f_back
    return (frame.f_globals.get("__name__") or "") if frame else ""

def hook(event, args):
    if event == "open":
        acts = not str(args[0]).endswith(READ) or bool(set(args[1] or "") & set("wax+"))
    else:
        acts = event.startswith(ACTS) and event not in LOOKS
    if acts and responsible().startswith("streamproxy"):
        seen.append((event, str(args[0])))

STANDARD = {*sys.stdlib_module_names, "_frozen_importlib", "_frozen_importlib_external"}
handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
sys.addaudithook(hook)
for name in sys.argv[1:]:
    importlib.import_module(name)
assert not seen, seen
assert threading.active_count() == 1, threading.enumerate()
assert not logging.getLogger().handlers
assert handlers == [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
"""


def test_importing_opens_nothing_and_starts_no_thread() -> None:
    names = ["streamproxy" if name == "__init__" else f"streamproxy.{name}" for name in SOURCES]
    run(IMPORT_ALL, *names)


def test_help_imports_only_click() -> None:
    """What makes `--help` and a mistyped option answer at once."""
    code = "import sys, streamproxy.cli\nprint(*{name.partition('.')[0] for name in sys.modules})"
    loaded = set(run(code).split())
    assert "click" in loaded
    assert not loaded & ({*SEAMS, *WIDE} - {"click"})


def run(code: str, *arguments: str) -> str:
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=environment,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_the_top_level_holds_these_entries_and_nothing_else() -> None:
    ignored = [line.strip("/") for line in (ROOT / ".gitignore").read_text("utf-8").split()]
    visible = {
        entry.name
        for entry in ROOT.iterdir()
        if not entry.name.startswith(".") and not any(fnmatch(entry.name, pattern) for pattern in ignored)
    }
    assert visible == TOP_LEVEL


def test_what_few_requests_need_is_not_loaded_to_serve() -> None:
    """Each of them takes megabytes of every process."""
    rare = "PIL websockets redis botocore google.auth httpcore markdown_it opentelemetry"
    serving = "import ssl, sys, streamproxy.app, streamproxy.cli, streamproxy.server, streamproxy.upstream.fetch"
    serving += "; streamproxy.upstream.fetch.Fetcher(hosts=(), ssl_context=ssl.create_default_context())"
    code = f"{serving}; print({{*'{rare}'.split()}} & {{*sys.modules}})"
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    assert ran.stdout.strip() == "set()"
