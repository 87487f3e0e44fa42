"""Ctrl-C and SIGTERM: the first one asks the work to stop, the second one ends the process."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Collection, Iterator
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
    """SIGINT and SIGTERM cancel inside the block; the second of them ends the process the way its default does.

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
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        stopping = True
        if output.style.as_json:
            _say(STOPPING_EVENT + b"\n")
        elif output.drawing:
            _say(CLEAR_LINE + words)  # in place of the last line, so that what is drawn keeps its height
        else:
            _say(b"\n" + words + b"\n")
        cancel.cancel()

    heard = [number for number in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(number) is not signal.SIG_IGN]
    before = [(number, signal.signal(number, stop)) for number in heard]
    try:
        with _heard_at_once(heard, cancel.cancel):
            yield
    finally:
        for number, previous in before:
            signal.signal(number, previous)


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
def sigterm_interrupts() -> Iterator[None]:
    """Inside the block SIGTERM raises KeyboardInterrupt, as SIGINT does; unless it is ignored."""
    if signal.getsignal(signal.SIGTERM) is signal.SIG_IGN:
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
