"""Ensures of archives over a store and an origin that are dicts: proof, progress, versions that change on the way."""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import replace

import pytest

from modelcache.abc.grants import Holder, Trust
from modelcache.abc.ingest import Route
from modelcache.abc.source import Source
from modelcache.ensure import Ensured
from modelcache.errors import AccessDenied, BadArchive, Cancelled, SourceChanged, UnsafePath
from modelcache.fetch.engine import FetchEngine
from modelcache.fetch.plan import Priority
from modelcache.fetch.progress import Phase
from modelcache.patience import Cancellation
from modelcache.permission import CallersAdmission, OwnersAdmission
from modelcache.sources.archive import ArchiveLimits
from modelcache.sources.witnessed import WitnessedSource
from modelcache.testing.archives import Written, tar_of
from modelcache.testing.fetching import in_background, place, running_engine, small_chunks
from modelcache.testing.guarded_source import GuardedSource
from modelcache.testing.memory_source import MemorySource
from modelcache.testing.memory_store import MemoryStore
from modelcache.testing.store_filling import content
from modelcache.unpack import Unpacking
from tests.unit.opened_archive import unpacked

CHUNK = 4096
FILES = {"config.json": b"{}", "w.bin": content(5 * CHUNK + 3, 1)}
ARCHIVE = tar_of([Written(path, data) for path, data in FILES.items()])
LATER = tar_of([Written("config.json", b"later")])
LIMITS = ArchiveLimits()


class Yard:
    """A store and an engine, and an origin with one archive."""

    def __init__(self, engine: FetchEngine) -> None:
        self.engine = engine
        self.store = MemoryStore()
        self.origin = MemorySource({"m.tar": ARCHIVE})

    def own(self) -> Unpacking:
        uri = place("m.tar")
        return self._unpacking(OwnersAdmission(self.store, self.origin, uri))

    def of(self, who: str, source: Source) -> Ensured:
        """As one of several callers."""
        holder = Holder(who, "default", self.store.grants.mac(who.encode()))
        trust = Trust(grant_ttl_s=1000.0, origins=(), proof_requests=3)
        witnessed = WitnessedSource(source, source.origin)
        admission = CallersAdmission(self.store.grants, trust, holder, witnessed, place("m.tar"), again=False)
        return self._unpacking(admission).run(Cancellation())

    def _unpacking(self, admission: OwnersAdmission | CallersAdmission) -> Unpacking:
        uri = place("m.tar")
        return Unpacking(self.store, self.engine, admission, uri, priority=Priority.PREWARM, route=Route.BUFFERED, limits=LIMITS)

    def content(self, ensured: Ensured) -> dict[str, bytes]:
        digest = ensured.snapshot.digest
        return {item.path: self.store.file(digest, item.path) for item in self.store.manifest(digest).files}


@pytest.fixture
def yard() -> Iterator[Yard]:
    with small_chunks(CHUNK), running_engine(3) as engine:
        yield Yard(engine)


def test_a_byte_of_the_archive_proves_what_is_in_it_and_a_listing_does_not(yard: Yard) -> None:
    assert yard.content(yard.of("first", GuardedSource(yard.origin, lambda path: True))) == FILES
    fetched = yard.origin.books.bytes["m.tar"]
    assert fetched == len(ARCHIVE)
    with pytest.raises(AccessDenied):
        yard.of("lister", GuardedSource(yard.origin, lambda path: False))
    assert yard.origin.books.bytes["m.tar"] == fetched
    second = yard.of("second", GuardedSource(yard.origin, lambda path: True))
    assert (yard.content(second), second.progress.hit) == (FILES, True)
    assert yard.origin.books.bytes["m.tar"] == fetched + 1


def test_the_archive_is_seen_on_its_way_and_kept_for_the_next_try(yard: Yard) -> None:
    gate = yard.origin.gate("m.tar", 3 * CHUNK)
    unpacking, cancel = yard.own(), Cancellation()

    def broken_off() -> None:
        with pytest.raises(Cancelled):
            unpacking.run(cancel)

    with in_background(broken_off):
        gate.await_readers()
        seen = unpacking.look()
        assert (seen.phase, seen.uri, seen.bytes_total) == (Phase.FETCHING, str(place("m.tar")), len(ARCHIVE))
        unpacking.hurry(Priority.WAITING)
        cancel.cancel()
    gate.open()
    before = yard.origin.books.bytes["m.tar"]
    ensured = yard.own().run(Cancellation())
    assert yard.content(ensured) == FILES
    assert yard.origin.books.bytes["m.tar"] - before == ensured.progress.bytes_fetched < len(ARCHIVE)


def test_one_that_is_replaced_on_its_way_is_brought_anew_and_never_mixed(yard: Yard) -> None:
    yard.origin.cut("m.tar", 2 * CHUNK, error=SourceChanged("replaced"))
    yard.origin.on_open = lambda file, span: (
        yard.origin.put("m.tar", LATER) if span.start == 0 and file.size_bytes == len(ARCHIVE) else None
    )
    assert yard.content(yard.own().run(Cancellation())) == {"config.json": b"later"}


def test_what_was_remembered_and_is_evicted_meanwhile_is_brought_again(yard: Yard) -> None:
    first = yard.own().run(Cancellation())
    snapshot, looks = yard.store.snapshot, list[object]()

    def gone_after_the_first_look(digest: object) -> object:
        looks.append(digest)
        if len(looks) == 2:
            yard.store.evict(first.snapshot.digest)
        return snapshot(digest)  # type: ignore[arg-type]

    yard.store.snapshot = gone_after_the_first_look  # type: ignore[method-assign, assignment]
    again = yard.own().run(Cancellation())
    assert yard.content(again) == FILES
    assert yard.origin.books.bytes["m.tar"] == 2 * len(ARCHIVE)


def test_a_damaged_one_is_not_kept(yard: Yard) -> None:
    yard.origin.put("m.tar", ARCHIVE[:3000])
    for _ in range(2):
        before = yard.origin.books.bytes["m.tar"]
        with pytest.raises(BadArchive):
            yard.own().run(Cancellation())
        assert yard.origin.books.bytes["m.tar"] - before == 3000


def test_names_that_can_be_left_out_cost_no_second_fetch(yard: Yard) -> None:
    yard.origin.put("m.tar", tar_of([Written("../up", b"x"), Written("f", b"y")]))
    with pytest.raises(UnsafePath):
        yard.own().run(Cancellation())
    before = yard.origin.books.bytes["m.tar"]
    uri = replace(place("m.tar"), include=("f",))
    admission = OwnersAdmission(yard.store, yard.origin, uri)
    unpacking = Unpacking(yard.store, yard.engine, admission, uri, priority=Priority.WAITING, route=None, limits=LIMITS)
    assert yard.content(unpacking.run(Cancellation())) == {"f": b"y"}
    assert yard.origin.books.bytes["m.tar"] == before


def test_a_zip_whose_entries_lie_in_each_other_is_refused() -> None:
    """The bomb of David Fifield (2019): a stored file that holds the records of others."""

    def record(name: bytes, data: bytes) -> tuple[bytes, bytes]:
        """Local record, and the part of the central one that repeats it."""
        fields = struct.pack("<5HL2LHH", 20, 0, 0, 0, 0x21, zlib.crc32(data), len(data), len(data), len(name), 0)
        return b"PK\x03\x04" + fields + name + data, fields

    inner, inner_fields = record(b"bb", b"x" * 50)
    outer, outer_fields = record(b"aa", inner)

    def central(fields: bytes, name: bytes, at: int) -> bytes:
        return b"PK\x01\x02" + struct.pack("<H", 0x314) + fields + struct.pack("<3HLL", 0, 0, 0, 0o100644 << 16, at) + name

    directory = central(outer_fields, b"aa", 0) + central(inner_fields, b"bb", outer.index(inner))
    data = outer + directory + struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 2, 2, len(directory), len(outer), 0)
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        assert archive.namelist() == ["aa", "bb"]
    with pytest.raises(BadArchive, match="overlap"):
        unpacked(data)
