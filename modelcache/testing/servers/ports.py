"""Free ports for servers of tests."""

from __future__ import annotations

import socket
from contextlib import ExitStack

LOOPBACK = "127.0.0.1"
"""The only address that servers of tests listen on."""


def free_ports(count: int) -> list[int]:
    """Distinct TCP ports of the loopback address that nobody listens on.

    All are bound together before the first is given up, so they differ. Somebody else may still take one before its server
    does: a server that ends at once is started again on others (`process.started`).
    """
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind((LOOPBACK, 0))
        return [each.getsockname()[1] for each in sockets]
