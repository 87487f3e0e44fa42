"""The beginning of an ingest: hold what is here, take over what was interrupted, book room for the rest."""

from __future__ import annotations

import os
from collections.abc import Sequence

from modelcache.abc.ingest import IngestFile
from modelcache.abc.snapshot import RefKey
from modelcache.chunks import chunk_count
from modelcache.paths import check_tree
from modelcache.patience import Cancellation
from modelcache.store.blobs import BLOCK_BYTES
from modelcache.store.budget import Budget
from modelcache.store.claims import Claims
from modelcache.store.faults import FULL, translated
from modelcache.store.incoming import LocalIncoming
from modelcache.store.ingest import HOLD_BATCH, LocalIngest, Surroundings
from modelcache.store.making_room import MakingRoom
from modelcache.store.parts import Parts
from modelcache.store.workspace import Workspace
from modelcache.units import MIB

RECORDS_BYTES = MIB
"""More than the directories and records of an ingest take."""


class Intake:
    """Begins ingests."""

    def __init__(self, parts: Parts, budget: Budget, making_room: MakingRoom) -> None:
        self._parts = parts
        self._budget = budget
        self._making_room = making_room
        self._surroundings = Surroundings(parts, Claims(parts.root.layout), self._reserve)

    def begin(self, key: RefKey, files: Sequence[IngestFile], cancel: Cancellation | None = None) -> LocalIngest:
        """`Store.ingest`."""
        check_tree(file.path for file in files)
        if any(file.compartment != key.compartment for file in files):
            raise ValueError("a file is of another compartment than its ref")
        try:
            return self._begin(key, files, cancel)
        except OSError as error:
            if error.errno not in FULL:
                raise
        with self._parts.root.lock.room(cancel):  # others have filled the disk to its last block, which an ingest needs to begin
            self._making_room.make(RECORDS_BYTES)
        return self._begin(key, files, cancel)

    def _begin(self, key: RefKey, files: Sequence[IngestFile], cancel: Cancellation | None) -> LocalIngest:
        compartment = self._parts.make_compartment(key.compartment)
        taken = Workspace.take_over(self._parts.root, key, files)
        workspace = taken or Workspace.create(self._parts.root)
        try:
            ingest = LocalIngest(self._surroundings, workspace, files, compartment, cancel)
        except BaseException:
            workspace.unlock()
            raise
        try:
            with self._parts.root.lock.shared():  # who takes a file of the plan before looks at it under the exclusive one
                workspace.write_plan(key, files)
            self._hold(ingest)
            ingest.book(ingest.claim(ingest.missing))
        except BaseException:
            if taken is None:
                ingest.discard()
            else:
                self._give_back(ingest)
            raise
        return ingest

    def _hold(self, ingest: LocalIngest) -> None:
        for first in range(0, len(ingest.files), HOLD_BATCH):
            with self._parts.root.lock.shared():
                for number in range(first, min(first + HOLD_BATCH, len(ingest.files))):
                    ingest.hold(number)

    def _reserve(self, ingest: LocalIngest, files: Sequence[LocalIncoming]) -> None:
        """Room for these files, under the room lock: nobody else measures meanwhile."""
        with self._parts.root.lock.room(ingest.cancel):
            self._book(ingest, files)

    def _book(self, ingest: LocalIngest, files: Sequence[LocalIncoming]) -> None:
        needed = self._needed_bytes(ingest, files)
        if needed > 0:
            self._making_room.make(needed)
        try:
            booked = ingest.make_files(files)
            ingest.workspace.journal.book(sum(chunk_count(file.size_bytes) for file in files) + len(files))
        except OSError as error:
            if error.errno in FULL:
                raise translated(error, self._parts.root.address, needed_bytes=needed) from error
            raise
        if not booked:
            here = [file for file in ingest.files if file.sha256 is not None or (file.booked and not file.alone)]
            ingest.workspace.write_reserved(sum(self._blocks(ingest, file.path, file.size_bytes) for file in here))

    def _needed_bytes(self, ingest: LocalIngest, files: Sequence[LocalIncoming]) -> int:
        """Blocks still to be booked: of a file that was taken over, only those that it lacks."""
        total = 0
        for file in files:
            total += self._budget.rounded(file.size_bytes)
            if not file.alone and ingest.workspace.is_adopted(file.path):
                total -= min(self._budget.rounded(file.size_bytes), self._allocated(ingest, file.path))
        return total

    def _blocks(self, ingest: LocalIngest, path: str, size_bytes: int) -> int:
        return max(self._budget.rounded(size_bytes), self._allocated(ingest, path))

    @staticmethod
    def _allocated(ingest: LocalIngest, path: str) -> int:
        return os.lstat(ingest.workspace.file(path)).st_blocks * BLOCK_BYTES

    @staticmethod
    def _give_back(ingest: LocalIngest) -> None:
        """The interrupted ingest that was taken over stays as it was, for another day; what was made just now goes."""
        try:
            ingest.unmake()
        finally:
            ingest.keep()
