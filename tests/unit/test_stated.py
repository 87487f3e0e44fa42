"""What a listing states of a file holds for bytes that somebody else brought, too."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from modelcache.abc.grants import Holder, Trust
from modelcache.abc.ingest import Route
from modelcache.digest import Digest
from modelcache.ensure import Ensure, Ensured
from modelcache.errors import BodyCut, DigestMismatch
from modelcache.fetch.plan import Priority
from modelcache.patience import Cancellation
from modelcache.permission import CallersAdmission
from modelcache.sources.witnessed import WitnessedSource
from modelcache.store.store import LocalStore
from modelcache.testing.fetching import place, running_engine, small_chunks
from modelcache.testing.memory_source import MemorySource, State, state_nothing
from modelcache.testing.memory_store import MemoryStore
from modelcache.testing.store_filling import content, digest_of
from modelcache.testing.store_fixtures import NO_LIMITS

CHUNK = 4096
FILES = {"a": content(3 * CHUNK, 1), "z": content(3 * CHUNK, 2)}
TRUST = Trust(grant_ttl_s=1000.0, origins=(), proof_requests=3)
WRONG = digest_of(b"something else")


@pytest.fixture(params=["memory", "local"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[MemoryStore | LocalStore]:
    with small_chunks(CHUNK):
        if request.param == "memory":
            yield MemoryStore()
        else:
            with closing(LocalStore(tmp_path / "root", NO_LIMITS)) as store:
                yield store


def ensured(store: MemoryStore | LocalStore, who: str, source: MemorySource, include: tuple[str, ...], digest: Digest | None) -> Ensured:
    """By one request at a time, so in the order of names."""
    uri = replace(place(), include=include, digest=digest)
    holder = Holder(who, "default", store.grants.mac(who.encode()))
    admission = CallersAdmission(store.grants, TRUST, holder, WitnessedSource(source, source.origin), uri, again=False)
    with running_engine(1) as engine:
        ensure = Ensure(store, engine, admission.source, uri, priority=Priority.WAITING, route=Route.BUFFERED, admission=admission)
        return ensure.run(Cancellation())


def origin(state: State = state_nothing) -> MemorySource:
    return MemorySource(FILES, state=state)


def interrupted(store: MemoryStore | LocalStore) -> MemorySource:
    """An origin that a pull of `a` and `z` has ended at with `a` complete."""
    source = origin()
    source.cut("z", CHUNK)
    with pytest.raises(BodyCut):
        ensured(store, "team-a", source, (), None)
    assert source.books.bytes["a"] == len(FILES["a"])
    return source


@pytest.mark.parametrize("by", ["uri", "origin"])
def test_what_an_ended_pull_completed_is_compared_with_what_is_stated_now(store: MemoryStore | LocalStore, by: str) -> None:
    source = interrupted(store)
    stating = source if by == "uri" else origin(lambda data: (WRONG,))
    for _ in range(2):
        with pytest.raises(DigestMismatch) as caught:
            ensured(store, "team-b", stating, ("a",), WRONG if by == "uri" else None)
        assert (caught.value.expected, caught.value.got) == (str(WRONG), str(digest_of(FILES["a"])))
    assert store.list() == []
    assert ensured(store, "team-a", source, (), None).progress.bytes_total == 6 * CHUNK
    assert source.books.bytes["a"] <= len(FILES["a"]) + 4  # the first one's bytes stayed: read for proof alone


def test_the_right_digest_takes_what_is_here(store: MemoryStore | LocalStore) -> None:
    source = interrupted(store)
    ensured(store, "team-b", source, ("a",), digest_of(FILES["a"]))
    assert source.books.bytes["a"] == len(FILES["a"]) + 1
    assert len(store.list()) == 1
