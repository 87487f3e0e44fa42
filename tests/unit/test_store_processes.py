"""Two processes and one store: who lives, who was killed, and who goes on."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from modelcache.abc.store import LeaseKind
from modelcache.chunks import CHUNK_BYTES
from modelcache.errors import InUse
from modelcache.store.store import LocalStore
from modelcache.testing.store_filling import chunk_of, complete_all, content, fill, manifest_of, mark_of, ref_of, wanted
from modelcache.testing.store_fixtures import NO_LIMITS

FILES = {"first": content(2 * CHUNK_BYTES, seed=1), "second": content(2 * CHUNK_BYTES + 1, seed=2), "small": b"small"}
OTHER = {"third": content(2 * CHUNK_BYTES, seed=3)}
BEGIN = """
import sys
from contextlib import ExitStack
from pathlib import Path
from modelcache.store.store import LocalStore
from modelcache.testing.store_filling import *
from modelcache.testing.store_fixtures import NO_LIMITS
from modelcache.chunks import CHUNK_BYTES
FILES = {"first": content(2 * CHUNK_BYTES, seed=1), "second": content(2 * CHUNK_BYTES + 1, seed=2), "small": b"small"}
OTHER = {"third": content(2 * CHUNK_BYTES, seed=3)}
store = LocalStore(Path(sys.argv[1]), NO_LIMITS)
"""
HOLD = """
with store.hold(manifest_of(FILES).digest, holder="child"):
    print("ready", flush=True)
    input()
"""
FETCH = """
ingest = store.ingest(ref_of(FILES).key, wanted(FILES))
for file, chunks in zip(ingest.files, ([0, 1], [1], [0])):
    write_chunks(file, FILES[file.path], chunks)
ingest.files[0].complete(digest_of(FILES["first"]), table_of(FILES["first"]))
print("ready", flush=True)
input()
"""

FORK = """
import os
with ExitStack() as held:
    held.enter_context(store.hold(manifest_of(FILES).digest, holder="parent"))
    ingest = store.ingest(ref_of(OTHER, uri="s3://b/other").key, wanted(OTHER))
    write_chunks(ingest.files[0], OTHER["third"], [0])
    if os.fork():
        os.wait()
    held.close()  # as what unwinds in a child does
    ingest.keep()
    print("ready", flush=True)
    sys.stdin.read()
"""

Start = Callable[[str], subprocess.Popen[str]]


@contextmanager
def child(root: Path, code: str) -> Iterator[subprocess.Popen[str]]:
    """A process that has done `code` up to its `input()`; killed at the end."""
    command = [sys.executable, "-c", BEGIN + code, str(root)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            yield process
        finally:
            process.kill()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    with ExitStack() as stack:
        yield lambda code: stack.enter_context(child(tmp_path / "root", code))


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path / "root", NO_LIMITS)


def kill(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait(60)


def test_a_hold_lasts_as_long_as_its_process(store: LocalStore, start: Start) -> None:
    snapshot = fill(store, FILES)
    process = start(HOLD)
    assert [(lease.kind, lease.holder) for lease in store.leases()] == [(LeaseKind.PROCESS, "child")]
    with pytest.raises(InUse, match="child"):
        store.evict(snapshot.digest)
    assert store.collect(need_bytes=1 << 60).evicted == ()
    kill(process)
    assert store.leases() == []
    store.collect()
    assert list((store.root / "leases").iterdir()) == []
    store.evict(snapshot.digest)


def test_a_child_ends_nothing_of_its_parent_and_keeps_nothing_up(store: LocalStore, start: Start) -> None:
    fill(store, FILES)
    parent = start(FORK)  # its child lives until the test ends, and has left the block
    assert [lease.holder for lease in store.leases()] == ["parent"]
    with pytest.raises(InUse):
        store.evict(manifest_of(FILES).digest)
    key = ref_of(OTHER, uri="s3://b/other").key
    beside = store.ingest(key, wanted(OTHER))
    assert [file.claimed for file in beside.files] == [False]
    beside.discard()

    kill(parent)

    assert store.leases() == []
    after = store.ingest(key, wanted(OTHER))
    assert [(file.claimed, list(file.hints())) for file in after.files] == [(True, [0])]
    after.discard()


def test_the_ingest_of_a_killed_process_is_gone_on_with(store: LocalStore, start: Start) -> None:
    process = start(FETCH)
    (path,) = (store.root / "ingest").iterdir()
    other = store.ingest(ref_of(FILES).key, wanted(FILES))
    assert other.id != path.name
    assert [dict(file.hints()) for file in other.files] == [{}, {}, {}]
    other.discard()
    kill(process)
    ingest = store.ingest(ref_of(FILES).key, wanted(FILES))
    first, second, small = ingest.files
    assert ingest.id == path.name
    assert first.sha256 == manifest_of(FILES).files[0].sha256
    assert dict(second.hints()) == {1: mark_of(chunk_of(FILES["second"], 1))}
    assert dict(small.hints()) == {0: mark_of(b"small")}
    assert ingest.reserved_bytes == len(FILES["second"]) + len(FILES["small"])
    complete_all(ingest, FILES)
    snapshot = ingest.publish(manifest_of(FILES), ref_of(FILES))
    assert {path: (snapshot.path / path).read_bytes() for path in FILES} == FILES
    assert list((store.root / "ingest").iterdir()) == []


def test_collect_spares_the_ingest_of_a_living_process(store: LocalStore, start: Start, tmp_path: Path) -> None:
    process = start(FETCH)
    later = LocalStore(tmp_path / "root", NO_LIMITS, clock=lambda: 4_000_000_000.0)
    assert later.collect().ingests_removed == 0
    kill(process)
    assert later.collect(dry_run=True).ingests_removed == 1
    report = later.collect()
    assert (report.ingests_removed, report.blobs_removed) == (1, 1)
    assert report.freed_bytes >= sum(map(len, FILES.values()))
    assert later.usage().ingest_bytes == later.usage().blobs_bytes == later.usage().trash_bytes == 0


def test_what_a_process_publishes_another_one_sees(store: LocalStore, start: Start) -> None:
    end = "complete_all(ingest, FILES); ingest.publish(manifest_of(FILES), ref_of(FILES)); print('published', flush=True); input()"
    process = start(FETCH + end)
    assert (store.refs(), store.list()) == ([], [])
    assert store.has_blob(manifest_of(FILES).files[0].sha256)
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write("\n")
    process.stdin.flush()
    assert process.stdout.readline() == "published\n"
    assert store.refs() == [ref_of(FILES)]
    assert store.snapshot(manifest_of(FILES).digest) is not None
