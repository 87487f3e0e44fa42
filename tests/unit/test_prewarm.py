"""Many models ahead of time: looked up before any is fetched, room for all together, a few at a time, every outcome told."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from modelcache import Config, ModelCache
from modelcache.abc.snapshot import RefKey, Snapshot
from modelcache.abc.source import Listing, Origin, RemoteFile
from modelcache.abc.store import Limits
from modelcache.digest import Digest
from modelcache.errors import BadConfig, Cancelled, NoSpace, NotFound, OriginUnreachable
from modelcache.fetch.plan import Priority
from modelcache.fetch.progress import Phase, Progress
from modelcache.patience import Cancellation
from modelcache.prewarm import Asking, Lookup, Prewarm, PrewarmOutcome, PrewarmReport, read_list
from modelcache.store.store import LocalStore
from modelcache.testing.memory_source import MemorySource
from modelcache.testing.store_filling import content, digest_of, fill, manifest_of, table_of, wanted, write_chunks
from modelcache.testing.store_fixtures import NO_LIMITS
from modelcache.units import MIB
from modelcache.unpack import files_at
from modelcache.uri import parse_uri

Look = Callable[[Progress], None]
PATIENCE_S = 30


def listing(uri: str, *files: tuple[str, int, Digest | None]) -> Listing:
    remote = tuple(RemoteFile(path, size, path, f"v-{path}", () if digest is None else (digest,)) for path, size, digest in files)
    return Listing(parse_uri(uri)[0], Origin("https://models:443"), "1", False, remote)


class Origins:
    """What is asked and brought, and by how many at once."""

    def __init__(self, store: LocalStore, listings: dict[str, Listing | Exception | None]) -> None:
        self._store = store
        self._listings = listings
        self._lock = threading.Lock()
        self._running = 0
        self.most = 0
        self.brought: list[str] = []
        self.during: Callable[[str], None] = lambda uri: None

    def ask(self, uri: str, cancel: Cancellation) -> Lookup | None:
        found = self._listings[uri]
        if isinstance(found, Exception):
            raise found
        return None if found is None else (found, None)

    def bring(self, uri: str, look: Look, cancel: Cancellation) -> Snapshot:
        with self._lock:
            self._running += 1
            self.most = max(self.most, self._running)
            self.brought.append(uri)
        try:
            self.during(uri)
            cancel.check()
            look(Progress(uri, Phase.DONE, bytes_fetched=3, bytes_reused=4))
            return fill(self._store, {"name": uri.encode()}, uri=uri, known=True)
        finally:
            with self._lock:
                self._running -= 1

    def prewarm(self, *uris: str, jobs: int = 2, pin_for: str | None = None, cancel: Cancellation | None = None) -> PrewarmReport:
        asking = Asking(self.ask, self.bring, jobs, pin_for)
        told: dict[int, PrewarmOutcome] = {}
        report = Prewarm(self._store, asking, cancel or Cancellation(), ended=told.__setitem__).run(uris)
        assert told == dict(enumerate(report.outcomes))
        return report


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path / "root", NO_LIMITS)


def names(count: int) -> list[str]:
    return [f"s3://models/{number}" for number in range(count)]


def test_as_many_at_a_time_as_asked_for(store: LocalStore) -> None:
    origins = Origins(store, dict.fromkeys(names(9)))
    together = threading.Barrier(3)
    origins.during = lambda uri: (together.wait(PATIENCE_S), None)[1]

    report = origins.prewarm(*names(9), jobs=3)

    assert origins.most == 3
    assert [outcome.uri for outcome in report.outcomes] == names(9)
    assert (report.failed, report.fetched_bytes, report.reused_bytes) == ((), 27, 36)


@pytest.mark.parametrize("jobs", [0, 65])
def test_jobs_have_bounds(store: LocalStore, jobs: int) -> None:
    with pytest.raises(BadConfig):
        Origins(store, {}).prewarm(jobs=jobs)


def test_room_is_for_all_together_and_each_content_once(tmp_path: Path) -> None:
    store = LocalStore(tmp_path / "root", Limits(max_bytes=20 * MIB, high_watermark=1.0, low_watermark=1.0))
    here = content(5 * MIB, seed=1)
    fill(store, {"here": here})
    shared = ("shared", 9 * MIB, digest_of(b"shared"))
    one, two, three = names(3)
    fits: dict[str, Listing | Exception | None] = {
        one: listing(one, shared, ("a", 2 * MIB, None), ("here", 5 * MIB, digest_of(here))),
        two: listing(two, shared, ("b", 2 * MIB, None)),
        three: NotFound("nothing there"),
    }
    origins = Origins(store, fits)
    assert [outcome.error is None for outcome in origins.prewarm(one, two, three).outcomes] == [True, True, False]

    origins = Origins(store, fits | {two: listing(two, shared, ("b", 12 * MIB, None))})
    with pytest.raises(NoSpace) as raised:
        origins.prewarm(one, two, three)
    assert raised.value.needed_bytes == 23 * MIB
    assert origins.brought == []


def test_room_is_for_what_was_broken_off(tmp_path: Path) -> None:
    """Of a file that is half here no more than the other half is needed, and a file that came whole is needed no more."""
    store = LocalStore(tmp_path / "root", Limits(max_bytes=30 * MIB, high_watermark=1.0, low_watermark=1.0))
    (uri,) = names(1)
    files = {"whole": content(9 * MIB, seed=1), "half": content(16 * MIB, seed=2)}
    ingest = store.ingest(RefKey(uri, "https://models:443"), wanted(files))
    whole, half = ingest.files
    write_chunks(whole, files["whole"])
    whole.complete(digest_of(files["whole"]), table_of(files["whole"]))
    write_chunks(half, files["half"], [0, 1])
    ingest.keep()
    origins = Origins(store, {uri: listing(uri, *((path, len(data), None) for path, data in files.items()))})

    assert origins.prewarm(uri).failed == ()
    assert origins.brought == [uri]


@pytest.mark.parametrize(
    ("uri", "paths", "is_archive"),
    [
        ("hf://o/m.zip", ["m.zip", "w"], False),
        ("hf://o/m.zip", ["m.zip"], False),
        ("s3://b/m.zip", ["a.zip", "w"], False),
        ("s3://b/m.zip", ["m.zip"], True),
        ("s3://b/m.zip#include=w*", ["m.zip"], True),
        ("s3://b/folder", ["m.tgz"], True),
        ("s3://b/m.zip#unpack=false", ["m.zip"], False),
    ],
)
def test_only_an_archive_has_files_that_nobody_knows(uri: str, paths: list[str], is_archive: bool) -> None:
    """Whatever the place is called: it is the scheme and what is there that tell."""
    found = files_at(MemorySource(dict.fromkeys(paths, b"data")), parse_uri(uri)[0], Cancellation())
    assert (None if is_archive else paths) == (found and [file.path for file in found.files])


def test_room_is_for_a_directory_that_is_called_an_archive_too(tmp_path: Path) -> None:
    model = tmp_path / "m.zip"
    model.mkdir()
    for name in "ab":
        (model / name).write_bytes(content(3 * MIB, seed=ord(name)))
    limits = Limits(max_bytes=5 * MIB, high_watermark=1.0, low_watermark=1.0)
    with (
        ModelCache(tmp_path / "root", config=Config(tmp_path, limits=limits)) as cache,
        pytest.raises(NoSpace, match="what is missing of these"),
    ):
        cache.prewarm([str(model)])


def test_where_the_origin_can_t_be_asked_an_older_version_decides(store: LocalStore) -> None:
    one, two = names(2)
    fill(store, {"name": b"older"}, uri=one)
    origins = Origins(store, {one: OriginUnreachable("no route"), two: OriginUnreachable("no route")})

    report = origins.prewarm(one, two)

    assert origins.brought == [one]
    assert [outcome.error is None for outcome in report.outcomes] == [True, False]


def test_a_cancelled_run_tells_what_is_here_and_what_is_not(store: LocalStore) -> None:
    cancel = Cancellation()
    origins = Origins(store, dict.fromkeys(names(4)))
    origins.during = lambda uri: cancel.cancel() if uri.endswith("1") else None

    report = origins.prewarm(*names(4), jobs=1, cancel=cancel)

    assert [type(outcome.error) for outcome in report.outcomes] == [type(None), Cancelled, Cancelled, Cancelled]
    assert report.cancelled
    assert origins.brought == names(2)


def test_a_defect_ends_the_run(store: LocalStore) -> None:
    cancel = Cancellation()
    origins = Origins(store, dict.fromkeys(names(2)))

    def break_down(uri: str) -> None:
        raise ZeroDivisionError

    origins.during = break_down
    with pytest.raises(ZeroDivisionError):
        origins.prewarm(*names(2), cancel=cancel)
    assert cancel.requested


def test_what_is_evicted_before_its_pin_is_brought_again(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    (uri,) = names(1)
    pin = LocalStore.pin
    evicted: list[object] = []

    def pin_late(self: LocalStore, manifest: Digest, *, holder: str) -> object:
        if not evicted:
            evicted.append(self.evict(manifest))
        return pin(self, manifest, holder=holder)

    monkeypatch.setattr(LocalStore, "pin", pin_late)
    origins = Origins(store, {uri: None})

    report = origins.prewarm(uri, pin_for="prewarm")

    assert origins.brought == [uri, uri]
    assert report.failed == ()
    assert [(lease.holder, lease.manifest) for lease in store.leases()] == [("prewarm", manifest_of({"name": uri.encode()}).digest)]


def test_a_place_that_is_named_twice_is_brought_once(store: LocalStore) -> None:
    origins = Origins(store, {"s3://models/a/": None, "s3a://models/b": None})

    report = origins.prewarm("s3://models/a/", "s3a://models/b", "s3://models/a", "s3://models/b", "s3://")

    assert [outcome.uri for outcome in report.outcomes] == ["s3://models/a", "s3://models/b", "s3://"]
    assert sorted(origins.brought) == ["s3://models/a/", "s3a://models/b"]


def test_fetched_behind_whoever_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "file").write_bytes(b"bytes")
    asked: list[object] = []
    with ModelCache(tmp_path / "root") as cache:
        ensure = cache.ensure

        def noting(uri: str, **arguments: object) -> Snapshot:
            asked.append(arguments["priority"])
            return ensure(uri, **arguments)  # type: ignore[arg-type]

        monkeypatch.setattr(cache, "ensure", noting)
        report = cache.prewarm([str(tmp_path / "model")])

        assert asked == [Priority.PREWARM]
        assert report.outcomes[0].snapshot is not None
        assert report.outcomes[0].snapshot.digest == cache.find(str(tmp_path / "model")).digest


def test_a_list_has_remarks_at_the_start_of_a_line_only() -> None:
    lines = ["\ufeff# models\r\n", "\n", "  s3://m/a#include=*.json \n", "\t# s3://m/b\n", "s3://m/c#d#\n"]

    assert list(read_list(lines)) == ["s3://m/a#include=*.json", "s3://m/c#d#"]
