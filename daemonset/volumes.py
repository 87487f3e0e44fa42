"""Leases of volumes: kept while the volume is there, whatever time they have, and ended when it is gone."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from daemonset.mounts import MOUNTS, Mounts, SnapshotMount
from modelcache.abc.store import Lease, LeaseKind
from modelcache.agent.volumes import Volume
from modelcache.cache import ModelCache
from modelcache.errors import DamagedRecord, ModelCacheError, NotCached

logger = logging.getLogger(__name__)
TTL_S = 86_400.0
"""Of a kept lease: so long an agent may be away before only mounts tell what is in use."""
INTERVAL_S = 30.0
GRACE_S = 600.0
"""From the lease to the mount: kubelet tries a mount again after up to 2 minutes, and a pod's other volumes may come first."""


class VolumeKeeper:
    """Looks at its beginning and then every INTERVAL_S. A context manager."""

    def __init__(self, cache: ModelCache, mounts: Mounts, *, grace_s: float = GRACE_S) -> None:
        self._cache = cache
        self._mounts = mounts
        self._grace_s = grace_s
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="agent volumes", daemon=True)

    def __enter__(self) -> Self:
        self._look_and_tell()
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._ended.set()
        self._thread.join()

    def look(self) -> None:
        """Keep the leases of volumes that are there, end those of volumes that are gone, and lease what is mounted without one.

        Raises:
            DamagedRecord: mounts can't be seen. Every lease is kept, then.
            StoreError.
        """
        try:
            mounted = self._mounts.look()
        except DamagedRecord:
            for lease in self._of_volumes():
                self._keep_one(lease)
            raise
        for lease in self._of_volumes():
            if self._is_there(lease, mounted):
                self._keep_one(lease)
            elif self._cache.release(lease.id):
                logger.info("released %s: `%s` is gone", lease.id, lease.holder)
        held = {lease.manifest for lease in self._cache.leases()}
        for mount in mounted:
            if mount.digest not in held:
                self._lease(mount)

    def _of_volumes(self) -> list[Lease]:
        return [lease for lease in self._cache.leases() if lease.kind is LeaseKind.LEASE and _is_volume_s(lease)]

    def _is_there(self, lease: Lease, mounted: Sequence[SnapshotMount]) -> bool:
        volume = Volume.of(lease.holder)
        if volume is None:
            return any(each.digest == lease.manifest and each.holder == lease.holder for each in mounted)
        young = time.time() - lease.created_at_s < self._grace_s
        return young or any(each.digest == lease.manifest for each in mounted) or _exists(volume.target)

    def _keep_one(self, lease: Lease) -> None:
        if lease.expires_at_s is None or lease.expires_at_s - time.time() > TTL_S / 2:
            return
        try:
            self._cache.renew(lease.id, ttl_s=TTL_S)
        except NotCached:
            logger.info("%s was released meanwhile", lease.id)

    def _lease(self, mount: SnapshotMount) -> None:
        try:
            lease = self._cache.lease(str(mount.digest), holder=mount.holder, ttl_s=TTL_S)
        except NotCached:
            logger.warning("`%s` shows a snapshot that is not whole: %s", mount.point, mount.digest)
        else:
            logger.warning("%s: `%s` was mounted without a lease", lease.id, mount.point)

    def _keep(self) -> None:
        while not self._ended.wait(INTERVAL_S):
            self._look_and_tell()

    def _look_and_tell(self) -> None:
        try:
            self.look()
        except ModelCacheError as error:
            logger.warning("leases of volumes are kept as they are: %s", error)


def _exists(path: Path) -> bool:
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return True  # nobody knows
    return True


def _is_volume_s(lease: Lease) -> bool:
    return Volume.of(lease.holder) is not None or lease.holder.startswith(MOUNTS)
