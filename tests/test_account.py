"""Attempts as a header and as JSON."""

from __future__ import annotations

from streamproxy.account import Attempt, shown, told

GPT = Attempt("azure", "openai/gpt-image-2", "connection_refused")
NANO = Attempt("gemini", "google/gemini-3-pro-image")


def test_attempts_are_a_structured_field() -> None:
    assert told([]) == ""
    assert told([GPT, NANO]) == (
        "openai/gpt-image-2;provider=azure;failure=connection_refused, google/gemini-3-pro-image;provider=gemini;ok"
    )


def test_equal_attempts_are_told_once() -> None:
    assert told([NANO, NANO, GPT, NANO]) == told([NANO, GPT])
    assert shown([NANO, GPT, NANO]) == [
        {"provider": "gemini", "model": "google/gemini-3-pro-image", "failure": None},
        {"provider": "azure", "model": "openai/gpt-image-2", "failure": "connection_refused"},
    ]


def test_a_name_that_is_no_token_is_a_string() -> None:
    assert told([Attempt("7days", None), Attempt("a", "amazon/nova:0")]) == '"7days";ok, amazon/nova:0;provider=a;ok'
