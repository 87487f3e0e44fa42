"""Where a request goes, what of it is shown, and which proxy it takes."""

from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelcache.errors import BadConfig, InvalidUri
from modelcache.transport import Proxies, Target, Timeouts, safe_address
from modelcache.transport.proxies import Proxy


def test_a_url_is_taken_apart() -> None:
    target = Target.parse("HTTPS://al%20ice:pw@Example.COM:8443/a%20b?x=1&y=2#frag")
    assert (target.scheme, target.host, target.port, target.resource) == ("https", "example.com", 8443, "/a%20b?x=1&y=2")
    assert target.userinfo == "al%20ice:pw"
    assert target.endpoint == "https://example.com:8443"
    assert target.host_header == target.authority == "example.com:8443"
    assert target.url == "https://example.com:8443/a%20b?x=1&y=2"
    assert str(target) == "https://example.com:8443/a%20b"
    assert "pw" not in repr(target)
    assert "x=1" not in repr(target)


@pytest.mark.parametrize(
    ("url", "host_header", "authority", "resource"),
    [
        ("http://h", "h", "h:80", "/"),
        ("http://h:80?q", "h", "h:80", "/?q"),
        ("https://h:443/", "h", "h:443", "/"),
        ("https://h:80/", "h:80", "h:80", "/"),
        ("http://[::1]:8080/x", "[::1]:8080", "[::1]:8080", "/x"),
        ("http://[0:0:0:0:0:0:0:1]/x", "[::1]", "[::1]:80", "/x"),
        ("http://a_b.c-d.e./x", "a_b.c-d.e.", "a_b.c-d.e.:80", "/x"),
    ],
)
def test_ports_and_addresses_are_written_as_http_wants_them(url: str, host_header: str, authority: str, resource: str) -> None:
    target = Target.parse(url)
    assert (target.host_header, target.authority, target.resource) == (host_header, authority, resource)


@pytest.mark.parametrize(
    "url",
    [
        "", "h/x", "ftp://h/x", "file:///x", "http:///x", "http://", "http://h:x/", "http://h:70000/", "http://h h/", "http://h/a b",
        "http://h/a\r\nX: y", "http://h/\x00", "http://h/é", "http://é/", "http://[::1/", "http://[z]/", "http://a..b/", "http://-/", "http://a;b/",
    ],
)  # fmt: skip
def test_what_is_no_url_is_refused(url: str) -> None:
    with pytest.raises(InvalidUri):
        Target.parse(url)


@given(st.text(max_size=60))
def test_any_text_is_a_target_or_refused_and_shows_no_query(text: str) -> None:
    try:
        target = Target.parse(f"http://host/{text}")
    except InvalidUri:
        return
    assert "?" not in str(target)
    assert Target.parse(target.url).resource == target.resource


@pytest.mark.parametrize(
    ("other", "same"),
    [("https://h/y", True), ("https://h:443/", True), ("http://h/", False), ("https://h:8443/", False), ("https://h.evil/", False)],
)
def test_an_origin_is_scheme_host_and_port(other: str, same: bool) -> None:
    assert Target.parse("https://h/x").same_origin(Target.parse(other)) is same


@pytest.mark.parametrize(
    ("location", "url"),
    [
        ("/y?z", "https://h/y?z"),
        ("y", "https://h/a/y"),
        ("//other/y", "https://other/y"),
        ("http://other:81/y#f", "http://other:81/y"),
        ("?q", "https://h/a/x?q"),
    ],
)
def test_a_redirect_is_relative_to_where_it_was_met(location: str, url: str) -> None:
    assert Target.parse("https://h/a/x?sig=1").redirected(location).url == url


def test_an_address_shows_no_secret() -> None:
    assert safe_address("https://user:p%40ss@h/a?X-Amz-Signature=s#t") == "https://h/a"
    assert len(safe_address("http://h/" + "a" * 5000)) == 500


# -- proxies --------------------------------------------------------------------------------------------------------------


def test_a_proxy_holds_its_credential_and_hides_it() -> None:
    proxy = Proxy.parse("http://us%40er:p%3Aw@proxy.local:3128/")
    assert proxy.authorization == "Basic " + base64.b64encode(b"us@er:p:w").decode()
    assert Proxy.parse("proxy.local:3128") == Proxy("proxy.local", 3128)
    assert "Basic" not in repr(proxy) + str(proxy)


@pytest.mark.parametrize("url", ["https://proxy:3128", "socks5://proxy:1080", "http://", "http://pro xy:1", "http://user:secret@:1"])
def test_a_proxy_that_is_not_served_is_a_bad_setting(url: str) -> None:
    with pytest.raises(BadConfig) as caught:
        Proxies(http=url).for_target(Target.parse("http://h/"))
    assert "secret" not in f"{caught.value} {caught.value.as_dict()}"


@pytest.mark.parametrize(
    ("entry", "host", "direct"),
    [
        ("*", "anything", True),
        ("", "h", False),
        ("example.com", "example.com", True),
        ("example.com", "a.b.example.com", True),
        (".example.com", "a.example.com", True),
        ("*.example.com", "a.example.com", True),
        ("EXAMPLE.com", "example.com", True),
        ("example.com", "badexample.com", False),
        ("example.com", "example.com.evil", False),
        ("example.com:8080", "example.com:8080", True),
        ("example.com:8080", "example.com:81", False),
        ("a, b ,c", "b", True),
        ("10.0.0.0/8", "10.1.2.3", True),
        ("10.0.0.0/8", "11.1.2.3", False),
        ("10.0.0.0/8", "ten.example", False),
        ("0.0.0.1", "10.0.0.1", False),
        ("10.0.0.1", "10.0.0.1", True),
        ("10.0.0.0/99", "10.0.0.1", False),
        ("fd00::/8", "[fd00::1]", True),
        ("::1", "[::1]", True),
        ("[::1]", "[::1]", True),
        ("[::1]:8080", "[::1]:8080", True),
        ("[::1]:8080", "[::1]:81", False),
        ("0:0:0:0:0:0:0:1", "[::1]", True),
        ("::1", "[::2]", False),
        ("127.1", "127.0.0.1", True),
    ],
)
def test_no_proxy_names_hosts_domains_addresses_and_blocks(entry: str, host: str, direct: bool) -> None:
    proxies = Proxies(http="http://proxy:3128", no_proxy=entry)
    assert (proxies.for_target(Target.parse(f"http://{host}/")) is None) is direct


def test_settings_name_an_origin_with_its_port_or_without() -> None:
    assert Target.parse("http://[0:0::1]:8080/m").names == ("[::1]:8080", "[::1]:8080", "[::1]")
    assert Target.parse("https://H.example/m").names == ("h.example:443", "h.example", "h.example")


def test_each_scheme_has_its_own_proxy() -> None:
    proxies = Proxies(https="http://proxy:3128")
    assert proxies.for_target(Target.parse("http://h/")) is None
    assert proxies.for_target(Target.parse("https://h/")) == Proxy("proxy", 3128)


@pytest.mark.parametrize(("connect_s", "stall_s"), [(0, 1), (1, 0), (-1, 1), (float("inf"), 1), (1, float("nan"))])
def test_a_deadline_that_is_none_is_refused(connect_s: float, stall_s: float) -> None:
    with pytest.raises(ValueError, match="timeouts"):
        Timeouts(connect_s, stall_s)
