"""A proxy in front of a real API server that answers with scheduled faults, or falls silent in mid-watch."""

from __future__ import annotations

import http.client
import json
import ssl
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

from modelcache.testing.servers.ports import LOOPBACK

SILENCE = 0
"""In place of a status: the answer's head comes, and then nothing, on a connection that stays open."""


class FaultyApi:
    """A context manager. Plain http on the client's side.

    Attributes:
        hung: how many answers fell silent at once.
        passed: how often something came on a watch.
        seen: `METHOD resource` of every request, and `watch` or `list` for the node's resource, in order.
    """

    def __init__(self, url: str, ca_file: Path) -> None:
        self._target = urlsplit(url)
        self._context = ssl.create_default_context(cafile=str(ca_file))
        self._lock = threading.Lock()
        self._faults: dict[str, deque[int]] = {}
        self._ended = threading.Event()
        self._down = False
        self._opened = self._frozen = 0
        self.seen: list[str] = []
        self.hung = self.passed = 0
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                outer._serve(self)

            def do_PATCH(self) -> None:
                outer._serve(self)

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - named by http.server
                pass

        self._server = ThreadingHTTPServer((LOOPBACK, 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, name="faulty api")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._ended.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def url(self) -> str:
        return f"http://{LOOPBACK}:{self._server.server_address[1]}"

    def fail(self, what: str, *statuses: int) -> None:
        """The next requests of `list`, `watch` or `apply` get these answers."""
        with self._lock:
            self._faults.setdefault(what, deque()).extend(statuses)

    @property
    def faults_left(self) -> int:
        with self._lock:
            return sum(map(len, self._faults.values()))

    def count(self, what: str) -> int:
        with self._lock:
            return self.seen.count(what)

    @contextmanager
    def down(self) -> Iterator[None]:
        """Every request gets its connection closed, for the block."""
        self._down = True
        try:
            yield
        finally:
            self._down = False

    def freeze(self) -> None:
        """Connections that are open stay open, and nothing comes on them any more: what a router leaves that forgot them."""
        with self._lock:
            self._frozen = self._opened

    def _serve(self, handler: BaseHTTPRequestHandler) -> None:
        body = handler.rfile.read(int(handler.headers.get("Content-Length", 0)))
        what = "apply" if handler.command == "PATCH" else "watch" if "watch=true" in handler.path else "list"
        with self._lock:
            self.seen.append(what)
            self._opened += 1
            number = self._opened
            waiting = self._faults.get(what)
            fault = waiting.popleft() if waiting else None
        handler.close_connection = True
        if self._down:
            return
        if fault is None:
            self._forward(handler, body, number)
        elif fault == SILENCE:
            self._hang(handler)
        else:
            self._refuse(handler, fault)

    def _refuse(self, handler: BaseHTTPRequestHandler, status: int) -> None:
        told = json.dumps({"kind": "Status", "code": status, "message": f"scheduled {status}"}).encode()
        handler.send_response(status)
        handler.send_header("Content-Length", str(len(told)))
        if status == 429:
            handler.send_header("Retry-After", "1")
        handler.end_headers()
        handler.wfile.write(told)

    def _hang(self, handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        handler.wfile.flush()
        self.hung += 1
        self._ended.wait(300)

    def _forward(self, handler: BaseHTTPRequestHandler, body: bytes, number: int) -> None:
        connection = http.client.HTTPSConnection(LOOPBACK, self._target.port or 443, timeout=60, context=self._context)
        try:
            headers = {name: handler.headers[name] for name in ("Authorization", "Content-Type", "Accept") if handler.headers[name]}
            connection.request(handler.command, handler.path, body or None, headers)
            answer = connection.getresponse()
            handler.send_response(answer.status)
            handler.send_header("Transfer-Encoding", "chunked")
            handler.end_headers()
            while (data := answer.read1(65536)) and not self._ended.is_set():
                if number <= self._frozen:
                    self._ended.wait(300)
                    return
                handler.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
                handler.wfile.flush()
                self.passed += "watch=true" in handler.path
            handler.wfile.write(b"0\r\n\r\n")
        except OSError:
            return  # either side went away
        finally:
            connection.close()
