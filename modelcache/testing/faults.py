"""Wrong answers for a `FaultServer`, each a fault that must not win."""

from __future__ import annotations

import gzip
import threading
from collections.abc import Mapping
from dataclasses import replace

from modelcache.testing.fault_server import Call, Fault, Reply


def wrong_bytes(call: Call) -> None:
    """Right framing, right size, and every bit of the body turned over."""
    call.reply(replace(call.proper, body=bytes(byte ^ 0xFF for byte in call.proper.body)))


def cut_short(sent_bytes: int) -> Fault:
    """The connection ends after this many bytes of the body."""

    def fault(call: Call) -> None:
        call.send(call.proper.head() + call.proper.body[:sent_bytes])
        call.hang_up()

    return fault


def reset(sent_bytes: int) -> Fault:
    """The connection is reset after this many bytes of the body."""

    def fault(call: Call) -> None:
        call.send(call.proper.head() + call.proper.body[:sent_bytes])
        call.reset()

    return fault


def overlong(extra: bytes, *, close: bool, sent: threading.Event) -> Fault:
    """More bytes than the head promised; with `close`, announced by `Connection: close` and ended so. `sent`: all are on the way."""

    def fault(call: Call) -> None:
        reply = call.proper
        if close:
            reply = replace(reply, headers={**reply.headers, "Connection": "close"})
            call.hang_up()
        call.send(reply.head() + reply.body + extra)
        sent.set()

    return fault


def with_headers(changes: Mapping[str, str | None], *, body: bytes | None = None) -> Fault:
    """The proper answer with other headers (None: without it)."""

    def fault(call: Call) -> None:
        headers = {**call.proper.headers, **changes}
        call.reply(
            Reply(
                call.proper.status,
                {name: value for name, value in headers.items() if value is not None},
                call.proper.body if body is None else body,
            )
        )

    return fault


def other_range(shift_bytes: int) -> Fault:
    """Another range than the asked one, rightly labelled and rightly served."""

    def fault(call: Call) -> None:
        whole = replace(call.received, headers={name: value for name, value in call.received.headers.items() if name != "range"})
        data = call.server.reply_to(whole).body
        start, _, rest = call.proper.headers["Content-Range"].removeprefix("bytes ").partition("-")
        first, last = int(start) + shift_bytes, int(rest.partition("/")[0]) + shift_bytes
        headers = {**call.proper.headers, "Content-Range": f"bytes {first}-{last}/{len(data)}"}
        call.reply(replace(call.proper, headers=headers, body=data[first : last + 1]))

    return fault


def ignored_range(call: Call) -> None:
    """The whole file, with a 200."""
    without = {name: value for name, value in call.received.headers.items() if name != "range"}
    call.reply(call.server.reply_to(replace(call.received, headers=without)))


def ignored_precondition(call: Call) -> None:
    """Whatever version there is, as if no If-Match had come."""
    without = {name: value for name, value in call.received.headers.items() if name != "if-match"}
    call.reply(call.server.reply_to(replace(call.received, headers=without)))


def gzipped(call: Call) -> None:
    """The bytes, encoded though `identity` was asked for."""
    call.reply(replace(call.proper, headers={**call.proper.headers, "Content-Encoding": "gzip"}, body=gzip.compress(call.proper.body)))


def status(code: int, headers: Mapping[str, str] | None = None, body: bytes = b"") -> Fault:
    """Another status."""
    return lambda call: call.reply(Reply(code, headers or {}, body))


def redirect(location: str, code: int = 302) -> Fault:
    """A redirect; `{target}` in the location stands for what was asked."""
    return lambda call: call.reply(Reply(code, {"Location": location.replace("{target}", call.received.target)}, b"moved"))


def raw(data: bytes) -> Fault:
    """These bytes in place of an answer, then the end."""

    def fault(call: Call) -> None:
        call.send(data)
        call.hang_up()

    return fault


def stalled(sent_bytes: int | None) -> Fault:
    """The head and this many bytes of the body (None: nothing at all), then silence until the server is closed."""

    def fault(call: Call) -> None:
        if sent_bytes is not None:
            call.send(call.proper.head() + call.proper.body[:sent_bytes])
        call.ended.wait()
        call.hang_up()

    return fault


def stalled_head(call: Call) -> None:
    """Half a status line, then silence until the server is closed."""
    call.send(b"HTTP/1.1 206 ")
    call.ended.wait()
    call.hang_up()


def dripping(taken: threading.Semaphore) -> Fault:
    """One byte of the body each time that `taken` is released."""

    def fault(call: Call) -> None:
        call.send(call.proper.head())
        for at in range(len(call.proper.body)):
            while not taken.acquire(timeout=0.1):
                if call.ended.is_set():
                    call.hang_up()
                    return
            call.send(call.proper.body[at : at + 1])

    return fault


def closing(call: Call) -> None:
    """Answers properly, then closes without having said so."""
    call.reply(call.proper)
    call.hang_up()
