"""The client of the API server against one that refuses, lies, breaks off and falls silent."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from modelcache.errors import (
    AccessDenied,
    BadConfig,
    BodyCut,
    ModelCacheError,
    NotFound,
    OriginBusy,
    OriginStalled,
    ProtocolViolation,
    SourceChanged,
    Unavailable,
)
from modelcache.k8s.api import MAX_EVENT_BYTES, ApiPlace, ApiServer, VersionGone
from modelcache.patience import Cancellation
from modelcache.testing.fault_server import Call, FaultServer, Reply
from modelcache.transport import Timeouts

PATH, TOKEN = "/apis/g/v1/things", "token-of-the-test"
QUICK_S = 0.2

Use = Callable[[ApiServer], object]
USES: dict[str, Use] = {
    "get": lambda api: api.get(PATH, Cancellation()),
    "post": lambda api: api.post(PATH, {}, Cancellation()),
    "apply": lambda api: api.apply(PATH, {}, manager="m", cancel=Cancellation()),
    "merge": lambda api: api.merge(PATH, {}, Cancellation()),
    "watch": lambda api: list(api.watch(PATH, {}, Cancellation())),
}
WATCH = f"{PATH}?watch=true&allowWatchBookmarks=true"
EVENT = json.dumps({"type": "MODIFIED", "object": {"metadata": {"resourceVersion": "7"}}}).encode() + b"\n"


@pytest.fixture
def api(server: FaultServer, tmp_path: Path) -> Iterator[ApiServer]:
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    place = ApiPlace(server.endpoint, None, tmp_path / "token")
    with closing(ApiServer(place, timeouts=Timeouts(QUICK_S, QUICK_S), silence_s=QUICK_S)) as made:
        yield made


def every(server: FaultServer, fault: Callable[[Call], None]) -> None:
    """Whatever is asked for."""
    for path in (PATH, WATCH, f"{PATH}?fieldManager=m&force=true"):
        server.fail(path, fault)


@pytest.mark.parametrize("use", USES.values(), ids=USES)
@pytest.mark.parametrize(
    ("status", "kind", "retry_after_s"),
    [
        (401, AccessDenied, None),
        (403, AccessDenied, None),
        (404, NotFound, None),
        (409, SourceChanged, None),
        (410, VersionGone, None),
        (422, BadConfig, None),
        (429, OriginBusy, 7.0),
        (500, OriginBusy, None),
        (503, OriginBusy, 3.0),
        (301, ProtocolViolation, None),
    ],
)
def test_each_refusal_says_what_it_means_and_no_token(
    server: FaultServer, api: ApiServer, use: Use, status: int, kind: type[ModelCacheError], retry_after_s: float | None
) -> None:
    headers = {} if retry_after_s is None else {"Retry-After": f"{retry_after_s:.0f}"}
    told = json.dumps({"kind": "Status", "message": "said by the server"}).encode()
    every(server, lambda call: call.reply(Reply(status, headers, told)))
    with pytest.raises(kind, match="said by the server") as caught:
        use(api)
    assert caught.value.retry_after_s == retry_after_s
    assert TOKEN not in str(caught.value.as_dict())
    assert server.received[-1].headers["authorization"] == f"Bearer {TOKEN}"


@pytest.mark.parametrize("use", USES.values(), ids=USES)
def test_a_connection_on_which_nothing_comes_is_given_up(server: FaultServer, api: ApiServer, use: Use) -> None:
    def half_open(call: Call) -> None:
        call.ended.wait(60)
        call.hang_up()

    every(server, half_open)
    with pytest.raises(Unavailable):
        use(api)


@pytest.mark.parametrize("use", USES.values(), ids=USES)
@pytest.mark.parametrize(
    ("body", "rest"),
    [(b'{"a": 1', 100), (b"[]\n", 0), (b"<html>\n", 0), (b'{"type": "MODIFIED", "object": {}} x\n', 0)],
    ids=["cut", "a list", "no JSON", "more"],
)
def test_an_answer_that_is_none_is_told(server: FaultServer, api: ApiServer, use: Use, body: bytes, rest: int) -> None:
    def answer(call: Call) -> None:
        call.reply(Reply(200, {"Content-Length": str(len(body) + rest)}, body))
        call.hang_up()

    every(server, answer)
    with pytest.raises((BodyCut, ProtocolViolation, Unavailable)):
        use(api)


def test_a_watch_tells_what_came_before_it_fell_silent_broke_or_said_that_its_version_is_gone(server: FaultServer, api: ApiServer) -> None:
    gone = json.dumps({"type": "ERROR", "object": {"kind": "Status", "code": 410, "message": "too old resource version"}}).encode()
    huge = b'{"type": "' + b"x" * (MAX_EVENT_BYTES + 1)
    for then, kind in (
        (b"", OriginStalled),
        (EVENT[:20], OriginStalled),
        (gone + b"\n", VersionGone),
        (huge, ProtocolViolation),
        (None, BodyCut),
    ):

        def watched(call: Call, then: bytes | None = then) -> None:
            call.send(Reply(200, {"Transfer-Encoding": "chunked"}, b"").head())
            for data in (EVENT, then):
                if data:
                    call.send(b"%x\r\n%s\r\n" % (len(data), data))
            if then is not None:
                call.ended.wait(5 * QUICK_S)
            call.hang_up()

        every(server, watched)
        watch = api.watch(PATH, {}, Cancellation())
        assert next(watch).version == "7", kind
        with pytest.raises(kind):
            next(watch)
