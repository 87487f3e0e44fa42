"""Single flight: callers that want the same thing at the same time share one doing of it."""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar, cast

from modelcache.errors import Cancelled
from modelcache.patience import Cancellation, Event

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")
CANCELLED = "cancelled; what was fetched is kept for the next try"
LOOK_S = 0.2
"""How often a waiting caller looks at the progress."""


class Flight(Generic[V]):
    """One doing, in a thread of its own, that several callers wait for.

    Attributes:
        leaving: its last caller has gone; nobody joins any more.
    """

    def __init__(self) -> None:
        self.cancel = Cancellation()
        self.ended = Event()
        self.waiters = 0
        self.leaving = False
        self.value: V | None = None
        self.error: BaseException | None = None


class SingleFlight(Generic[K, V]):
    """Runs at most one doing per key at a time. Thread-safe.

    A caller that is cancelled leaves the others waiting; the doing itself is cancelled when nobody waits any more.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._lock = threading.Lock()
        self._flights: dict[K, Flight[V]] = {}

    def run(
        self,
        key: K,
        do: Callable[[Cancellation], V],
        *,
        cancel: Cancellation | None = None,
        look: Callable[[], None] | None = None,
    ) -> V:
        """The value of `do` for `key`: of one in progress if there is one.

        `look` is called now and then while waiting, from the caller's own thread.

        Raises:
            Cancelled: by `cancel`; the doing has ended then, unless others wait for it.
            Whatever `do` and `look` raise.
        """
        flight = self._board(key, do, cancel)
        try:
            while not flight.ended.wait(LOOK_S):
                if look is not None:
                    look()
                if cancel is not None and cancel.requested:
                    break
        finally:
            self._leave(flight)
        if not flight.ended.is_set():
            raise Cancelled(CANCELLED)
        if flight.error is not None:
            raise flight.error
        return cast(V, flight.value)

    def _board(self, key: K, do: Callable[[Cancellation], V], cancel: Cancellation | None) -> Flight[V]:
        while True:
            with self._lock:
                if cancel is not None:
                    cancel.check()
                flight = self._flights.get(key)
                if flight is None:
                    flight = self._start(key, do)
                if not flight.leaving:
                    flight.waiters += 1
                    return flight
            while not flight.ended.wait(LOOK_S):
                if cancel is not None:
                    cancel.check()

    def _start(self, key: K, do: Callable[[Cancellation], V]) -> Flight[V]:
        flight: Flight[V] = Flight()
        work = contextvars.copy_context().run  # what the first caller works on, for the log
        self._flights[key] = flight  # under the lock, which the thread needs to take it out again
        try:
            threading.Thread(target=work, args=(self._fly, key, flight, do), name=self._name, daemon=True).start()
        except BaseException:  # Ctrl-C comes when the thread may run already, and nobody waits for it
            del self._flights[key]
            flight.cancel.cancel()
            raise
        return flight

    def join(self) -> None:
        """Cancel everything in progress and wait until it has ended."""
        with self._lock:
            flights = list(self._flights.values())
            for flight in flights:
                flight.leaving = True
        for flight in flights:
            flight.cancel.cancel()
        for flight in flights:
            flight.ended.wait()

    def _leave(self, flight: Flight[V]) -> None:
        with self._lock:
            flight.waiters -= 1
            last = flight.waiters == 0 and not flight.ended.is_set()
            flight.leaving = flight.leaving or last
        if last:
            flight.cancel.cancel()
            flight.ended.wait()

    def _fly(self, key: K, flight: Flight[V], do: Callable[[Cancellation], V]) -> None:
        try:
            flight.value = do(flight.cancel)
        except BaseException as error:  # told to every waiter
            flight.error = error
        finally:
            with self._lock:
                if self._flights.get(key) is flight:
                    del self._flights[key]
            flight.ended.set()
