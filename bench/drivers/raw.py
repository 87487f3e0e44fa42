"""The ceiling: bytes from a socket into a reused buffer and from there to disk, nothing checked but lengths. Standard library only.

The order is JSON in BENCH_RAW (not in argv: its URLs may be presigned): `objects` (name, size_bytes, url), `directory`, `threads`,
`route` (`buffered`, `direct`, or `none`: received and dropped), `receive` (false: nothing received, the same buffer written).
"""

from __future__ import annotations

import json
import mmap
import os
import queue
import socket
import struct
import threading
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

MIB = 1 << 20
UNIT_BYTES = 64 * MIB
"""Of one request."""
BUFFER_BYTES = {"buffered": MIB, "none": MIB, "direct": 8 * MIB}
BLOCK_BYTES = 4096
HEAD_BYTES = 4096
STALL_S = 60


@dataclass(frozen=True)
class Unit:
    """A range of one file."""

    url: str
    fd: int
    start: int
    stop: int


class Connection:
    """A kept-alive connection; `fill` reads the body of the last request."""

    def __init__(self, host: str, port: int) -> None:
        self._socket = socket.create_connection((host, port))
        # not settimeout(): it makes the socket non-blocking, and MSG_WAITALL does nothing there
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", STALL_S, 0))
        self._left = b""

    def ask(self, unit: Unit) -> None:
        parts = urlsplit(unit.url)
        target = f"{parts.path}?{parts.query}" if parts.query else parts.path
        head = f"GET {target} HTTP/1.1\r\nHost: {parts.netloc}\r\nRange: bytes={unit.start}-{unit.stop - 1}\r\n\r\n"
        self._socket.sendall(head.encode())
        answer = b""
        while b"\r\n\r\n" not in answer:
            got = self._socket.recv(HEAD_BYTES)
            if not got:
                raise SystemExit(f"the server hung up after {answer!r}")
            answer += got
        head_text, _, self._left = answer.partition(b"\r\n\r\n")
        lines = head_text.decode("latin-1").lower().split("\r\n")
        if lines[0].split()[1] != "206" or f"content-length: {unit.stop - unit.start}" not in lines:
            raise SystemExit(f"not the range that was asked for: {lines}")

    def fill(self, view: memoryview) -> None:
        got = len(self._left)
        view[:got] = self._left
        self._left = b""
        while got < len(view):
            count = self._socket.recv_into(view[got:], 0, socket.MSG_WAITALL)
            if count == 0:
                raise SystemExit("the server hung up")
            got += count

    def close(self) -> None:
        self._socket.close()


def work(units: queue.SimpleQueue[Unit], route: str, receive: bool) -> None:
    with mmap.mmap(-1, BUFFER_BYTES[route]) as memory, memoryview(memory) as whole:
        if not receive:
            whole[:] = os.urandom(len(whole))
        connection: Connection | None = None
        while True:
            try:
                unit = units.get_nowait()
            except queue.Empty:
                break
            if receive:
                if connection is None:
                    parts = urlsplit(unit.url)
                    connection = Connection(parts.hostname or "", parts.port or 80)
                connection.ask(unit)
            for at in range(unit.start, unit.stop, len(whole)):
                with whole[: min(len(whole), unit.stop - at)] as view:
                    if connection is not None:
                        connection.fill(view)
                if route != "none":
                    write(whole, unit, at, route)
        if connection is not None:
            connection.close()


def write(whole: memoryview, unit: Unit, at: int, route: str) -> None:
    count = min(len(whole), unit.stop - at)
    if route == "direct":
        count = -(-count // BLOCK_BYTES) * BLOCK_BYTES  # what is beyond the file's end is cut off at the end
    with whole[:count] as view:
        if os.pwrite(unit.fd, view, at) != count:
            raise SystemExit("the disk is full")


def main() -> None:
    order = json.loads(os.environ["BENCH_RAW"])
    route = order["route"]
    units: queue.SimpleQueue[Unit] = queue.SimpleQueue()
    opened: list[tuple[int, int]] = []
    for each in order["objects"]:
        size_bytes = each["size_bytes"]
        fd = -1
        if route != "none":
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | (os.O_DIRECT if route == "direct" else 0)
            fd = os.open(Path(order["directory"], each["name"]), flags, 0o644)
            os.posix_fallocate(fd, 0, size_bytes)
            opened.append((fd, size_bytes))
        for start in range(0, size_bytes, UNIT_BYTES):
            units.put(Unit(each["url"], fd, start, min(start + UNIT_BYTES, size_bytes)))
    failed: list[BaseException] = []

    def run() -> None:
        try:
            work(units, route, order["receive"])
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=run) for _ in range(order["threads"])]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for fd, size_bytes in opened:
        os.ftruncate(fd, size_bytes)
        os.close(fd)
    if failed:
        raise failed[0]


if __name__ == "__main__":
    main()
