"""Where a request goes: an absolute URL taken apart, checked, and shown without its secrets."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass, field
from urllib.parse import urljoin, urlsplit

from modelcache.errors import InvalidUri
from modelcache.uri import redact_url

DEFAULT_PORTS = {"http": 80, "https": 443}
_PRINTABLE = re.compile(r"[!-~]+")
_HOST_NAME = re.compile(r"[a-z0-9_]([a-z0-9_.-]{0,251}[a-z0-9_])?\.?")


@dataclass(frozen=True, slots=True)
class Target:
    """An absolute `http(s)` URL. Printing it shows neither userinfo nor query.

    Attributes:
        host: lower case; an IPv6 address without brackets.
        resource: path and query as they go on the wire (`origin-form`, RFC 9112 §3.2.1).
        userinfo: `user[:password]`, percent-encoded as written; None if there is none.
    """

    scheme: str
    host: str
    port: int
    resource: str = field(repr=False)
    userinfo: str | None = field(default=None, repr=False)

    @classmethod
    def parse(cls, url: str) -> Target:
        """Take a URL apart; a fragment is dropped.

        Raises:
            InvalidUri: not an absolute `http(s)` URL, or characters that have to be percent-encoded. The error shows only the
                part in front of the query, without userinfo.
        """
        if not _PRINTABLE.fullmatch(url):
            hint = "percent-encode it"
            raise InvalidUri("a URL holds a space, a control or a non-ASCII character", address=safe_address(url), hint=hint)
        try:
            parts = urlsplit(url)
            port = parts.port
            host = _checked_host(parts.hostname or "")
        except ValueError as error:
            raise InvalidUri(f"not a usable URL ({error})", address=safe_address(url)) from None
        if parts.scheme not in DEFAULT_PORTS:
            raise InvalidUri("not an `http` or `https` URL", address=safe_address(url), got=parts.scheme)
        resource = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        userinfo = parts.netloc.rpartition("@")[0] or None
        return cls(parts.scheme, host, port or DEFAULT_PORTS[parts.scheme], resource, userinfo)

    @property
    def endpoint(self) -> str:
        """`scheme://host:port`, the port always written."""
        return f"{self.scheme}://{self._bracketed}:{self.port}"

    @property
    def host_header(self) -> str:
        """Value of `Host`: the port is left out where it is the scheme's own."""
        return self._bracketed if self.port == DEFAULT_PORTS[self.scheme] else f"{self._bracketed}:{self.port}"

    @property
    def authority(self) -> str:
        """`host:port`, as CONNECT wants it."""
        return f"{self._bracketed}:{self.port}"

    @property
    def names(self) -> tuple[str, str, str]:
        """What settings may call it, the most exact first: with its port, as the header `Host` has it, without a port; IPv6 in brackets."""
        return self.authority, self.host_header, self._bracketed

    @property
    def base(self) -> str:
        """`endpoint` and the path, if there is one, without a slash at its end: what an API's own paths are put behind."""
        return f"{self.endpoint}{self.resource.partition('?')[0].removesuffix('/')}"

    @property
    def url(self) -> str:
        """The whole URL without userinfo; its query may hold secrets."""
        return f"{self.scheme}://{self.host_header}{self.resource}"

    def same_origin(self, other: Target) -> bool:
        """Whether a credential for one may go to the other (RFC 6454 §5: scheme, host and port are equal)."""
        return (self.scheme, self.host, self.port) == (other.scheme, other.host, other.port)

    def redirected(self, location: str) -> Target:
        """Where a `Location` header leads from here. Raises InvalidUri."""
        try:
            joined = urljoin(self.url, location)
        except ValueError as error:
            raise InvalidUri(f"not a usable URL ({error})", address=safe_address(location)) from None
        return Target.parse(joined)

    @property
    def _bracketed(self) -> str:
        return f"[{self.host}]" if ":" in self.host else self.host

    def __str__(self) -> str:
        return f"{self.scheme}://{self.host_header}{self.resource.partition('?')[0]}"


def safe_address(url: str) -> str:
    """A URL as errors and logs may show it: no userinfo, no query, no fragment, at most 500 characters."""
    return redact_url(url)[:500]


def _checked_host(host: str) -> str:
    """Raises ValueError."""
    if ":" in host:
        return str(ipaddress.IPv6Address(host))
    if not _HOST_NAME.fullmatch(host) or ".." in host:
        raise ValueError("no valid host name")
    return host
