"""Bodies: a range received straight into the caller's buffer, and small answers read whole."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

from modelcache.digest import Digest
from modelcache.errors import BodyCut, Cancelled, ModelCacheError, OriginStalled, ProtocolViolation
from modelcache.patience import Cancellation, Deadline
from modelcache.transport.exchange import Answer
from modelcache.transport.wire import After

RECEIVE_BYTES = 1 << 20
"""Most bytes of one receive: large enough to make calls rare, small enough that what was received is still in the CPU's cache
when the caller hashes it."""
CLOSE_WAIT_S = 1.0
"""How long the end of a connection is awaited behind a body whose peer said that it closes; nothing is lost if it comes later."""
SMALL_BODY_S = 300.0
"""A small answer is whole by then, or given up: 16 MiB in that time are 56 KB/s. Nobody waits for a range like that (`Timeouts`), but many
wait for a listing."""
_MAX_CHUNK_LINE_BYTES = 256


class RangeBody:
    """The bytes of one range; a `modelcache.abc.source.Body`. Nothing is copied but what came along with the head.

    Bytes beyond the range are never handed out; seen before the final 0 is returned, they are a ProtocolViolation.

    Attributes:
        stated: as `Body.stated`; for the source to read out of `headers`, those of the answer.
    """

    def __init__(self, answer: Answer, size_bytes: int, *, address: str, stall_s: float, cancel: Cancellation) -> None:
        self.stated: tuple[Digest, ...] = ()
        self.headers = answer.head.headers
        self._answer = answer
        self._size_bytes = size_bytes
        self._left_bytes = size_bytes
        self._address = address
        self._stall_s = stall_s
        self._cancel = cancel
        self._aborted = False
        self._ended = False
        self._failure: ModelCacheError | None = None
        self._undo = ExitStack()
        self._undo.enter_context(cancel.on_cancel(self.abort))

    def readinto(self, buffer: memoryview) -> int:
        """As `Body.readinto`; up to 1 MiB at a time, and never waiting over a second to fill it once a byte is there."""
        if self._failure is not None:
            raise self._failure
        if self._left_bytes == 0:
            return self._end()
        want = min(buffer.nbytes, self._left_bytes, RECEIVE_BYTES)
        if want == 0:
            raise ValueError("an empty buffer can't tell the end of a body")
        try:
            count = 0 if self._ended else self._answer.receive_into(buffer[:want], whole=True)
        except TimeoutError:
            raise self._fail(OriginStalled(f"no byte for {self._stall_s:g} s", address=self._address)) from None
        except OSError as error:
            raise self._fail(self._cut(error.strerror or type(error).__name__)) from None
        # What arrives after an abort may be the torn rest of a record.
        if count == 0 or self._aborted:
            raise self._fail(self._cut("closed by the peer"))
        self._left_bytes -= count
        return count

    def close(self) -> None:
        """Give the connection back: for reuse if the range was read to its end and the origin left it open."""
        if not self._ended:
            self._leave(reuse=self._left_bytes == 0 and self._failure is None)

    def abort(self) -> None:
        """Break a `readinto` that is waiting; it raises Cancelled. From any thread."""
        self._aborted = True
        self._answer.abort()

    def _end(self) -> int:
        if self._ended:
            return 0
        after = self._answer.after(0 if self._answer.head.keep_alive else CLOSE_WAIT_S)
        if self._aborted:
            raise self._fail(Cancelled("cancelled", address=self._address))
        if after is After.MORE:
            got = f"more than {self._size_bytes} bytes"
            error = ProtocolViolation(
                "the body is longer than promised", address=self._address, expected=f"{self._size_bytes} bytes", got=got
            )
            raise self._fail(error)
        self._leave(reuse=after is After.SILENT)
        return 0

    def _cut(self, reason: str) -> ModelCacheError:
        if self._aborted:
            return Cancelled("cancelled", address=self._address)
        got = self._size_bytes - self._left_bytes
        return BodyCut(
            f"the connection ended after {got} of {self._size_bytes} bytes ({reason})",
            address=self._address,
            expected=f"{self._size_bytes} bytes",
            got=f"{got} bytes",
        )

    def _fail(self, error: ModelCacheError) -> ModelCacheError:
        self._failure = error
        self._leave(reuse=False)
        return error

    def _leave(self, *, reuse: bool) -> None:
        self._ended = True
        self._undo.close()
        self._answer.release(reuse=reuse and not self._cancel.requested and not self._aborted)


def read_small(answer: Answer, max_bytes: int, cancel: Cancellation) -> bytes:
    """The whole body of a control answer, in either framing; ends the answer.

    Raises:
        ProtocolViolation: over `max_bytes`, no length given, or a malformed chunk.
        BodyCut, OriginStalled: also one that takes longer than `SMALL_BODY_S` in all.
        Cancelled.
    """
    try:
        with cancel.on_cancel(answer.abort):
            body = _read_small(answer, max_bytes, str(answer.request.target))
    except ModelCacheError:
        cancel.check()
        raise
    cancel.check()
    return body


def _read_small(answer: Answer, max_bytes: int, address: str) -> bytes:
    reuse, deadline = False, Deadline.after(SMALL_BODY_S)
    try:
        length_bytes = answer.length_bytes
        if length_bytes is not None:
            if length_bytes > max_bytes:
                raise ProtocolViolation(f"the answer's body is over {max_bytes} bytes", address=address, got=f"{length_bytes} bytes")
            body = _receive_exactly(answer, length_bytes, address, deadline)
        elif answer.head.chunked:
            body = _receive_chunks(answer, max_bytes, address, deadline)
        else:
            raise ProtocolViolation("the answer does not state its length", address=address)
        reuse = True
        return body
    except TimeoutError:
        raise OriginStalled("the answer's body stalled", address=address) from None
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise BodyCut(f"the connection broke within the answer's body ({reason})", address=address) from None
    finally:
        answer.release(reuse=reuse)


def _receive_exactly(answer: Answer, size_bytes: int, address: str, deadline: Deadline | None = None) -> bytes:
    data = bytearray(size_bytes)
    view = memoryview(data)
    at = 0
    while at < size_bytes:
        count = answer.receive_into(view[at:], whole=True)
        if count == 0:
            raise BodyCut(f"the connection ended after {at} of {size_bytes} bytes", address=address)
        at += count
        if deadline is not None and at < size_bytes and deadline.passed:
            raise TimeoutError
    return bytes(data)


def _receive_chunks(answer: Answer, max_bytes: int, address: str, deadline: Deadline) -> bytes:
    body = bytearray()
    for chunk in received_chunks(answer, max_bytes, address=address, deadline=deadline):
        body += chunk
        if len(body) > max_bytes:
            raise _too_long(max_bytes, address)
        if deadline.passed:
            raise TimeoutError
    return bytes(body)


def received_chunks(answer: Answer, max_chunk_bytes: int, *, address: str, deadline: Deadline | None = None) -> Iterator[bytes]:
    """The chunks of a body in the chunked coding (RFC 9112 §7.1), as they come. Trailers are refused: nothing here needs any.

    Raises:
        ProtocolViolation: malformed, or a chunk over `max_chunk_bytes`. BodyCut.
        TimeoutError, OSError: of the connection.
    """
    while True:
        digits = _receive_line(answer, address, deadline).partition(b";")[0].strip()
        if not digits or len(digits) > 16 or not all(digit in b"0123456789abcdefABCDEF" for digit in digits):
            raise ProtocolViolation("a chunk's size can't be read", address=address, got=ascii(digits[:40]))
        size_bytes = int(digits, 16)
        if size_bytes > max_chunk_bytes:
            raise _too_long(max_chunk_bytes, address)
        chunk = _receive_exactly(answer, size_bytes, address, deadline)
        if _receive_exactly(answer, 2, address) != b"\r\n":
            raise ProtocolViolation("a chunk does not end where it says", address=address)
        if size_bytes == 0:
            return
        yield chunk


def _too_long(max_bytes: int, address: str) -> ProtocolViolation:
    return ProtocolViolation(f"the answer's body is over {max_bytes} bytes", address=address)


def _receive_line(answer: Answer, address: str, deadline: Deadline | None) -> bytes:
    line = b""
    while not line.endswith(b"\r\n"):
        if len(line) > _MAX_CHUNK_LINE_BYTES:
            raise ProtocolViolation("a chunk's size line is too long", address=address)
        line += _receive_exactly(answer, 1, address)
        if deadline is not None and deadline.passed:
            raise TimeoutError
    return line[:-2]
