"""A bound on the bytes a second that are taken from origins, by waiting between reads."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field

from modelcache.abc.source import Body, Listing, Origin, RemoteFile, Source
from modelcache.digest import Digest
from modelcache.patience import Cancellation
from modelcache.ranges import ByteRange
from modelcache.sources.retrying import Pace
from modelcache.transport import Target
from modelcache.uri import StorageUri

LOCAL = ("file:", "pvc:")
BURST_S = 0.25
"""What was not used is kept for so long: a reader that was late (a slow disk, a busy machine) may catch that much up."""
LEAST_PIECE_BYTES = 4096
PIECES_PER_S = 16
"""One read takes no more than this part of a second's bytes, so that many connections take turns within a second and none of them is
silent for as long as servers wait (60 s and more)."""


@dataclass(frozen=True, slots=True)
class RateLimits:
    """Bytes a second from origins over a network, in this process. None: no bound.

    Attributes:
        total: of all origins together.
        of: by `host` or `host:port`, of one.
    """

    total: int | None = None
    of: Mapping[str, int] = field(default_factory=dict)


class Allowance:
    """So many bytes a second, for everybody who spends from it. Thread-safe."""

    def __init__(self, bytes_per_s: int, pace: Pace | None = None) -> None:
        self._bytes_per_s = bytes_per_s
        self._pace = pace or Pace()
        self._lock = threading.Lock()
        self._paid_until_s = float("-inf")

    @property
    def piece_bytes(self) -> int:
        """The most that should be spent at once."""
        return max(LEAST_PIECE_BYTES, self._bytes_per_s // PIECES_PER_S)

    def spend(self, count: int, cancel: Cancellation) -> None:
        """`count` bytes were taken: wait until they are paid for. Raises Cancelled."""
        with self._lock:
            now_s = self._pace.now_s()
            self._paid_until_s = max(self._paid_until_s, now_s - BURST_S) + count / self._bytes_per_s
            wait_s = self._paid_until_s - now_s
        if wait_s > 0:
            self._pace.pause(cancel, wait_s)


class Allowances:
    """What `RateLimits` allow, for every source of a process."""

    def __init__(self, limits: RateLimits, pace: Pace | None = None) -> None:
        self._total = None if limits.total is None else Allowance(limits.total, pace)
        self._of = {host.lower(): Allowance(rate, pace) for host, rate in limits.of.items()}

    def bound(self, source: Source) -> Source:
        """The source, held to what its origin is allowed."""
        if self._total is None and not self._of:
            return source
        return ThrottledSource(source, self)

    def for_origin(self, origin: Origin) -> tuple[Allowance, ...]:
        """Those that bytes of this origin are paid from; none for what is on this machine."""
        if not origin.endpoint.startswith(("http://", "https://")):
            return () if self._total is None or origin.endpoint.startswith(LOCAL) else (self._total,)
        target = Target.parse(origin.endpoint)
        own = self._of.get(target.authority) or self._of.get(target.host_header) or self._of.get(target.host)
        return tuple(allowance for allowance in (self._total, own) if allowance is not None)


class ThrottledSource:
    """Any source, its bodies read no faster than is allowed. Listings are not counted. Safe for many threads."""

    def __init__(self, source: Source, allowances: Allowances) -> None:
        self._source = source
        self._allowances = allowances

    @property
    def origin(self) -> Origin:
        return self._source.origin

    def list(self, uri: StorageUri, cancel: Cancellation) -> Listing:
        """As `Source.list`."""
        return self._source.list(uri, cancel)

    def open(self, file: RemoteFile, span: ByteRange, cancel: Cancellation) -> Body:
        """As `Source.open`."""
        body = self._source.open(file, span, cancel)
        allowed = self._allowances.for_origin(self._source.origin)
        return _ThrottledBody(body, allowed, cancel) if allowed else body

    def close(self) -> None:
        """As `Source.close`."""
        self._source.close()


class _ThrottledBody:
    """A body that pays for what it hands out, before it hands it out."""

    def __init__(self, body: Body, allowed: tuple[Allowance, ...], cancel: Cancellation) -> None:
        self._body = body
        self._allowed = allowed
        self._piece_bytes = min(allowance.piece_bytes for allowance in allowed)
        self._stop = Cancellation()  # its own, so that `abort` also ends a pause
        self._undo = ExitStack()
        self._undo.enter_context(cancel.on_cancel(self._stop.cancel))

    @property
    def stated(self) -> tuple[Digest, ...]:
        """As `Body.stated`."""
        return self._body.stated

    def readinto(self, buffer: memoryview) -> int:
        """As `Body.readinto`."""
        count = self._body.readinto(buffer[: self._piece_bytes])
        for allowance in self._allowed:
            allowance.spend(count, self._stop)
        return count

    def close(self) -> None:
        """As `Body.close`."""
        self._undo.close()
        self._body.close()

    def abort(self) -> None:
        """As `Body.abort`."""
        self._stop.cancel()
        self._body.abort()
