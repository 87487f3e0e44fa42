"""`hits.py URI SECONDS`: how long `ModelCache.ensure` of a model takes that is in the store MODELCACHE_ROOT, as JSON in ns.

Imports are outside of every number. `hits` stops after SECONDS, or `MOST` of them.
"""

from __future__ import annotations

import json
import sys
import time

from modelcache.cache import ModelCache

MOST = 1000


def main() -> None:
    uri, limit_s = sys.argv[1], float(sys.argv[2])
    started_ns = time.perf_counter_ns()
    with ModelCache() as cache:
        opened_ns = time.perf_counter_ns() - started_ns
        first_ns = hit_ns(cache, uri)
        hits_ns: list[int] = []
        deadline_s = time.monotonic() + limit_s
        while len(hits_ns) < MOST and time.monotonic() < deadline_s:
            hits_ns.append(hit_ns(cache, uri))
    print(json.dumps({"open_ns": opened_ns, "first_ns": first_ns, "hits_ns": hits_ns}))


def hit_ns(cache: ModelCache, uri: str) -> int:
    started_ns = time.perf_counter_ns()
    cache.ensure(uri)
    return time.perf_counter_ns() - started_ns


if __name__ == "__main__":
    main()
