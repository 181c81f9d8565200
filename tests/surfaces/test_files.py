"""Forms with a file, and what is said of files, without a server."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import pytest

from streamproxy.core.files import FileRecord, expiry, file_id
from streamproxy.core.requests import Part
from streamproxy.errors import Failure, ProxyError
from streamproxy.surfaces.files import described, described_by_eden, listing, page, uploaded, uploaded_to_eden

PNG = b"\x89PNG\r\n\x1a\n" + bytes(9)


@dataclass(frozen=True, slots=True)
class Bytes:
    raw: bytes = field(repr=False)

    @property
    def size(self) -> int:
        return len(self.raw)

    def read(self, offset: int, length: int) -> bytes:
        return self.raw[offset : offset + length]


def file(raw: bytes = PNG, *, name: str = "file", filename: str = "a.txt") -> Part:
    return Part(name, Bytes(raw), filename=filename, content_type="text/plain")


def text(name: str, value: str) -> Part:
    return Part(name, value.encode())


VISION = text("purpose", "vision")
RECORD = FileRecord(file_id(90_100, "0" * 32), "a", "a.png", 17, "image/png", "vision", created=100, expires=90_100)


def test_the_bytes_say_what_a_file_is() -> None:
    found = uploaded(
        (file(), VISION, text("expires_after[anchor]", "created_at"), text("expires_after[seconds]", "7200"))
    )
    assert (found.file.name, found.file.media_type, found.file.purpose) == ("a.txt", "image/png", "vision")
    assert (found.file.seconds, found.unknown) == (7200, ())
    assert uploaded((file(), VISION)).file.seconds is None


def test_edens_form() -> None:
    found = uploaded_to_eden((file(), text("expires_in_days", "2")))
    assert (found.file.purpose, found.file.seconds) == ("general", 172_800)
    assert uploaded_to_eden((file(), text("purpose", "any words"))).file.purpose == "any words"


@pytest.mark.parametrize(
    ("parts", "param"),
    [
        ((file(),), "purpose"),
        ((file(), text("purpose", "batch")), "purpose"),
        ((file(), VISION, VISION), "purpose"),
        ((VISION,), "file"),
        ((VISION, text("file", "x")), "file"),
        ((VISION, file(), file()), "file"),
        ((VISION, file(b"")), "file"),
        ((VISION, file(filename="x" * 256)), "file"),
        ((VISION, file(name="image")), "image"),
        ((VISION, file(name="a\r\nsecret: x")), "#2"),
        ((VISION, file(), text("expires_after[anchor]", "now")), "expires_after[anchor]"),
        *(
            ((VISION, file(), text("expires_after[seconds]", value)), "expires_after[seconds]")
            for value in ("3599", "2592001", "-1", "1h", "³")
        ),
    ],
)
def test_a_form_that_is_refused(parts: tuple[Part, ...], param: str) -> None:
    with pytest.raises(ProxyError) as caught:
        uploaded(parts)
    assert (caught.value.failure, caught.value.param) == (Failure.INVALID_REQUEST, param)
    assert [problem.param for problem in caught.value.details.problems] == [param]
    assert "\r" not in caught.value.message


@pytest.mark.parametrize(("name", "value"), [("purpose", ""), ("purpose", "x" * 51), ("expires_in_days", "31")])
def test_a_form_for_eden_that_is_refused(name: str, value: str) -> None:
    with pytest.raises(ProxyError) as caught:
        uploaded_to_eden((file(), text(name, value)))
    assert caught.value.param == name


def test_a_file_that_is_no_image() -> None:
    with pytest.raises(ProxyError) as caught:
        uploaded((VISION, file(b"%PDF-1.7 ...........")))
    assert (caught.value.failure, caught.value.param) == (Failure.UNREADABLE_IMAGE, "file")


def test_what_is_not_applied_is_named() -> None:
    long = uploaded((file(), VISION, text("expires_after[seconds]", "100000"), text("color", "x"), text("a\r\nb", "x")))
    assert long.not_applied(RECORD) == ("color", "#2", "expires_after")
    assert long.not_applied(replace(RECORD, expires=100_100)) == ("color", "#2")
    assert uploaded((file(), VISION)).not_applied(RECORD) == ()


def test_how_a_file_is_described() -> None:
    assert described(RECORD)["expires_at"] == 90_100
    assert described_by_eden(RECORD)["expires_at"] == "1970-01-02T01:01:40+00:00"
    assert RECORD.id not in repr(RECORD)


@pytest.mark.parametrize("id", ["", "file-1", "upl_", RECORD.id[:-1], RECORD.id + "0", RECORD.id.upper()])
def test_an_id_of_another_form_has_no_expiry(id: str) -> None:
    assert expiry(id) is None
    assert expiry(RECORD.id) == 90_100


RECORDS = [replace(RECORD, id=str(number), purpose="vision" if number % 2 else "user_data") for number in range(5)]


def ids(**query: str) -> tuple[list[str], object]:
    found = listing(RECORDS, page(query))
    data = found["data"]
    assert isinstance(data, list)
    shown = [str(one["id"]) for one in data]
    assert (found["first_id"], found["last_id"]) == ((shown[0], shown[-1]) if shown else (None, None))
    return shown, found["has_more"]


def test_pages() -> None:
    assert ids() == (["4", "3", "2", "1", "0"], False)
    assert ids(order="asc", limit="2") == (["0", "1"], True)
    assert ids(order="asc", limit="2", after="1") == (["2", "3"], True)
    assert ids(order="asc", limit="2", after="3") == (["4"], False)
    assert ids(after="0") == ([], False)
    assert ids(purpose="vision") == (["3", "1"], False)


@pytest.mark.parametrize("query", [{"order": "up"}, {"limit": "0"}, {"limit": "10001"}, {"limit": "x"}, {"after": "9"}])
def test_a_query_that_is_refused(query: dict[str, str]) -> None:
    with pytest.raises(ProxyError) as caught:
        ids(**query)
    assert [caught.value.param] == [*query]
