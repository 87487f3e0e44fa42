"""What commands ask, whoever answers: the store itself (`ModelCache`) or the node's agent (`modelcache.agent.remote.RemoteCache`)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from modelcache.abc.snapshot import Ref, Snapshot
    from modelcache.abc.store import Evicted, Lease, SnapshotInfo, Usage, VerifyReport
    from modelcache.fetch.progress import Progress
    from modelcache.manifest import Manifest
    from modelcache.patience import Cancellation
    from modelcache.prewarm import ManyProgress, PrewarmReport
    from modelcache.refresh import Refresh


class Cache(Protocol):
    """The calls of `ModelCache` that go through an agent where there is one; each as `ModelCache` has it."""

    @property
    def root(self) -> Path: ...

    def ensure(
        self, uri: str, *, refresh: Refresh, progress: Callable[[Progress], None] | None, cancel: Cancellation | None
    ) -> Snapshot: ...

    def prewarm(
        self,
        uris: Sequence[str],
        *,
        jobs: int,
        refresh: Refresh,
        pin_for: str | None,
        progress: ManyProgress | None,
        cancel: Cancellation | None,
    ) -> PrewarmReport: ...

    def list(self) -> Sequence[SnapshotInfo]: ...

    def find(self, name: str) -> SnapshotInfo: ...

    def manifest(self, name: str) -> Manifest: ...

    def refs(self, name: str) -> Sequence[Ref]: ...

    def verified_at_s(self, name: str) -> float | None: ...

    def usage(self) -> Usage: ...

    def verify(self, name: str | None, *, progress: Callable[[int, int], None] | None, cancel: Cancellation | None) -> VerifyReport: ...

    def pin(self, name: str, *, holder: str) -> Lease: ...

    def unpin(self, name: str, *, holder: str | None) -> int: ...

    def evict(self, name: str, *, dry_run: bool) -> Evicted: ...
