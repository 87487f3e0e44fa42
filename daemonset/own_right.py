"""What the node itself may read, for caches without a credential: as of a pod, its right is proved by reading."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from modelcache.abc.snapshot import Snapshot
from modelcache.abc.source import Listing, Source
from modelcache.cache import ModelCache
from modelcache.fetch.progress import Progress
from modelcache.patience import Cancellation
from modelcache.permission import read_each
from modelcache.refresh import Refresh


class Ask(Protocol):
    """`ModelCache.ensure`, with what is asked already given."""

    def __call__(self, *, refresh: Refresh, progress: Callable[[Progress], None]) -> Snapshot: ...


def brought_by_node(cache: ModelCache, uri: str, ask: Ask, tell: Callable[[Progress], None], cancel: Cancellation) -> Snapshot:
    """Have a model here that is given to others in the node's name. Of what tenants brought under its URI nothing counts
    before the origin, which is asked, has given the node a byte of each file, too: a listing proves nothing.

    Args:
        ask: an ensure of `uri` without a caller.

    Raises:
        What `ModelCache.ensure` raises.
    """
    last: list[Progress] = []

    def look(progress: Progress) -> None:
        last[:] = [progress]
        tell(progress)

    def prove(listing: Listing, source: Source) -> None:
        files = [file for file in listing.files if file.size_bytes]
        if files:
            read_each(source, files, min(cache.config.trust.proof_requests, len(files)), cancel)

    snapshot = ask(refresh=Refresh.ALWAYS, progress=look)
    if not last or last[-1].hit or last[-1].bytes_reused:  # what the node's own fetch read is proved
        cache.at_origin(uri, prove, cancel=cancel)
    return snapshot
