"""Which proxy, if any, a connection goes through, and where none may go."""

from __future__ import annotations

import base64
import ipaddress
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
        try:
            found = ipaddress.ip_address(address.partition("%")[0])
        except ValueError:
            return False
        if isinstance(found, ipaddress.IPv6Address) and found.ipv4_mapped is not None:
            found = found.ipv4_mapped
        return any(found in _network(each) for each in self.refused_networks)


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
    host, _, port = entry.rpartition(":") if entry.count(":") == 1 else (entry, "", "")
    if port and port != str(target.port):
        return False
    domain = host.strip("[]").removeprefix("*").strip(".")
    bare = target.host.rstrip(".")
    return domain != "" and (bare == domain or (address is None and bare.endswith(f".{domain}")))
