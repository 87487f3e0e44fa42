"""How long the transport waits for a silent peer."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Deadlines of one connection, in seconds. There is none on a whole body: a slow one that moves is never given up.

    Attributes:
        connect_s: over name resolution, all addresses, the proxy's answer and the TLS handshake together.
        stall_s: without one byte received, or accepted by the peer, after which the connection is given up.
    """

    connect_s: float = 15.0
    stall_s: float = 30.0

    def __post_init__(self) -> None:
        if not (0 < self.connect_s < 86_400 and 0 < self.stall_s < 86_400):
            raise ValueError(f"not usable as timeouts: {self}")
