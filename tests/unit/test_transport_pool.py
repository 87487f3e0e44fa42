"""Kept connections: bounded in number and age, and never one whose peer has said anything since."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from modelcache.transport.dial import Route
from modelcache.transport.pool import FRESH_S, Pool
from modelcache.transport.wire import After, PlainWire

HERE = Route("http", "here", 80, None)
THERE = Route("http", "there", 80, None)


class Pairs:
    """Connected wires and their peers."""

    def __init__(self) -> None:
        self.peers: list[socket.socket] = []

    def wire(self) -> PlainWire:
        ours, peer = socket.socketpair()
        self.peers.append(peer)
        return PlainWire(ours, 5.0)


@pytest.fixture
def pairs() -> Iterator[Pairs]:
    made = Pairs()
    yield made
    for peer in made.peers:
        peer.close()


def _is_closed(peer: socket.socket) -> bool:
    peer.settimeout(5)
    return peer.recv(1) == b""


def test_the_newest_connection_of_a_route_is_used_first(pairs: Pairs) -> None:
    pool = Pool()
    first, second = pairs.wire(), pairs.wire()
    pool.give(HERE, first)
    pool.give(HERE, second)
    assert pool.take(THERE) is None
    assert pool.take(HERE) is second
    assert pool.take(HERE) is first
    assert pool.take(HERE) is None
    first.close()
    second.close()


def test_only_a_connection_that_was_just_seen_silent_is_not_looked_at(pairs: Pairs) -> None:
    now_s = 100.0
    pool = Pool(now_s=lambda: now_s)
    unseen, stale, fresh = pairs.wire(), pairs.wire(), pairs.wire()
    for peer in pairs.peers:
        peer.sendall(b"x")
    pool.give(HERE, unseen)
    pool.give(HERE, stale, silent=True)
    now_s += 2 * FRESH_S
    pool.give(HERE, fresh, silent=True)
    assert pool.take(HERE) is fresh
    assert pool.take(HERE) is None
    assert fresh.after(0) is After.MORE
    fresh.close()


def test_a_connection_whose_peer_closed_or_spoke_is_dropped(pairs: Pairs) -> None:
    pool = Pool()
    for said in (None, b"x"):
        pool.give(HERE, pairs.wire())
        if said is None:
            pairs.peers[-1].close()
        else:
            pairs.peers[-1].sendall(said)
        assert pool.take(HERE) is None


def test_idle_connections_are_bounded_in_number(pairs: Pairs) -> None:
    pool = Pool(max_idle=2)
    for route in (HERE, THERE, HERE):
        pool.give(route, pairs.wire())
    assert _is_closed(pairs.peers[0])
    pool.close()
    assert all(_is_closed(peer) for peer in pairs.peers)


def test_idle_connections_are_bounded_in_age(pairs: Pairs) -> None:
    clock = [1000.0]
    pool = Pool(max_age_s=30, now_s=lambda: clock[0])
    pool.give(HERE, pairs.wire())
    clock[0] += 20
    pool.give(HERE, pairs.wire())
    clock[0] += 20
    pool.give(THERE, pairs.wire())
    assert _is_closed(pairs.peers[0])
    clock[0] += 20
    assert pool.take(HERE) is None
    assert _is_closed(pairs.peers[1])
    pool.close()


def test_a_closed_pool_keeps_nothing(pairs: Pairs) -> None:
    pool = Pool()
    pool.close()
    pool.give(HERE, pairs.wire())
    assert _is_closed(pairs.peers[0])


def test_a_wire_that_was_shut_or_closed_takes_more_of_it(pairs: Pairs) -> None:
    wire = pairs.wire()
    wire.shut()
    assert wire.after(0) is After.CLOSED
    wire.close()
    wire.shut()
    wire.close()
