"""The Prefer header, as RFC 7240 writes it and as people do."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.requests import Request

from streamproxy.web.headers import preferences, wants_events


def preferred(*lines: str) -> dict[str, str]:
    headers = [(b"prefer", line.encode("latin-1")) for line in lines]
    return dict(preferences(Request({"type": "http", "headers": headers})))


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("respond-async", {"respond-async": ""}),
        ("Respond-Async, wait=10", {"respond-async": "", "wait": "10"}),
        ("handling=STRICT", {"handling": "strict"}),
        ('on-disconnect="finish"', {"on-disconnect": "finish"}),
        ("on-disconnect = finish", {"on-disconnect": "finish"}),
        ("respond-async; foo=1; bar", {"respond-async": ""}),
        ('foo; some="a, b; c", respond-async', {"foo": "", "respond-async": ""}),
        (' foo="" ,, respond-async ,', {"foo": "", "respond-async": ""}),
        ('note="a \\" b", wait=1', {"note": 'a \\" b', "wait": "1"}),
        ('note="say, respond-async, please"', {"note": "say, respond-async, please"}),
        ("on-disconnect=finish, on-disconnect=cancel", {"on-disconnect": "finish"}),
        ("", {}),
        ("=finish", {}),
        ("respond async", {}),
        ('"respond-async"', {}),
        ('respond-async="', {}),
    ],
)
def test_one_line(line: str, found: dict[str, str]) -> None:
    assert preferred(line) == found


def test_several_lines_are_one_list() -> None:
    assert preferred("wait=1", "respond-async, wait=2") == {"wait": "1", "respond-async": ""}
    assert preferred() == {}


@given(st.text(st.characters(max_codepoint=0xFF), max_size=200))
def test_whatever_comes_is_read(line: str) -> None:
    assert all(name == name.lower() and name for name in preferred(line))


@pytest.mark.parametrize("repeated", ['"', 'a"', '\\"', '"\\', "a ", 'a="b";', ",", "a=,", " ;", "a= ", " ", "="])
def test_a_long_line_takes_no_time(repeated: str) -> None:
    began = time.process_time()
    preferred(repeated * (32_000 // len(repeated)))
    preferred("a=" + repeated * (32_000 // len(repeated)) + '"')
    assert time.process_time() - began < 1


EVENTS = "text/event-stream"


@pytest.mark.parametrize(
    ("accept", "events"),
    [
        ((), True),
        (("*/*",), True),
        ((EVENTS,), True),
        (("TEXT/EVENT-STREAM",), True),
        ((f"{EVENTS};charset=utf-8",), True),
        ((f"application/json, {EVENTS}",), True),
        ((f"{EVENTS};q=0.5, application/json;q=0.4",), True),
        (("application/json;q=0.1", f"{EVENTS};q=0.2"), True),
        (("application/json;q=0, */*",), True),
        (("text/*",), True),
        (("text/html, application/xhtml+xml, */*;q=0.8",), True),
        (("application/json",), False),
        (("Application/JSON; charset=utf-8",), False),
        (("application/json, text/plain, */*",), False),
        ((f"{EVENTS};q=0",), False),
        ((f"{EVENTS}; Q=0.000",), False),
        ((f"{EVENTS};q=0, */*",), False),
        ((f"{EVENTS};q=0.3, application/json",), False),
        (("application/*",), False),
        (("image/png",), False),
    ],
)
def test_what_is_accepted(accept: tuple[str, ...], events: bool) -> None:
    headers = [(b"accept", line.encode()) for line in accept]
    assert wants_events(Request({"type": "http", "headers": headers})) == events


@given(st.text(st.characters(max_codepoint=0xFF), max_size=200))
def test_any_accept_line_is_read(line: str) -> None:
    wants_events(Request({"type": "http", "headers": [(b"accept", line.encode("latin-1"))]}))
