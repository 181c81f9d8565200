"""The rules for host names and pages, as values. e2e/test_origins.py has them over sockets and in a browser."""

from __future__ import annotations

import pytest
from starlette.datastructures import Headers

from streamproxy.errors import Failure, ProxyError
from streamproxy.web.origins import Origins, hosts_of, is_same_host, name_of

LOCAL = Origins(frozenset(), hosts_of("127.0.0.1", ["proxy.internal", "*.svc.example"]))


def headers(*items: tuple[str, str]) -> Headers:
    return Headers(raw=[(name.encode(), value.encode()) for name, value in items])


@pytest.mark.parametrize(
    "host",
    ["localhost", "LOCALHOST:8080", "a.localhost", "localhost.", "127.0.0.1", "127.9.9.9:1", "[::1]", "[::1]:8080"],
)
def test_own_names(host: str) -> None:
    LOCAL.check_host(headers(("host", host)))


@pytest.mark.parametrize("host", ["proxy.internal:80", "Proxy.Internal", "a.svc.example", "a.b.svc.example:8080"])
def test_allowed_names(host: str) -> None:
    LOCAL.check_host(headers(("host", host)))


@pytest.mark.parametrize(
    "host",
    ["rebind.evil.example:8080", "evil.localhost.example", "localhost.evil", "notlocalhost", "svc.example", "0.0.0.0"],
)
def test_other_names(host: str) -> None:
    with pytest.raises(ProxyError) as refused:
        LOCAL.check_host(headers(("host", host)))
    assert refused.value.failure is Failure.HOST_NOT_ALLOWED
    assert "allowed_hosts" in refused.value.message


@pytest.mark.parametrize(
    "host",
    ["xsvc.example", "10.0.0.1", "127.0.0.1.evil.example", "2130706433", "0x7f.1", "[::ffff:10.0.0.1]", ""],
)
def test_other_spellings(host: str) -> None:
    with pytest.raises(ProxyError):
        LOCAL.check_host(headers(("host", host)))


@pytest.mark.parametrize("given", [(), (("host", "localhost"), ("host", "localhost"))])
def test_a_host_that_is_missing_or_doubled_is_no_permission(given: tuple[tuple[str, str], ...]) -> None:
    with pytest.raises(ProxyError):
        LOCAL.check_host(headers(*given))


def test_without_a_key_to_spend_any_name_will_do() -> None:
    Origins(frozenset(), None).check_host(headers(("host", "app.example.com")))


@pytest.mark.parametrize(
    ("origin", "host"),
    [
        ("http://127.0.0.1:8080", "127.0.0.1:8080"),
        ("https://app.example.com", "app.example.com"),
        ("https://app.example.com", "app.example.com:443"),
        ("http://app.example.com:80", "APP.example.com"),
        ("http://[::1]:8080", "[::1]:8080"),
    ],
)
def test_same_host(origin: str, host: str) -> None:
    assert is_same_host(origin, host)


@pytest.mark.parametrize(
    ("origin", "host"),
    [
        ("null", "null"),
        ("", ""),
        ("http://", ""),
        ("http://127.0.0.1:3000", "127.0.0.1:8080"),
        ("http://localhost:8080", "127.0.0.1:8080"),
        ("https://evil.example", "app.example.com"),
        ("https://app.example.com.evil.example", "app.example.com"),
        ("https://app.example.com", ""),
    ],
)
def test_another_host(origin: str, host: str) -> None:
    assert not is_same_host(origin, host)


FOREIGN = (
    (("origin", "https://evil.example"),),
    (("origin", "null"),),
    (("origin", "https://evil.example"), ("sec-fetch-site", "same-origin")),
    (("sec-fetch-site", "cross-site"),),
    (("sec-fetch-site", "same-site"),),
)


@pytest.mark.parametrize("given", FOREIGN)
@pytest.mark.parametrize("method", ["POST", "DELETE", "PUT", "BREW"])
def test_a_foreign_page_changes_nothing(given: tuple[tuple[str, str], ...], method: str) -> None:
    with pytest.raises(ProxyError) as refused:
        LOCAL.check_origin(method, headers(("host", "127.0.0.1"), *given))
    assert refused.value.failure is Failure.ORIGIN_NOT_ALLOWED
    assert "cors_origins" in refused.value.message


@pytest.mark.parametrize("given", FOREIGN)
def test_a_foreign_page_follows_no_stream(given: tuple[tuple[str, str], ...]) -> None:
    LOCAL.check_origin("GET", headers(("host", "127.0.0.1"), *given))
    with pytest.raises(ProxyError):
        LOCAL.check_origin("GET", headers(("host", "127.0.0.1"), *given), follows=True)


@pytest.mark.parametrize(
    "given",
    [(), (("origin", "https://app.example.com"),), (("origin", "http://proxy.test"),), (("sec-fetch-site", "none"),)],
)
def test_programs_own_pages_and_allowed_ones(given: tuple[tuple[str, str], ...]) -> None:
    origins = Origins(frozenset({"https://app.example.com"}), None)
    origins.check_origin("POST", headers(("host", "proxy.test"), *given))


@pytest.mark.parametrize(("host", "name"), [("a:1", "a"), ("[::1]:1", "::1"), ("A.B.", "a.b"), ("::1", "::1")])
def test_names(host: str, name: str) -> None:
    assert name_of(host) == name


@pytest.mark.parametrize(
    ("origin", "allowed"),
    [
        ("http://localhost:5173", True),
        ("http://localhost", True),
        ("http://[::1]:3000", True),
        ("https://localhost:5173", False),
        ("http://localhost:5173.evil.example", False),
        ("http://localhost.evil.example", False),
        ("http://evil.example:5173", False),
        ("null", False),
        ("", False),
    ],
)
def test_an_entry_with_every_port(origin: str, allowed: bool) -> None:
    assert Origins(frozenset({"http://localhost:*", "http://[::1]:*"}), None).allows(origin) is allowed


@pytest.mark.parametrize(
    ("host", "known"),
    [
        ("localhost:8080", True),
        ("127.0.0.1", True),
        ("[::1]:8080", True),
        ("proxy.internal", True),
        ("PROXY.internal:443", True),
        ("a.svc.example:1", True),
        ("other.example", False),
        ("", False),
        ("localhost:8080/x", False),
        ("localhost:80@other.example", False),
        ("localhost:", False),
        ("localhost:123456", False),
        ("localhost?x", False),
        ("[::1]x", False),
    ],
)
@pytest.mark.parametrize("enforced", [True, False])
def test_a_url_begins_with_a_known_name_only(host: str, known: bool, enforced: bool) -> None:
    names = hosts_of("127.0.0.1", ["proxy.internal", "*.svc.example"])
    origins = Origins(frozenset(), names if enforced else None, names)
    assert origins.base_url("http", headers(("host", host))) == (f"http://{host}" if known else "")
    assert origins.base_url("https", headers(("host", host), ("host", host))) == ""
    assert origins.base_url("https", headers()) == ""
