"""Claims of several processes on one store, as several objects on one root have them."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from modelcache.store.claims import Claims
from modelcache.store.layout import Layout
from modelcache.store.store import LocalStore
from modelcache.testing.store_fixtures import NO_LIMITS

ROUNDS = 20


def test_of_those_who_want_the_same_at_the_same_instant_one_gets_all_of_it(tmp_path: Path) -> None:
    LocalStore(tmp_path, NO_LIMITS).close()
    identities = [f"file {number}" for number in range(100)]
    with ThreadPoolExecutor(3) as threads:
        for _ in range(ROUNDS):
            others = [Claims(Layout(tmp_path)) for _ in range(3)]
            begin = threading.Barrier(3)

            def take(claims: Claims, begin: threading.Barrier = begin) -> int:
                begin.wait(30)
                return len(claims.take(identities, "ingest"))

            assert sorted(threads.map(take, others)) == [0, 0, len(identities)]
            for claims in others:
                claims.drop("ingest")
