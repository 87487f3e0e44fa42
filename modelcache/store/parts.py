"""The parts of an open store, made once and shared by what works on them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from modelcache.store import durable
from modelcache.store.blobs import Blobs
from modelcache.store.grants import LocalGrants
from modelcache.store.leases import HeldElsewhere, Leases
from modelcache.store.refs import Refs
from modelcache.store.root import Root
from modelcache.store.snapshots import Snapshots
from modelcache.store.trash import Trash
from modelcache.store.verified import Verified


@dataclass(frozen=True)
class Compartment:
    """Blobs, and what is known of them, that are shared by nobody outside of it.

    Attributes:
        name: the namespace whose they are; empty: of all that have no compartment of their own.
        home: the directory that all of it is in.
    """

    name: str
    home: Path
    blobs: Blobs
    verified: Verified


@dataclass(frozen=True)
class Parts:
    """Attributes: shared: the compartment of all who have none of their own."""

    root: Root
    trash: Trash
    shared: Compartment
    snapshots: Snapshots
    refs: Refs
    leases: Leases
    grants: LocalGrants

    @classmethod
    def of(cls, root: Root, elsewhere: HeldElsewhere = tuple) -> Parts:
        trash = Trash(root.layout)
        shared = Compartment("", root.layout.root, Blobs(root, trash), Verified(root))
        return cls(root, trash, shared, Snapshots(root, trash), Refs(root), Leases(root, elsewhere), LocalGrants(root))

    @cached_property
    def _apart(self) -> dict[str, Compartment]:
        return {}

    def compartment(self, name: str) -> Compartment:
        """That of a namespace, empty if it was never made, or the shared one."""
        if not name:
            return self.shared
        known = self._apart.get(name)
        if known is None:
            layout = self.root.layout.within(name)
            blobs, verified = Blobs(self.root, self.trash, layout), Verified(self.root, layout)
            known = self._apart[name] = Compartment(name, layout.quarantine.parent, blobs, verified)
        return known

    def make_compartment(self, name: str) -> Compartment:
        """The same, its directories made. Takes the shared store lock."""
        if name and not self.root.layout.within(name).quarantine.is_dir():
            with self.root.lock.shared():
                for directory in self.root.layout.within(name).compartment_directories:
                    with suppress(FileExistsError):
                        durable.mkdir(directory, 0o700)
                        durable.fsync_directory(directory.parent)
        return self.compartment(name)

    def compartments(self) -> Iterator[Compartment]:
        """All that there are, the shared one first."""
        yield self.shared
        with suppress(FileNotFoundError):  # there never were any
            for name in sorted(os.listdir(self.root.layout.apart)):
                with suppress(ValueError):  # no name of ours
                    if self.root.layout.within(name).quarantine.is_dir():
                        yield self.compartment(name)
