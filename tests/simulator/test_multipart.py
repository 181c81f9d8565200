"""A form is whole, or it is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamproxy.errors import Failure, ProxyError
from streamproxy.simulator.multipart import MAX_PARTS, parts
from tests.simulator.test_order import form

BODY, KIND = form(("prompt", b"x"), ("image", bytes(range(256))))


@given(st.lists(st.tuples(st.sampled_from(["prompt", "image[]", "mask", "n"]), st.binary(max_size=200)), min_size=1))
def test_every_part_comes_back(content: list[tuple[str, bytes]]) -> None:
    # The boundary "b" may occur in random content only with dashes and a line end in front.
    content = [(name, data.replace(b"--b", b"")) for name, data in content][:MAX_PARTS]
    body, kind = form(*content)
    assert [(part.name, part.data) for part in parts(body, kind)] == content


def test_a_form_that_is_cut_anywhere_is_refused() -> None:
    for cut in range(len(BODY) - 3):
        with pytest.raises(ProxyError) as caught:
            pytest.fail(f"{cut} bytes are a form: {parts(BODY[:cut], KIND)}")
        assert caught.value.failure is Failure.INVALID_MULTIPART, cut


def test_too_many_parts_are_refused() -> None:
    assert len(parts(*form(*[("n", b"1")] * MAX_PARTS))) == MAX_PARTS
    with pytest.raises(ProxyError, match="too many"):
        parts(*form(*[("n", b"1")] * (MAX_PARTS + 1)))


def test_a_form_without_boundary_is_refused() -> None:
    with pytest.raises(ProxyError, match="boundary"):
        parts(BODY, "multipart/form-data")
