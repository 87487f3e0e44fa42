"""Sessions of `requests` for callers' filesystems: nothing of this process's identity, the node's ways, and no refused address."""

from __future__ import annotations

import socket
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from modelcache.errors import AddressRefused, OriginStalled, ProtocolViolation
from modelcache.transport import Proxies, Target, Timeouts
from modelcache.transport.tls import Trust
from modelcache.units import MIB

MAX_ANSWER_BYTES = 32 * MIB
"""Of one answer, which is held in memory: a block of a file has 4 MiB, a page of 5,000 blobs some MiB."""
ANSWER_S = 120.0
"""For one answer, however little comes how often: a block takes 64 s at the slowest rate that is waited for (`source.py`)."""


@dataclass(frozen=True, slots=True)
class Ways:
    """How callers' filesystems reach their origins: through the node's proxies, into no refused network, within these times, and by
    default to whom the system's CAs vouch for."""

    proxies: Proxies
    timeouts: Timeouts
    trust: Trust = field(default_factory=lambda: Trust(None))


def session_of(ways: Ways, *, verify: bool | str = True, cert: Any = None) -> Any:
    """A `requests.Session` that reads no variable and no netrc.

    Its requests raise AddressRefused where a name, an address or a redirect leads into a refused network, ProtocolViolation where an answer
    has no end, and OriginStalled where it takes longer than ANSWER_S. `close` ends what is under way, too.

    Args:
        verify: a file of CAs in place of the system's; False: any certificate will do.
        cert: files of the client's own certificate and its key.
    """
    import requests

    session = requests.Session()
    session.trust_env = False
    session.verify, session.cert = verify, cert
    if verify is False:
        _warn_no_more()
    for scheme in ("http://", "https://"):
        session.mount(scheme, _adapter(ways, system=scheme == "https://" and verify is True))
    return session


def _warn_no_more() -> None:
    """Who says that any certificate will do knows that."""
    import urllib3

    urllib3.disable_warnings(urllib3.exceptions.InsecureRequestWarning)


def _adapter(ways: Ways, *, system: bool) -> Any:
    """`system`: its CAs vouch, and none of those that `requests` brings."""
    from requests.adapters import HTTPAdapter

    trusted: dict[str, Any] = {"ssl_context": ways.trust.context()} if system else {}
    living: weakref.WeakSet[socket.socket] = weakref.WeakSet()

    class Adapter(HTTPAdapter):
        """Connects to what may be connected to, through the proxy that the node's settings name for it."""

        def init_poolmanager(self, *args: Any, **how: Any) -> None:
            super().init_poolmanager(*args, **(how | trusted))
            self.poolmanager.pool_classes_by_scheme = _pools(ways.proxies, living.add)

        def proxy_manager_for(self, proxy: str, **how: Any) -> Any:
            return super().proxy_manager_for(proxy, **trusted, **how)

        def cert_verify(self, conn: Any, url: str, verify: Any, cert: Any) -> None:
            super().cert_verify(conn, url, verify, cert)
            if trusted:
                conn.ca_certs = conn.ca_cert_dir = None

        def send(self, request: Any, *args: Any, **how: Any) -> Any:
            target = Target.parse(request.url)
            _expect(ways.proxies, urlsplit(request.url).hostname or "", target.endpoint)
            url = ways.proxies.https if target.scheme == "https" else ways.proxies.http
            how["proxies"] = {} if url is None or ways.proxies.for_target(target) is None else {target.scheme: url}
            how["timeout"] = (ways.timeouts.connect_s, ways.timeouts.stall_s)
            until_s, late = time.monotonic() + ANSWER_S, threading.Timer(ANSWER_S, _shut, (living,))
            late.daemon = True
            late.start()
            try:
                response = super().send(request, *args, **how)
            finally:
                late.cancel()
            response.raw.stream = _bounded(response.raw.stream, until_s, target.endpoint)
            return response

        def close(self) -> None:
            super().close()
            _shut(living)

    return Adapter()


def _bounded(stream: Callable[..., Iterator[bytes]], until_s: float, address: str) -> Callable[..., Iterator[bytes]]:
    """The parts of a body, as long as there is room and time for them."""

    def parts(*args: Any, **how: Any) -> Iterator[bytes]:
        got = 0
        for part in stream(*args, **how):
            got += len(part)
            if got > MAX_ANSWER_BYTES:
                raise ProtocolViolation(f"an answer of more than {MAX_ANSWER_BYTES} bytes", address=address)
            if time.monotonic() > until_s:
                raise OriginStalled(f"an answer took longer than {ANSWER_S:g} s", address=address)
            yield part

    return parts


def _shut(sockets: weakref.WeakSet[socket.socket]) -> None:
    """Whoever reads from them reads their end."""
    for each in tuple(sockets):
        with suppress(OSError):
            socket.socket.shutdown(each, socket.SHUT_RDWR)


def _pools(proxies: Proxies, connected: Callable[[socket.socket], None]) -> dict[str, Any]:
    """By scheme, pools whose connections look where a name leads, and once more where they came out."""
    from urllib3 import HTTPConnectionPool, HTTPSConnectionPool

    def looking(kind: Any) -> Any:
        class Looking(kind):  # type: ignore[misc]  # a class that is an argument
            def connect(self) -> None:
                for address in _addresses(self.host, self.port):
                    _expect(proxies, address, f"{self.host}:{self.port}")
                super().connect()
                connected(self.sock)
                try:
                    _expect(proxies, str(self.sock.getpeername()[0]), f"{self.host}:{self.port}")
                except BaseException:
                    self.close()
                    raise

        return Looking

    def pool(kind: Any) -> Any:
        return type(kind.__name__, (kind,), {"ConnectionCls": looking(kind.ConnectionCls)})

    return {"http": pool(HTTPConnectionPool), "https": pool(HTTPSConnectionPool)}


def _addresses(host: str, port: int) -> list[str]:
    """Of a name; none: it has none, which whoever connects tells."""
    try:
        return [str(entry[4][0]) for entry in socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)]
    except (OSError, UnicodeError):
        return []


def _expect(proxies: Proxies, found: str, asked: str) -> None:
    if proxies.refuses(found):
        raise AddressRefused("this leads to an address that must not be connected to", address=asked, got=found)
