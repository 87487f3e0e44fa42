"""`ours.py URI`: the public `ModelCache.ensure` into the store that MODELCACHE_ROOT names; settings come from the environment.

Prints what had to be read back from disk to be hashed, which the public face doesn't show.
"""

from __future__ import annotations

import json
import sys

from modelcache.cache import ModelCache
from modelcache.fetch.engine import FetchEngine
from modelcache.fetch.fetch import Fetch
from modelcache.fetch.request import FetchRequest


def main() -> None:
    fetches: list[Fetch] = []
    start = FetchEngine.start

    def remember(engine: FetchEngine, request: FetchRequest) -> Fetch:
        fetches.append(start(engine, request))
        return fetches[-1]

    setattr(FetchEngine, "start", remember)  # noqa: B010 - mypy takes the plain assignment for a mistake
    with ModelCache() as cache:
        cache.ensure(sys.argv[1])
    print(json.dumps({"read_back_bytes": sum(fetch.read_back_bytes for fetch in fetches)}))


if __name__ == "__main__":
    main()
