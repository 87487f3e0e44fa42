"""Many snapshots held at once, without an open file for each."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

from modelcache.abc.snapshot import Snapshot
from modelcache.abc.store import Store
from modelcache.digest import Digest
from modelcache.errors import NotCached

PROCESS_HOLDS = 128
"""Snapshots held by this process, which costs an open file each (usual limit: 1024)."""
LEASE_S = 3600.0
"""Of those beyond: they are left behind for this long if the process is killed."""
Renew = Callable[[], None]


@contextmanager
def held_all(
    store: Store, manifests: Sequence[Digest], holder: str, *, clock: Callable[[], float] = time.monotonic
) -> Iterator[tuple[dict[Digest, Snapshot], Renew]]:
    """Hold snapshots for the block; call what comes with them now and then, at least once in half of `LEASE_S`.

    Raises:
        NotCached: one is gone.
    """
    held: dict[Digest, Snapshot] = {}
    leases: list[str] = []
    with ExitStack() as stack:
        for manifest in dict.fromkeys(manifests):
            if len(held) < PROCESS_HOLDS:
                held[manifest] = stack.enter_context(store.hold(manifest, holder=holder))
                continue
            lease = store.lease(manifest, holder=holder, ttl_s=LEASE_S)
            stack.callback(store.release, lease.id)
            leases.append(lease.id)
            snapshot = store.snapshot(manifest)
            if snapshot is None:
                raise NotCached(f"there is no snapshot `{manifest}`")
            held[manifest] = snapshot
        renewed_s = [clock()]

        def renew() -> None:
            if leases and clock() - renewed_s[0] >= LEASE_S / 4:
                renewed_s[0] = clock()
                for lease_id in leases:
                    store.renew(lease_id, ttl_s=LEASE_S)

        yield held, renew
