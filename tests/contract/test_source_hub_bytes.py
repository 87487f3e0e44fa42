"""How the hub's bytes come: where from, at what cost in requests, as whom, and what ends in an error."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from modelcache.errors import AccessDenied, BadConfig, Cancelled, ModelCacheError, OriginBusy, ProtocolViolation, SourceChanged
from modelcache.patience import Cancellation
from modelcache.ranges import ByteRange
from modelcache.sources.huggingface import HubOptions
from modelcache.testing import faults
from modelcache.testing.fault_server import Call, FaultServer
from modelcache.testing.hub_sources import hub_source
from modelcache.testing.listings import listing_of
from modelcache.testing.servers import Certificate
from modelcache.testing.servers.hub import HubServer
from modelcache.testing.servers.hub_repository import HubRepository
from modelcache.testing.source_contract import read

LARGE = os.urandom(300_000)
SMALL = b'{"a": 1}\n'
SPANS = [ByteRange(at, at + 50_000) for at in range(0, 300_000, 50_000)]
FIRST_BYTE = ByteRange(0, 1)


@pytest.fixture
def repository(hub: HubServer) -> HubRepository:
    return hub.repository(files={"large": LARGE, "small": SMALL})


def resolve_path(repository: HubRepository, name: str) -> str:
    return f"/org/model/resolve/{repository.refs['main']}/{name}"


# -- cost -----------------------------------------------------------------------------------------------------------------


def test_many_threads_and_ranges_of_a_large_file_ask_the_hub_once(hub: HubServer, repository: HubRepository) -> None:
    together = threading.Barrier(8)
    with hub_source(hub) as source, ThreadPoolExecutor(8) as threads:
        large, _ = listing_of(source, "hf://org/model").files

        def read_all(_: int) -> bytes:
            together.wait(60)
            return b"".join(read(source, large, span) for span in SPANS)

        assert set(threads.map(read_all, range(8))) == {LARGE}
    assert hub.counts() == {"info": 1, "tree": 1, "resolve": 1, "cdn": 48}


def test_a_small_file_is_asked_for_at_once(hub: HubServer, repository: HubRepository) -> None:
    with hub_source(hub) as source:
        _, small = listing_of(source, "hf://org/model").files
        assert read(source, small) == SMALL
    assert hub.counts() == {"info": 1, "tree": 1, "resolve": 1, "cache": 1}
    assert [each.method for each in hub.front.received] == ["GET"] * 4


@pytest.mark.parametrize("xet", [False, True])
def test_the_token_goes_to_the_hub_and_never_to_the_cdn(hub: HubServer, xet: bool) -> None:
    repository = hub.repository()
    repository.xet = xet
    repository.commit({"large": LARGE, "small": SMALL})
    token = hub.token()
    with hub_source(hub, token) as source:
        assert [read(source, file) for file in listing_of(source, "hf://org/model").files] == [LARGE, SMALL]
    assert hub.counts() == {"info": 1, "tree": 1, "resolve": 2, "cache": 1, "cdn": 1}
    assert {each.headers.get("authorization") for each in hub.front.received} == {f"Bearer {token}"}
    assert all("authorization" not in each.headers and token not in str(each) for each in hub.cdn.received)


def test_a_hub_that_serves_large_files_itself_is_read_as_well(hub: HubServer, repository: HubRepository) -> None:
    """As mirrors do: a 200 in place of the redirect."""
    token = hub.token()
    hub.front.fail(
        resolve_path(repository, "large"), faults.redirect(f"/api/resolve-cache/models/org/model/{repository.refs['main']}/large")
    )
    with hub_source(hub, token) as source:
        large, _ = listing_of(source, "hf://org/model").files
        assert [read(source, large, span) for span in SPANS] == [LARGE[span.start : span.stop] for span in SPANS]
    counts = hub.counts()
    assert (counts["resolve"], counts["cdn"]) == (2, 0)
    assert all(each.headers["authorization"] == f"Bearer {token}" for each in hub.front.received)


# -- URLs that expire -----------------------------------------------------------------------------------------------------


def test_an_expired_url_is_replaced_once(hub: HubServer, repository: HubRepository) -> None:
    with hub_source(hub) as source:
        large, _ = listing_of(source, "hf://org/model").files
        read(source, large, FIRST_BYTE)
        hub.expire_urls()
        hub.counts()
        assert [read(source, large, span) for span in SPANS] == [LARGE[span.start : span.stop] for span in SPANS]
    assert hub.counts() == {"resolve": 1, "cdn": len(SPANS) + 1}


def test_a_url_that_is_about_to_expire_is_not_kept(hub: HubServer, repository: HubRepository) -> None:
    hub.url_lifetime_s = 20
    with hub_source(hub) as source:
        large, _ = listing_of(source, "hf://org/model").files
        assert [read(source, large, span) for span in SPANS] == [LARGE[span.start : span.stop] for span in SPANS]
    counts = hub.counts()
    assert (counts["resolve"], counts["cdn"]) == (len(SPANS), len(SPANS))


def test_a_cdn_that_refuses_for_good_is_asked_twice(hub: HubServer, repository: HubRepository) -> None:
    with hub_source(hub) as source:
        large, _ = listing_of(source, "hf://org/model").files
        hub.url_lifetime_s = -1000
        with pytest.raises(AccessDenied) as caught:
            source.open(large, FIRST_BYTE, Cancellation())
    assert hub.counts() == {"info": 1, "tree": 1, "resolve": 2, "cdn": 2}
    assert "Signature" not in f"{caught.value} {caught.value.as_dict()}"


# -- permission -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["large", "small"])
def test_one_byte_is_proof_and_a_right_that_was_taken_away_shows_at_the_next(hub: HubServer, repository: HubRepository, name: str) -> None:
    repository.gated = True
    token = hub.token()
    repository.readers.add(token)
    with hub_source(hub, token) as source:
        for _ in range(2):
            [file] = listing_of(source, f"hf://org/model/{name}").files
            assert read(source, file, FIRST_BYTE) == {"large": LARGE, "small": SMALL}[name][:1]
        repository.readers.clear()
        [file] = listing_of(source, f"hf://org/model/{name}").files
        with pytest.raises(AccessDenied) as caught:
            source.open(file, FIRST_BYTE, Cancellation())
    assert "GatedRepo" in str(caught.value)
    assert caught.value.hint is not None
    assert f"{hub.endpoint}/org/model" in caught.value.hint


def test_a_right_that_was_taken_away_shows_where_small_files_are_at_a_cdn_too(hub: HubServer, repository: HubRepository) -> None:
    """As of a mirror that redirects every file: the remembered URL would still be good."""
    token = hub.token()
    path = resolve_path(repository, "small")
    with FaultServer() as other, hub_source(hub, token) as source:
        other.put("/small", SMALL)
        hub.front.fail(path, faults.redirect(f"{other.at('localhost')}/small?Signature=x"))
        for _ in range(2):
            [file] = listing_of(source, "hf://org/model/small").files
            assert [read(source, file) for _ in range(2)] == [SMALL, SMALL]
        assert [each.target for each in hub.front.received].count(path) == 2
        hub.front.fail(path, faults.status(403, {"X-Error-Code": "GatedRepo"}))
        [file] = listing_of(source, "hf://org/model/small").files
        with pytest.raises(AccessDenied):
            source.open(file, FIRST_BYTE, Cancellation())


def test_the_token_file_is_read_when_needed_and_again_when_refused(hub: HubServer, repository: HubRepository, tmp_path: Path) -> None:
    repository.private = True
    first, second = hub.token(), hub.token()
    repository.readers |= {first, second}
    path = tmp_path / "token"
    with hub_source(hub, token_file=path) as source:
        path.write_text(f"{first}\n")
        large, small = listing_of(source, "hf://org/model").files
        hub.tokens.remove(first)
        path.write_text(second)
        assert read(source, large) == LARGE
        hub.tokens.add(first)
        hub.tokens.remove(second)
        path.write_text(first)
        assert read(source, small) == SMALL
        hub.tokens.remove(first)
        with pytest.raises(AccessDenied):
            listing_of(source, "hf://org/model")


def test_without_a_token_file_or_when_asked_to_nothing_is_sent(hub: HubServer, repository: HubRepository, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("hf_secret")
    for options in ({"token_file": tmp_path / "none"}, {"token_file": tmp_path / "token" / "x"}, {"token": "hf_secret", "anonymous": True}):
        with hub_source(hub, **options) as source:
            assert len(listing_of(source, "hf://org/model").files) == 2
    assert all("authorization" not in each.headers for each in hub.front.received)


@pytest.mark.parametrize("content", [b"two words", b"line\nline", b"\xff\xfe", b"x" * 100_000])
def test_a_file_that_holds_no_token_is_told_without_its_content(hub: HubServer, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "token").write_bytes(content)
    with hub_source(hub, token_file=tmp_path / "token") as source, pytest.raises(BadConfig) as caught:
        listing_of(source, "hf://org/model")
    assert caught.value.address == str(tmp_path / "token")
    assert "line" not in str(caught.value)
    assert hub.front.received == []


@pytest.mark.parametrize(
    "endpoint", ["", "huggingface.co", "ftp://hub", "https://user:secret@hub", "https://hub?token=secret", "https://hub/#a"]
)
def test_an_endpoint_that_makes_no_sense_is_refused(endpoint: str) -> None:
    with pytest.raises(BadConfig) as caught:
        HubOptions(endpoint=endpoint)
    assert "secret" not in f"{caught.value} {caught.value.as_dict()}"
    assert "hf_secret" not in repr(HubOptions(token="hf_secret"))


# -- answers that contradict the listing ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("headers", "kind"),
    [
        ({"X-Repo-Commit": "0" * 40}, ProtocolViolation),
        ({"X-Linked-Size": "1"}, SourceChanged),
        ({"X-Linked-Etag": f'"{"0" * 64}"'}, SourceChanged),
        ({"X-Linked-Etag": f'W/"{"0" * 64}"'}, SourceChanged),
        ({"X-Linked-Etag": "0" * 64}, SourceChanged),
        ({"Location": "ftp://127.0.0.1/x"}, ProtocolViolation),
        ({"Location": "http://[::1"}, ProtocolViolation),
    ],
)
def test_a_place_that_contradicts_the_listing_is_refused(
    hub: HubServer, repository: HubRepository, headers: dict[str, str], kind: type[ModelCacheError]
) -> None:
    hub.front.fail(resolve_path(repository, "large"), faults.with_headers(headers))
    assert isinstance(opened(hub, "large"), kind)
    assert hub.counts()["cdn"] == 0


@pytest.mark.parametrize("header", ["X-Repo-Commit", "X-Linked-Size", "X-Linked-Etag", "ETag", "Date"])
def test_a_mirror_may_leave_headers_out(hub: HubServer, repository: HubRepository, header: str) -> None:
    hub.front.fail(resolve_path(repository, "large"), faults.with_headers({header: None}))
    with hub_source(hub) as source:
        large, _ = listing_of(source, "hf://org/model").files
        assert read(source, large) == LARGE


@pytest.mark.parametrize("name", ["large", "small"])
@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        (faults.status(404, {"X-Error-Code": "EntryNotFound"}), SourceChanged),
        (faults.status(404, {"X-Error-Code": "RevisionNotFound"}), SourceChanged),
        (faults.status(403, {"X-Error-Code": "GatedRepo"}), AccessDenied),
        (faults.status(403, {"X-Error-Message": "Access to this resource is disabled."}), AccessDenied),
        (faults.status(503), OriginBusy),
        (faults.redirect("{target}"), ProtocolViolation),
        (faults.status(418), ProtocolViolation),
    ],
)
def test_what_the_hub_refuses_of_a_listed_file_is_the_same_for_large_and_small(
    hub: HubServer, repository: HubRepository, name: str, fault: Callable[[Call], None], kind: type[ModelCacheError]
) -> None:
    hub.front.fail(resolve_path(repository, name), fault)
    assert isinstance(opened(hub, name), kind)


def opened(hub: HubServer, name: str) -> ModelCacheError:
    with hub_source(hub) as source:
        [file] = listing_of(source, f"hf://org/model/{name}").files
        with pytest.raises(ModelCacheError) as caught:
            source.open(file, FIRST_BYTE, Cancellation())
    return caught.value


def test_a_secure_hub_does_not_send_its_readers_to_an_insecure_place(certificate: Certificate) -> None:
    with HubServer(certificate) as hub, FaultServer() as other, hub_source(hub, hub.token(), ca_file=certificate.ca) as source:
        repository = hub.repository(files={"large": LARGE, "small": SMALL})
        large, small = listing_of(source, "hf://org/model").files
        for file in (large, small):
            hub.front.fail(resolve_path(repository, file.path), faults.redirect(f"{other.at('localhost')}/x"))
            with pytest.raises(ProtocolViolation):
                source.open(file, FIRST_BYTE, Cancellation())
        assert other.connections == 0


# -- waiting --------------------------------------------------------------------------------------------------------------


def test_who_waits_for_anothers_question_is_cancelled_alone(hub: HubServer, repository: HubRepository) -> None:
    """The first asks the hub, which stalls; the second waits for the first."""
    asked = threading.Event()

    def stalled(call: Call) -> None:
        asked.set()
        faults.stalled(None)(call)

    hub.front.fail(resolve_path(repository, "large"), stalled, times=1)
    with hub_source(hub) as source, ThreadPoolExecutor(2) as threads:
        large, _ = listing_of(source, "hf://org/model").files
        first, second, waits = Cancellation(), Cancellation(), threading.Event()
        asking = threads.submit(source.open, large, FIRST_BYTE, first)
        assert asked.wait(60)
        watched = second.on_cancel

        def told(callback: Callable[[], None]) -> object:
            waits.set()
            return watched(callback)

        second.on_cancel = told  # type: ignore[method-assign,assignment]
        waiting = threads.submit(source.open, large, FIRST_BYTE, second)
        assert waits.wait(60)
        second.cancel()
        with pytest.raises(Cancelled):
            waiting.result(60)
        assert not asking.done()
        first.cancel()
        with pytest.raises(Cancelled):
            asking.result(60)
        assert read(source, large) == LARGE


def test_who_waits_asks_when_the_other_was_refused(hub: HubServer, repository: HubRepository) -> None:
    together = threading.Barrier(6)
    hub.front.fail(resolve_path(repository, "large"), faults.status(500), times=1)
    with hub_source(hub) as source, ThreadPoolExecutor(6) as threads:
        large, _ = listing_of(source, "hf://org/model").files

        def read_first(_: int) -> bytes | None:
            together.wait(60)
            try:
                return read(source, large, FIRST_BYTE)
            except OriginBusy:
                return None

        got = sorted(threads.map(read_first, range(6)), key=lambda data: data is not None)
    assert got == [None] + [LARGE[:1]] * 5
    assert hub.counts()["resolve"] == 2
