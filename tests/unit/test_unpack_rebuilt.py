"""What an archive's members are read from: never from the origin, whatever is left of an earlier resolution."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from modelcache import Config, ModelCache, Refresh
from modelcache.abc.source import Body, Listing, RemoteFile
from modelcache.errors import SourceChanged
from modelcache.patience import Cancellation
from modelcache.ranges import ByteRange
from modelcache.sources.archive import DEFAULT_LIMITS, MEMBER, ArchiveSource
from modelcache.testing.archives import Written, bring_from, contents, tar_of
from modelcache.testing.memory_source import MemorySource
from modelcache.testing.source_contract import read
from modelcache.testing.store_fixtures import NO_LIMITS
from modelcache.uri import StorageUri

MEMBERS = {"bucket/secret": b"a member", "config.json": b"{}"}
TAR = tar_of([Written(path, data) for path, data in MEMBERS.items()])
PLACE = StorageUri("memory", "origin", "model.tar")


class Watched(MemorySource):
    """Lists what is at or below a path alone, and remembers which locators it was asked for."""

    def __init__(self, files: dict[str, bytes]) -> None:
        super().__init__(files)
        self.opened: list[str] = []

    def list(self, uri: StorageUri, cancel: Cancellation) -> Listing:
        found = super().list(uri, cancel)
        return replace(found, files=tuple(file for file in found.files if file.path.startswith(uri.path)))

    def open(self, file: RemoteFile, span: ByteRange, cancel: Cancellation) -> Body:
        self.opened.append(file.locator)
        return super().open(file, span, cancel)


def nothing_remembered(revision: str, listing: Listing, cancel: Cancellation) -> None:
    return None


def test_a_ref_that_verify_rebuilt_does_not_say_where_members_are(tmp_path: Path) -> None:
    (tmp_path / "model.tar").write_bytes(TAR)
    uri, root = f"file://{tmp_path}/model.tar", tmp_path / "store"
    with ModelCache(config=Config.load(environ={}, root=root, limits=NO_LIMITS)) as cache:
        cache.ensure(uri)
        [place] = (root / "refs").iterdir()
        head, _, files = place.read_bytes().partition(b"\n")
        place.write_bytes(head + b"\n" + files.replace(MEMBER.encode(), b"nember of "))
        assert len(cache.verify().damages) == 1
        assert {file.validator for file in cache.refs(uri)[0].files} == {""}
        assert contents(cache.ensure(uri, refresh=Refresh.ALWAYS).path) == MEMBERS
        assert all(file.validator.startswith(MEMBER) for file in cache.refs(uri)[0].files)


def test_what_is_remembered_without_its_archive_is_not_listed() -> None:
    origin = Watched({"model.tar": TAR, "bucket/secret": b"of somebody else"})
    lost = tuple(RemoteFile(path, len(data), f"/{path}", "") for path, data in MEMBERS.items())
    source = ArchiveSource(origin, bring_from(MemorySource({"model.tar": TAR})), lambda revision, listing, cancel: lost, DEFAULT_LIMITS)
    assert {file.path: read(source, file) for file in source.list(PLACE, Cancellation()).files} == MEMBERS
    for file in lost:
        with pytest.raises(SourceChanged):
            source.open(file, ByteRange(0, 1), Cancellation())
        with pytest.raises(SourceChanged):
            source.vouches_for(file)
    assert origin.opened == []
    assert read(origin, lost[0]) == b"of someb"  # that is what the origin would have given


def test_the_origin_is_asked_for_what_it_listed_alone() -> None:
    origin = Watched({"model/w.bin": b"weights", "model/config.json": b"{}", "secret": b"of somebody else"})
    source = ArchiveSource(origin, bring_from(origin), nothing_remembered, DEFAULT_LIMITS)
    listed = source.list(replace(PLACE, path="model"), Cancellation()).files
    assert [source.vouches_for(file) for file in listed] == [False, False]
    assert [read(source, file) for file in listed] == [b"{}", b"weights"]
    stranger = replace(listed[0], locator=listed[0].locator.replace("model/config.json", "secret"))
    origin.opened.clear()
    with pytest.raises(SourceChanged):
        source.open(stranger, ByteRange(0, 1), Cancellation())
    assert origin.opened == []
