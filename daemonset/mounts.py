"""The mounts of this node that show snapshots, as this process sees them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from daemonset.mountinfo import Candidate, candidates, parse, same_file_system
from modelcache.abc.store import Lease, LeaseKind
from modelcache.digest import Digest, sha256
from modelcache.errors import DamagedRecord

MOUNTS = "mount:/"
"""In front of the holder of a lease that the agent takes for what is mounted without one, and ends when it is unmounted."""
TABLE = Path("/proc/self/mountinfo")


@dataclass(frozen=True, slots=True)
class SnapshotMount:
    """A snapshot that is mounted, and where."""

    digest: Digest
    point: Path

    @property
    def holder(self) -> str:
        """Of the lease of a mount that nobody else has one for."""
        return f"{MOUNTS}{str(self.point).removeprefix('/')}"


class Mounts:
    """Looks at the table of mounts. Safe for many threads."""

    def __init__(self, root: Path, pods: Path | None = None, table: Path = TABLE) -> None:
        """
        Args:
            root: the store's directory.
            pods: kubelet's directory of pods, where at least the agent's own has a mount; None: there is no kubelet.
        """
        self._snapshots = root / "snapshots"
        self._pods = pods
        self._table = table

    def look(self) -> Sequence[SnapshotMount]:
        """Every mount of a snapshot of this store.

        Raises:
            DamagedRecord: mounts can't be seen, so nobody knows what is in use.
        """
        try:
            mounts = parse(self._table.read_bytes())
        except (OSError, ValueError) as error:
            raise self._unseen(f"the table of mounts can't be read ({error})") from error
        if not mounts:
            raise self._unseen("the table of mounts is empty")
        if self._pods is not None and not any(PurePosixPath(self._pods) in mount.point.parents for mount in mounts):
            raise self._unseen(f"no mount is seen below `{self._pods}`", "mount kubelet's pods into the agent, `HostToContainer`")
        try:
            found = [each for each in candidates(mounts) if self._shows(each)]
        except OSError as error:
            raise self._unseen(f"the store's snapshots can't be looked at ({error})") from error
        return [SnapshotMount(sha256(each.digest), Path(each.mount.point)) for each in found]

    def held(self) -> Sequence[Lease]:
        """`look` as holds, for a store to heed. Raises DamagedRecord."""
        return [Lease("mount", each.digest, each.holder, LeaseKind.PROCESS, 0.0, None) for each in self.look()]

    def _shows(self, candidate: Candidate) -> bool:
        """By device and inode; where what is mounted can't be looked at, by device and name."""
        try:
            own = os.stat(self._snapshots / candidate.digest)
        except FileNotFoundError:
            return False
        if candidate.whole and not candidate.covered:
            try:
                return os.path.samestat(os.stat(candidate.mount.point), own)
            except OSError:
                pass  # a place that this process may not enter
        return candidate.mount.device == f"{os.major(own.st_dev)}:{os.minor(own.st_dev)}"

    def _unseen(self, why: str, hint: str | None = None) -> DamagedRecord:
        return DamagedRecord(f"{why}, so nothing is removed", address=str(self._table), hint=hint)


def share_file_system(one: Path, other: Path, table: Path = TABLE) -> bool:
    """Whether two directories are on one file system. True where that can't be seen: who is careful takes it for so."""
    try:
        return same_file_system(parse(table.read_bytes()), *(PurePosixPath(os.path.realpath(each)) for each in (one, other)))
    except (OSError, ValueError):
        return True
