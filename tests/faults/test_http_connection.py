"""Connections that can't be made, break, stall or were closed meanwhile; and waits that the caller ends."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing

import pytest

from modelcache.abc.source import Body
from modelcache.errors import AccessDenied, Cancelled, ModelCacheError, OriginStalled, OriginUnreachable
from modelcache.patience import Cancellation
from modelcache.ranges import ByteRange
from modelcache.testing import faults
from modelcache.testing.fault_server import Call, Fault, FaultServer, Reply
from modelcache.testing.servers import Certificate
from modelcache.testing.servers.ports import free_ports
from modelcache.transport import Proxies, RangeClient, Timeouts, body
from modelcache.uri import parse_uri
from tests.faults.reader import DATA, PATH, SECRETS, STATED, USERINFO, MakeReader, Reader, fails, url_of


@pytest.fixture
def deaf_port() -> Iterator[int]:
    """A port that takes no connection and refuses none: its queue is full."""
    with ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(3):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())
        yield listener.getsockname()[1]


def test_a_name_that_does_not_resolve_is_unreachable(reader_of: MakeReader) -> None:
    with fails(OriginUnreachable) as caught:
        reader_of(url_of("http://no-such-host.invalid")).list()
    assert "name resolution" in caught.value.message
    assert "no-such-host.invalid" in caught.value.message


def test_a_resolver_that_hangs_is_given_up(reader_of: MakeReader, monkeypatch: pytest.MonkeyPatch) -> None:
    released = threading.Event()

    def hang(*_: object, **__: object) -> list[object]:
        released.wait()
        return []

    monkeypatch.setattr(socket, "getaddrinfo", hang)
    try:
        with fails(OriginUnreachable) as caught:
            reader_of(url_of("http://slow.invalid"), connect_s=0.2).list()
    finally:
        released.set()
    assert "no answer in time" in caught.value.message


def test_a_refused_connection_is_unreachable(reader_of: MakeReader) -> None:
    [port] = free_ports(1)
    with fails(OriginUnreachable) as caught:
        reader_of(url_of(f"http://127.0.0.1:{port}")).list()
    assert "refused" in caught.value.message


def test_a_connection_that_nobody_answers_is_given_up(reader_of: MakeReader, deaf_port: int) -> None:
    with fails(OriginUnreachable) as caught:
        reader_of(url_of(f"http://127.0.0.1:{deaf_port}"), connect_s=0.3).list()
    assert "no answer in time" in caught.value.message


def test_the_next_address_is_tried_when_the_first_is_dead(
    server: FaultServer, reader_of: MakeReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    [dead] = free_ports(1)
    both = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port)) for port in (dead, server.port)]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: both)
    assert reader_of(url_of("http://two-addresses.invalid")).list().size_bytes == len(DATA)


@pytest.mark.parametrize("sent_bytes", [0, 5_000, len(DATA) - 1])
def test_a_stalled_body_hands_out_what_came_and_gives_up(server: FaultServer, reader_of: MakeReader, sent_bytes: int) -> None:
    reader = reader_of(url_of(server.endpoint), stall_s=0.3)
    file = reader.list()
    server.fail(PATH, faults.stalled(sent_bytes))
    received = bytearray()
    with fails(OriginStalled) as caught:
        reader.read(file, into=received)
    assert received == DATA[:sent_bytes]
    assert caught.value.retryable


@pytest.mark.parametrize("fault", [faults.stalled(None), faults.stalled_head], ids=["nothing", "half a head"])
def test_an_answer_that_does_not_come_is_given_up(server: FaultServer, reader_of: MakeReader, fault: Fault) -> None:
    reader = reader_of(url_of(server.endpoint), stall_s=0.3)
    file = reader.list()
    server.fail(PATH, fault)
    with fails(OriginStalled):
        reader.read(file)


def test_a_body_that_drips_is_no_stall_and_shows_each_byte(server: FaultServer, reader_of: MakeReader) -> None:
    stall_s = 1.0
    reader = reader_of(url_of(server.endpoint), stall_s=stall_s)
    file = reader.list()
    drip = threading.Semaphore(0)
    server.fail(PATH, faults.dripping(drip))
    body = reader.source.open(file, ByteRange(7, 11), Cancellation())
    buffer = memoryview(bytearray(64))
    received = b""
    started_s = time.monotonic()
    while len(received) < 4:
        drip.release()
        count = body.readinto(buffer)
        received += bytes(buffer[:count])
    assert received == DATA[7:11]
    assert time.monotonic() - started_s > stall_s  # else this shows nothing
    assert body.readinto(buffer) == 0
    body.close()


# -- kept connections -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunked", [False, True])
def test_a_small_answer_that_drips_is_given_up(server: FaultServer, monkeypatch: pytest.MonkeyPatch, chunked: bool) -> None:
    """Such as a listing: it would keep whoever waits for it for as long as its origin likes."""
    monkeypatch.setattr(body, "SMALL_BODY_S", 0.0)

    def drip(call: Call) -> None:
        framing = "Transfer-Encoding: chunked" if chunked else "Content-Length: 60"
        call.send(f"HTTP/1.1 200 OK\r\n{framing}\r\n\r\n".encode())
        for _ in range(60):
            call.send(b"1\r\nx\r\n" if chunked else b"x")
            call.ended.wait(0.05)
        call.send(b"0\r\n\r\n" if chunked else b"")

    server.fail(PATH, drip)
    with closing(RangeClient(Timeouts())) as client, pytest.raises(OriginStalled):
        client.request("GET", f"{server.endpoint}{PATH}", {}, Cancellation(), 1000)


def test_one_connection_serves_many_ranges(server: FaultServer, reader: Reader) -> None:
    file = reader.list()
    for start in range(0, 100_000, 10_000):
        assert reader.read(file, ByteRange(start, start + 9)) == DATA[start : start + 9]
    assert server.connections == 1


def test_a_close_ends_the_connections_of_before_and_keeps_later_ones(server: FaultServer, reader: Reader) -> None:
    """A fetch closes its source to try wrong bytes again over a fresh connection; many more use that source afterwards."""
    file = reader.list()
    body = reader.source.open(file, ByteRange(0, 4), Cancellation())
    reader.source.close()
    assert body.readinto(memoryview(bytearray(4))) == 4
    assert body.readinto(memoryview(bytearray(1))) == 0
    body.close()
    before = server.connections
    for _ in range(3):
        reader.read(file)
    assert server.connections == before + 1


def test_a_connection_that_its_peer_closed_is_not_used_again(server: FaultServer, reader: Reader) -> None:
    server.fail(PATH, faults.closing)
    file = reader.list()
    for _ in range(3):
        assert reader.read(file) == DATA
    assert len(server.received) == 4


@pytest.mark.parametrize("fault", [faults.raw(b""), lambda call: call.reset()], ids=["closed", "reset"])
def test_a_kept_connection_that_dies_before_the_answer_is_replaced_once(server: FaultServer, reader: Reader, fault: Fault) -> None:
    file = reader.list()
    server.fail(PATH, fault, times=1)
    assert reader.read(file) == DATA
    server.fail(PATH, fault)
    asked = len(server.received)
    with fails(OriginUnreachable):
        reader.read(file)
    assert len(server.received) == asked + 2


def test_a_body_left_early_takes_its_connection_along(server: FaultServer, reader: Reader) -> None:
    file = reader.list()
    body = reader.source.open(file, ByteRange(0, len(DATA)), Cancellation())
    assert body.readinto(memoryview(bytearray(10))) > 0
    body.close()
    body.close()
    assert reader.read(file) == DATA
    assert server.connections == 2


def test_a_body_left_before_it_came_takes_its_connection_along(server: FaultServer, reader: Reader) -> None:
    file = reader.list()
    server.fail(PATH, faults.stalled(0), times=1)
    reader.source.open(file, ByteRange(0, 10), Cancellation()).close()
    assert reader.read(file) == DATA
    assert server.connections == 2


# -- the caller ends it ---------------------------------------------------------------------------------------------------


def _open_body(reader: Reader, cancel: Cancellation) -> Body:
    body = reader.source.open(reader.list(), ByteRange(0, len(DATA)), cancel)
    assert body.readinto(memoryview(bytearray(100))) > 0
    return body


@pytest.mark.parametrize("by", ["abort", "cancel"])
@pytest.mark.parametrize("tls", [False, True])
def test_a_waiting_read_is_broken_from_another_thread(request: pytest.FixtureRequest, reader_of: MakeReader, by: str, tls: bool) -> None:
    certificate = request.getfixturevalue("certificate") if tls else None
    with FaultServer(certificate) as server:
        server.put(PATH, DATA)
        reader = reader_of(url_of(server.endpoint), certificate=certificate, stall_s=60)
        server.fail(PATH, _stall_all_but_listings)
        cancel = Cancellation()
        body = _open_body(reader, cancel)
        _assert_broken(lambda: body.readinto(memoryview(bytearray(1 << 20))), body.abort if by == "abort" else cancel.cancel, server)
        with pytest.raises(Cancelled):
            body.readinto(memoryview(bytearray(10)))
        body.close()
        body.abort()


def test_an_abort_behind_the_last_byte_is_told(server: FaultServer, reader: Reader) -> None:
    body = reader.source.open(reader.list(), ByteRange(0, 10), Cancellation())
    assert body.readinto(memoryview(bytearray(20))) == 10
    body.abort()
    with pytest.raises(Cancelled):
        body.readinto(memoryview(bytearray(20)))
    body.close()


def test_a_wait_for_an_answer_is_cancelled(server: FaultServer, reader_of: MakeReader) -> None:
    reader = reader_of(url_of(server.endpoint), stall_s=600)
    file = reader.list()
    server.fail(PATH, faults.stalled(None))
    cancel = Cancellation()
    asked = len(server.received)
    _assert_broken(lambda: reader.source.open(file, ByteRange(0, 10), cancel), cancel.cancel, server, after_requests=asked + 1)
    with pytest.raises(Cancelled):
        reader.source.open(file, ByteRange(0, 10), cancel)
    assert len(server.received) == asked + 1


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_wait_for_a_connection_is_cancelled(reader_of: MakeReader, deaf_port: int, scheme: str) -> None:
    url = url_of(f"{scheme}://127.0.0.1:{deaf_port}")
    reader = reader_of(url, connect_s=60)
    cancel = Cancellation()
    timer = threading.Timer(0.1, cancel.cancel)
    timer.start()
    with fails(Cancelled):
        reader.source.list(parse_uri(url)[0], cancel)
    timer.join()


def _stall_all_but_listings(call: Call) -> None:
    if call.received.headers["range"] == "bytes=0-0":
        call.reply(call.proper)
    else:
        faults.stalled(1000)(call)


def _assert_broken(wait: Callable[[], object], end: Callable[[], None], server: FaultServer, *, after_requests: int = 0) -> None:
    """`wait`, in another thread, raises Cancelled because of `end` (called while it waits, or just before it starts to)."""
    raised: list[ModelCacheError] = []

    def run() -> None:
        try:
            while True:
                wait()
        except ModelCacheError as error:
            raised.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    while len(server.received) < after_requests:
        thread.join(0.01)
    thread.join(0.1)
    assert thread.is_alive()
    end()
    thread.join(30)
    assert [type(error) for error in raised] == [Cancelled]


# -- proxies --------------------------------------------------------------------------------------------------------------


class ForwardProxy:
    """Answers for an origin, as an http proxy does, and keeps what it was asked."""

    def __init__(self, origin: FaultServer) -> None:
        self._origin = origin
        self.asked: list[tuple[str, str | None]] = []

    def __call__(self, call: Call) -> None:
        self.asked.append((call.received.target, call.received.headers.get("proxy-authorization")))
        target = call.received.target.removeprefix(self._origin.endpoint)
        call.reply(self._origin.reply_to(type(call.received)(call.received.method, target, call.received.headers)))


def test_http_goes_through_a_proxy_in_absolute_form(server: FaultServer, reader_of: MakeReader) -> None:
    with FaultServer() as relay:
        proxy = ForwardProxy(server)
        relay.fail(f"{server.endpoint}{PATH}", proxy)
        proxies = Proxies(http=f"http://{USERINFO}@127.0.0.1:{relay.port}")
        reader = reader_of(url_of(server.endpoint), proxies=proxies)
        assert reader.read(reader.list()) == DATA
    assert server.received == []
    assert [target.partition("?")[0] for target, _ in proxy.asked] == [f"{server.endpoint}{PATH}"] * 2
    assert all(authorization == f"Basic {SECRETS[-1]}" for _, authorization in proxy.asked)
    assert not any(secret in repr(proxies) for secret in SECRETS)


def test_https_goes_through_a_tunnel_that_sees_no_secret(certificate: Certificate, reader_of: MakeReader) -> None:
    with FaultServer(certificate) as secure, FaultServer() as relay:
        secure.put(PATH, DATA, headers=STATED)
        relay.fail(f"127.0.0.1:{secure.port}", _tunnel)
        proxies = Proxies(https=f"http://127.0.0.1:{relay.port}")
        reader = reader_of(url_of(secure.endpoint), certificate=certificate, proxies=proxies)
        assert reader.read(reader.list()) == DATA
        assert [(asked.method, asked.target) for asked in relay.received] == [("CONNECT", f"127.0.0.1:{secure.port}")]
        assert not any(secret in repr(relay.received) for secret in SECRETS)
        assert len(secure.received) == 2


@pytest.mark.parametrize(("code", "kind"), [(407, AccessDenied), (403, OriginUnreachable), (502, OriginUnreachable)])
def test_a_proxy_that_refuses_says_so(certificate: Certificate, reader_of: MakeReader, code: int, kind: type[ModelCacheError]) -> None:
    with FaultServer() as relay:
        relay.fail("127.0.0.1:9", lambda call: call.reply(Reply(code, {}, b"")))
        proxies = Proxies(https=f"http://{USERINFO}@127.0.0.1:{relay.port}")
        with fails(kind) as caught:
            reader_of(url_of("https://127.0.0.1:9"), certificate=certificate, proxies=proxies).list()
    assert f"proxy 127.0.0.1:{relay.port}" in caught.value.message


def test_a_proxy_s_name_that_leads_nowhere_is_told_as_the_proxy_s(
    server: FaultServer, reader_of: MakeReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unknown(*_: object, **__: object) -> object:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with fails(OriginUnreachable) as caught:
        reader_of(url_of(server.endpoint), proxies=Proxies(http="http://gone:3128")).list()
    assert "the proxy `gone`" in caught.value.message


def test_a_host_in_no_proxy_is_spoken_to_directly(server: FaultServer, reader_of: MakeReader) -> None:
    reader = reader_of(url_of(server.endpoint), proxies=Proxies(http="http://127.0.0.1:9", no_proxy="example.com, 127.0.0.0/8"))
    assert reader.read(reader.list()) == DATA


def _tunnel(call: Call) -> None:
    """Relays bytes both ways until either side ends."""
    host, _, port = call.received.target.rpartition(":")
    with socket.create_connection((host, int(port))) as onward:
        call.send(b"HTTP/1.1 200 Connection established\r\n\r\n")
        call.relay(onward)
    call.hang_up()
