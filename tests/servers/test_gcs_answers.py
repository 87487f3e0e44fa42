"""The GCS source and answers that fake-gcs-server doesn't give: preconditions, rights, refusals, nonsense."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from modelcache.abc.source import Listing
from modelcache.digest import Algorithm
from modelcache.errors import AccessDenied, ModelCacheError, NotFound, OriginBusy, ProtocolViolation, SourceChanged
from modelcache.patience import Cancellation
from modelcache.ranges import ByteRange
from modelcache.sources.gcs import GcsOptions, GcsSource
from modelcache.testing.fault_server import Call, FaultServer, Reply
from modelcache.testing.gcs_stand_in import ANYONE, BUCKET, GcsStandIn, refusal
from modelcache.testing.source_contract import read
from modelcache.uri import parse_uri

DATA = b"weights of a model"


@pytest.fixture
def store() -> Iterator[GcsStandIn]:
    with FaultServer() as server:
        yield GcsStandIn(server)


@pytest.fixture
def source(store: GcsStandIn) -> Iterator[GcsSource]:
    made = GcsSource(GcsOptions(endpoint=store.server.endpoint, anonymous=True))
    yield made
    made.close()


def listed(source: GcsSource, path: str = "m") -> Listing:
    return source.list(parse_uri(f"gs://{BUCKET}/{path}")[0], Cancellation())


# -- versions -------------------------------------------------------------------------------------------------------


def test_every_range_asks_for_the_listed_generation(store: GcsStandIn, source: GcsSource) -> None:
    generation = store.put("m/f", DATA)
    [file] = listed(source).files
    assert file.validator == str(generation)
    store.server.received.clear()
    assert read(source, file, ByteRange(2, 5)) == DATA[2:5]
    [asked] = store.server.received
    assert asked.target == f"{store.path('m/f')}?generation={generation}&alt=media&ifGenerationMatch={generation}"
    assert asked.headers["range"] == "bytes=2-4"
    assert asked.headers["accept-encoding"] == "identity"


@pytest.mark.parametrize("status", [404, 412])
def test_a_generation_that_is_gone_has_changed(store: GcsStandIn, source: GcsSource, status: int) -> None:
    store.put("m/f", DATA)
    [file] = listed(source).files
    store.server.fail(store.path("m/f"), lambda call: call.reply(refusal(status, "conditionNotMet", "gone")))
    with pytest.raises(SourceChanged):
        read(source, file)


def test_another_generation_in_answer_is_not_taken(store: GcsStandIn, source: GcsSource) -> None:
    """A gateway that ignores parameters and preconditions."""
    store.put("m/f", DATA)
    [file] = listed(source).files
    headers = {"Content-Range": f"bytes 0-{len(DATA) - 1}/{len(DATA)}"}
    for other in ({"X-Goog-Generation": "17"}, {}):
        store.server.fail(store.path("m/f"), lambda call, other=other: call.reply(Reply(206, headers | other, DATA[::-1])))  # type: ignore[misc]
        with pytest.raises(SourceChanged, match="X-Goog-Generation"):
            read(source, file)


# -- rights ---------------------------------------------------------------------------------------------------------


def test_an_identity_that_may_only_list_gets_no_byte(store: GcsStandIn, source: GcsSource) -> None:
    store.put("m/f", DATA)
    store.rights[ANYONE] = {"list"}
    [file] = listed(source).files
    with pytest.raises(AccessDenied) as caught:
        source.open(file, ByteRange(0, 1), Cancellation())
    assert caught.value.address == f"gs://{BUCKET}/m/f?generation={file.validator}"
    assert "GOOGLE_APPLICATION_CREDENTIALS" in str(caught.value.hint)


def test_an_identity_that_may_only_read_gets_what_it_can_name(store: GcsStandIn, source: GcsSource) -> None:
    store.put("m/f", DATA)
    store.rights[ANYONE] = {"get"}
    [file] = listed(source, "m/f").files
    assert read(source, file) == DATA
    with pytest.raises(AccessDenied, match=r"403, forbidden\): me@project.example does not have storage.objects.list access"):
        listed(source)


def test_a_name_that_may_not_be_asked_for_is_looked_for_in_the_listing(store: GcsStandIn, source: GcsSource) -> None:
    """To who may not list, absent names are denied; to who may list and not read, too: the listing tells what is there."""
    store.put("m/f", DATA)
    store.server.fail(store.path("m"), lambda call: call.reply(refusal(403, "forbidden", "denied")))
    assert [file.path for file in listed(source).files] == ["f"]
    store.kept.clear()
    with pytest.raises(AccessDenied, match="denied"):
        listed(source)


def test_requester_pays_is_told_in_the_stores_words(store: GcsStandIn, source: GcsSource) -> None:
    said = "Bucket is requester pays bucket but no user project provided."
    store.server.fail(store.list_path, lambda call: call.reply(refusal(400, "required", said)))
    with pytest.raises(AccessDenied, match=said):
        listed(source)


# -- busy -----------------------------------------------------------------------------------------------------------


def test_a_page_that_fails_now_and_then_is_asked_for_again(store: GcsStandIn, source: GcsSource) -> None:
    store.put("m/f", DATA)
    store.server.fail(store.path("m"), lambda call: call.reply(refusal(403, "userRateLimitExceeded", "slow down")), times=2)
    assert [file.path for file in listed(source).files] == ["f"]


def test_a_rate_limit_in_old_clothes_is_no_refusal(store: GcsStandIn, source: GcsSource) -> None:
    store.put("m/f", DATA)
    [file] = listed(source).files
    store.server.fail(store.path("m/f"), lambda call: call.reply(refusal(403, "rateLimitExceeded", "slow down")))
    with pytest.raises(OriginBusy, match="rateLimitExceeded"):
        read(source, file)


# -- listings -------------------------------------------------------------------------------------------------------


def test_pages_are_followed_to_their_end(store: GcsStandIn, source: GcsSource) -> None:
    names = [f"{number:03}" for number in range(101)]
    for name in names:
        store.put(f"m/{name}", name.encode())
    store.page_objects = 10
    found = listed(source)
    assert [file.path for file in found.files] == names
    assert read(source, found.files[100]) == b"100"


def test_only_what_is_read_is_asked_for(store: GcsStandIn, source: GcsSource) -> None:
    store.put("m/f", DATA)
    listed(source)
    [_, asked] = store.server.received
    assert "fields=nextPageToken%2Citems%28name%2Csize%2Cgeneration%2Ccrc32c%2Cmd5Hash" in asked.target


def test_checksums_are_of_what_the_store_states(store: GcsStandIn, source: GcsSource) -> None:
    store.put("m/both", DATA, md5Hash="XUFAKrxLKna5cZ2REBfFkg==")
    store.put("m/md5", DATA, crc32c="", md5Hash="XUFAKrxLKna5cZ2REBfFkg==")
    store.put("m/neither", DATA, crc32c="")
    digests = {file.path: [digest.algorithm for digest in file.digests] for file in listed(source).files}
    assert digests == {"both": [Algorithm.CRC32C], "md5": [Algorithm.MD5], "neither": []}


def test_objects_that_are_not_served_as_stored_are_refused_unless_left_out(store: GcsStandIn, source: GcsSource) -> None:
    store.put("m/f", DATA)
    store.put("m/packed", DATA, contentEncoding="gzip")
    with pytest.raises(ProtocolViolation, match="Content-Encoding") as packed:
        listed(source)
    assert packed.value.got == "gzip"
    store.put("m/packed", DATA, customerEncryption={"keySha256": "x"})
    with pytest.raises(AccessDenied, match="customer's own key"):
        listed(source, "m/packed")
    uri = replace(parse_uri(f"gs://{BUCKET}/m")[0], exclude=("packed",))
    assert [file.path for file in source.list(uri, Cancellation()).files] == ["f"]


def _nonsense() -> list[tuple[str, Any]]:
    whole = {"name": "m/f", "size": "1", "generation": "1", "crc32c": "AAAAAA=="}
    return [
        ("no answer of the", "<html>"),
        ("no answer of the", ["x"]),
        ("usable `items`", {"items": "x"}),
        ("usable `items`", {"items": ["x"]}),
        ("usable `size`", {"items": [{**whole, "size": "-1"}]}),
        ("usable `generation`", {"items": [{**whole, "generation": None}]}),
        ("usable `generation`", {"items": [{**whole, "generation": True}]}),
        ("checksum can't be read", {"items": [{**whole, "crc32c": "AAAA"}]}),
        ("outside of the prefix", {"items": [{**whole, "name": "n/f"}]}),
        ("twice", {"items": [whole, whole]}),
        ("does not go on", {"items": [], "nextPageToken": "again"}),
    ]


@pytest.mark.parametrize(("told", "answer"), _nonsense())
def test_nonsense_is_refused(store: GcsStandIn, source: GcsSource, told: str, answer: Any) -> None:
    body = answer.encode() if isinstance(answer, str) else json.dumps(answer).encode()
    store.server.fail(store.list_path, lambda call: call.reply(Reply(200, {}, body)))
    with pytest.raises(ProtocolViolation, match=told) as caught:
        listed(source)
    assert caught.value.address == f"gs://{BUCKET}/m"


def test_another_object_in_answer_is_refused(store: GcsStandIn, source: GcsSource) -> None:
    generation = store.put("m", DATA)
    record = {"name": "n", "size": "1", "generation": str(generation)}
    for changed in (record, record | {"name": "m", "generation": "7"}):
        body = json.dumps(changed).encode()
        store.server.fail(store.path("m"), lambda call, body=body: call.reply(Reply(200, {}, body)))  # type: ignore[misc]
        with pytest.raises(ProtocolViolation, match="another object"):
            listed(source, f"m?generation={generation}")


def test_what_is_missing_is_named(store: GcsStandIn, source: GcsSource) -> None:
    with pytest.raises(NotFound, match="no object of this name, and none below it"):
        listed(source)
    generation = store.put("m/f", DATA)
    with pytest.raises(NotFound, match="the object does not exist") as caught:
        listed(source, f"m/f?generation={generation + 1}")
    assert caught.value.address == f"gs://{BUCKET}/m/f?generation={generation + 1}"
    store.server.fail(store.list_path, lambda call: call.reply(refusal(404, "notFound", "The specified bucket does not exist.")))
    with pytest.raises(NotFound, match="the bucket does not exist"):
        listed(source)


def test_an_error_page_of_a_gateway_is_told_by_its_status(store: GcsStandIn, source: GcsSource) -> None:
    def page(call: Call) -> None:
        call.reply(Reply(418, {}, b"<html>teapot</html>"))

    store.server.fail(store.list_path, page)
    with pytest.raises(ModelCacheError, match="418"):
        listed(source)
