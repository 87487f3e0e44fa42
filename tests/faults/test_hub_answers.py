"""Answers of a hub that make no sense, or that somebody else gave in its place: refused, and nothing of them is believed."""

from __future__ import annotations

import json
from collections.abc import Mapping

import pytest

from modelcache.errors import InvalidUri, ModelCacheError, ProtocolViolation, UnsafePath
from modelcache.sources.huggingface import trees
from modelcache.testing import faults
from modelcache.testing.hub_sources import hub_source
from modelcache.testing.listings import listing_of
from modelcache.testing.servers.hub import HubServer

SMALL = b'{"a": 1}\n'
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def refused(hub: HubServer, kind: type[ModelCacheError], uri: str = "hf://org/model") -> None:
    with hub_source(hub) as source, pytest.raises(kind):
        listing_of(source, uri)


ENTRY: dict[str, object] = {"type": "file", "path": "f", "oid": COMMIT, "size": 1}


def listed(*changes: Mapping[str, object]) -> str:
    """A listing of one entry for each of these changes to a right one."""
    return json.dumps([{**ENTRY, **each} for each in changes])


@pytest.mark.parametrize(
    "body", ["", "<html>sign in</html>", "[" * 100_000, "[]", "{}", '{"sha": null}', '{"sha": "main"}', '{"sha": "ABC"}']
)
def test_no_commit_in_the_answer_is_a_violation(hub: HubServer, body: str) -> None:
    hub.repository(files={"f": SMALL})
    hub.front.fail("/api/models/org/model/revision/main", faults.status(200, body=body.encode()))
    refused(hub, ProtocolViolation)


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        ("<html>", ProtocolViolation),
        ("{}", ProtocolViolation),
        ("[1]", ProtocolViolation),
        ('[{"type": "file"}]', ProtocolViolation),
        (listed({"type": "commit"}), ProtocolViolation),
        (listed({"path": 1}), ProtocolViolation),
        (listed({"size": -1}), ProtocolViolation),
        (listed({"size": True}), ProtocolViolation),
        (listed({"size": 1 << 64}), ProtocolViolation),
        (listed({"oid": "zz"}), ProtocolViolation),
        (listed({"lfs": {"oid": "zz", "size": 1}}), ProtocolViolation),
        (listed({"lfs": {"size": 1}}), ProtocolViolation),
        (listed({"lfs": "yes"}), ProtocolViolation),
        (listed({}, {}), UnsafePath),
        (listed({}, {"path": "f/g"}), UnsafePath),
        *((listed({"path": name}), UnsafePath) for name in ("../f", "/etc/passwd", "a/../f", "a//f", "\udcff", "", "a\nb", "f/")),
    ],
)
def test_a_listing_that_makes_no_sense_is_refused(hub: HubServer, body: str, kind: type[ModelCacheError]) -> None:
    commit = hub.repository(files={"f": SMALL}).refs["main"]
    hub.front.fail(f"/api/models/org/model/tree/{commit}", faults.status(200, body=body.encode()))
    refused(hub, kind)


def test_a_name_that_no_snapshot_may_hold_can_be_left_out(hub: HubServer) -> None:
    commit = hub.repository(files={"f": SMALL}).refs["main"]
    hub.front.fail(f"/api/models/org/model/tree/{commit}", faults.status(200, body=listed({}, {"path": "../g"}).encode()))
    with hub_source(hub) as source:
        assert [file.path for file in listing_of(source, "hf://org/model#exclude=*g").files] == ["f"]


def test_a_file_outside_of_the_folder_is_a_violation(hub: HubServer) -> None:
    commit = hub.repository(files={"d/f": SMALL}).refs["main"]
    hub.front.fail(f"/api/models/org/model/tree/{commit}/d", faults.status(200, body=listed({}).encode()))
    refused(hub, ProtocolViolation, "hf://org/model/d")


@pytest.mark.parametrize("link", ["", "https://huggingface.co/login", "ftp://x/", "http://[::1", "//\x01"])
def test_a_listing_that_goes_on_nowhere_is_a_violation(hub: HubServer, link: str) -> None:
    commit = hub.repository(files={"f": SMALL}).refs["main"]
    path = f"/api/models/org/model/tree/{commit}"
    itself = f"{hub.endpoint}{path}?recursive=true&expand=false"
    headers = {"Link": f'<{link or itself}>; rel="next"'}
    hub.front.fail(path, faults.status(200, headers, b"[]"))
    refused(hub, ProtocolViolation)
    assert hub.counts()["tree"] == 1


def test_an_endless_listing_is_ended(hub: HubServer) -> None:
    commit = hub.repository(files={"f": SMALL}).refs["main"]
    path = f"/api/models/org/model/tree/{commit}"
    hub.front.fail(path, faults.status(200, {"Link": f'<{path}?cursor=1>; rel="next"'}, b"[]"), times=1)
    hub.front.fail(
        f"{path}", lambda call: faults.status(200, {"Link": f'<{path}?cursor={len(hub.front.received)}>; rel="next"'}, b"[]")(call)
    )
    refused(hub, ProtocolViolation)
    assert 100 < hub.counts()["tree"] < 1000


def test_more_files_than_a_model_has_are_refused_with_a_way_out(hub: HubServer) -> None:
    commit = hub.repository(files={"f": SMALL, "d/f": SMALL}).refs["main"]
    entries = listed(*({"path": f"{number}"} for number in range(100_001)))
    hub.front.fail(f"/api/models/org/model/tree/{commit}", faults.status(200, body=entries.encode()))
    refused(hub, InvalidUri)
    with hub_source(hub) as source:
        assert len(listing_of(source, "hf://org/model/d").files) == 1


def test_names_that_fill_the_memory_are_refused_before_they_do(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A page may hold names of megabytes, and there may be hundreds of pages."""
    monkeypatch.setattr(trees, "MAX_NAMES_CHARACTERS", 10_000)
    commit = hub.repository(files={"f": SMALL}).refs["main"]
    path = f"/api/models/org/model/tree/{commit}"
    page = listed({"path": "n" * 4_000}).encode()
    hub.front.fail(path, lambda call: faults.status(200, {"Link": f'<{path}?cursor={len(hub.front.received)}>; rel="next"'}, page)(call))
    refused(hub, InvalidUri)
    assert hub.counts()["tree"] == 3
