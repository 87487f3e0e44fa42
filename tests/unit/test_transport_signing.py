"""Signers: signed per range, renewed once, and never sent elsewhere; and small control calls."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import pytest

from modelcache.abc.source import RemoteFile
from modelcache.errors import AccessDenied, BodyCut, OriginBusy, ProtocolViolation
from modelcache.patience import Cancellation
from modelcache.ranges import ByteRange
from modelcache.testing import faults
from modelcache.testing.fault_server import Call, FaultServer, Reply
from modelcache.transport import Precondition, RangeClient, SignedRequest, Timeouts, Unsigned

DATA = bytes(range(256)) * 40
FILE = RemoteFile("f", len(DATA), "bucket/key", '"v1"')
SPAN = ByteRange(100, 5000)


@dataclass
class Badge:
    """A signer whose n-th credential is `badge n`; the origin accepts one of them."""

    endpoint: str
    last: int = 100
    number: int = 0
    life_s: float | None = None
    signed: list[Mapping[str, str]] = field(default_factory=list)

    def sign(self, method: str, locator: str, headers: Mapping[str, str]) -> SignedRequest:
        self.signed.append(headers)
        expires_at_s = None if self.life_s is None or self.number > 0 else time.time() + self.life_s
        return SignedRequest(f"{self.endpoint}/{locator}", {**headers, "Authorization": f"badge {self.number}"}, expires_at_s)

    def renew(self) -> bool:
        if self.number >= self.last:
            return False
        self.number += 1
        return True


class Door:
    """A fault that refuses every credential but one."""

    def __init__(self, accepted: int, refusal: Reply) -> None:
        self._accepted = f"badge {accepted}"
        self._refusal = refusal

    def __call__(self, call: Call) -> None:
        call.reply(call.proper if call.received.headers.get("authorization") == self._accepted else self._refusal)


@pytest.fixture
def server() -> Iterator[FaultServer]:
    with FaultServer() as running:
        running.put("/bucket/key", DATA)
        yield running


@pytest.fixture
def client() -> Iterator[RangeClient]:
    made = RangeClient(Timeouts(10, 10), agent="modelcache/test")
    yield made
    made.close()


def read(client: RangeClient, signer: Badge | Unsigned, file: RemoteFile = FILE) -> bytes:
    body = client.open_range(signer, file, SPAN, Precondition({"If-Match": file.validator}, {"ETag": file.validator}), Cancellation())
    data = bytearray(SPAN.size_bytes)
    at = 0
    while count := body.readinto(memoryview(data)[at:] if at < len(data) else memoryview(bytearray(1))):
        at += count
    body.close()
    return bytes(data)


def test_a_signature_covers_range_and_precondition(server: FaultServer, client: RangeClient) -> None:
    badge = Badge(server.endpoint)
    assert read(client, badge) == DATA[SPAN.start : SPAN.stop]
    assert badge.signed == [{"If-Match": '"v1"', "Range": "bytes=100-4999"}]
    [received] = server.received
    assert received.headers["authorization"] == "badge 0"
    assert received.headers["host"] == f"127.0.0.1:{server.port}"
    assert received.headers["accept-encoding"] == "identity"
    assert received.headers["user-agent"] == "modelcache/test"


@pytest.mark.parametrize(
    "refusal",
    [Reply(401, {}, b""), Reply(403, {}, b"no"), Reply(400, {}, b"<Error><Code>ExpiredToken</Code></Error>")],
    ids=["401", "403", "ExpiredToken"],
)
def test_a_refused_credential_is_renewed_once(server: FaultServer, client: RangeClient, refusal: Reply) -> None:
    server.fail("/bucket/key", Door(1, refusal))
    badge = Badge(server.endpoint)
    assert read(client, badge) == DATA[SPAN.start : SPAN.stop]
    assert badge.number == 1
    server.fail("/bucket/key", Door(50, refusal))
    with pytest.raises(AccessDenied):
        read(client, badge)
    assert badge.number == 2
    assert len(server.received) == 4


def test_a_signer_with_nothing_to_renew_is_asked_once(server: FaultServer, client: RangeClient) -> None:
    server.fail("/bucket/key", faults.status(403))
    with pytest.raises(AccessDenied):
        read(client, Badge(server.endpoint, last=0))
    assert len(server.received) == 1


def test_a_request_about_to_expire_is_signed_anew(server: FaultServer, client: RangeClient) -> None:
    fresh, stale = Badge(server.endpoint, life_s=3600), Badge(server.endpoint, life_s=1)
    for badge in (fresh, stale):
        assert read(client, badge) == DATA[SPAN.start : SPAN.stop]
    assert (fresh.number, stale.number) == (0, 1)
    assert server.received[-1].headers["authorization"] == "badge 1"


def test_the_credential_is_renewed_before_a_redirect_is_asked_again(server: FaultServer, client: RangeClient) -> None:
    with FaultServer() as cdn:
        cdn.put("/blob", DATA)
        server.fail("/bucket/key", faults.redirect(f"{cdn.at('localhost')}/blob"))
        badge = Badge(server.endpoint)
        assert read(client, badge) == read(client, badge)
        cdn.fail("/blob", faults.status(403), times=1)
        server.fail("/bucket/key", Door(1, Reply(403, {}, b"")), times=1)
        assert read(client, badge) == DATA[SPAN.start : SPAN.stop]
        assert badge.number == 1
        assert all("authorization" not in received.headers for received in cdn.received)


def test_an_unsigned_locator_is_the_url(server: FaultServer, client: RangeClient) -> None:
    file = RemoteFile("f", len(DATA), f"{server.endpoint}/bucket/key", '"v1"')
    assert read(client, Unsigned(), file) == DATA[SPAN.start : SPAN.stop]
    assert "authorization" not in server.received[0].headers


def test_what_can_not_be_asked_for_is_a_mistake_of_the_caller(client: RangeClient) -> None:
    whole = RemoteFile("f", 10, "http://127.0.0.1:9/", "", ranged=False)
    for file, span in ((FILE, ByteRange(5, 5)), (whole, ByteRange(1, 10))):
        with pytest.raises(ValueError, match="asked for"):
            client.open_range(Unsigned(), file, span, Precondition(), Cancellation())


# -- control calls --------------------------------------------------------------------------------------------------------


def chunked(*parts: bytes, end: bytes = b"0\r\n\r\n") -> bytes:
    return (
        b"HTTP/1.1 200 x\r\nTransfer-Encoding: chunked\r\n\r\n" + b"".join(b"%x;a=b\r\n%s\r\n" % (len(part), part) for part in parts) + end
    )


def test_a_small_body_is_read_in_either_framing(server: FaultServer, client: RangeClient) -> None:
    answer = client.request("GET", f"{server.endpoint}/bucket/key", {"X": "y"}, Cancellation(), len(DATA))
    assert (answer.status, answer.body, answer.headers["ETAG"]) == (200, DATA, '"v1"')
    server.fail("/bucket/key", faults.raw(chunked(b"abc", b"d" * 300)))
    answer = client.request("GET", f"{server.endpoint}/bucket/key", {}, Cancellation(), 303)
    assert answer.body == b"abc" + b"d" * 300


def test_a_head_has_no_body(server: FaultServer, client: RangeClient) -> None:
    for _ in range(2):
        answer = client.request("HEAD", f"{server.endpoint}/bucket/key", {}, Cancellation(), 0)
        assert (answer.status, answer.headers["content-length"], answer.body) == (200, str(len(DATA)), b"")
    assert server.connections == 1


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (chunked(b"abc", b"de"), ProtocolViolation),
        (chunked(b"ab", end=b"g\r\n"), ProtocolViolation),
        (chunked(b"ab", end=b"-1\r\n"), ProtocolViolation),
        (chunked(b"ab", end=b"1\r\nabc0\r\n\r\n"), ProtocolViolation),
        (chunked(b"ab", end=b"0\r\nTrailer: x\r\n\r\n"), ProtocolViolation),
        (chunked(b"ab", end=b"1;" + b"x" * 500 + b"\r\n"), ProtocolViolation),
        (chunked(b"ab", end=b"2\r\nc"), BodyCut),
        (chunked(b"ab", end=b""), BodyCut),
        (b"HTTP/1.1 200 x\r\nContent-Length: 5\r\n\r\nabcde", ProtocolViolation),
        (b"HTTP/1.1 200 x\r\nContent-Length: 3\r\n\r\nab", BodyCut),
        (b"HTTP/1.1 200 x\r\n\r\nab", ProtocolViolation),
    ],
)
def test_a_control_body_that_is_broken_or_too_long_is_refused(
    server: FaultServer, client: RangeClient, data: bytes, kind: type[Exception]
) -> None:
    server.fail("/bucket/key", faults.raw(data))
    with pytest.raises(kind):
        client.request("GET", f"{server.endpoint}/bucket/key", {}, Cancellation(), 4)


def test_a_status_is_returned_and_makes_an_error(server: FaultServer, client: RangeClient) -> None:
    body = b"<Error><Code>SlowDown</Code></Error>"
    server.fail("/bucket/key", faults.status(503, {"Retry-After": "3"}, body))
    answer = client.request("GET", f"{server.endpoint}/bucket/key?X-Amz-Signature=s3cret", {}, Cancellation(), 0)
    assert (answer.status, answer.body, answer.code) == (503, body, "SlowDown")
    error = answer.error(listed=False)
    assert type(error) is OriginBusy
    assert error.retry_after_s == 3
    assert "s3cret" not in f"{error} {error.as_dict()} {answer!r}"


def test_redirects_are_followed_unless_told_otherwise(server: FaultServer, client: RangeClient) -> None:
    server.put("/there", b"arrived")
    server.fail("/here", faults.redirect("/there"))
    followed = client.request("GET", f"{server.endpoint}/here", {"Authorization": "x"}, Cancellation(), 100)
    assert (followed.body, followed.url) == (b"arrived", f"{server.endpoint}/there")
    assert followed.redirects[0]["location"] == "/there"
    stayed = client.request("GET", f"{server.endpoint}/here", {}, Cancellation(), 100, follow=False)
    assert (stayed.status, stayed.headers["location"]) == (302, "/there")
