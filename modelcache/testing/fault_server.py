"""A small web server that answers as it should, except where it is told to answer wrongly. For faults only: real servers serve the rest.

Threads and sockets of the standard library; 127.0.0.1 on a free port; gone at the end of its `with` block.
"""

from __future__ import annotations

import re
import select
import socket
import ssl
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from email.utils import formatdate
from types import TracebackType
from typing import Self

from modelcache.testing.servers.certificates import Certificate

_RANGE = re.compile(r"bytes=(\d+)-(\d+)")


@dataclass(frozen=True, slots=True)
class Received:
    """A request as it came; header names in lower case."""

    method: str
    target: str
    headers: Mapping[str, str]
    body: bytes = b""


@dataclass(frozen=True, slots=True)
class Stored:
    """What is served under a path: bytes, a strong ETag (or none), and headers of every answer about it."""

    data: bytes
    etag: str | None
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer. `Content-Length` is added where no framing is given."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def head(self) -> bytes:
        headers = {"Date": formatdate(usegmt=True), **self.headers}
        if not {"Content-Length", "Transfer-Encoding"} & headers.keys():
            headers["Content-Length"] = str(len(self.body))
        lines = [f"HTTP/1.1 {self.status} -", *(f"{name}: {value}" for name, value in headers.items())]
        return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n"


class Call:
    """One request being answered by a fault.

    Attributes:
        proper: what a correct server answers.
        ended: set when the server is being closed; what a fault waits on instead of sleeping.
        keep: whether the connection serves another request afterwards.
    """

    def __init__(self, server: FaultServer, sock: socket.socket, received: Received) -> None:
        self.server = server
        self.received = received
        self.proper = server.reply_to(received)
        self.ended = server.ended
        self.keep = True
        self._socket = sock

    def send(self, data: bytes) -> None:
        self._socket.sendall(data)

    def reply(self, reply: Reply) -> None:
        self.send(reply.head() + (b"" if self.received.method == "HEAD" else reply.body))

    def relay(self, onward: socket.socket) -> None:
        """Pass bytes between the client and another socket until either ends."""
        while not self.ended.is_set():
            for ready in select.select([self._socket, onward], [], [], 0.1)[0]:
                data = ready.recv(1 << 16)
                if not data:
                    return
                (onward if ready is self._socket else self._socket).sendall(data)

    def hang_up(self) -> None:
        """End the connection after what was sent."""
        self.keep = False

    def reset(self) -> None:
        """End the connection with a TCP reset; what is on the way may be lost."""
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
        self.keep = False


Fault = Callable[[Call], None]
"""Answers one request, wrongly."""


@dataclass(slots=True)
class _Script:
    fault: Fault
    times_left: int | None


class FaultServer:
    """The server. `put` fills it, `fail` makes it misbehave, `received` tells what it was asked."""

    def __init__(self, certificate: Certificate | None = None) -> None:
        self.ended = threading.Event()
        self.received: list[Received] = []
        self.connections = 0
        self._lock = threading.Lock()
        self._stored: dict[str, Stored] = {}
        self._scripts: dict[str, _Script] = {}
        self._threads: list[threading.Thread] = []
        self._sockets: set[socket.socket] = set()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._scheme = "http" if certificate is None else "https"
        self._tls: ssl.SSLContext | None = None
        if certificate is not None:
            self._tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self._tls.load_cert_chain(certificate.chain, certificate.key)

    @property
    def endpoint(self) -> str:
        return self.at("127.0.0.1")

    def at(self, host: str) -> str:
        """The endpoint under another name of this machine, such as `localhost`."""
        return f"{self._scheme}://{host}:{self.port}"

    def put(self, path: str, data: bytes, *, etag: str | None = '"v1"', headers: Mapping[str, str] | None = None) -> None:
        """Serve `data` under `path` (with its slash), in place of what was there."""
        with self._lock:
            self._stored[path] = Stored(data, etag, headers or {})

    def fail(self, path: str, fault: Fault, *, times: int | None = None) -> None:
        """Answer requests for `path` by `fault`: the next `times`, or all."""
        with self._lock:
            self._scripts[path] = _Script(fault, times)

    def reply_to(self, received: Received) -> Reply:
        """What a correct server answers (RFC 9110: If-Match, then Range)."""
        with self._lock:
            stored = self._stored.get(received.target.partition("?")[0])
        if stored is None:
            return Reply(404, {}, b"no such object")
        headers = dict(stored.headers) | ({} if stored.etag is None else {"ETag": stored.etag})
        wanted = received.headers.get("if-match")
        if wanted is not None and wanted != stored.etag:
            return Reply(412, {}, b"")
        asked = _RANGE.fullmatch(received.headers.get("range", ""))
        total = len(stored.data)
        if asked is None:
            return Reply(200, headers, stored.data)
        first, last = int(asked[1]), min(int(asked[2]), total - 1)
        if first >= total:
            return Reply(416, {"Content-Range": f"bytes */{total}"}, b"")
        return Reply(206, headers | {"Content-Range": f"bytes {first}-{last}/{total}"}, stored.data[first : last + 1])

    def __enter__(self) -> Self:
        self._start(self._accept)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.ended.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        with self._lock:
            sockets = list(self._sockets)
        for sock in sockets:
            with suppress(OSError):
                socket.socket.shutdown(sock, socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        self._listener.close()

    def _start(self, work: Callable[[], None]) -> None:
        thread = threading.Thread(target=work, name=f"fault server {self.port}", daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return  # shut down at the end
            with self._lock:
                self.connections += 1
                self._sockets.add(sock)
            self._start(lambda sock=sock: self._serve(sock))  # type: ignore[misc]  # mypy takes a default of a lambda for Any

    def _serve(self, bare: socket.socket) -> None:
        sock = bare
        try:
            if self._tls is not None:
                # The handshake comes later, for a client that never begins it is to be shut down, too.
                sock = self._tls.wrap_socket(bare, server_side=True, do_handshake_on_connect=False)
                with self._lock:
                    self._sockets.add(sock)
                sock.do_handshake()
            while not self.ended.is_set() and self._answer(sock):
                pass
        except OSError:
            pass  # the client went away, which is what many faults make it do
        finally:
            with self._lock:
                self._sockets -= {bare, sock}
            sock.close()

    def _answer(self, sock: socket.socket) -> bool:
        """Answer one request; whether the connection stays open."""
        received = _receive(sock)
        if received is None:
            return False
        with self._lock:
            self.received.append(received)
            script = self._scripts.get(received.target.partition("?")[0])
            if script is not None and script.times_left is not None:
                script.times_left -= 1
                if script.times_left < 0:
                    script = None
        call = Call(self, sock, received)
        if script is None:
            call.reply(call.proper)
        else:
            script.fault(call)
        return call.keep


def _receive(sock: socket.socket) -> Received | None:
    data = b""
    while b"\r\n\r\n" not in data:
        more = sock.recv(1 << 16)
        if not more or (not data and (not more[:1].isascii() or more[:1] < b" ")):  # the end, or a TLS handshake
            return None
        data += more
    head, _, body = data.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    method, target, _ = first.split(" ")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    while len(body) < int(headers.get("content-length", 0)):
        more = sock.recv(1 << 16)
        if not more:
            return None
        body += more
    return Received(method, target, headers, body)
