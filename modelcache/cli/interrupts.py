"""Ctrl-C and SIGTERM: the first one asks the work to stop, the second one ends the process, at whatever it is then."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from types import FrameType
from typing import TYPE_CHECKING

from modelcache.cli.output import Output

if TYPE_CHECKING:
    from modelcache.patience import Cancellation

STOPPING = b"stopping; what was fetched is kept (once more ends at once)"
STOPPING_WHOLE = b"stopping; nothing of it is kept (once more ends at once)"
STOPPING_EVENT = b'{"event": "stopping"}'
CLEAR_LINE, SHOW_CURSOR = b"\r\x1b[2K", b"\x1b[?25h"


@contextmanager
def cancelled_by_signals(cancel: Cancellation, output: Output, *, keeps: bool = True) -> Iterator[None]:
    """SIGINT and SIGTERM cancel inside the block; the second of them ends the process the way its default does, behind the block, too: a
    command that was stopped only has to clean up and to tell.

    In the main thread only, as Python has it. One that is ignored stays so: a shell has its background jobs ignore SIGINT, so that
    Ctrl-C ends what runs in the foreground alone.

    Args:
        keeps: what was done so far serves the next try; said to the user.
    """
    words = STOPPING if keeps else STOPPING_WHOLE
    stopping = False

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal stopping
        if stopping:
            if output.drawing:
                _say(SHOW_CURSOR + b"\n")
            _end(number)
            return
        stopping = True
        if output.style.as_json:
            _say(STOPPING_EVENT + b"\n")
        elif output.drawing:
            _say(CLEAR_LINE + words)  # in place of the last line, so that what is drawn keeps its height
        else:
            _say(b"\n" + words + b"\n")
        cancel.cancel()

    heard = _heard()
    before = [(number, signal.signal(number, stop)) for number in heard]
    try:
        with _heard_at_once(heard, cancel.cancel):
            yield
    finally:
        if not stopping:
            _restore(before)


@contextmanager
def _heard_at_once(numbers: Collection[int], hear: Callable[[], None]) -> Iterator[None]:
    """Inside the block `hear` is called in a thread of its own when one of these signals comes, whatever the main thread does.

    Python runs handlers in the main thread, between two of its instructions. One that comes just before it begins to wait for a lock
    doesn't interrupt that wait: its handler would run when the work is done.
    """
    listened, bell = os.pipe2(os.O_CLOEXEC)
    os.set_blocking(bell, False)

    def listen() -> None:
        while number := os.read(listened, 1):
            if number[0] in numbers:
                hear()

    thread = threading.Thread(target=listen, name="signals", daemon=True)
    thread.start()
    before = signal.set_wakeup_fd(bell, warn_on_full_buffer=False)
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        os.close(bell)
        thread.join()
        os.close(listened)


def _say(text: bytes) -> None:
    """Straight to stderr, not through a buffer that the signal may have interrupted."""
    with suppress(OSError):  # stderr may be gone
        os.write(2, text)


@contextmanager
def interrupted_by_signals() -> Iterator[None]:
    """Inside the block the first SIGINT or SIGTERM raises KeyboardInterrupt, the next one ends the process the way its default does. One
    that is ignored stays so."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        for each in heard:
            signal.signal(each, lambda number, frame: _end(number))
        raise KeyboardInterrupt

    heard = _heard()
    before = [(number, signal.signal(number, interrupt)) for number in heard]
    try:
        yield
    finally:
        _restore(before)


def _heard() -> Sequence[signal.Signals]:
    """Those that aren't ignored."""
    return [number for number in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(number) is not signal.SIG_IGN]


def _restore(before: Iterable[tuple[signal.Signals, signal.Handlers | Callable[[int, FrameType | None], object] | int | None]]) -> None:
    for number, previous in before:
        signal.signal(number, previous)


def _end(number: int) -> None:
    """As if nobody had heard the signal."""
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
