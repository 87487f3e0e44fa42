"""Grants end, origins refuse and fall silent: what a caller gets then."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from modelcache.abc.source import Origin
from modelcache.errors import AccessDenied, AccessUnproved, OriginUnreachable
from modelcache.ranges import ByteRange
from modelcache.testing.guarded_source import GuardedSource
from modelcache.testing.memory_source import MemorySource
from modelcache.testing.store_filling import manifest_of
from tests.unit.permission.yards import MODEL, READABLE, TTL_S, WEIGHTS, Yard, everything, nothing


@pytest.mark.parametrize("passed_s", [TTL_S, -1.0])
def test_a_grant_that_ended_is_proved_again(yard: Yard, reader: GuardedSource, passed_s: float) -> None:
    yard.ensure("a/reader", reader)
    reader.opened.clear()
    yard.clock.pass_(passed_s)
    yard.ensure("a/reader", reader)
    assert sorted(reader.opened) == [(path, ByteRange(0, 1)) for path in READABLE]


def test_a_refusal_ends_what_was_granted(yard: Yard, origin: MemorySource, reader: GuardedSource) -> None:
    rights = {"a/reader": everything, "a/other": everything}
    views = {who: GuardedSource(origin, lambda path, who=who: rights[who](path)) for who in rights}  # type: ignore[misc]
    for who in rights:
        yard.ensure(who, views[who])
    rights["a/reader"] = nothing
    yard.ensure("a/reader", views["a/reader"])  # its grant counts still
    with pytest.raises(AccessDenied):
        yard.ensure("a/reader", views["a/reader"], again=True)
    assert [yard.granted(who) for who in rights] == [0, 1]
    with pytest.raises(AccessDenied):
        yard.ensure("a/reader", views["a/reader"])


def test_an_outage_shows_the_last_version_to_who_proved_it(yard: Yard, origin: MemorySource, reader: GuardedSource) -> None:
    fresh = yard.ensure("a/reader", reader)
    assert not fresh.snapshot.stale
    reader.reachable = False
    stale = yard.ensure("a/reader", reader)
    assert (stale.snapshot, stale.progress.stale, stale.progress.hit) == (replace(fresh.snapshot, stale=True), True, True)
    assert isinstance(stale.unavailable, OriginUnreachable)
    yard.clock.pass_(TTL_S)
    with pytest.raises(AccessUnproved):
        yard.ensure("a/reader", reader)


def test_an_outage_tells_others_the_same_whether_it_is_here_or_not(yard: Yard, origin: MemorySource, reader: GuardedSource) -> None:
    dark = GuardedSource(origin, everything)
    dark.reachable = False

    def told() -> dict[str, object]:
        with pytest.raises(AccessUnproved) as caught:
            yard.ensure("b/reader", dark)
        assert caught.value.retryable
        return caught.value.as_dict()

    before = told()
    yard.ensure("a/reader", reader)
    assert told() == before


def test_an_outage_shows_each_caller_its_own_last_version(yard: Yard, origin: MemorySource, reader: GuardedSource) -> None:
    yard.ensure("a/reader", reader)
    origin.put("config.json", b"[]")
    newer = GuardedSource(origin, everything)
    yard.ensure("b/reader", newer)
    reader.reachable = newer.reachable = False
    assert yard.content(yard.ensure("a/reader", reader)) == MODEL
    assert yard.content(yard.ensure("b/reader", newer)) == MODEL | {"config.json": b"[]"}


def test_an_owner_s_outage_shows_the_last_version(yard: Yard, origin: MemorySource) -> None:
    yard.own(origin)

    def unreachable() -> None:
        raise OriginUnreachable("nobody answers")

    origin.on_list = unreachable
    found = yard.own(origin)
    assert found.snapshot.stale
    yard.store.evict(manifest_of(MODEL).digest)
    with pytest.raises(OriginUnreachable):
        yard.own(origin)


def test_a_proof_that_fails_ends_the_others(yard: Yard, origin: MemorySource, reader: GuardedSource) -> None:
    """And leaves no body open, and no thread behind."""
    yard.ensure("a/reader", reader)
    gate = origin.gate(WEIGHTS, 0)
    view = GuardedSource(origin, _refused_once(gate.await_readers))
    with pytest.raises(AccessDenied):
        yard.ensure("b/reader", view)
    assert origin.open_bodies == 0
    assert isinstance(view.origin, Origin)


def _refused_once(wait: Callable[[], None]) -> Callable[[str], bool]:
    def may_read(path: str) -> bool:
        if path == "other.safetensors":
            wait()
            return False
        return True

    return may_read
