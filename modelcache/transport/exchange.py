"""One request and the head of its answer, over a kept or a fresh connection."""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field

from modelcache.errors import BodyCut, ModelCacheError, OriginStalled, OriginUnreachable, ProtocolViolation
from modelcache.patience import Cancellation
from modelcache.transport.dial import Route, dial
from modelcache.transport.head import HEAD_END, MAX_HEAD_BYTES, Headers, ResponseHead, encode_request, parse_response
from modelcache.transport.pool import Pool
from modelcache.transport.proxies import Proxies
from modelcache.transport.target import Target
from modelcache.transport.timeouts import Timeouts
from modelcache.transport.tls import Trust
from modelcache.transport.wire import After, Wire

_RECEIVE_HEAD_BYTES = 16 << 10
_MAX_INTERIM = 16
"""1xx answers in front of the real one; origins send none or one."""
_NO_BODY = (204, 304)


@dataclass(frozen=True, slots=True)
class Request:
    """What is sent: a method, where to, with which headers (secrets among them), and for POST and PATCH a small body."""

    method: str
    target: Target
    headers: Mapping[str, str] = field(repr=False)
    body: bytes = field(default=b"", repr=False)

    def __str__(self) -> str:
        return f"{self.method} {self.target}"


class Answer:
    """The head of an answer and the connection that its body comes over. Used by one thread, except `abort`.

    Whoever holds one calls `release`, once or more.

    Attributes:
        redirects: headers of the redirects that led here, in order.
    """

    def __init__(self, request: Request, head: ResponseHead, rest: bytes, wire: Wire, kept: tuple[Pool, Route]) -> None:
        self.request = request
        self.head = head
        self.redirects: tuple[Headers, ...] = ()
        self._rest = memoryview(rest)
        self._wire = wire
        self._pool, self._route = kept
        self._lock = threading.Lock()
        self._released = False
        self._silent = False

    @property
    def length_bytes(self) -> int | None:
        """Bytes of the body that follows; None: only its end will tell."""
        if self.request.method == "HEAD" or self.head.status in _NO_BODY:
            return 0
        return self.head.length_bytes

    def receive_into(self, view: memoryview, *, whole: bool) -> int:
        """As `Wire.receive_into`; first what came along with the head."""
        if self._rest:
            count = min(len(view), len(self._rest))
            view[:count] = self._rest[:count]
            self._rest = self._rest[count:]
            return count
        return self._wire.receive_into(view, whole=whole)

    def after(self, wait_s: float) -> After:
        """What follows the body, which was read to its end."""
        found = After.MORE if self._rest else self._wire.after(wait_s)
        self._silent = found is After.SILENT
        return found

    def release(self, *, reuse: bool) -> None:
        """Give the connection up: back to the pool if nothing of this answer is left on it, else closed. Idempotent."""
        with self._lock:
            if self._released:
                return
            self._released = True
        if reuse and self.head.keep_alive and not self._rest:
            self._pool.give(self._route, self._wire, silent=self._silent)
        else:
            self._wire.close()

    def abort(self) -> None:
        """Break a receive that is waiting, from any thread; nothing once released."""
        with self._lock:
            if not self._released:
                self._wire.shut()


class Exchanger:
    """Sends requests of one source. Safe for many threads."""

    def __init__(self, timeouts: Timeouts, trust: Trust, proxies: Proxies, agent: str) -> None:
        self._timeouts = timeouts
        self._trust = trust
        self._proxies = proxies
        self._agent = agent
        self._pool = Pool()

    def close(self) -> None:
        """Close idle connections, and those in use when they are given back. What is sent later has new ones, which are kept again."""
        used, self._pool = self._pool, Pool()
        used.close()

    def send(self, request: Request, cancel: Cancellation) -> Answer:
        """Send a request and read the head of its answer.

        A kept connection that turns out dead before the first byte of an answer is replaced by a fresh one, once: its peer had
        closed it before the request came.

        Raises:
            Unavailable: no connection, or no whole head within the stall time.
            ProtocolViolation: the head is malformed.
            Cancelled.
        """
        route = Route.to(request.target, self._proxies.for_target(request.target))
        data = self._encode(request, route)
        cancel.check()
        pool = self._pool
        kept = pool.take(route)
        if kept is not None:
            try:
                return self._attempt(request, data, kept, (pool, route), cancel)
            except OriginUnreachable:
                cancel.check()
        fresh = dial(route, self._trust, self._timeouts, cancel, self._proxies.refuses)
        return self._attempt(request, data, fresh, (pool, route), cancel)

    def _encode(self, request: Request, route: Route) -> bytes:
        target = request.target
        resource = target.resource
        headers = {"Host": target.host_header, "User-Agent": self._agent, "Accept": "*/*", "Accept-Encoding": "identity"}
        if route.proxy is not None and route.scheme == "http":
            resource = target.url
            if route.proxy.authorization is not None:
                headers["Proxy-Authorization"] = route.proxy.authorization
        if request.method == "POST" or request.body:
            headers["Content-Length"] = str(len(request.body))
        return encode_request(request.method, resource, [*headers.items(), *request.headers.items()]) + request.body

    def _attempt(self, request: Request, data: bytes, wire: Wire, home: tuple[Pool, Route], cancel: Cancellation) -> Answer:
        """Raises OriginUnreachable if the connection died before the first byte of an answer."""
        address = str(request.target)
        with ExitStack() as undo:
            undo.callback(wire.close)
            try:
                with cancel.on_cancel(wire.shut):
                    wire.send(data)
                    head, rest = self._read_head(wire, address)
                cancel.check()
            except TimeoutError:
                cancel.check()
                raise OriginStalled(f"no answer for {self._timeouts.stall_s:g} s", address=address) from None
            except OSError as error:
                cancel.check()
                reason = error.strerror or type(error).__name__
                raise OriginUnreachable(f"the connection broke before an answer came ({reason})", address=address) from None
            except ModelCacheError:
                cancel.check()
                raise
            undo.pop_all()
        return Answer(request, head, rest, wire, home)

    def _read_head(self, wire: Wire, address: str) -> tuple[ResponseHead, bytes]:
        data = b""
        for _ in range(_MAX_INTERIM):
            head_bytes, data = self._read_until_empty_line(wire, data, address)
            head = parse_response(head_bytes, address=address)
            if head.status == 101:
                raise ProtocolViolation("the answer switches to another protocol", address=address)
            if head.status >= 200:
                return head, data
        raise ProtocolViolation(f"over {_MAX_INTERIM} interim answers", address=address)

    def _read_until_empty_line(self, wire: Wire, data: bytes, address: str) -> tuple[bytes, bytes]:
        """The bytes in front of the empty line, and those behind it that came along."""
        received = bytearray(data)
        buffer = memoryview(bytearray(_RECEIVE_HEAD_BYTES))
        late_s = time.monotonic() + self._timeouts.stall_s
        while (end := received.find(HEAD_END)) < 0:
            if len(received) > MAX_HEAD_BYTES:
                raise ProtocolViolation(f"the answer's head is over {MAX_HEAD_BYTES} bytes", address=address)
            if received and time.monotonic() > late_s:
                raise TimeoutError
            try:
                count = wire.receive_into(buffer, whole=False)
            except ConnectionError:
                count = 0
            if count == 0 and not received:
                raise ConnectionResetError(errno.ECONNRESET, "closed by the peer")
            if count == 0:
                raise BodyCut("the connection ended within the answer's head", address=address)
            received += buffer[:count]
        if end > MAX_HEAD_BYTES:
            raise ProtocolViolation(f"the answer's head is over {MAX_HEAD_BYTES} bytes", address=address)
        return bytes(received[:end]), bytes(received[end + len(HEAD_END) :])
