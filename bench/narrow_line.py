"""A line of one bandwidth for all connections together, before a real server: what a node far from its origin has."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

HOST = "127.0.0.1"
PIECE_BYTES = 16 * 1024
LATE_S = 0.02
"""So much of what a busy machine did not pass in time is passed afterwards."""
START_DEADLINE_S = 10.0


@contextmanager
def narrow_line(port: int, rate_bytes_per_s: float) -> Iterator[str]:
    """Address (host and port) through which the server at `port` is reached, at this rate downstream, for the block."""
    line = _Line(port, rate_bytes_per_s)
    thread = threading.Thread(target=line.serve, name="narrow-line")
    thread.start()
    try:
        if not line.ready.wait(START_DEADLINE_S):
            raise TimeoutError("the narrow line does not listen")
        yield f"{HOST}:{line.port}"
    finally:
        line.stop()
        thread.join()


class _Line:
    def __init__(self, upstream: int, rate_bytes_per_s: float) -> None:
        self._upstream = upstream
        self._rate = rate_bytes_per_s
        self._free_at_s = 0.0
        self._loop = asyncio.new_event_loop()
        self._end = asyncio.Event()
        self.ready = threading.Event()
        self.port = 0

    def serve(self) -> None:
        self._loop.run_until_complete(self._serve())
        self._loop.close()

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._end.set)

    async def _serve(self) -> None:
        tasks: set[asyncio.Task[None]] = set()

        def accepted(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = self._loop.create_task(self._connect(reader, writer))
            tasks.add(task)
            task.add_done_callback(tasks.discard)

        server = await asyncio.start_server(accepted, HOST, 0, limit=PIECE_BYTES)
        self.port = server.sockets[0].getsockname()[1]
        self.ready.set()
        await self._end.wait()
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            there, back = await asyncio.open_connection(HOST, self._upstream, limit=PIECE_BYTES)
            try:
                up = self._loop.create_task(self._pass(reader, back, narrow=False))
                try:
                    await self._pass(there, writer, narrow=True)
                finally:
                    up.cancel()
            finally:
                back.close()
        except OSError:
            pass  # one of the two has gone, and the other hears it
        finally:
            writer.close()

    async def _pass(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, *, narrow: bool) -> None:
        sink.transport.set_write_buffer_limits(PIECE_BYTES)
        while piece := await source.read(PIECE_BYTES):
            if narrow:
                now_s = time.monotonic()
                self._free_at_s = max(now_s - LATE_S, self._free_at_s) + len(piece) / self._rate
                await asyncio.sleep(max(0.0, self._free_at_s - now_s))
            sink.write(piece)
            await sink.drain()
        sink.close()
