"""Leases on disk: leases until a time, pins, and holds that end with their process."""

from __future__ import annotations

import fcntl
import os
import re
import secrets
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import NoneType
from typing import Any

from modelcache.abc.store import Lease, LeaseKind, clean, expect_lease_id
from modelcache.digest import Digest, sha256
from modelcache.errors import BadConfig, DamagedRecord, ModelCacheError, NotCached
from modelcache.store import durable, records
from modelcache.store.forked import is_of_this_process
from modelcache.store.layout import Layout, half_digest
from modelcache.store.lock import release, try_lock
from modelcache.store.records import field
from modelcache.store.root import Root

HeldElsewhere = Callable[[], Sequence[Lease]]
"""Holds that no lease of the store tells of, such as mounts. Raises DamagedRecord: they can't be told, so nothing is removed."""
_ID = re.compile(r"[a-z]+-[0-9a-f]{32}")


class ProcessHold:
    """A lease whose file its owner keeps locked: the kernel drops the lock with the process, whatever ended it."""

    def __init__(self, path: Path, fd: int) -> None:
        self._path = path
        self._fd = fd
        is_of_this_process(self)

    def end(self) -> None:
        """Nothing in a child of the process that holds."""
        fd, self._fd = self._fd, -1
        if fd < 0:
            return
        try:
            records.remove(self._path)
        finally:
            release(fd)
            os.close(fd)

    def forked(self) -> None:
        """As `Inherited.forked`."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


class Leases:
    """The leases of a store. Writing is done under the shared store lock, `sweep` under the exclusive one."""

    def __init__(self, root: Root, elsewhere: HeldElsewhere = tuple) -> None:
        self._root = root
        self._layout = root.layout
        self._elsewhere = elsewhere

    # -- looking --------------------------------------------------------------------------------------------------

    def living(self) -> list[Lease]:
        """Leases in force; those that can't be read are left out: for showing, not for deciding."""
        return self._living()[0]

    def deciding(self) -> list[Lease]:
        """Leases in force, and what is held elsewhere.

        Raises:
            DamagedRecord: one can't be read, so nobody knows what it holds, and nothing may be removed.
        """
        found, damaged = self._living()
        found += self._elsewhere()
        if damaged:
            raise DamagedRecord(
                f"a lease can't be read, so nothing is removed ({damaged[0].message})",
                address=damaged[0].address,
                hint="if nothing uses the store, remove this file",
            ) from damaged[0]
        return found

    def holding(self) -> tuple[list[Lease], DamagedRecord | None]:
        """As `deciding`, of what can be read, and why that may not be all."""
        found, damaged = self._living()
        try:
            return [*found, *self._elsewhere()], damaged[0] if damaged else None
        except DamagedRecord as error:
            return found, error

    def damaged(self) -> list[DamagedRecord]:
        return self._living()[1]

    def get(self, lease_id: str) -> Lease | None:
        """A lease in force, or None. Raises DamagedRecord."""
        if not _ID.fullmatch(lease_id):
            return None
        path = self._layout.lease(lease_id)
        try:
            lease = decode_lease(records.read(path), str(path))
        except FileNotFoundError:
            return None
        return lease if self._in_force(lease, path) else None

    # -- writing --------------------------------------------------------------------------------------------------

    def put_lease(self, manifest: Digest, holder: str, ttl_s: float, lease_id: str) -> Lease:
        """Raises BadConfig: an id that no lease has, or one that another has."""
        expect_lease_id(lease_id)
        if self.get(lease_id) is not None:
            raise BadConfig("a lease of this id is in force", got=lease_id)
        now = self._root.clock()
        return self._put(Lease(lease_id, manifest, clean(holder), LeaseKind.LEASE, now, now + ttl_s))

    def put_pin(self, manifest: Digest, holder: str) -> Lease:
        """The pin of this holder, made if there is none: its id is a digest of both."""
        pin_id = f"pin-{half_digest(f'{manifest.hex} {clean(holder)}')}"
        known = self.get(pin_id)
        return known or self._put(Lease(pin_id, manifest, clean(holder), LeaseKind.PIN, self._root.clock(), None))

    def put_process(self, manifest: Digest, holder: str) -> ProcessHold:
        """Hold for as long as this process keeps the file open. Not fsynced: a machine that lost power runs no such process."""
        lease = Lease(f"process-{secrets.token_hex(16)}", manifest, clean(holder), LeaseKind.PROCESS, self._root.clock(), None)
        path = self._layout.lease(lease.id)
        temporary = Layout.temporary(path.parent)
        fd = durable.create(temporary)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            durable.write_all(fd, encode_lease(lease), 0)
            durable.rename(temporary, path)
        except BaseException:
            os.close(fd)
            records.remove(temporary)
            raise
        return ProcessHold(path, fd)

    def renew(self, lease_id: str, ttl_s: float) -> Lease:
        """Raises NotCached if no such lease is in force."""
        lease = self.get(lease_id)
        if lease is None or lease.kind is not LeaseKind.LEASE:
            raise NotCached(f"no lease `{lease_id}` is in force", hint="it has expired or was released; take a new one")
        return self._put(replace(lease, expires_at_s=self._root.clock() + ttl_s))

    def release(self, lease_id: str) -> Lease | None:
        """End a lease, which it was; None if none of this id was in force."""
        lease = self.get(lease_id)
        return lease if lease is not None and lease.kind is LeaseKind.LEASE and self.remove(lease_id) else None

    def remove(self, lease_id: str) -> bool:
        if not records.remove(self._layout.lease(lease_id)):
            return False
        durable.fsync_directory(self._layout.leases)
        return True

    def sweep(self, is_here: Callable[[Digest], bool]) -> None:
        """Remove leases that have ended by themselves, or that hold nothing. Under the exclusive store lock: nobody renews meanwhile."""
        for path in self._paths():
            try:
                lease = decode_lease(records.read(path), str(path))
            except (FileNotFoundError, DamagedRecord):
                continue
            if not self._in_force(lease, path) or not is_here(lease.manifest):
                records.remove(path)

    # -- inside ---------------------------------------------------------------------------------------------------

    def _put(self, lease: Lease) -> Lease:
        records.replace(self._layout.lease(lease.id), encode_lease(lease))
        return lease

    def _paths(self) -> list[Path]:
        return [self._layout.lease(name) for name in sorted(records.names(self._layout.leases))]

    def _living(self) -> tuple[list[Lease], list[DamagedRecord]]:
        found, damaged = [], []
        for path in self._paths():
            try:
                lease = decode_lease(records.read(path), str(path))
                if lease.id != path.name.removesuffix(".json"):
                    raise DamagedRecord("the lease is filed under another name than its own", address=str(path))
                if self._in_force(lease, path):
                    found.append(lease)
            except FileNotFoundError:
                continue
            except DamagedRecord as error:
                damaged.append(error)
        return found, damaged

    def _in_force(self, lease: Lease, path: Path) -> bool:
        if lease.kind is LeaseKind.PROCESS:
            return _is_locked(path)
        return lease.expires_at_s is None or lease.expires_at_s > self._root.clock()


def encode_lease(lease: Lease) -> bytes:
    """`docs/format.md`, Leases."""
    return records.encode(
        {
            "id": lease.id,
            "manifest": lease.manifest.hex,
            "holder": lease.holder,
            "kind": str(lease.kind),
            "created_at_s": float(lease.created_at_s),
            "expires_at_s": None if lease.expires_at_s is None else float(lease.expires_at_s),
        }
    )


def decode_lease(data: bytes, address: str) -> Lease:
    """Read `encode_lease`'s bytes back. Raises DamagedRecord."""
    record: Any = records.decode(data, address)
    try:
        lease = Lease(
            id=field(record, "id", str),
            manifest=sha256(field(record, "manifest", str)),
            holder=field(record, "holder", str),
            kind=LeaseKind(field(record, "kind", str)),
            created_at_s=field(record, "created_at_s", float),
            expires_at_s=field(record, "expires_at_s", float, NoneType),
        )
        canonical = encode_lease(lease)
    except (ModelCacheError, ValueError, TypeError, KeyError) as error:
        raise DamagedRecord(f"not a lease ({error})", address=address) from error
    if canonical != data:
        raise DamagedRecord("the lease is not in canonical form", address=address)
    return lease


def _is_locked(path: Path) -> bool:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        if not try_lock(fd, fcntl.LOCK_SH):
            return True
        release(fd)
        return False
    finally:
        os.close(fd)
