"""Refusals: each status means one error, with what a person or a retry needs in it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from modelcache.errors import AccessDenied, ModelCacheError, NotFound, OriginBusy, ProtocolViolation, SourceChanged
from modelcache.testing import faults
from modelcache.testing.fault_server import FaultServer
from tests.faults.reader import DATA, PATH, Reader, fails

XML = b"<?xml version='1.0'?><Error><Code>%s</Code><Message>secret details</Message></Error>"


@pytest.mark.parametrize(
    ("code", "listing", "opening"),
    [
        (400, ProtocolViolation, ProtocolViolation),
        (401, AccessDenied, AccessDenied),
        (403, AccessDenied, AccessDenied),
        (404, NotFound, SourceChanged),
        (407, AccessDenied, AccessDenied),
        (408, OriginBusy, OriginBusy),
        (410, NotFound, SourceChanged),
        (412, SourceChanged, SourceChanged),
        (416, ProtocolViolation, SourceChanged),
        (429, OriginBusy, OriginBusy),
        (500, OriginBusy, OriginBusy),
        (502, OriginBusy, OriginBusy),
        (503, OriginBusy, OriginBusy),
        (204, ProtocolViolation, ProtocolViolation),
        (304, ProtocolViolation, ProtocolViolation),
        (300, ProtocolViolation, ProtocolViolation),
        (599, OriginBusy, OriginBusy),
    ],
)
def test_a_status_means_one_error(
    server: FaultServer, reader: Reader, code: int, listing: type[ModelCacheError], opening: type[ModelCacheError]
) -> None:
    file = reader.list()
    server.fail(PATH, faults.status(code, body=XML % b"SomeCode"))
    with fails(listing) as listed:
        reader.list()
    received = bytearray()
    with fails(opening) as opened:
        reader.read(file, into=received)
    assert received == b""
    for error in (listed.value, opened.value):
        assert error.address is not None
        assert PATH in error.address
        assert "secret details" not in str(error)
    assert (code == 401) == ("`http.headers`" in (listed.value.hint or ""))


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("7", 7.0),
        ("0", 0.0),
        ("99999999", 3600.0),
        ("+7", None),
        ("soon", None),
        ("Wed, 21 Oct 99999999999999999999 07:28:00 GMT", None),
        (format_datetime(datetime(2030, 1, 1, 0, 0, 30, tzinfo=UTC), usegmt=True), 30.0),
        (format_datetime(datetime(2030, 1, 1, tzinfo=UTC) - timedelta(days=1), usegmt=True), 0.0),
        (format_datetime(datetime(2030, 1, 1, tzinfo=UTC) + timedelta(days=1), usegmt=True), 3600.0),
    ],
)
def test_retry_after_is_read_in_both_forms_and_capped(server: FaultServer, reader: Reader, text: str, seconds: float | None) -> None:
    file = reader.list()
    date = format_datetime(datetime(2030, 1, 1, tzinfo=UTC), usegmt=True)
    server.fail(PATH, faults.status(503, {"Retry-After": text, "Date": date}))
    with fails(OriginBusy) as caught:
        reader.read(file)
    assert caught.value.retry_after_s == seconds


def test_the_origins_own_error_code_is_told(server: FaultServer, reader: Reader) -> None:
    file = reader.list()
    server.fail(PATH, faults.status(403, body=XML % b"SignatureDoesNotMatch"))
    with fails(AccessDenied) as caught:
        reader.read(file)
    assert "403 Forbidden, SignatureDoesNotMatch" in str(caught.value)


def test_a_refusal_leaves_the_connection_to_the_next_request(server: FaultServer, reader: Reader) -> None:
    file = reader.list()
    for code in (403, 404, 429, 503):
        server.fail(PATH, faults.status(code, body=b"no"), times=1)
        with pytest.raises(ModelCacheError):
            reader.read(file)
    assert reader.read(file) == DATA
    assert server.connections == 1


def test_a_file_that_the_patterns_leave_out_is_not_found(server: FaultServer, reader: Reader) -> None:
    with fails(NotFound):
        Reader(reader.source, f"{reader.uri_text}#exclude=*.safetensors").list()


def test_an_object_replaced_between_two_ranges_is_never_mixed(server: FaultServer, reader: Reader) -> None:
    file = reader.list()
    server.put(PATH, bytes(len(DATA)), etag='"v2"')
    for fault, said in ((None, "412"), (faults.ignored_precondition, "ETag")):
        if fault is not None:
            server.fail(PATH, fault)
        received = bytearray()
        with fails(SourceChanged) as caught:
            reader.read(file, into=received)
        assert received == b""
        assert said in caught.value.message
    server.fail(PATH, faults.ignored_precondition, times=0)
    assert reader.read(reader.list()) == bytes(len(DATA))
