"""What of the agent is seen over HTTP: whether it lives, whether it serves, and its metrics. Nothing here tells of models."""

from __future__ import annotations

import logging
import socket
import threading
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

from modelcache.errors import BadConfig, ModelCacheError

logger = logging.getLogger(__name__)
READ_TIMEOUT_S = 10.0
"""A client has so long to ask."""

Answer = tuple[HTTPStatus, str, bytes]
TEXT = "text/plain; charset=utf-8"


class Web:
    """Serves on one address. A context manager."""

    def __init__(self, address: tuple[str, int], registry: CollectorRegistry, why_not_ready: Callable[[], str | None]) -> None:
        """
        Args:
            address: to listen at, IPv6 where it has colons; port 0: a free one.
            why_not_ready: why new work is not taken; None: it is.

        Raises:
            BadConfig: nobody can listen there.
        """
        try:
            self._server = (_Server6 if ":" in address[0] else _Server)(address, _Page)
        except OSError as error:
            raise BadConfig(f"the agent can't listen for HTTP ({error.strerror})", got=f"{address[0]}:{address[1]}") from None
        self._server.pages = {
            "/healthz": lambda accept: (HTTPStatus.OK, TEXT, b"ok\n"),
            "/readyz": lambda accept: _ready(why_not_ready()),
            "/metrics": lambda accept: _metrics(registry, accept),
        }
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


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    pages: dict[str, Callable[[str], Answer]]


class _Server6(_Server):
    address_family = socket.AF_INET6


class _Page(BaseHTTPRequestHandler):
    server: _Server
    timeout = READ_TIMEOUT_S
    server_version = "modelcache"
    sys_version = ""

    def do_GET(self) -> None:
        page = self.server.pages.get(urlsplit(self.path).path)
        if page is None:
            self._answer((HTTPStatus.NOT_FOUND, TEXT, b"there is /healthz, /readyz and /metrics\n"))
            return
        try:
            answer = page(self.headers.get("Accept", ""))
        except ModelCacheError as error:
            answer = HTTPStatus.SERVICE_UNAVAILABLE, TEXT, f"{error.code}\n".encode()  # its message may name a model
        self._answer(answer)

    def do_HEAD(self) -> None:
        self.do_GET()

    def _answer(self, answer: Answer) -> None:
        status, kind, body = answer
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the name that its callers use
        logger.debug("%s " + format, self.client_address[0], *args)


def _ready(why_not: str | None) -> Answer:
    if why_not is None:
        return HTTPStatus.OK, TEXT, b"ok\n"
    return HTTPStatus.SERVICE_UNAVAILABLE, TEXT, f"{why_not}\n".encode()


def _metrics(registry: CollectorRegistry, accept: str) -> Answer:
    encode, kind = choose_encoder(accept)
    return HTTPStatus.OK, kind, encode(registry)
