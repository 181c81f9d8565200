"""Caps on what makes code hard to hold in the head: long functions, many parameters, much state in one object.

    lines          of a function from its `def` to its end, without its docstring, with the functions inside it
    parameters     all of a function's, keyword-only ones too, without `self` and `cls`
    attributes     what a class assigns to on `self`, and the fields of a dataclass that is not frozen

Values do not count: a frozen dataclass is a row of a table, however long. There is no cap on a module.

EXCEPTIONS may only shrink. A row over its figure fails, and so does a row that is under the cap by now, or gone.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from typing import Final

import pytest

from tests.test_layers import SOURCES, tree

CAPS: Final = {"lines": 40, "parameters": 5, "attributes": 12}

EXCEPTIONS: Final[dict[str, dict[str, int]]] = {
    "lines": {},
    "parameters": {
        "cli.doctor": 6,
        "cli.generate": 7,  # click gives a command its options as parameters
        "core.completion.completed": 6,
        "core.completion._frame": 6,
        "providers.refusals._error": 6,
        "simulator.pictures.edit": 6,
        "simulator.pictures._glow": 7,
        "simulator.script.error_answer": 6,
        "simulator.server.serve": 7,
        "surfaces.images._request": 6,
        "upstream.Upstream.__init__": 6,
    },
    "attributes": {
        "upstream.answer.Answer": 14,
    },
}
"""What is over a cap, with today's figure."""

Function = ast.FunctionDef | ast.AsyncFunctionDef


def named(node: ast.AST, path: str) -> Iterator[tuple[str, Function | ast.ClassDef]]:
    """Every function and class below a node, by its path."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, Function | ast.ClassDef):
            yield f"{path}.{child.name}", child
            yield from named(child, f"{path}.{child.name}")
        else:
            yield from named(child, path)


def lines(function: Function) -> int:
    whole = (function.end_lineno or 0) - function.lineno + 1
    first = function.body[0]
    documented = ast.get_docstring(function, clean=False) is not None
    return whole - ((first.end_lineno or 0) - first.lineno + 1 if documented else 0)


def parameters(function: Function) -> int:
    given = function.args
    every = [*given.posonlyargs, *given.args, *given.kwonlyargs, given.vararg, given.kwarg]
    return sum(argument is not None and argument.arg not in ("self", "cls") for argument in every)


def attributes(cls: ast.ClassDef) -> int:
    assigned = {
        node.attr
        for node in ast.walk(cls)
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and ast.unparse(node.value) == "self"
    }
    decorators = [ast.unparse(decorator) for decorator in cls.decorator_list]
    if any(text.startswith("dataclass") and "frozen=True" not in text for text in decorators):
        assigned |= {ast.unparse(node.target) for node in cls.body if isinstance(node, ast.AnnAssign)}
    return len(assigned)


def measured(module: ast.Module, name: str) -> dict[str, dict[str, int]]:
    """What is over a cap."""
    found: dict[str, dict[str, int]] = {cap: {} for cap in CAPS}
    for path, node in named(module, name):
        if isinstance(node, ast.ClassDef):
            found["attributes"][path] = attributes(node)
        else:
            found["lines"][path] = lines(node)
            found["parameters"][path] = parameters(node)
    return {cap: {path: n for path, n in figures.items() if n > CAPS[cap]} for cap, figures in found.items()}


@pytest.mark.parametrize("cap", CAPS)
def test_caps(cap: str) -> None:
    over: dict[str, int] = {}
    for name, path in SOURCES.items():
        over |= measured(tree(path), name)[cap]
    excepted = EXCEPTIONS[cap]
    grown = {path: n for path, n in over.items() if n > excepted.get(path, CAPS[cap])}
    assert not grown, f"over the cap of {CAPS[cap]} {cap}, or over the figure in EXCEPTIONS"
    assert not excepted.keys() - over.keys(), "under the cap by now, or gone: delete the row"


EXAMPLE: Final = '''
@dataclass(slots=True)
class State:
    a: int
    b: int = 0

@dataclass(frozen=True)
class Value:
    a: int

class Plain:
    def set(self, one, /, two, *rest, three, **more):
        """A docstring
        of two lines."""
        self.a = self.b = 1
        self.b += 1
        other.c = 1

        def inner():
            self.d = 1
'''


def test_what_is_counted() -> None:
    found = dict(named(ast.parse(EXAMPLE), "m"))
    classes = {path: attributes(node) for path, node in found.items() if isinstance(node, ast.ClassDef)}
    assert classes == {"m.State": 2, "m.Value": 0, "m.Plain": 3}
    function = found["m.Plain.set"]
    assert isinstance(function, Function)
    assert (lines(function), parameters(function)) == (7, 5)
    assert "m.Plain.set.inner" in found


def test_the_package_says_that_it_is_typed() -> None:
    assert SOURCES["__init__"].with_name("py.typed").exists()
