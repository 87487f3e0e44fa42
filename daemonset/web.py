"""What of the agent is seen over HTTP. What names models is for who may see it; the rest tells of none and is everybody's."""

from __future__ import annotations

import io
import json
import logging
import socket
import sys
import threading
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

from daemonset import sockets
from daemonset.reviews import Admit, Verdict
from daemonset.views import Views
from modelcache.errors import BadConfig, ModelCacheError
from modelcache.patience import Deadline

logger = logging.getLogger(__name__)
READ_TIMEOUT_S = 10.0
"""A client has so long to ask, and so long to take the answer."""
CONNECTIONS = 64
"""At once: a thread each."""
ROOT = "/modelcache/"
"""Paths below it are also what the cluster is asked about: they collide with none of the API server's own."""
POLICY = "; ".join((
    "default-src 'none'", "script-src 'self'", "style-src 'self'", "connect-src 'self'", "img-src data:",
    "base-uri 'none'", "form-action 'none'", "frame-ancestors 'none'",
))  # fmt: skip
HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": POLICY,
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
OWN_HOSTS = frozenset({"", "localhost", "127.0.0.1", "::1"})
"""What a forwarded socket is called by who forwards it. Another name in a browser is that of a page whose DNS now leads here: with the
socket there is no token that it would lack."""
TEXT, JSON = "text/plain; charset=utf-8", "application/json"

Answer = tuple[HTTPStatus, str, bytes]
Make = Callable[[str], Answer]
"""An answer, for an `Accept` header. Raises ModelCacheError."""


@dataclass(frozen=True, slots=True)
class Pages:
    """By path. `named`: those that name models."""

    public: dict[str, Make]
    named: dict[str, Make]


def pages(registry: CollectorRegistry, why_not_ready: Callable[[], str | None], views: Views) -> Pages:
    """`why_not_ready`: why new work is not taken; None: it is."""
    static = {
        ROOT: _static("index.html", "text/html; charset=utf-8"),
        f"{ROOT}page.js": _static("page.js", "text/javascript; charset=utf-8"),
        f"{ROOT}page.css": _static("page.css", "text/css; charset=utf-8"),
    }
    public: dict[str, Make] = {
        "/healthz": lambda accept: (HTTPStatus.OK, TEXT, b"ok\n"),
        "/readyz": lambda accept: _ready(why_not_ready()),
        "/metrics": lambda accept: _metrics(registry, accept),
    }
    named: dict[str, Make] = {
        f"{ROOT}list": lambda accept: (HTTPStatus.OK, JSON, json.dumps(views.document()).encode()),
        f"{ROOT}metrics": lambda accept: _metrics(views.registry, accept),
    }
    return Pages(public | static, named)


class Web:
    """Serves at one place. A context manager."""

    def __init__(self, place: tuple[str, int] | Path, served: Pages, admit: Admit) -> None:
        """
        Args:
            place: address and port, IPv6 where it has colons, port 0: a free one; or a unix socket, made for its owner alone.
            admit: who may see what names models.

        Raises:
            BadConfig: nobody can listen there.
        """
        self._socket = place if isinstance(place, Path) else None
        try:
            self._server = _UnixServer.at(place) if isinstance(place, Path) else _of_address(place)
        except OSError as error:
            shown = str(place) if isinstance(place, Path) else f"{place[0]}:{place[1]}"
            raise BadConfig(f"the agent can't listen for HTTP at {shown} ({error.strerror})", got=shown) from None
        self._server.pages = served
        self._server.admit = admit
        self._thread = threading.Thread(target=self._server.serve_forever, name="agent http", daemon=True)

    @property
    def port(self) -> int:
        return int(self._server.server_address[1])

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
        if self._socket is not None:
            sockets.remove(self._socket)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = CONNECTIONS
    pages: Pages
    admit: Admit
    hosts: frozenset[str] | None = None
    """By which what names models may be asked for; None: by any."""

    def __init__(self, address: tuple[str, int], handler: type[BaseHTTPRequestHandler]) -> None:
        self._lock = threading.Lock()
        self._open: OrderedDict[int, socket.socket] = OrderedDict()
        super().__init__(address, handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        """In a thread of its own; where there are too many, the oldest is broken off: kubelet's probes get through whoever else asks."""
        with self._lock:
            self._open[id(request)] = request
            oldest = next(iter(self._open.values())) if len(self._open) > CONNECTIONS else None
            if oldest is not None:
                del self._open[id(oldest)]
                with suppress(OSError):  # it has gone
                    oldest.shutdown(socket.SHUT_RDWR)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        with self._lock:
            self._open.pop(id(request), None)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Into the log, a line as every other."""
        if isinstance(sys.exception(), OSError):
            logger.debug("who asked has gone: %s", sys.exception())
        else:
            logger.exception("an answer failed")


class _Server6(_Server):
    address_family = socket.AF_INET6


class _UnixServer(_Server):
    address_family = socket.AF_UNIX
    hosts = OWN_HOSTS

    @classmethod
    def at(cls, path: Path) -> _UnixServer:
        """Raises OSError, BadConfig, StoreBusy."""
        sockets.prepare(path)
        made = None
        try:
            with sockets.private(path) as place:
                made = cls(str(place), _Page)  # type: ignore[arg-type]  # of this family, the address is a path
        except BaseException:
            if made is not None:
                made.server_close()
            raise
        return made

    def server_bind(self) -> None:
        self.socket.bind(self.server_address)
        self.server_name, self.server_port = "localhost", 0

    def get_request(self) -> tuple[socket.socket, Any]:
        request, _ = super().get_request()
        return request, ("local", 0)


def _of_address(address: tuple[str, int]) -> _Server:
    return (_Server6 if ":" in address[0] else _Server)(address, _Page)


class _Asked(io.RawIOBase):
    """What a client says, until a time: who says a byte now and then keeps no thread for longer than who says nothing."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._deadline = Deadline.after(READ_TIMEOUT_S)

    def readable(self) -> bool:
        return True

    def readinto(self, into: Any) -> int:
        if self._deadline.passed:
            raise TimeoutError
        self._connection.settimeout(max(self._deadline.remaining_s(), 0.001))  # 0 would be no wait at all
        return self._connection.recv_into(into)


class _Page(BaseHTTPRequestHandler):
    server: _Server
    server_version = "modelcache"
    sys_version = ""

    def setup(self) -> None:
        super().setup()
        self.rfile.close()
        self.rfile = io.BufferedReader(_Asked(self.connection))

    def do_GET(self) -> None:
        try:
            path = urlsplit(self.path).path
        except ValueError:
            path = ""
        more: dict[str, str] = {}
        make = self.server.pages.public.get(path)
        if make is None and path in self.server.pages.named:
            if not self._is_asked_by_its_name():
                self._answer((HTTPStatus.MISDIRECTED_REQUEST, TEXT, b"this is no host of that name: ask for localhost\n"), {})
                return
            try:
                verdict = self.server.admit(self.headers.get("Authorization"), path)
            except ModelCacheError as error:
                logger.warning("nobody can say who may see `%s`: %s", path, error, extra={"error": error})
                self._answer((HTTPStatus.SERVICE_UNAVAILABLE, TEXT, b"the cluster can't be asked who may see this\n"), {"Retry-After": "2"})
                return
            make, more = _guarded(verdict, self.server.pages.named[path])
        if make is None:
            self._answer((HTTPStatus.NOT_FOUND, TEXT, f"there is /healthz, /readyz, /metrics and {ROOT}\n".encode()), {})
            return
        try:
            answer = make(self.headers.get("Accept", ""))
        except ModelCacheError as error:
            answer = HTTPStatus.SERVICE_UNAVAILABLE, TEXT, f"{error.code}\n".encode()  # its message may name a model
        self._answer(answer, more)

    def do_HEAD(self) -> None:
        self.do_GET()

    def _is_asked_by_its_name(self) -> bool:
        hosts, told = self.server.hosts, self.headers.get("Host", "")
        try:
            return hosts is None or (urlsplit(f"//{told}").hostname or "") in hosts
        except ValueError:
            return False

    def _answer(self, answer: Answer, more: dict[str, str]) -> None:
        status, kind, body = answer
        self.connection.settimeout(READ_TIMEOUT_S)
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": str(len(body)), **HEADERS, **more}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the name that its callers use
        logger.debug("%s " + format, self.client_address[0], *args)


def _guarded(verdict: Verdict, make: Make) -> tuple[Make, dict[str, str]]:
    if verdict is Verdict.ALLOWED:
        return make, {}
    if verdict is Verdict.FORBIDDEN:
        return (lambda accept: (HTTPStatus.FORBIDDEN, TEXT, b"this is not for you to see\n")), {}
    said = HTTPStatus.UNAUTHORIZED, TEXT, b"a bearer token of the cluster is needed\n"
    return (lambda accept: said), {"WWW-Authenticate": 'Bearer realm="modelcache"'}


def _static(name: str, kind: str) -> Make:
    content = files("daemonset").joinpath("page", name).read_bytes()
    return lambda accept: (HTTPStatus.OK, kind, content)


def _ready(why_not: str | None) -> Answer:
    if why_not is None:
        return HTTPStatus.OK, TEXT, b"ok\n"
    return HTTPStatus.SERVICE_UNAVAILABLE, TEXT, f"{why_not}\n".encode()


def _metrics(registry: CollectorRegistry, accept: str) -> Answer:
    try:
        encode, kind = choose_encoder(accept)
    except (TypeError, ValueError):  # of a version that is none
        encode, kind = choose_encoder("")
    return HTTPStatus.OK, kind, encode(registry)
