"""A model on its way into the store."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence

from modelcache.abc.store import IncomingFile, IngestFile, Ref, Snapshot
from modelcache.digest import Digest
from modelcache.errors import Cancelled
from modelcache.manifest import Manifest
from modelcache.store import durable
from modelcache.store.blobs import Blobs
from modelcache.store.descriptors import Descriptors
from modelcache.store.faults import guarded
from modelcache.store.incoming import OPEN_FILES, Filling, LocalIncoming
from modelcache.store.journal import Remembered, file_key
from modelcache.store.refs import Refs
from modelcache.store.root import Root
from modelcache.store.snapshots import DIRECTORY_MODE, Snapshots
from modelcache.store.trash import Trash, remove_tree
from modelcache.store.workspace import Workspace


class LocalIngest:
    """`Ingest` of a `LocalStore`."""

    def __init__(self, root: Root, workspace: Workspace, files: Sequence[IngestFile], parts: tuple[Blobs, Snapshots, Refs, Trash]) -> None:
        self._root = root
        self._workspace = workspace
        self._blobs, self._snapshots, self._refs, self._trash = parts
        self._filling = Filling(
            workspace=workspace,
            blobs=self._blobs,
            lock=root.lock,
            changed=threading.Condition(),
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
        self._workspace.claim(file.path)
        known = file.wanted.sha256
        if (known is None or not file.hold(known)) and not file.resume(self._remembered[number]):
            self._disown(file)

    def _disown(self, file: LocalIncoming) -> None:
        """A file that an earlier ingest left, and that is some blob's inode, is never written to."""
        path = self._workspace.file(file.path)
        if file.path in self._workspace.adopted and os.lstat(path).st_nlink > 1:
            durable.unlink(path)
            self._workspace.adopted.discard(file.path)

    def make_files(self) -> bool:
        """Make every missing file at its full size; whether all could be booked."""
        self._reserved_bytes = sum(file.size_bytes for file in self.missing)
        booked = [self._workspace.make(file.path, file.size_bytes) for file in self.missing]
        for file in self.missing:
            if file.size_bytes == 0 and file.wanted.sha256 is not None:
                file.hold(file.wanted.sha256)
        return all(booked)

    def unmake(self) -> None:
        """Undo `make_files` for what an earlier ingest had not begun."""
        for file in self.missing:
            if file.path not in self._workspace.adopted:
                remove_tree(self._workspace.file(file.path))

    # -- ending ---------------------------------------------------------------------------------------------------

    @guarded
    def flush(self, files: Sequence[IncomingFile]) -> None:
        ours = set(map(id, self._files))
        sealed = [file for file in files if isinstance(file, LocalIncoming) and id(file) in ours and file.seal()]
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
    def publish(self, manifest: Manifest, ref: Ref) -> Snapshot:
        if self._filling.ended:
            raise Cancelled("the ingest has ended")
        ours = {(file.path, file.size_bytes, file.sha256) for file in self._files}
        if ours != {(item.path, item.size_bytes, item.sha256) for item in manifest.files} or ref.manifest != manifest.digest:
            raise ValueError("manifest and ref do not name exactly the completed files of this ingest")
        for directory in self._workspace.directories():
            if directory != self._workspace.tree:
                durable.chmod(directory, DIRECTORY_MODE)
            durable.fsync_directory(directory)
        self._blobs.fsync_names(item.sha256 for item in manifest.files)
        with self._root.lock.shared():
            snapshot = self._snapshots.publish(manifest, self._workspace.tree)
            self._refs.put(ref)
        self._filling.descriptors.close()
        self._filling.tree = snapshot.path
        self._end()
        self._remove()
        return snapshot

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
                self._workspace.unlock()

    @guarded
    def discard(self) -> None:
        if self._filling.ended:
            return
        self._end()
        self._filling.gone = True
        try:
            self._trash.take(self._workspace.path)
        finally:
            self._workspace.unlock()
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
            self._workspace.unlock()


def drop_blobs(blobs: Blobs, trash: Trash, digests: Sequence[Digest | None]) -> None:
    """Delete those of these blobs that nothing names any more."""
    if blobs.drop_unnamed(digest for digest in digests if digest is not None):
        trash.empty()
