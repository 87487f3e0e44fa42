"""Which proxy, if any, a connection goes through."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Proxies:
    """Proxy settings, as values; `modelcache.config` reads them from the environment.

    Attributes:
        http, https: proxy URL (`http://[user:password@]host:port`) for origins of that scheme; None: spoken to directly.
        no_proxy: hosts spoken to directly: `*`, a domain (with its subdomains), `host:port`, an address or a CIDR block.
    """

    http: str | None = field(default=None, repr=False)
    https: str | None = field(default=None, repr=False)
    no_proxy: tuple[str, ...] = ()
