"""What tests of faults share: a misbehaving server, sources that read from it, and a watch over their secrets."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from modelcache.sources.http import HttpOptions, HttpSource
from modelcache.testing.fault_server import FaultServer
from modelcache.testing.servers import Certificate
from modelcache.transport import Proxies, Timeouts
from modelcache.uri import parse_uri
from tests.faults.reader import DATA, HEADER_TOKEN, PATH, STATED, MakeReader, Reader, held_secrets, url_of


@pytest.fixture
def server() -> Iterator[FaultServer]:
    with FaultServer() as running:
        running.put(PATH, DATA, headers=STATED)
        yield running


@pytest.fixture(autouse=True)
def secrets_stay_inside(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Fails a test in which a credential reached a log record of any level."""
    caplog.set_level(logging.DEBUG)
    yield
    for record in caplog.get_records("call"):
        shown = f"{record.getMessage()} {record.args!r} {record.exc_text or ''}"
        assert not held_secrets(shown), f"a secret was logged by {record.name}"


@pytest.fixture
def reader_of() -> Iterator[MakeReader]:
    """Makes readers of a URL, with short deadlines unless told otherwise."""
    with ExitStack() as stack:

        def make(
            url: str,
            *,
            stall_s: float = 20.0,
            connect_s: float = 20.0,
            certificate: Certificate | None = None,
            proxies: Proxies | None = None,
            ca: Path | None = None,
        ) -> Reader:
            uri, secrets = parse_uri(url)
            headers = {uri.authority: {"X-Api-Key": HEADER_TOKEN}}
            options = HttpOptions(ca_file=ca if certificate is None else certificate.ca, headers=headers)
            source = HttpSource(uri, secrets, options, Timeouts(connect_s=connect_s, stall_s=stall_s), proxies=proxies)
            stack.callback(source.close)
            return Reader(source, url)

        yield make


@pytest.fixture
def reader(server: FaultServer, reader_of: MakeReader) -> Reader:
    return reader_of(url_of(server.endpoint))
