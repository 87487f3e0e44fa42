"""Which proxy, if any, a connection goes through, and where none may go."""

from __future__ import annotations

import base64
import ipaddress
import socket
from dataclasses import dataclass, field
from functools import lru_cache
from urllib.parse import unquote

from modelcache.errors import BadConfig, InvalidUri
from modelcache.transport.target import Target, safe_address


@dataclass(frozen=True, slots=True)
class Proxy:
    """One proxy. `authorization` is the value of `Proxy-Authorization`, a secret."""

    host: str
    port: int
    authorization: str | None = field(default=None, repr=False)

    @classmethod
    def parse(cls, url: str) -> Proxy:
        """`http://[user:password@]host:port`, the scheme optional.

        Raises:
            BadConfig: another scheme (TLS to a proxy is not served), or no URL.
        """
        try:
            target = Target.parse(url if "://" in url else f"http://{url}")
        except InvalidUri as error:
            raise BadConfig(f"the proxy setting is unusable: {error.message}", got=safe_address(url)) from None
        if target.scheme != "http":
            raise BadConfig("only `http://` proxies are served", got=safe_address(url), hint="https origins are tunnelled through them")
        secret = None
        if target.userinfo is not None:
            secret = "Basic " + base64.b64encode(unquote(target.userinfo).encode()).decode()
        return cls(target.host, target.port, secret)

    def __str__(self) -> str:
        return f"proxy {self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Proxies:
    """Proxy settings, as values; `modelcache.config` reads them from the environment.

    Attributes:
        http, https: proxy URL (`http://[user:password@]host:port`) for origins of that scheme; None: spoken to directly.
        no_proxy: hosts spoken to directly, separated by commas: `*`, a domain (with its subdomains), `host:port`, an address or
            a CIDR block.
        refused_networks: CIDR blocks that nothing is connected to, whatever name or redirect leads there. What a proxy does with a
            name is its own; an address written into a URL is refused there, too.
    """

    http: str | None = field(default=None, repr=False)
    https: str | None = field(default=None, repr=False)
    no_proxy: str = ""
    refused_networks: tuple[str, ...] = ()

    def for_target(self, target: Target) -> Proxy | None:
        """The proxy for this origin. Raises BadConfig if the setting is unusable."""
        url = self.https if target.scheme == "https" else self.http
        if url is None or any(_names(entry.strip().lower(), target) for entry in self.no_proxy.split(",")):
            return None
        return Proxy.parse(url)

    def refuses(self, address: str) -> bool:
        """Whether an address (one that isn't is no address) lies in a refused network."""
        if not self.refused_networks:
            return False
        return any(found in _network(each) for found in _addresses(address) for each in self.refused_networks)


def _addresses(text: str) -> list[ipaddress.IPv4Address | ipaddress.IPv6Address]:
    """The address that a text is, and those that routers and gateways take out of it. Empty: it is a name."""
    bare = text.partition("%")[0]
    try:
        found = ipaddress.ip_address(bare)
    except ValueError:
        return _short_hand(bare)
    if found.is_unspecified:  # connect(2) takes it for this machine
        return [found, *_LOOPBACK]
    if isinstance(found, ipaddress.IPv4Address):
        return [found]
    inner = [found.ipv4_mapped, found.sixtofour, *(found.teredo or ())]
    if any(found in network for network in _EMBEDDING):
        inner.append(ipaddress.IPv4Address(int(found) & 0xFFFFFFFF))
    return [found, *(each for each in inner if each is not None)]


def _short_hand(text: str) -> list[ipaddress.IPv4Address | ipaddress.IPv6Address]:
    """`127.1`, `0x7f000001`, `2130706433`: what inet_aton(3) reads as an address, a proxy's resolver among others."""
    try:
        return _addresses(str(ipaddress.IPv4Address(socket.inet_aton(text.rstrip(".")))))
    except (OSError, UnicodeError):
        return []


_LOOPBACK = (ipaddress.IPv4Address("127.0.0.1"), ipaddress.IPv6Address("::1"))
_EMBEDDING = tuple(ipaddress.IPv6Network(each) for each in ("::/96", "64:ff9b::/96", "64:ff9b:1::/48"))
"""An IPv4 address in the last 32 bits: IPv4-compatible (RFC 4291 §2.5.5.1), NAT64 (RFC 6052 §2.1, RFC 8215)."""


@lru_cache(maxsize=64)
def _network(text: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    return ipaddress.ip_network(text)


def _names(entry: str, target: Target) -> bool:
    """Whether a `no_proxy` entry names this origin; follows what curl and Go read from the variable."""
    if entry == "*":
        return True
    try:
        address = ipaddress.ip_address(target.host)
    except ValueError:
        address = None
    if address is not None and "/" in entry:
        try:
            return address in ipaddress.ip_network(entry, strict=False)
        except ValueError:
            return False
    host, colon, port = entry.rpartition(":")
    if not colon or (":" in host and not host.endswith("]")):
        host, port = entry, ""
    if port and port != str(target.port):
        return False
    domain = host.strip("[]").removeprefix("*").strip(".")
    bare = target.host.rstrip(".")
    if address is not None:
        return bare == domain or address in _addresses(domain)[:1]
    return domain != "" and (bare == domain or bare.endswith(f".{domain}"))
