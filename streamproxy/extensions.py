"""What other installed packages add, by their entry points: adapters, and routes for surfaces.

    [project.entry-points."streamproxy.adapters"]
    acme = "acme_pictures:ADAPTER"          # core.conversation.Adapter; a provider's `adapter` names it

    [project.entry-points."streamproxy.surfaces"]
    acme = "acme_pictures:ROUTES"           # a sequence of web.routes.RouteRow

A package that is wrong is refused as any configuration: by its name, with what happened and the fix.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import EntryPoint, entry_points
from typing import Final

from streamproxy.core.conversation import Adapter
from streamproxy.providers import ADAPTERS
from streamproxy.settings.values import ConfigurationError, ConfigurationProblem
from streamproxy.web.routes import PAGE, ROUTES, RouteRow

ADAPTERS_GROUP: Final = "streamproxy.adapters"
SURFACES_GROUP: Final = "streamproxy.surfaces"
METHODS: Final = ("at_once", "not_applied", "converse")


def adapters() -> dict[str, Adapter]:
    """All adapters by name: our own, and those of other packages. Raises ConfigurationError."""
    found = dict(ADAPTERS)
    problems: list[ConfigurationProblem] = []
    for point, loaded in _loaded(ADAPTERS_GROUP, problems):
        if point.name in found:
            problems.append(_problem(point, "the name is taken by another adapter", "give it another name"))
        elif not all(callable(getattr(loaded, method, None)) for method in METHODS):
            problems.append(_problem(point, "it is no adapter", f"give it the methods {', '.join(METHODS)}"))
        else:
            found[point.name] = loaded  # type: ignore[assignment]  # as far as can be seen
    if problems:
        raise ConfigurationError(problems)
    return found


def surfaces() -> tuple[RouteRow, ...]:
    """The routes of other packages. Raises ConfigurationError."""
    taken = {(row.method, row.path) for row in (*ROUTES, *PAGE)}
    found: list[RouteRow] = []
    problems: list[ConfigurationProblem] = []
    for point, loaded in _loaded(SURFACES_GROUP, problems):
        rows = _rows(loaded)
        if not rows:
            fix = "make it a tuple of streamproxy.web.routes.RouteRow, with paths that begin with /"
            problems.append(_problem(point, "it is no sequence of routes", fix))
        for row in rows:
            if (row.method, row.path) in taken:
                problems.append(_problem(point, f"{row.method} {row.path} is taken", "serve it at another path"))
            taken.add((row.method, row.path))
            found.append(row)
    if problems:
        raise ConfigurationError(problems)
    return tuple(found)


def _rows(loaded: object) -> list[RouteRow]:
    """The routes of an entry point; none where it has anything else."""
    given = list(loaded) if isinstance(loaded, list | tuple) else []
    rows = [row for row in given if isinstance(row, RouteRow) and row.path.startswith("/")]
    return rows if len(rows) == len(given) else []


def _loaded(group: str, problems: list[ConfigurationProblem]) -> Iterator[tuple[EntryPoint, object]]:
    """Every entry point of a group with its object; those that cannot be imported are problems."""
    for point in entry_points(group=group):
        try:
            loaded: object = point.load()
        except Exception as error:  # any package's own
            missing = f": {error.name}" if isinstance(error, ImportError) and error.name else ""
            happened = f"{point.value} cannot be imported ({type(error).__name__}{missing})"
            problems.append(_problem(point, happened, "correct the package, or uninstall it"))
        else:
            yield point, loaded


def _problem(point: EntryPoint, happened: str, fix: str) -> ConfigurationProblem:
    package = point.dist.name if point.dist is not None else "a package"
    return ConfigurationProblem(f"{point.group}: {point.name}", f"{package}: {happened}", fix)
