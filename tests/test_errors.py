"""Failures as values: what follows from the row, from the provider's words, and from what is known of the money."""

from __future__ import annotations

import pytest

from streamproxy.errors import ErrorDetails, Failure, ProxyError


@pytest.mark.parametrize("failure", Failure, ids=lambda failure: failure.name.lower())
def test_without_details_the_row_says_all(failure: Failure) -> None:
    error = ProxyError(failure, "m")
    row = failure.value
    assert (error.code, error.type, error.status, error.charged) == (row.code, row.type, row.status, row.charged)
    assert error.retryable is not row.charged


def test_a_providers_better_words_replace_the_rows() -> None:
    error = ProxyError(Failure.PROVIDER_REFUSED, "m", details=ErrorDetails(code="c", type="t", status=418))
    assert (error.code, error.type, error.status) == ("c", "t", 418)


@pytest.mark.parametrize(
    ("status", "retry_after", "charged"), [(503, "7", False), (503, None, True), (502, "7", True), (None, "7", True)]
)
def test_a_503_that_says_when_is_free(status: int | None, retry_after: str | None, charged: bool) -> None:
    error = ProxyError(Failure.PROVIDER_FAILED, "m", retry_after=retry_after, details=ErrorDetails(status=status))
    assert (error.charged, error.retryable) == (charged, not charged)


def test_what_was_accepted_is_never_free() -> None:
    error = ProxyError(Failure.PROVIDER_FAILED, "m", retry_after="7", details=ErrorDetails(status=503))
    error.charged = True
    assert not error.retryable
