"""A bound on the bytes a second that are taken from origins, by waiting between reads."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field

from modelcache.abc.source import Body, Listing, Origin, RemoteFile, Source
from modelcache.digest import Digest
from modelcache.errors import Cancelled
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
    """So many bytes a second, for everybody who spends from it, in the order in which they ask. Thread-safe."""

    def __init__(self, bytes_per_s: int | None, pace: Pace | None = None) -> None:
        """
        Args:
            bytes_per_s: None: no bound.
        """
        self._rate = bytes_per_s
        self._pace = pace or Pace()
        self._lock = threading.Lock()
        self._spent = 0.0
        self._asked: dict[object, int] = {}
        """What is not spent yet, in the order in which it was asked for."""
        self._paid = 0.0 if bytes_per_s is None else BURST_S * bytes_per_s
        """Bytes that time has paid for, until `_settled_s`."""
        self._settled_s = self._pace.now_s()
        self._changed = Cancellation()

    @property
    def piece_bytes(self) -> int | None:
        """The most that should be spent at once; None: any number."""
        rate = self._rate
        return None if rate is None else max(LEAST_PIECE_BYTES, rate // PIECES_PER_S)

    def spend(self, count: int, cancel: Cancellation) -> None:
        """Wait until `count` bytes are paid for, to be taken then. Raises Cancelled: nothing is spent then."""
        turn = object()
        with self._lock:
            self._settle()
            self._asked[turn] = count
        is_paid = False
        try:
            while not is_paid:
                with self._lock:
                    self._settle()
                    changed = self._changed
                    wait_s = 0.0 if self._rate is None else (self._due(turn) - self._paid) / self._rate
                is_paid = wait_s <= 0 or self._paused(wait_s, cancel, changed)
        finally:
            with self._lock:
                del self._asked[turn]
                if is_paid:
                    self._spent += count
                else:
                    changed, self._changed = self._changed, Cancellation()
            if not is_paid:
                changed.cancel()

    def _due(self, turn: object) -> float:
        due = self._spent
        for other, count in self._asked.items():
            due += count
            if other is turn:
                break
        return due

    def change(self, bytes_per_s: int | None) -> None:
        """Another rate from now on, for those, too, who wait: what is not paid yet is paid at the new one."""
        with self._lock:
            self._settle()
            self._rate = bytes_per_s
            changed, self._changed = self._changed, Cancellation()
        changed.cancel()

    def _paused(self, wait_s: float, cancel: Cancellation, changed: Cancellation) -> bool:
        """Wait to the end; False: the rate changed. Raises Cancelled."""
        woken = Cancellation()
        with cancel.on_cancel(woken.cancel), changed.on_cancel(woken.cancel):
            try:
                self._pace.pause(woken, wait_s)
            except Cancelled:
                cancel.check()
                return False
        return True

    def _settle(self) -> None:
        now_s = self._pace.now_s()
        owed = self._spent + sum(self._asked.values())
        if self._rate is None:
            self._paid = owed
        else:
            self._paid = min(self._paid + (now_s - self._settled_s) * self._rate, owed + BURST_S * self._rate)
        self._settled_s = now_s


class Allowances:
    """What `RateLimits` allow, for every source of a process; may be changed while bytes move. Thread-safe."""

    def __init__(self, limits: RateLimits, pace: Pace | None = None) -> None:
        self._pace = pace
        self._lock = threading.Lock()
        self._limits = RateLimits()
        self._total: Allowance | None = None
        self._of: Mapping[str, Allowance] = {}
        self.change(limits)

    @property
    def limits(self) -> RateLimits:
        """Those in force."""
        return self._limits

    def change(self, limits: RateLimits) -> None:
        """Others from now on, for what is under way, too."""
        with self._lock:
            total = self._changed(self._total, limits.total)
            rates = {host.lower(): rate for host, rate in limits.of.items()}
            for host in self._of.keys() - rates.keys():
                self._of[host].change(None)
            of = {host: self._changed(self._of.get(host), rate) for host, rate in rates.items()}
            self._total = total
            self._of = {host: allowance for host, allowance in of.items() if allowance is not None}
            self._limits = RateLimits(limits.total, rates)  # the last: who sees it looks for its allowances anew

    def bound(self, source: Source) -> Source:
        """The source, held to what its origin is allowed."""
        return ThrottledSource(source, self)

    def for_origin(self, origin: Origin) -> tuple[Allowance, ...]:
        """Those that bytes of this origin are paid from; none for what is on this machine."""
        total, of = self._total, self._of
        if not origin.endpoint.startswith(("http://", "https://")):
            return () if total is None or origin.endpoint.startswith(LOCAL) else (total,)
        if total is None and not of:
            return ()
        own = next((of[name] for name in Target.parse(origin.endpoint).names if name in of), None)
        return tuple(allowance for allowance in (total, own) if allowance is not None)

    def _changed(self, before: Allowance | None, rate: int | None) -> Allowance | None:
        if before is None:
            return None if rate is None else Allowance(rate, self._pace)
        before.change(rate)
        return None if rate is None else before


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
        return _ThrottledBody(self._source.open(file, span, cancel), span, self._source, self._allowances, cancel)

    def close(self) -> None:
        """As `Source.close`."""
        self._source.close()


class _ThrottledBody:
    """A body that pays for what it takes, before it takes it: whoever is aborted while waiting has lost nothing, and owes nothing."""

    def __init__(self, body: Body, span: ByteRange, source: Source, allowances: Allowances, cancel: Cancellation) -> None:
        self._body = body
        self._source = source
        self._allowances = allowances
        self._limits: RateLimits | None = None
        self._allowed: tuple[Allowance, ...] = ()
        self._unpaid_bytes = span.size_bytes
        self._paid_bytes = 0
        self._stop = Cancellation()  # its own, so that `abort` also ends a pause
        self._undo = ExitStack()
        self._undo.enter_context(cancel.on_cancel(self._stop.cancel))

    @property
    def stated(self) -> tuple[Digest, ...]:
        """As `Body.stated`."""
        return self._body.stated

    def readinto(self, buffer: memoryview) -> int:
        """As `Body.readinto`."""
        limits = self._allowances.limits
        if limits is not self._limits:
            self._allowed = self._allowances.for_origin(self._source.origin)
            self._limits = limits
        if self._paid_bytes == 0 and self._unpaid_bytes > 0:
            self._pay(min(len(buffer), self._unpaid_bytes))
        count = self._body.readinto(buffer[: self._paid_bytes] if self._paid_bytes else buffer)
        self._paid_bytes = max(0, self._paid_bytes - count)
        return count

    def _pay(self, count: int) -> None:
        """Wait for the right to take the next bytes, `count` at the most."""
        pieces = [piece for allowance in self._allowed if (piece := allowance.piece_bytes) is not None]
        count = min([count, *pieces])
        for allowance in self._allowed:
            allowance.spend(count, self._stop)
        self._paid_bytes = count
        self._unpaid_bytes -= count

    def close(self) -> None:
        """As `Body.close`."""
        self._undo.close()
        self._body.close()

    def abort(self) -> None:
        """As `Body.abort`."""
        self._stop.cancel()
        self._body.abort()
