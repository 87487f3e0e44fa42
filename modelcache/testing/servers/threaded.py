"""A server of the standard library's in threads of this process: for doubles of services that nothing installable serves."""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self

from modelcache.testing.servers.ports import LOOPBACK


class ThreadedServer(ThreadingHTTPServer):
    """On a free port of 127.0.0.1, running inside its `with` block. `handler` answers; it finds this as its `server`."""

    daemon_threads = True

    def __init__(self, handler: type[BaseHTTPRequestHandler]) -> None:
        super().__init__((LOOPBACK, 0), handler)

    @property
    def authority(self) -> str:
        return f"{LOOPBACK}:{self.server_address[1]}"

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.shutdown()
        self.server_close()
        self._thread.join()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away in the middle of a body is none."""
