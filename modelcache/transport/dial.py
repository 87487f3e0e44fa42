"""Making a connection: name resolution, every address, a proxy's tunnel, the TLS handshake, all under one deadline."""

from __future__ import annotations

import ipaddress
import queue
import socket
import ssl
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from modelcache.errors import AccessDenied, AddressRefused, OriginUnreachable, OriginUntrusted, ProtocolViolation
from modelcache.patience import Cancellation, Deadline
from modelcache.transport.head import HEAD_END, MAX_HEAD_BYTES, encode_request, parse_response
from modelcache.transport.proxies import Proxy
from modelcache.transport.target import Target
from modelcache.transport.timeouts import Timeouts
from modelcache.transport.tls import Trust
from modelcache.transport.wire import PlainWire, TlsWire, Wire

_Addresses = list[tuple[socket.AddressFamily, Any]]


@dataclass(frozen=True, slots=True)
class Route:
    """The way to an origin: itself, or a proxy in between. Connections of one route carry each other's requests."""

    scheme: str
    host: str
    port: int
    proxy: Proxy | None

    @classmethod
    def to(cls, target: Target, proxy: Proxy | None) -> Route:
        return cls(target.scheme, target.host, target.port, proxy)

    @property
    def endpoint(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}"


def dial(route: Route, trust: Trust, timeouts: Timeouts, cancel: Cancellation, refuses: Callable[[str], bool]) -> Wire:
    """Connect.

    Args:
        refuses: whether an address must not be connected to. A proxy's own is not asked about.

    Raises:
        AddressRefused: the origin has no other address.
        OriginUnreachable: with the reason: name resolution, every address tried, the proxy, the handshake.
        OriginUntrusted: the certificate is not vouched for; not retryable.
        AccessDenied: the proxy wants (other) credentials.
        BadConfig: the CA file is unusable.
        Cancelled.
    """
    deadline = Deadline.after(timeouts.connect_s)
    sock = _connect(route, deadline, cancel, refuses)
    try:
        if route.scheme == "http":
            return PlainWire(sock, timeouts.stall_s)
        if route.proxy is not None:
            _tunnel(sock, route, deadline, cancel)
        return TlsWire(_handshake(sock, route, trust, deadline, cancel), timeouts.stall_s)
    except BaseException:
        sock.close()
        raise


def _connect(route: Route, deadline: Deadline, cancel: Cancellation, refuses: Callable[[str], bool]) -> socket.socket:
    if refuses(route.host):
        raise AddressRefused("the address is one that must not be connected to", address=route.endpoint, got=route.host)
    host, port = (route.host, route.port) if route.proxy is None else (route.proxy.host, route.proxy.port)
    addresses = _resolve(host, port, route, deadline, cancel)
    if route.proxy is None and (refused := [address[0] for _, address in addresses if refuses(address[0])]):
        addresses = [each for each in addresses if each[1][0] not in refused]
        if not addresses:
            raise AddressRefused("the name leads to an address that must not be connected to", address=route.endpoint, got=refused[0])
    failures = []
    for number, (family, address) in enumerate(addresses):
        sock = socket.socket(family, socket.SOCK_STREAM)
        try:
            # Each address gets its share of what is left, so that a dead first one leaves time for the second.
            sock.settimeout(max(0.001, deadline.remaining_s() / (len(addresses) - number)))
            with cancel.on_cancel(lambda sock=sock: _shut(sock)):  # type: ignore[misc]  # mypy takes a default of a lambda for Any
                sock.connect(address)
            cancel.check()
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        except OSError as error:
            sock.close()
            cancel.check()
            failures.append(f"{address[0]}: {_reason(error)}")
        except BaseException:
            sock.close()
            raise
        else:
            return sock
    through = "" if route.proxy is None else f" to {route.proxy}"
    raise OriginUnreachable(f"can't connect{through} ({'; '.join(failures)})", address=route.endpoint)


def _resolve(host: str, port: int, route: Route, deadline: Deadline, cancel: Cancellation) -> _Addresses:
    """Addresses of a host. getaddrinfo can't be interrupted, so a name is looked up in a thread that is left behind if late."""
    answers: queue.SimpleQueue[Callable[[], _Addresses]] = queue.SimpleQueue()
    named = f"`{host}`" if route.proxy is None else f"the proxy `{host}`"
    try:
        ipaddress.ip_address(host)
    except ValueError:
        threading.Thread(target=_look_up, args=(host, port, answers), name=f"resolve {host}", daemon=True).start()
    else:
        _look_up(host, port, answers)
    try:
        with cancel.on_cancel(lambda: answers.put(list)):
            found = answers.get(timeout=deadline.remaining_s())()
        cancel.check()
    except queue.Empty:
        raise OriginUnreachable(f"name resolution of {named} gave no answer in time", address=route.endpoint) from None
    except OSError as error:
        raise OriginUnreachable(f"name resolution of {named} failed ({_reason(error)})", address=route.endpoint) from None
    return found


def _look_up(host: str, port: int, answers: queue.SimpleQueue[Callable[[], _Addresses]]) -> None:
    try:
        found: _Addresses = [(entry[0], entry[4]) for entry in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
    except (OSError, UnicodeError) as error:
        failure = error if isinstance(error, OSError) else socket.gaierror(socket.EAI_NONAME, "not a usable host name")

        def fail() -> _Addresses:
            raise failure

        answers.put(fail)
    else:
        answers.put(lambda: found)


def _tunnel(sock: socket.socket, route: Route, deadline: Deadline, cancel: Cancellation) -> None:
    """Ask the proxy for a tunnel to the origin (CONNECT, RFC 9110 §9.3.6)."""
    proxy = route.proxy
    assert proxy is not None
    authority = route.endpoint.partition("://")[2]
    headers = [("Host", authority)]
    if proxy.authorization is not None:
        headers.append(("Proxy-Authorization", proxy.authorization))
    try:
        with cancel.on_cancel(lambda: _shut(sock)):
            sock.settimeout(max(0.001, deadline.remaining_s()))
            sock.sendall(encode_request("CONNECT", authority, headers))
            head = _read_tunnel_head(sock, deadline)
    except OSError as error:
        cancel.check()
        raise OriginUnreachable(f"{proxy} broke off ({_reason(error)})", address=route.endpoint) from None
    cancel.check()
    status = parse_response(head.removesuffix(HEAD_END), address=str(proxy)).status
    if status == 407:
        raise AccessDenied(f"{proxy} wants credentials (407)", address=route.endpoint, hint="put them into the proxy setting")
    if not 200 <= status < 300:
        raise OriginUnreachable(f"{proxy} refused the connection (status {status})", address=route.endpoint)


def _read_tunnel_head(sock: socket.socket, deadline: Deadline) -> bytes:
    """Up to the empty line and not a byte further: what follows belongs to the handshake."""
    head = b""
    while not head.endswith(HEAD_END):
        sock.settimeout(max(0.001, deadline.remaining_s()))
        if deadline.passed:
            raise TimeoutError
        byte = sock.recv(1)
        if not byte or len(head) >= MAX_HEAD_BYTES:
            raise ProtocolViolation("the proxy's answer to CONNECT is cut or too long")
        head += byte
    return head


def _handshake(sock: socket.socket, route: Route, trust: Trust, deadline: Deadline, cancel: Cancellation) -> ssl.SSLSocket:
    sock.settimeout(max(0.001, deadline.remaining_s()))
    tls = trust.context().wrap_socket(sock, server_hostname=route.host, do_handshake_on_connect=False)
    try:
        with cancel.on_cancel(lambda: _shut(tls)):
            tls.do_handshake()
        cancel.check()
    except ssl.SSLCertVerificationError as error:
        tls.close()
        raise OriginUntrusted(f"the origin's certificate is not trusted ({error.verify_message})", address=route.endpoint) from None
    except OSError as error:
        tls.close()
        cancel.check()
        raise OriginUnreachable(f"the TLS handshake failed ({_reason(error)})", address=route.endpoint) from None
    except BaseException:
        tls.close()
        raise
    return tls


def _shut(sock: socket.socket) -> None:
    with suppress(OSError):
        socket.socket.shutdown(sock, socket.SHUT_RDWR)


def _reason(error: OSError) -> str:
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, ssl.SSLError):
        return (error.reason or "TLS error").lower().replace("_", " ")
    return error.strerror or type(error).__name__
