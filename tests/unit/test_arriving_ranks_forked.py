"""A process that forks in the middle of a group's load: the child has no part in it."""

from __future__ import annotations

from pathlib import Path

from tests.unit.test_loader_programs import said_by

FORKED = """
import os, signal, sys, threading
from pathlib import Path
from unittest.mock import patch
import modelcache
from modelcache.arriving import opening
from modelcache.loader import loading
from modelcache.testing.fetching import small_chunks
from modelcache.testing.memory_source import MemorySource
from tests.unit import test_arriving_ranks as tests

opening.ARRIVING_EXTENT_BYTES, loading.AHEAD_EXTENTS = 2 * tests.CHUNK, 1
source, ended = MemorySource(tests.FILES), []

def stream(rank, cache):
    return modelcache.stream(tests.URI, cache=cache, shard=(rank, 2, tests.PLAN), group=f"forked-{os.getpid()}")

with small_chunks(tests.CHUNK), tests.ranks_of(Path(sys.argv[1]), source, 2) as ranks:
    gate = source.gate(tests.TWO, len(tests.FILES[tests.TWO]) - 1)
    other = threading.Thread(target=lambda: ended.append(dict(stream(1, ranks.caches[1]))))
    other.start()
    tensors = stream(0, ranks.caches[0])
    found = dict([next(tensors)])
    child = os.fork()
    if child == 0:
        signal.alarm(30)
        tensors.close()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    gate.open()
    found.update(tensors)
    other.join()
    for rank, loaded in enumerate([found, *ended]):
        tests.check(loaded, tests.in_file_order(ranks.caches[0]), rank, 2, tests.SHARDS)
print("forked")
"""


def test_a_fork_that_lets_go_of_a_rank_ends_nothing(tmp_path: Path) -> None:
    assert said_by(FORKED, str(tmp_path)) == "forked\n"
