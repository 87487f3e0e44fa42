"""A source with every kind of credential, read as the engine reads it, and errors that show none of them."""

from __future__ import annotations

import base64
import hashlib
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest

from modelcache.abc.source import RemoteFile
from modelcache.errors import ModelCacheError
from modelcache.patience import Cancellation
from modelcache.ranges import ByteRange
from modelcache.sources.http import HttpSource
from modelcache.uri import parse_uri

PATH = "/models/weights.safetensors"
DATA = bytes((at * 7 + at // 256) % 251 for at in range(300_000))
STATED = {"X-Checksum-Md5": hashlib.md5(DATA).hexdigest()}
"""What the server states of them; a source that is told a digest reads each range with one request."""
PASSWORD = "hunter2-Passw0rd"
SIGNATURE = "s1gn4ture-c0ffee"
HEADER_TOKEN = "t0ken-in-a-header"
USERINFO = f"alice:{PASSWORD}"
SECRETS = (PASSWORD, SIGNATURE, HEADER_TOKEN, base64.b64encode(USERINFO.encode()).decode())


@contextmanager
def fails(kind: type[ModelCacheError]) -> Iterator[pytest.ExceptionInfo[ModelCacheError]]:
    """Expects exactly this class of error, with no secret in anything that is shown of it."""
    with pytest.raises(kind) as caught:
        yield caught
    error = caught.value
    assert type(error) is kind
    chain = "".join(traceback.format_exception(error))
    assert not held_secrets(f"{error} {error!r} {error.as_dict()!r} {error.args!r} {chain}"), "a secret is shown by the error"


def held_secrets(text: str) -> list[str]:
    return [secret for secret in SECRETS if secret in text]


@dataclass(frozen=True)
class Reader:
    """An `HttpSource` with every kind of credential, used as the engine uses it."""

    source: HttpSource
    uri_text: str

    def list(self) -> RemoteFile:
        [file] = self.source.list(parse_uri(self.uri_text)[0], Cancellation()).files
        return file

    def read(self, file: RemoteFile, span: ByteRange | None = None, *, into: bytearray | None = None) -> bytes:
        """The bytes of a span (by default all), to the final 0; `into` keeps what came before a failure."""
        received = bytearray() if into is None else into
        buffer = memoryview(bytearray(64 << 10))
        body = self.source.open(file, span or ByteRange(0, file.size_bytes), Cancellation())
        try:
            while count := body.readinto(buffer):
                received += buffer[:count]
        finally:
            body.close()
        return bytes(received)

    def read_but_the_end(
        self, file: RemoteFile, span: ByteRange, *, before_end: Callable[[], object], ends_with: type[ModelCacheError]
    ) -> bytes:
        """All bytes of a span; then `before_end()`; then the read that should return 0 has to raise `ends_with`."""
        data = bytearray(span.size_bytes)
        body = self.source.open(file, span, Cancellation())
        at = 0
        while at < len(data):
            at += body.readinto(memoryview(data)[at:])
        before_end()
        with fails(ends_with):
            body.readinto(memoryview(bytearray(100)))
        body.close()
        return bytes(data)


MakeReader = Callable[..., Reader]


def url_of(endpoint: str) -> str:
    """The served file's URL with every kind of secret in it."""
    return f"{endpoint.replace('://', f'://{USERINFO}@')}{PATH}?part=1&X-Amz-Signature={SIGNATURE}"
