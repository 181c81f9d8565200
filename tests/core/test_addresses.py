"""The guard's tables: addresses that must never be dialled, URLs that must never be read as something else."""

from __future__ import annotations

import re
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamproxy.core.addresses import MAX_URL, Destination, destination, is_listed, prohibited
from streamproxy.errors import Failure, ProxyError

SECRET = "X-Amz-Signature=0123456789abcdef"

INTERNAL = (
    *("10.0.0.0", "10.0.0.1", "10.255.255.255", "100.64.0.1", "100.127.255.255", "127.0.0.1", "127.255.255.254"),
    *("172.16.0.1", "172.31.255.255", "192.168.0.0", "192.168.1.1", "192.168.255.255"),
    *("::1", "fc00::1", "fd12:3456:789a::1", "fdff:ffff::ffff", "64:ff9b::10.0.0.1", "64:ff9b::127.0.0.1"),
)
"""RFC 1918, RFC 6598, loopback, RFC 4193, and their NAT64 forms: a host of fetch_hosts may have them."""

NEVER = (
    # Unspecified, multicast, broadcast, reserved.
    *("0.0.0.0", "0.0.0.1", "0.255.255.255", "224.0.0.1", "239.255.255.250", "240.0.0.1", "255.255.255.255"),
    *("::", "ff02::1", "ff0e::1", "ff05::1:3"),
    # Link-local, site-local, metadata services: AWS, GCP, Azure, DigitalOcean, Oracle, Tencent, Alibaba.
    *("169.254.0.1", "169.254.169.254", "169.254.170.2", "169.254.0.23", "168.63.129.16", "192.0.0.192"),
    *("100.100.100.200", "fd00:ec2::254", "fd00:ec2::23", "fd20:ce::254", "fe80::1", "febf::1", "fec0::1"),
    # IETF protocol assignments, documentation, benchmarking, AS112, AMT, 6to4 relays.
    *("192.0.0.1", "192.0.0.8", "192.0.0.170", "192.0.2.1", "192.31.196.1", "192.52.193.1", "192.88.99.1"),
    *("192.175.48.1", "198.18.0.1", "198.19.255.255", "198.51.100.1", "203.0.113.1"),
    *("2001:db8::1", "3fff::1", "3fff:fff::1", "2001:2::1", "100::1", "100:0:0:1::1", "5f00::1", "2620:4f:8000::1"),
    # Addresses within addresses: mapped, compatible, translated, 6to4, Teredo, ORCHID, NAT64 of a network's own.
    *("::ffff:127.0.0.1", "::ffff:10.0.0.1", "::ffff:169.254.169.254", "::ffff:8.8.8.8", "::127.0.0.1", "::10.0.0.1"),
    *("::ffff:0:127.0.0.1", "2002:7f00:1::1", "2002:a9fe:a9fe::1", "2002:808:808::1", "2001:0:7f00:1::1"),
    *("2001:10::1", "2001:20::1", "2001:30::1", "2001:3::1", "2001:4:112::1", "2001:1::1"),
    *(
        "64:ff9b::169.254.169.254",
        "64:ff9b::0.0.0.0",
        "64:ff9b::224.0.0.1",
        "64:ff9b:1::10.0.0.1",
        "64:ff9b:1::8.8.8.8",
    ),
    # What is assigned to no one, or has a zone.
    *("1::1", "200::1", "4000::1", "8000::1", "e000::1", "fe00::1", "fe80::1%eth0", "2606:4700::1111%1"),
)

NO_ADDRESSES = (
    "",
    "localhost",
    "127.1",
    "0177.0.0.1",
    "0x7f.0.0.1",
    "2130706433",
    "127.0.0.1 ",
    "1.2.3",
    "::g",
    "[::1]",
)

PUBLIC = (
    *("1.1.1.1", "8.8.8.8", "9.255.255.255", "11.0.0.0", "93.184.215.14", "100.63.255.255", "100.128.0.0"),
    *("126.255.255.255", "128.0.0.0", "168.63.129.15", "169.253.255.255", "169.255.0.0", "172.15.255.255"),
    *("172.32.0.0", "192.0.1.0", "192.167.255.255", "192.169.0.0", "198.17.255.255", "198.20.0.0", "223.255.255.255"),
    *("2606:4700::1111", "2001:4860:4860::8888", "2001:200::1", "2a00::1", "2003::1", "3ffe::1", "64:ff9b::8.8.8.8"),
)


@pytest.mark.parametrize("address", INTERNAL + NEVER)
def test_what_is_not_public_is_prohibited(address: str) -> None:
    assert prohibited(address)


@pytest.mark.parametrize("address", NEVER)
def test_no_listing_opens_a_metadata_service_or_a_tunnel(address: str) -> None:
    assert prohibited(address, listed=True)


@pytest.mark.parametrize("address", INTERNAL)
def test_a_listed_host_may_be_internal(address: str) -> None:
    assert prohibited(address, listed=True) is None


@pytest.mark.parametrize("text", NO_ADDRESSES)
def test_another_spelling_is_no_address(text: str) -> None:
    assert prohibited(text, listed=True)


@pytest.mark.parametrize("address", PUBLIC)
def test_public_addresses_pass(address: str) -> None:
    assert prohibited(address) is None


NAT64 = ip_network("64:ff9b::/96")


@given(st.ip_addresses())
def test_only_addresses_that_are_global_pass(address: IPv4Address | IPv6Address) -> None:
    if prohibited(str(address)) is None and address not in NAT64:
        assert address.is_global
        assert not address.is_multicast


@given(st.ip_addresses(v=4))
def test_nat64_is_judged_by_the_address_within(address: IPv4Address) -> None:
    inside = ip_address((0x0064_FF9B << 96) | int(address))
    assert (prohibited(str(inside)) is None) is (prohibited(str(address)) is None)


# URLs.

REFUSED = (
    # Scheme.
    *(
        "http://example.com/a.png",
        "HTTP://example.com/",
        "ftp://example.com/a",
        "file:///etc/passwd",
        "gopher://a.example/",
    ),
    *("//example.com/a", "example.com/a", "https:/example.com/a", "https:example.com", "https:///example.com", ""),
    *("javascript:alert(1)", "https", "https://", "https:// example.com/", "https://?a", "https:///a"),
    # User, port.
    *(
        "https://user@example.com/",
        "https://user:pass@example.com/",
        "https://example.com@127.0.0.1/",
        "https://@a.example/",
    ),
    *("https://example.com:0/", "https://example.com:65536/", "https://example.com:-1/", "https://example.com:80a/"),
    *("https://example.com:000443/", "https://a.example:443:443/"),
    # Characters.
    *(
        "https://example.com\\@127.0.0.1/",
        "https:\\\\example.com/",
        "https://example.com/\r\nHost: a",
        "https://a.example/\t",
    ),
    *(
        "https://exam\tple.com/",
        "https://a.example/\x00",
        "https://a.example\x7f/",
        "\nhttps://a.example/",
        "https://a b/",
        "https://a.example/\ud800",
    ),
    # Other spellings of 127.0.0.1.
    *("https://127.0.0.1/", "https://127.1/", "https://0/", "https://0x7f000001/", "https://0x7f.0.0.1/"),
    *(
        "https://0177.0.0.1/",
        "https://2130706433/",
        "https://017700000001/",
        "https://127.0.0.1./",
        "https://127.0.0.01/",
    ),
    *("https://%31%32%37.0.0.1/", "https://127。0。0。1/", "https://127．0．0．1/", "https://①②⑦.⓪.⓪.①/"),
    *("https://127.0.0.1.0x1/", "https://a.0x7f/", "https://example.08/", "https://1.2.3.4.5/"),
    # IPv6.
    *("https://[::1]/", "https://[::]/", "https://[::ffff:127.0.0.1]/", "https://[0:0:0:0:0:ffff:7f00:1]/"),
    *("https://[fe80::1%25eth0]/", "https://[fe80::1%eth0]/", "https://[::1/", "https://::1/", "https://[]/"),
    *("https://[127.0.0.1]/", "https://[8.8.8.8]/", "https://[2606:4700::1111]a/", "https://[v1.a]/"),
    # Names.
    *(
        "https://localhost/",
        "https://LOCALHOST/",
        "https://a.localhost/",
        "https://localhost./",
        "https://example.com./",
    ),
    *("https://metadata/", "https://comfyui:8188/", "https://ⓛocalhost/", "https://a..example/", "https://.example/"),
    *("https://-a.example/", "https://a-.example/", f"https://{'a' * 64}.example/", f"https://{'a.' * 127}example/"),
    *(
        "https://exa%6dple.com/",
        "https://bücher.example/",
        "https://a。example/",
        "https://a.example。/",
        "https://a,b.example/",
    ),
    f"https://a.example/{'a' * MAX_URL}",
)


@pytest.mark.parametrize("url", REFUSED, ids=lambda url: ascii(url)[:40])
def test_a_url_with_two_readings_is_refused(url: str) -> None:
    with pytest.raises(ProxyError) as raised:
        destination(url, ())
    assert raised.value.failure is Failure.DESTINATION_IP_PROHIBITED
    assert "fetch_hosts" in raised.value.message


@pytest.mark.parametrize(
    ("url", "host", "port", "target"),
    [
        ("https://example.com", "example.com", 443, "/"),
        ("HTTPS://Example.COM/A.png", "example.com", 443, "/A.png"),
        ("https://example.com?a=b", "example.com", 443, "/?a=b"),
        ("https://example.com:/a", "example.com", 443, "/a"),
        ("https://example.com:8443/a#part", "example.com", 8443, "/a"),
        ("https://a_b.example.com/a?b=c/../d&e=%2B+'(*)~!$", "a_b.example.com", 443, "/a?b=c/../d&e=%2B+'(*)~!$"),
        ("https://xn--bcher-kva.example/", "xn--bcher-kva.example", 443, "/"),
        ("https://example.com/画像.png", "example.com", 443, "/%E7%94%BB%E5%83%8F.png"),
        ("https://8.8.8.8/a", "8.8.8.8", 443, "/a"),
        ("https://[2606:4700:0:0::1111]:8443/a", "2606:4700::1111", 8443, "/a"),
        ("https://[64:ff9b::8.8.8.8]/", "64:ff9b::808:808", 443, "/"),
        ("https://example.com/@a:b//c", "example.com", 443, "/@a:b//c"),
    ],
    ids=lambda value: ascii(value)[:40],
)
def test_a_plain_url_is_taken_apart(url: str, host: str, port: int, target: str) -> None:
    assert destination(url, ()) == Destination("https", host, port, target, listed=False)


def test_host_header_has_the_name_connection_the_address() -> None:
    named = destination("https://Example.com:443/a?b", ())
    assert (named.authority, named.literal) == ("example.com", None)
    assert named.at("1.1.1.1") == "https://1.1.1.1:443/a?b"
    assert named.at("2606:4700::1111") == "https://[2606:4700::1111]:443/a?b"
    literal = destination("https://[2606:4700::1111]:444/", ())
    assert (literal.authority, literal.literal) == ("[2606:4700::1111]:444", "2606:4700::1111")


@pytest.mark.parametrize(
    ("url", "entry"),
    [
        ("http://cdn.internal/a", "cdn.internal"),
        ("http://CDN.internal:8443/a", "cdn.internal:8443"),
        ("http://cdn.internal/a", "cdn.internal:80"),
        ("http://a.lan/", "*.lan"),
        ("http://a.b.lan:81/", "*.lan"),
        ("http://a.b.lan/", "*.b.lan:80"),
        ("http://comfyui:8188/view?filename=a", "comfyui:8188"),
        ("http://my_comfy:8188/", "my_comfy"),
        ("http://localhost:8188/", "localhost"),
        ("http://10.0.0.5:8188/", "10.0.0.5:8188"),
        ("http://127.0.0.1/", "127.0.0.1"),
        ("http://[0:0::1]:8188/", "[::1]"),
        ("http://[fd00::1]/", "[fd00::1]:80"),
        ("http://8.8.8.8/", "8.8.8.8"),
    ],
)
def test_a_listed_host_may_speak_http_and_be_internal(url: str, entry: str) -> None:
    assert destination(url, {entry}).listed
    with pytest.raises(ProxyError):
        destination(url, {"other.internal"})


@pytest.mark.parametrize(
    ("host", "entry"),
    [
        ("lan", "*.lan"),
        ("alan", "*.lan"),
        ("evil-cdn.internal", "cdn.internal"),
        ("cdn.internal.example", "cdn.internal"),
        ("a.cdn.internal", "cdn.internal"),
        ("cdn.internal", "cdn.internal:81"),
        ("cdn.internal", "cdn.internal:800"),
        ("127.0.0.1", "*.0.0.1"),
        ("cdn.internal", "*"),
    ],
)
def test_a_host_is_listed_by_its_whole_name(host: str, entry: str) -> None:
    assert not is_listed(host, 80, {entry})


@pytest.mark.parametrize("url", ["http://169.254.169.254/", "http://0.0.0.0/", "http://[::ffff:127.0.0.1]/"])
def test_a_listed_address_may_still_be_prohibited(url: str) -> None:
    with pytest.raises(ProxyError, match="must not be fetched: its address is"):
        destination(url, {"169.254.169.254", "0.0.0.0", "[::ffff:7f00:1]", "[::ffff:127.0.0.1]"})


BASE = destination("https://example.com/a/b.png?c", ())


@pytest.mark.parametrize(
    ("location", "url"),
    [
        ("d.png", "https://example.com/a/d.png"),
        ("/d?e", "https://example.com/d?e"),
        ("?e", "https://example.com/a/b.png?e"),
        ("../d", "https://example.com/d"),
        ("//cdn.example/d", "https://cdn.example/d"),
        ("https://cdn.example/d#e", "https://cdn.example/d"),
    ],
)
def test_a_redirect_is_relative_to_what_was_asked(location: str, url: str) -> None:
    assert destination(location, (), base=BASE) == destination(url, ())


@pytest.mark.parametrize(
    "location",
    [
        *(
            "http://example.com/",
            "//127.0.0.1/",
            "https://[::1]/",
            "//user@cdn.example/",
            "/\\127.0.0.1",
            "\\\\127.0.0.1",
        ),
        *("/a\tb", "https://\tcdn.example/", "https://[", "//[::1", "file:///etc/passwd", "data:image/png;base64,AAAA"),
        *("https://169.254.169.254/latest/meta-data/", "//localhost/"),
    ],
)
def test_a_redirect_is_checked_anew(location: str) -> None:
    with pytest.raises(ProxyError) as raised:
        destination(location, (), base=BASE)
    assert raised.value.failure is Failure.DESTINATION_IP_PROHIBITED


@pytest.mark.parametrize(
    "url",
    [
        f"https://10.0.0.1/path?{SECRET}",
        f"http://example.com/path?{SECRET}",
        f"https://{SECRET}@example.com/path",
        f"https://localhost/path?{SECRET}",
        f"https://example.com:{SECRET}/path",
        f"https://{SECRET}/path",
    ],
)
def test_no_message_has_more_of_a_url_than_its_host(url: str) -> None:
    with pytest.raises(ProxyError) as raised:
        destination(url, ())
    assert SECRET not in raised.value.message
    assert "path" not in raised.value.message
    assert SECRET not in repr(destination(f"https://example.com/?{SECRET}", ()))


@given(st.text(max_size=40), st.sampled_from(["https://", "https://a.example", "https://[", "http", ""]))
def test_any_text_is_a_destination_or_refused(text: str, prefix: str) -> None:
    try:
        found = destination(prefix + text, ())
    except ProxyError:
        pass
    else:
        assert re.fullmatch(r"[\x21-\x7e]+", found.at("1.1.1.1"))
        assert re.fullmatch(r"[a-z0-9._:-]+", found.host)
        assert found.literal is None or prohibited(found.literal) is None
