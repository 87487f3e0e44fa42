"""An established byte stream to an origin or proxy, plain or TLS.

Both kinds wait in ticks: a blocking receive comes back at least once per `TICK_S` with what there is, so that progress shows on
a slow link while one system call moves up to a whole buffer on a fast one.
"""

from __future__ import annotations

import select
import socket
import ssl
import struct
import threading
import time
from contextlib import suppress
from enum import Enum, auto
from typing import Protocol

TICK_S = 1.0
"""Longest time that bytes already received are kept back while waiting for more."""


class After(Enum):
    """What a stream holds behind the last message."""

    SILENT = auto()
    CLOSED = auto()
    MORE = auto()


class Wire(Protocol):
    """A connected, possibly encrypted stream. Used by one thread, except `shut`."""

    def send(self, data: bytes) -> None:
        """Send all of `data`. Raises OSError; TimeoutError if the peer takes nothing for the stall time."""
        ...

    def receive_into(self, view: memoryview, *, whole: bool) -> int:
        """Receive to the start of `view`; how many bytes; 0 when the peer closed.

        Args:
            whole: wait until `view` is full, or a tick passed with at least one byte; False: take what there is.

        Raises:
            TimeoutError: not one byte for the stall time.
            OSError: the stream broke; bytes received before that were returned by earlier calls.
        """
        ...

    def after(self, wait_s: float) -> After:
        """Whether anything follows, waiting at most `wait_s` for it. Eats what it finds: MORE and CLOSED end the wire's use."""
        ...

    def shut(self) -> None:
        """Break a wait of the using thread, from any thread. Never raises; harmless after `close`."""
        ...

    def close(self) -> None:
        """Never raises; idempotent."""
        ...


class _SocketWire:
    def __init__(self, sock: socket.socket, stall_s: float) -> None:
        self._socket = sock
        self._stall_s = stall_s
        self._tick_s = min(TICK_S, stall_s)
        self._lock = threading.Lock()
        self._open = True

    def shut(self) -> None:
        with self._lock:
            if self._open:
                # Not SSLSocket.shutdown: that one turns later reads into reads of the bare ciphertext.
                with suppress(OSError):
                    socket.socket.shutdown(self._socket, socket.SHUT_RDWR)

    def close(self) -> None:
        # Under the lock, for a `shut` between the close and its system call would hit whatever got the same number next.
        with self._lock:
            self._open = False
            with suppress(OSError):
                self._socket.close()


class PlainWire(_SocketWire):
    """A TCP stream. The socket blocks in the kernel (SO_RCVTIMEO), which spares a poll per receive."""

    def __init__(self, sock: socket.socket, stall_s: float) -> None:
        super().__init__(sock, stall_s)
        sock.settimeout(None)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _timeval(self._tick_s))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _timeval(stall_s))

    def send(self, data: bytes) -> None:
        try:
            self._socket.sendall(data)
        except BlockingIOError:
            raise TimeoutError from None

    def receive_into(self, view: memoryview, *, whole: bool) -> int:
        # With SO_RCVTIMEO, MSG_WAITALL returns what it has when the time is over, and EAGAIN if that is nothing (recv(2)).
        # SO_RCVLOWAT, which should spare wake-ups, starves the window: 0.01 to 0.4 GiB/s where this has 2.3 (loopback, nginx).
        flags = socket.MSG_WAITALL if whole else 0
        quiet_since_s = 0.0
        while True:
            try:
                return self._socket.recv_into(view, len(view), flags)
            except BlockingIOError:
                quiet_since_s = _still_patient(quiet_since_s, self._tick_s, self._stall_s)

    def after(self, wait_s: float) -> After:
        if wait_s > 0:
            poll = select.poll()
            poll.register(self._socket, select.POLLIN)
            poll.poll(int(wait_s * 1000))
        try:
            found = self._socket.recv(1, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return After.SILENT
        except OSError:
            return After.CLOSED
        return After.MORE if found else After.CLOSED


class TlsWire(_SocketWire):
    """A TLS stream through Python's ssl: one record (16 KiB at most) per call into OpenSSL."""

    def __init__(self, sock: ssl.SSLSocket, stall_s: float) -> None:
        super().__init__(sock, stall_s)
        self._tls = sock
        sock.settimeout(self._tick_s)

    def send(self, data: bytes) -> None:
        self._tls.settimeout(self._stall_s)
        try:
            self._tls.sendall(data)
        finally:
            self._tls.settimeout(self._tick_s)

    def receive_into(self, view: memoryview, *, whole: bool) -> int:
        got = 0
        quiet_since_s = 0.0
        while got < len(view):
            try:
                count = self._tls.recv_into(view[got:])
            except TimeoutError:
                if got:
                    break
                quiet_since_s = _still_patient(quiet_since_s, self._tick_s, self._stall_s)
                continue
            except OSError:
                if got:
                    break
                raise
            got += count
            if count == 0 or not whole:
                break
        return got

    def after(self, wait_s: float) -> After:
        self._tls.settimeout(wait_s)
        try:
            found = self._tls.recv(1)
        except (TimeoutError, ssl.SSLWantReadError):
            return After.SILENT
        except OSError:
            return After.CLOSED
        finally:
            self._tls.settimeout(self._tick_s)
        return After.MORE if found else After.CLOSED


def _still_patient(quiet_since_s: float, tick_s: float, stall_s: float) -> float:
    """When the silence began, one tick having passed without a byte. Raises TimeoutError once it lasts `stall_s`."""
    now_s = time.monotonic()
    since_s = quiet_since_s or now_s - tick_s
    if now_s - since_s >= stall_s - tick_s / 100:
        raise TimeoutError
    return since_s


def _timeval(seconds: float) -> bytes:
    """`struct timeval` of 64-bit Linux; never zero, which would mean no limit (socket(7))."""
    micros = max(1, round(seconds * 1_000_000))
    return struct.pack("ll", *divmod(micros, 1_000_000))
