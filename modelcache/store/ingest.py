"""A model on its way into the store."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from modelcache.abc.ingest import Elsewhere, IncomingFile, IngestFile
from modelcache.abc.snapshot import Ref, Snapshot
from modelcache.chunks import ChunkTable
from modelcache.digest import Digest
from modelcache.errors import Cancelled, DamagedBlob
from modelcache.manifest import Manifest
from modelcache.patience import Cancellation, Condition
from modelcache.store import durable
from modelcache.store.blobs import EMPTY, Blobs
from modelcache.store.claims import Claims
from modelcache.store.descriptors import Descriptors
from modelcache.store.faults import guarded
from modelcache.store.filling import Filling
from modelcache.store.incoming import OPEN_FILES, LocalIncoming, status
from modelcache.store.journal import Remembered, file_key
from modelcache.store.neighbours import Neighbours
from modelcache.store.parts import Compartment, Parts
from modelcache.store.snapshots import DIRECTORY_MODE
from modelcache.store.trash import Trash, remove_tree
from modelcache.store.workspace import Workspace

HOLD_BATCH = 256
"""Files linked under one hold of the store lock: about 10 ms."""
WITHDRAWN_HINT = "it is out of service: try again, which brings that file anew and keeps the others"


@dataclass(frozen=True)
class Surroundings:
    """What an ingest shares with the others of its store.

    Attributes:
        reserve: books room for claimed files of an ingest and makes them.
    """

    parts: Parts
    claims: Claims
    reserve: Callable[[LocalIngest, Sequence[LocalIncoming]], None]


class LocalIngest:
    """`Ingest` of a `LocalStore`."""

    def __init__(
        self,
        surroundings: Surroundings,
        workspace: Workspace,
        files: Sequence[IngestFile],
        compartment: Compartment,
        cancel: Cancellation | None = None,
    ) -> None:
        """
        Args:
            cancel: ends its waits for others who reserve.
        """
        self.cancel = cancel
        parts = surroundings.parts
        self._root = root = parts.root
        self._claims = surroundings.claims
        self._reserve = surroundings.reserve
        self._neighbours = Neighbours(root, workspace.id)
        self._workspace = workspace
        self._compartment, self._blobs = compartment.name, compartment.blobs
        self._snapshots, self._refs, self._trash = parts.snapshots, parts.refs, parts.trash
        self._filling = Filling(
            workspace=workspace,
            blobs=self._blobs,
            lock=root.lock,
            changed=Condition(),
            tree=workspace.tree,
            descriptors=Descriptors(OPEN_FILES),
        )
        remembered = workspace.journal.read()
        self._remembered = [remembered.get(file_key(file), Remembered()) if file.version else Remembered() for file in files]
        self._files = [LocalIncoming(self._filling, number, file, self._remembered[number]) for number, file in enumerate(files)]
        self._reserved_bytes = 0

    @property
    def id(self) -> str:
        return self._workspace.id

    @property
    def address(self) -> str:
        return str(self._workspace.path)

    @property
    def workspace(self) -> Workspace:
        return self._workspace

    @property
    def files(self) -> Sequence[LocalIncoming]:
        return self._files

    @property
    def reserved_bytes(self) -> int:
        return self._reserved_bytes

    @property
    def missing(self) -> list[LocalIncoming]:
        """Files that are not complete."""
        return [file for file in self._files if file.sha256 is None]

    # -- beginning; by `Intake` alone -----------------------------------------------------------------------------

    def hold(self, number: int) -> None:
        """Link a file whose blob is here, or take it as the blob that an earlier ingest made of it. Under the shared store lock."""
        file = self._files[number]
        self._workspace.place(file.path)
        known = file.wanted.sha256
        if (known is None or not file.hold(known)) and not file.resume(self._remembered[number]):
            self._disown(file)

    def _disown(self, file: LocalIncoming) -> None:
        """A file that an earlier ingest left, and that is some blob's inode, is never written to."""
        path = self._workspace.file(file.path)
        found = status(path) if file.path in self._workspace.adopted else None
        if found is not None and found.st_nlink > 1:
            durable.unlink(path)
            self._workspace.adopted.discard(file.path)

    def make_files(self, files: Sequence[LocalIncoming]) -> bool:
        """Make these files at their full size; whether all could be booked."""
        self._reserved_bytes += sum(file.size_bytes for file in files)
        booked = [file.make() for file in files]
        for file in files:
            if file.size_bytes == 0 and file.wanted.sha256 is not None:
                file.hold(file.wanted.sha256)
        return all(booked)

    def unmake(self) -> None:
        """Undo `make_files` for what an earlier ingest had not begun."""
        for file in self.missing:
            if file.booked and file.path not in self._workspace.adopted:
                remove_tree(self._workspace.file(file.path))

    # -- with others ----------------------------------------------------------------------------------------------

    @guarded
    def elsewhere(self, files: Sequence[IncomingFile]) -> list[Elsewhere]:
        wanted = [file.wanted for file in self._ours(files)]
        self._neighbours.look({file.identity for file in wanted})
        return [self._neighbours.sight(file, self._blobs) for file in wanted]

    @guarded
    def claim(self, files: Sequence[IncomingFile], *, anyway: bool = False) -> list[IncomingFile]:
        got: list[LocalIncoming] = []
        ours = self._ours(files)
        taken = self._claims.take({file.wanted.identity for file in ours if not _is_alone(file)}, self.id)
        for file in ours:
            free = _is_alone(file) or file.wanted.identity in taken
            if free or anyway:
                file.claim(alone=not free)
                got.append(file)
        self._look_again([file for file in got if not file.alone], believe=not anyway)
        return list(got)

    def _look_again(self, files: Sequence[LocalIncoming], *, believe: bool) -> None:
        """Who had the claim before may have published: then the file is here. `believe`: also where its digest is only their word."""
        if files:
            self._neighbours.look({file.wanted.identity for file in files})
        said = {file: next(self._neighbours.published(file.wanted), None) if believe else None for file in files}
        known = {file: file.wanted.sha256 or said[file] for file in files}
        hopeful = [(file, digest) for file, digest in known.items() if digest is not None]
        for first in range(0, len(hopeful), HOLD_BATCH):
            with self._root.lock.shared():
                for file, digest in hopeful[first : first + HOLD_BATCH]:
                    if file.size_bytes:
                        file.hold(digest)

    @guarded
    def book(self, files: Sequence[IncomingFile]) -> None:
        todo = [file for file in self._ours(files) if file.sha256 is None and not file.booked]
        for file in todo:
            if not file.claimed:
                raise ValueError(f"`{file.path}` is for another ingest to bring")
            self._take_remains(file)
        self._reserve(self, todo)

    def _take_remains(self, file: LocalIncoming) -> None:
        """Go on with what another ingest has begun of this file, if that is more than what is here.

        Whoever has the claim may take it, whether that ingest has ended or not: nobody writes to a file in a tree without the
        claim. Under the exclusive store lock, so that it does not become a name of a blob meanwhile, or another version's file.
        """
        remains = None if file.alone else self._neighbours.remains(file.wanted)
        here = len(file.hints()) if self._workspace.is_adopted(file.path) else 0
        if remains is None or len(remains.marks) <= here:
            return
        self._workspace.journal.takes_over(file_key(file.wanted), remains.marks)
        with self._root.lock.exclusive():
            found = status(remains.path)
            if found is None or found.st_nlink > 1 or not remains.neighbour.is_current:
                return
            durable.rename(remains.path, self._workspace.file(file.path))
        file.go_on(remains.marks)

    def _ours(self, files: Sequence[IncomingFile]) -> list[LocalIncoming]:
        return [file for file in files if isinstance(file, LocalIncoming) and file.is_of(self._filling)]

    # -- ending ---------------------------------------------------------------------------------------------------

    @guarded
    def flush(self, files: Sequence[IncomingFile]) -> None:
        sealed = [file for file in self._ours(files) if file.seal()]
        if not sealed:
            return
        fd = os.open(self._workspace.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            durable.syncfs(fd)
        except OSError:
            for file in sealed:
                file.unseal()
            raise
        finally:
            os.close(fd)

    @guarded
    def complete(self, files: Sequence[tuple[IncomingFile, Digest, ChunkTable]]) -> None:
        self.flush([file for file, _, _ in files])
        told = {id(file): (digest, table) for file, digest, table in files}
        ours = self._ours([file for file, _, _ in files])
        for first in range(0, len(ours), HOLD_BATCH):
            small = [(file, *told[id(file)]) for file in ours[first : first + HOLD_BATCH] if file.plain]
            for file, digest, table in small:
                file.make_ready(digest, table)
            self._workspace.journal.completed((file.key, digest) for file, digest, _ in small if file.wanted.version)
            temporary = ours[first].temporary("blob")
            with self._root.lock.shared():
                named = [file for file, digest, _ in small if self._blobs.name(digest, file.spot, temporary)]
            for file in named:
                file.become(told[id(file)][0])
        for file in ours:
            if file.sha256 is None:
                file.complete(*told[id(file)])

    @guarded
    def publish(self, manifest: Manifest, ref: Ref) -> Snapshot:
        if self._filling.ended:
            raise Cancelled("the ingest has ended")
        ours = {(file.path, file.size_bytes, file.sha256) for file in self._files}
        if ours != {(item.path, item.size_bytes, item.sha256) for item in manifest.files} or ref.manifest != manifest.digest:
            raise ValueError("manifest and ref do not name exactly the completed files of this ingest")
        if {manifest.compartment, ref.key.compartment} != {self._compartment}:
            raise ValueError("manifest and ref are not of the compartment of this ingest")
        for directory in self._workspace.directories():
            if directory != self._workspace.tree:
                durable.chmod(directory, DIRECTORY_MODE)
            durable.fsync_directory(directory)
        self._blobs.fsync_names(item.sha256 for item in manifest.files)
        with self._root.lock.shared():
            self._require_blobs()
            snapshot = self._snapshots.publish(manifest, self._workspace.tree)
            self._refs.put(ref)
        self._filling.descriptors.close()
        self._filling.tree = snapshot.path
        self._end()
        self._remove()
        return snapshot

    def _require_blobs(self) -> None:
        """Raises DamagedBlob if a file is no inode of its blob any more. Under the shared store lock: until it is let go, none goes."""
        tree = str(self._workspace.tree)
        for file in self._files:
            digest = file.sha256
            if digest is not None and digest != EMPTY and not self._blobs.shows(f"{tree}/{file.path}", digest):
                message = f"the blob of `{file.path}` was found damaged while the rest was on its way"
                raise DamagedBlob(message, address=self.address, expected=str(digest), hint=WITHDRAWN_HINT)

    @guarded
    def keep(self) -> None:
        if not self._filling.ended:
            self._end()
            self._filling.gone = True
            try:
                for file in self.missing:
                    file.give_back()
                self._workspace.forget_reserved()
            finally:
                self._unlock()

    @guarded
    def discard(self) -> None:
        if self._filling.ended:
            return
        self._end()
        self._filling.gone = True
        try:
            self._trash.take(self._workspace.path)
        finally:
            self._unlock()
        self._trash.empty()
        drop_blobs(self._blobs, self._trash, [file.sha256 for file in self._files])

    def _end(self) -> None:
        with self._filling.changed:
            self._filling.ended = True
            self._filling.changed.notify_all()
        self._filling.descriptors.close()

    def _remove(self) -> None:
        """What is left after the tree was published; the tree too if somebody else's stayed."""
        try:
            remove_tree(self._workspace.path)
        finally:
            self._unlock()

    def _unlock(self) -> None:
        """Last of all: from here on it is for others to bring what is missing, and to take what is left."""
        self._neighbours.close()
        self._workspace.unlock()
        self._claims.drop(self.id)


def drop_blobs(blobs: Blobs, trash: Trash, digests: Sequence[Digest | None]) -> None:
    """Delete those of these blobs that nothing names any more."""
    if blobs.drop_unnamed(digest for digest in digests if digest is not None):
        trash.empty()


def _is_alone(file: LocalIncoming) -> bool:
    """Whether nobody else can bring this file."""
    return file.size_bytes == 0 or not file.wanted.identity
