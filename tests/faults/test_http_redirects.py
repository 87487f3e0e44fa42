"""Redirects: followed, bounded, never downwards, and never with a credential for somebody else."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from modelcache.errors import AccessDenied, ProtocolViolation, SourceChanged
from modelcache.testing import faults
from modelcache.testing.fault_server import FaultServer
from modelcache.testing.servers import Certificate
from tests.faults.reader import DATA, HEADER_TOKEN, PASSWORD, PATH, SIGNATURE, MakeReader, Reader, fails, url_of

CDN_SIGNATURE = "cdn-s1gnature"


@pytest.fixture
def cdn() -> Iterator[FaultServer]:
    """Another origin: the same machine under another name and port."""
    with FaultServer() as running:
        running.put("/blob", DATA)
        yield running


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
def test_no_credential_follows_a_redirect_to_another_host(server: FaultServer, cdn: FaultServer, reader: Reader, code: int) -> None:
    server.fail(PATH, faults.redirect(f"{cdn.at('localhost')}/blob?Signature={CDN_SIGNATURE}", code))
    assert reader.read(reader.list()) == DATA
    assert server.received[0].headers["authorization"].startswith("Basic ")
    assert server.received[0].headers["x-api-key"] == HEADER_TOKEN
    assert SIGNATURE in server.received[0].target
    for received in cdn.received:
        assert received.target == f"/blob?Signature={CDN_SIGNATURE}"
        assert {"authorization", "x-api-key", "cookie", "referer"}.isdisjoint(received.headers)
        shown = f"{received.headers} {received.target}"
        assert not any(secret in shown for secret in (PASSWORD, SIGNATURE, HEADER_TOKEN))


def test_another_port_is_another_origin(server: FaultServer, cdn: FaultServer, reader: Reader) -> None:
    server.fail(PATH, faults.redirect(f"{cdn.endpoint}/blob"))
    assert reader.read(reader.list()) == DATA
    assert all("authorization" not in received.headers for received in cdn.received)


def test_the_credential_stays_on_a_redirect_within_the_origin(server: FaultServer, reader: Reader) -> None:
    server.put("/moved", DATA)
    server.fail(PATH, faults.redirect("/moved"))
    assert reader.read(reader.list()) == DATA
    assert all("authorization" in received.headers for received in server.received)


def test_userinfo_in_a_redirect_is_not_used(server: FaultServer, cdn: FaultServer, reader: Reader) -> None:
    server.fail(PATH, faults.redirect(f"{cdn.endpoint.replace('://', '://mallory:trap@')}/blob"))
    assert reader.read(reader.list()) == DATA
    assert all("authorization" not in received.headers for received in cdn.received)


def test_a_redirect_is_resolved_once_for_all_ranges(server: FaultServer, cdn: FaultServer, reader: Reader) -> None:
    server.fail(PATH, faults.redirect(f"{cdn.at('localhost')}/blob?Signature={CDN_SIGNATURE}"))
    file = reader.list()
    for _ in range(3):
        assert reader.read(file) == DATA
    assert len(server.received) == 1


def test_a_remembered_redirect_that_expired_is_resolved_again(server: FaultServer, cdn: FaultServer, reader: Reader) -> None:
    server.fail(PATH, faults.redirect(f"{cdn.at('localhost')}/blob?Signature={CDN_SIGNATURE}"))
    file = reader.list()
    for code in (401, 403, 404):
        cdn.fail("/blob", faults.status(code), times=1)
        assert reader.read(file) == DATA
    assert len(server.received) == 4


def test_a_redirect_target_that_refuses_for_good_is_asked_twice(server: FaultServer, cdn: FaultServer, reader: Reader) -> None:
    server.fail(PATH, faults.redirect(f"{cdn.at('localhost')}/blob?Signature={CDN_SIGNATURE}"))
    file = reader.list()
    cdn.received.clear()
    cdn.fail("/blob", faults.status(403))
    with fails(AccessDenied) as caught:
        reader.read(file)
    assert CDN_SIGNATURE not in f"{caught.value} {caught.value.as_dict()}"
    assert len(cdn.received) == 2


def test_another_version_behind_a_redirect_has_changed(server: FaultServer, cdn: FaultServer, reader: Reader) -> None:
    server.fail(PATH, faults.redirect(f"{cdn.at('localhost')}/blob"))
    file = reader.list()
    cdn.put("/blob", bytes(len(DATA)), etag='"v2"')
    received = bytearray()
    with fails(SourceChanged):
        reader.read(file, into=received)
    assert received == b""


@pytest.mark.parametrize(
    "location", ["{target}", "/hop{target}", "ftp://127.0.0.1/x", "http://[::1", "http://127.0.0.1:99999/", "//\x01/", "/a b\u00e9"]
)
def test_a_redirect_that_leads_nowhere_is_a_violation(server: FaultServer, reader: Reader, location: str) -> None:
    server.fail(PATH, faults.redirect(location))
    target = PATH
    for _ in range(6):
        target = f"/hop{target}"
        server.fail(target, faults.redirect(location))
    with fails(ProtocolViolation):
        reader.list()
    assert len(server.received) <= 6


def test_a_redirect_without_a_location_is_a_violation(server: FaultServer, reader: Reader) -> None:
    server.fail(PATH, faults.status(302))
    with fails(ProtocolViolation):
        reader.list()


def test_a_redirect_from_https_to_http_is_refused(certificate: Certificate, cdn: FaultServer, reader_of: MakeReader) -> None:
    with FaultServer(certificate) as secure:
        secure.fail(PATH, faults.redirect(f"{cdn.endpoint}/blob?Signature={CDN_SIGNATURE}"))
        with fails(ProtocolViolation) as caught:
            reader_of(url_of(secure.endpoint), certificate=certificate).list()
    assert cdn.received == []
    assert "https to http" in caught.value.message
    assert CDN_SIGNATURE not in f"{caught.value} {caught.value.as_dict()}"


def test_the_hash_that_the_hub_states_on_its_redirect_counts(server: FaultServer, cdn: FaultServer, reader: Reader) -> None:
    location = {"Location": f"{cdn.at('localhost')}/blob", "X-Linked-Etag": f'"{"ab" * 32}"'}
    server.fail(PATH, faults.status(302, location))
    assert [str(digest) for digest in reader.list().digests] == [f"sha256:{'ab' * 32}"]
    assert [str(digest) for digest in reader.list().digests] == [f"sha256:{'ab' * 32}"]
