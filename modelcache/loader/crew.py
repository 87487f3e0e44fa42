"""Threads that work for one load, so that Ctrl-C in the thread that waits for them leaves no lock taken.

Those of concurrent.futures share locks with it that are taken and given back in Python: an interrupt between the two leaves one taken, and
whoever has a result to tell waits for ever (CPython 3.11, `threading.Condition.__enter__`; seen once in some hundred interrupts). Here they
share queues alone, which are C's.
"""

from __future__ import annotations

import atexit
import os
import queue
import threading
import weakref
from collections.abc import Callable
from contextlib import suppress
from typing import Generic, TypeVar

from modelcache.patience import Cancellation, end_of

LOOK_S = 0.5
"""Longest sleep of a thread that Ctrl-C may reach: a signal that comes between its last look and its sleep waits for the next one."""

T = TypeVar("T")


class Task(Generic[T]):
    """Something that a thread of the crew does."""

    def __init__(self, do: Callable[[], T]) -> None:
        self._do = do
        self._outcome: queue.SimpleQueue[tuple[T, None] | tuple[None, BaseException]] = queue.SimpleQueue()

    @property
    def is_done(self) -> bool:
        return not self._outcome.empty()

    def run(self) -> None:
        """Do it, and tell how that ended. Raises what is no Exception, too: Ctrl-C belongs to the thread that it came to."""
        outcome = self._outcome
        try:
            outcome.put((self._do(), None))
        except BaseException as error:
            outcome.put((None, error))
            del self, outcome  # the error's traceback has this frame, and what that has stays until garbage is collected
            if not isinstance(error, Exception):
                raise

    def result(self) -> T:
        """Wait for it; to be asked once. Raises what was raised."""
        while True:
            with suppress(queue.Empty):
                value, error = self._outcome.get(timeout=LOOK_S)
                break
        if error is None:
            return value  # type: ignore[return-value]  # a pair is narrowed as a whole alone
        try:
            raise error
        finally:
            del self, error  # as in `run`


class Crew:
    """Threads that do tasks in the order in which they are given. At the end of the process those of a load that nobody ended are ended."""

    def __init__(self, most: int, name: str, cancel: Cancellation) -> None:
        """
        Args:
            most: threads, each made when there is a task more.
            cancel: the load's own; ends tasks that wait, at the end of the process.
        """
        self._most = most
        self._name = name
        self._cancel = cancel
        self._owner_pid = os.getpid()
        self._tasks: queue.SimpleQueue[Task[object] | None] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        _CREWS.add(self)

    def give(self, do: Callable[[], T]) -> Task[T]:
        """Raises MemoryError: this process can't have a single thread more; else it does with those that it has."""
        if len(self._threads) < self._most:
            self._grow()
        task = Task(do)
        self._tasks.put(task)  # type: ignore[arg-type]  # nobody asks the queue for its result
        return task

    def _grow(self) -> None:
        thread = threading.Thread(target=_work, args=(self._tasks,), name=f"{self._name}_{len(self._threads)}", daemon=True)
        self._threads.append(thread)  # before it runs, or Ctrl-C might leave it to nobody
        try:
            thread.start()
        except RuntimeError as error:
            self._threads.pop()
            self._most = len(self._threads)
            if not self._threads:
                raise MemoryError(f"a load needs a thread, and there can be no more ({error})") from error

    def help_until(self, awaited: Task[T]) -> None:
        """Do tasks of the crew in this thread, until that one is done, or somebody has begun each."""
        with suppress(queue.Empty):
            while not awaited.is_done:
                if (task := self._tasks.get_nowait()) is None:
                    self._tasks.put(None)  # for its threads
                    return
                task.run()
                del task  # and its memory

    def dismiss(self) -> None:
        """What was not begun is dropped; wait for what was. Ctrl-C comes after that, and a second one at once."""
        try:
            with suppress(queue.Empty):
                while True:
                    self._tasks.get_nowait()
        finally:
            self._tasks.put(None)
        try:
            self._join()
        except BaseException:
            self._join()
            raise

    def __del__(self) -> None:
        """Its threads end, though Ctrl-C came before anybody could dismiss them."""
        self._tasks.put(None)

    def _join(self) -> None:
        for thread in self._threads:
            end_of(thread)

    def end_with_the_process(self) -> None:
        if self._owner_pid == os.getpid():  # a fork has none of the threads
            self._cancel.cancel()
            self.dismiss()


def _work(tasks: queue.SimpleQueue[Task[object] | None]) -> None:
    while (task := tasks.get()) is not None:
        with suppress(BaseException):  # which who waits for it is told
            task.run()
        del task  # and its memory, while there is no other
    tasks.put(None)  # for the next one


_CREWS: weakref.WeakSet[Crew] = weakref.WeakSet()


@atexit.register
def _end_all() -> None:
    for crew in list(_CREWS):
        crew.end_with_the_process()
