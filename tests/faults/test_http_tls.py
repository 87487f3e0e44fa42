"""https: always verified, whoever asks; and the same promises inside it as outside."""

from __future__ import annotations

import hashlib
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from modelcache.errors import BadConfig, BodyCut, OriginStalled, OriginUnreachable, OriginUntrusted, ProtocolViolation
from modelcache.ranges import ByteRange
from modelcache.testing import faults
from modelcache.testing.fault_server import Fault, FaultServer
from modelcache.testing.servers import Certificate
from modelcache.transport.tls import Trust
from tests.faults.reader import DATA, PATH, STATED, MakeReader, Reader, fails, url_of


@pytest.fixture
def secure(certificate: Certificate) -> Iterator[FaultServer]:
    with FaultServer(certificate) as running:
        running.put(PATH, DATA, headers=STATED)
        yield running


@pytest.fixture
def secure_reader(secure: FaultServer, certificate: Certificate, reader_of: MakeReader) -> Reader:
    return reader_of(url_of(secure.endpoint), certificate=certificate)


def test_a_ca_that_is_not_known_is_refused_before_anything_is_sent(secure: FaultServer, reader_of: MakeReader) -> None:
    with fails(OriginUntrusted) as caught:
        reader_of(url_of(secure.endpoint)).list()
    assert not caught.value.retryable
    assert "certificate" in caught.value.message
    assert "CA" in (caught.value.hint or "")
    assert secure.received == []


def test_another_ca_is_refused(secure: FaultServer, reader_of: MakeReader, tmp_path: Path) -> None:
    with fails(OriginUntrusted):
        reader_of(url_of(secure.endpoint), certificate=Certificate.make(tmp_path)).list()


def test_a_certificate_of_another_host_is_refused(reader_of: MakeReader, tmp_path: Path) -> None:
    certificate = Certificate.make(tmp_path, hosts=["localhost"])
    with FaultServer(certificate) as other:
        other.put(PATH, DATA)
        with fails(OriginUntrusted) as caught:
            reader_of(url_of(other.endpoint), certificate=certificate).list()
        assert "127.0.0.1" in caught.value.message
        assert reader_of(url_of(other.at("localhost")), certificate=certificate).list().size_bytes == len(DATA)


def test_http_on_a_tls_port_and_tls_on_an_http_port_are_unreachable(
    secure: FaultServer, server: FaultServer, certificate: Certificate, reader_of: MakeReader
) -> None:
    with fails(OriginUnreachable):
        reader_of(url_of(server.endpoint.replace("http:", "https:")), certificate=certificate).list()
    with pytest.raises((OriginUnreachable, ProtocolViolation)):
        reader_of(url_of(secure.endpoint.replace("https:", "http:"))).list()


def test_bytes_and_reuse_are_as_without_tls(secure: FaultServer, secure_reader: Reader) -> None:
    file = secure_reader.list()
    assert secure_reader.read(file) == DATA
    for start in range(0, 200_000, 40_000):
        assert secure_reader.read(file, ByteRange(start, start + 16_385)) == DATA[start : start + 16_385]
    assert secure.connections == 1


@pytest.mark.parametrize("fault", [faults.cut_short(70_000), faults.reset(70_000)], ids=["cut", "reset"])
def test_a_body_cut_without_a_farewell_is_cut(secure: FaultServer, secure_reader: Reader, fault: Fault) -> None:
    file = secure_reader.list()
    secure.fail(PATH, fault)
    received = bytearray()
    with fails(BodyCut):
        secure_reader.read(file, into=received)
    assert DATA.startswith(received)
    assert len(received) <= 70_000


@pytest.mark.parametrize("close", [True, False])
def test_bytes_beyond_the_promised_ones_are_never_handed_out(secure: FaultServer, secure_reader: Reader, close: bool) -> None:
    file = secure_reader.list()
    sent = threading.Event()
    secure.fail(PATH, faults.overlong(b"x" * 50_000, close=close, sent=sent))
    span = ByteRange(0, len(DATA))
    assert secure_reader.read_but_the_end(file, span, before_end=sent.wait, ends_with=ProtocolViolation) == DATA


def test_a_stall_within_tls_is_given_up(secure: FaultServer, certificate: Certificate, reader_of: MakeReader) -> None:
    reader = reader_of(url_of(secure.endpoint), certificate=certificate, stall_s=0.3)
    file = reader.list()
    secure.fail(PATH, faults.stalled(100_000))
    received = bytearray()
    with fails(OriginStalled):
        reader.read(file, into=received)
    assert received == DATA[:100_000]


def test_a_handshake_that_never_comes_is_given_up(certificate: Certificate, reader_of: MakeReader) -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:  # the kernel takes the connection, nobody reads from it
        reader = reader_of(url_of(f"https://127.0.0.1:{mute.getsockname()[1]}"), certificate=certificate, connect_s=0.3)
        with fails(OriginUnreachable) as caught:
            reader.list()
    assert "no answer in time" in caught.value.message


def test_a_ca_file_that_is_none_is_a_bad_setting(secure: FaultServer, reader_of: MakeReader, tmp_path: Path) -> None:
    with fails(BadConfig):
        reader_of(url_of(secure.endpoint), ca=tmp_path / "absent.pem")
    (tmp_path / "prose.pem").write_text("not a certificate")
    with fails(BadConfig):
        reader_of(url_of(secure.endpoint), ca=tmp_path / "prose.pem").list()


def test_a_ca_file_that_never_ends_is_not_read(secure: FaultServer, reader_of: MakeReader, tmp_path: Path) -> None:
    """A pipe that nobody writes to, a device without an end, a file of any size: each could take this process with it."""
    os.mkfifo(tmp_path / "fifo")
    with open(tmp_path / "large.pem", "wb") as large:
        large.truncate(1 << 40)
    for path, why in (
        (tmp_path / "fifo", "regular"),
        (Path("/dev/zero"), "regular"),
        (tmp_path, "regular"),
        (tmp_path / "large.pem", "large"),
    ):
        with fails(BadConfig) as caught:
            reader_of(url_of(secure.endpoint), ca=path)
        assert why in caught.value.message
        with fails(BadConfig):
            Trust(path).context()


def test_a_bundle_with_names_in_other_scripts_is_read(
    secure: FaultServer, reader_of: MakeReader, certificate: Certificate, tmp_path: Path
) -> None:
    (tmp_path / "bundle.pem").write_bytes("# Főtanúsítvány\n".encode() + certificate.ca.read_bytes())
    assert reader_of(url_of(secure.endpoint), ca=tmp_path / "bundle.pem").list().size_bytes == len(DATA)


def test_a_custom_ca_is_part_of_the_origin(certificate: Certificate, secure_reader: Reader, reader: Reader) -> None:
    assert secure_reader.source.origin.ca_sha256 == hashlib.sha256(certificate.ca.read_bytes()).hexdigest()
    assert reader.source.origin.ca_sha256 is None


def test_many_threads_read_apart(secure: FaultServer, secure_reader: Reader) -> None:
    file = secure_reader.list()
    wrong: list[int] = []

    def read(start: int) -> None:
        if secure_reader.read(file, ByteRange(start, start + 30_000)) != DATA[start : start + 30_000]:
            wrong.append(start)

    threads = [threading.Thread(target=read, args=(start,)) for start in range(0, 240_000, 30_000)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
