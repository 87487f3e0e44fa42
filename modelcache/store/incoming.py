"""One file of an ingest on disk, filled by many threads."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from modelcache.abc.ingest import IngestFile, Route
from modelcache.chunks import ChunkTable, chunk_count, chunk_range
from modelcache.digest import Digest
from modelcache.errors import Cancelled, StoreFault
from modelcache.patience import Cancellation, Deadline
from modelcache.ranges import ByteRange, RangeSet
from modelcache.store import durable
from modelcache.store.blobs import EMPTY
from modelcache.store.direct import aligned_bytes
from modelcache.store.faults import disk_faults, guarded
from modelcache.store.filling import Filling
from modelcache.store.journal import Remembered, file_key
from modelcache.store.layout import FIXED_MTIME_S
from modelcache.store.trash import remove_tree
from modelcache.units import MIB

WRITEBACK_BYTES = 4 * MIB
"""Writeback is started at this many written bytes, so that the fsync at the end finds little left."""
DIRECT_BYTES = 256 << 10
"""Files that are smaller are written through the page cache whatever is wished: around it each would cost a second open, for its
unaligned end, and a wait for the disk of its own, where one syncfs waits for hundreds."""
OPEN_FILES = 64
"""Files kept open between writes, twice at most (buffered and direct): well under the usual limit of 1024."""


class LocalIncoming:
    """`IncomingFile` of a `LocalStore`."""

    def __init__(self, filling: Filling, number: int, wanted: IngestFile, remembered: Remembered) -> None:
        self._filling = filling
        self._number = number
        self.wanted = wanted
        self.key = file_key(wanted)
        marks = remembered.marks if wanted.path in filling.workspace.adopted else {}
        self._hints = {chunk: mark for chunk, mark in marks.items() if chunk < chunk_count(wanted.size_bytes)}
        self._here = RangeSet()
        self._awaited: list[ByteRange] = []
        self._sha256: Digest | None = None
        self._claimed = False
        self._alone = False
        self._booked = False
        self._sealed = False
        self._unsynced = True
        self._restarted = False
        self._written_bytes = 0
        self._written = ByteRange(0, 0)

    @property
    def path(self) -> str:
        return self.wanted.path

    @property
    def size_bytes(self) -> int:
        return self.wanted.size_bytes

    @property
    def sha256(self) -> Digest | None:
        return self._sha256

    @property
    def address(self) -> str:
        return str(self._filling.workspace.path)

    @property
    def claimed(self) -> bool:
        return self._claimed

    @property
    def alone(self) -> bool:
        """Whether another one has the claim, and we bring it all the same."""
        return self._alone

    @property
    def booked(self) -> bool:
        """Whether its file is here, to be written to."""
        return self._booked

    def hints(self) -> Mapping[int, bytes]:
        return {} if self._sha256 is not None else dict(self._hints)

    # -- bytes ----------------------------------------------------------------------------------------------------

    def write(self, offset: int, data: memoryview, route: Route) -> None:
        end = offset + data.nbytes
        if not 0 <= offset <= end <= self.size_bytes:
            raise ValueError(f"[{offset}, {end}) is outside of `{self.path}` of {self.size_bytes} bytes")
        self._begin_write()
        with self._faults(data.nbytes):
            view = data.cast("B")
            direct = route is Route.DIRECT and self._filling.direct and self.size_bytes >= DIRECT_BYTES
            done = self._write_direct(offset, view) if direct else 0
            if done < view.nbytes:
                self._write_buffered(offset + done, view[done:])
        self._unsynced = True

    def read(self, offset: int, buffer: memoryview) -> None:
        view = buffer.cast("B")
        if self._filling.gone:
            raise Cancelled(f"the ingest of `{self.path}` has ended")
        with self._faults(0), self._filling.descriptors.using(self._number, self.spot, os.O_RDONLY) as fd:
            while view.nbytes:
                got = os.preadv(fd, [view], offset)
                if got == 0:
                    raise StoreFault(f"`{self.path}` ends before byte {offset + view.nbytes}", address=str(self.place))
                view = view[got:]
                offset += got

    def _write_direct(self, offset: int, view: memoryview) -> int:
        """Write the aligned part around the page cache; how many bytes that was."""
        todo = aligned_bytes(view, offset)
        done = 0
        try:
            if todo:
                with self._filling.descriptors.using(self._number, self.spot, os.O_RDWR | os.O_DIRECT) as fd:
                    while done < todo and done % 512 == 0:
                        done += durable.write(fd, view[done:todo], offset + done)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            self._filling.direct = False
        return done

    def _write_buffered(self, offset: int, view: memoryview) -> None:
        with self._filling.descriptors.using(self._number, self.spot, os.O_RDWR) as fd:
            durable.write_all(fd, view, offset)
            span = self._due(ByteRange(offset, offset + view.nbytes))
            if span is not None:
                durable.start_writeback(fd, span.start, span.size_bytes)

    def _due(self, written: ByteRange) -> ByteRange | None:
        """The span whose writeback is to be started now, if enough was written."""
        with self._filling.changed:
            known = self._written
            self._written = ByteRange(min(known.start, written.start), max(known.stop, written.stop)) if known.size_bytes else written
            self._written_bytes += written.size_bytes
            if self._written_bytes < WRITEBACK_BYTES:
                return None
            span, self._written, self._written_bytes = self._written, ByteRange(0, 0), 0
            return span

    def _begin_write(self) -> None:
        with self._filling.changed:
            self._require_filling()
            if not self._booked:
                raise ValueError(f"`{self.path}` is for another ingest to bring")
            self._unsynced = True
            if self._sealed:
                with disk_faults(self.address):
                    durable.chmod(self.place, 0o600)
                self._sealed = False

    # -- ranges ---------------------------------------------------------------------------------------------------

    @guarded
    def mark(self, chunk: int, mark: bytes) -> None:
        if not 0 <= chunk < chunk_count(self.size_bytes):
            raise ValueError(f"`{self.path}` has no chunk {chunk}")
        with self._filling.changed:
            self._require_filling()
        if self.wanted.version and not self._alone:  # Of a chunk that was here too: others see that we get on.
            self._filling.workspace.journal.marked(self.key, chunk, mark)
        with self._filling.changed:
            self._here.add(chunk_range(chunk, self.size_bytes))
            if any(self._here.covers(span) for span in self._awaited):  # to wake all who wait at each chunk costs more
                self._filling.changed.notify_all()

    def ranges(self) -> RangeSet:
        with self._filling.changed:
            return RangeSet(self._here)

    def wait(self, span: ByteRange, timeout_s: float, cancel: Cancellation) -> bool:
        deadline = Deadline.after(timeout_s)
        with cancel.on_cancel(self._wake), self._filling.changed:
            self._awaited.append(span)
            try:
                while not self._here.covers(span):
                    cancel.check()
                    if self._filling.ended:
                        raise Cancelled(f"the fetch ended before {span} of `{self.path}` was here")
                    if deadline.passed:
                        return False
                    self._filling.changed.wait(deadline.remaining_s())
            finally:
                self._awaited.remove(span)
        return True

    def _wake(self) -> None:
        with self._filling.changed:
            self._filling.changed.notify_all()

    # -- completion -----------------------------------------------------------------------------------------------

    @property
    def plain(self) -> bool:
        """Whether nothing but a name makes a blob of it, once it is durable: one chunk, which has no table, in its own place."""
        return chunk_count(self.size_bytes) == 1 and not self._alone

    @guarded
    def complete(self, sha256: Digest, table: ChunkTable) -> None:
        self.make_ready(sha256, table)
        if self.size_bytes:
            self._publish(sha256, table)
        self.become(sha256)

    def make_ready(self, sha256: Digest, table: ChunkTable) -> None:
        """Durable, sealed, and fit to become this blob. Raises ValueError: it is not."""
        if table.size_bytes != self.size_bytes:
            raise ValueError(f"the chunk table of `{self.path}` is of {table.size_bytes} bytes, the file of {self.size_bytes}")
        with self._filling.changed:
            self._require_filling()
        self._make_durable()
        if self.size_bytes == 0 and sha256 != EMPTY:
            raise ValueError(f"`{self.path}` is empty, but its digest is not that of no bytes: {sha256}")

    @guarded
    def link(self, sha256: Digest) -> bool:
        with self._filling.changed:
            self._require_filling()
        with self._filling.lock.shared():
            return self.hold(sha256)

    def hold(self, sha256: Digest) -> bool:
        """`link`, under the shared store lock."""
        if not self._booked:
            self._filling.workspace.place(self.path)
        if self.size_bytes == 0 or sha256 == EMPTY:
            if self.size_bytes or sha256 != EMPTY or not self.place.exists():
                return False
            self.seal()
        elif not self._filling.blobs.link(sha256, self.size_bytes, self._filling.tree / self.path, self.temporary("link")):
            return False
        self.become(sha256)
        self._leave_alone()
        return True

    def resume(self, remembered: Remembered) -> bool:
        """Become the blob that an earlier ingest made of this very version, if it is here. Under the shared store lock."""
        known = remembered.sha256
        if known is None or self.wanted.sha256 not in (None, known):
            return False
        if self.path in self._filling.workspace.adopted:
            ours = status(self.place)
            if ours is not None and any(found.st_ino == ours.st_ino for _, found in self._filling.blobs.inodes(known)):
                self.become(known)
                return True
        return self.size_bytes > 0 and self.hold(known)

    @guarded
    def restart(self) -> None:
        with self._filling.changed:
            self._require_filling()
            self._here = RangeSet()
            self._hints = {}
            self._restarted = True
        if self.wanted.version and not self._alone:
            self._filling.workspace.journal.forgotten(self.key)

    # -- whose it is; by the ingest alone --------------------------------------------------------------------------

    def claim(self, *, alone: bool) -> None:
        """From here on it is for us to bring. `alone`: beside another who has the claim, and out of the sight of those who will."""
        self._alone = alone
        self._claimed = True

    def go_on(self, marks: Mapping[int, bytes]) -> None:
        """The file of another ingest became ours, with these hints."""
        self._filling.workspace.adopted.add(self.path)
        self._hints = {chunk: mark for chunk, mark in marks.items() if chunk < chunk_count(self.size_bytes)}

    def make(self) -> bool:
        """Make the file at its full size; whether its blocks could be booked."""
        if not self._filling.workspace.is_adopted(self.path) or self._alone:
            self._hints = {}
        if self._alone:
            booked = self._filling.workspace.make_at(self.place, self.size_bytes)
        else:
            booked = self._filling.workspace.make(self.path, self.size_bytes)
        self._booked = True
        return booked

    def give_back(self) -> None:
        """Give the blocks back that are booked behind the last chunk that is marked, now or by an earlier ingest."""
        if not self._booked:
            return  # Who has the claim may go on with it at this moment.
        if self._restarted:
            return  # What is not marked any more somebody may have mapped: it must not be cut off, for an instant even.
        if self._alone:
            self._leave_alone()
            return
        ends = [chunk_range(chunk, self.size_bytes).stop for chunk in self._hints]
        end = max([*ends, *(span.stop for span in self._here)], default=0)
        if end == self.size_bytes or not self.place.exists() or os.lstat(self.place).st_nlink > 1:
            return  # Of several names, it is a blob that this ingest has not looked at.
        with self._filling.descriptors.using(self._number, self.spot, os.O_RDWR) as fd:
            durable.truncate(fd, end)
            durable.truncate(fd, self.size_bytes)

    def seal(self) -> bool:
        """Give the file the mode and times of a blob; whether it was written to since it was last made durable."""
        with self._filling.changed:
            if self._sha256 is not None or not self._unsynced:
                return False
            durable.chmod(self.spot, 0o444)
            durable.utime(self.spot, FIXED_MTIME_S)
            self._sealed = True
            self._unsynced = False
            return True

    def unseal(self) -> None:
        """What `seal` promised did not come true: the file is not durable."""
        self._unsynced = True

    def _make_durable(self) -> None:
        if self.seal():
            try:
                with self._filling.descriptors.using(self._number, self.spot, os.O_RDONLY) as fd:
                    durable.fsync(fd)
            except OSError:
                self.unseal()
                raise

    def _publish(self, digest: Digest, table: ChunkTable) -> None:
        """A blob of one chunk has no table: its digest says the same. Its name becomes durable with all the others at the end."""
        several = chunk_count(self.size_bytes) > 1
        if self.wanted.version:
            self._filling.workspace.journal.completed([(self.key, digest)])
        self._filling.blobs.publish(digest, self.place, table if several else None, self.temporary("blob"))
        if self._alone:
            with self._filling.lock.shared():
                durable.rename(self.place, self._filling.tree / self.path)
        if several:
            self._filling.blobs.fsync_names([digest])

    def _leave_alone(self) -> None:
        if self._alone:
            remove_tree(self.temporary("alone"))

    def become(self, digest: Digest) -> None:
        """It is an inode of this blob now."""
        self._filling.descriptors.forget(self._number)
        with self._filling.changed:
            self._sha256 = digest
            self._here = RangeSet([ByteRange(0, self.size_bytes)])
            self._filling.changed.notify_all()

    # -- inside ---------------------------------------------------------------------------------------------------

    def is_of(self, filling: Filling) -> bool:
        """Whether it is a file of this ingest."""
        return self._filling is filling

    @property
    def place(self) -> Path:
        """Where it is now."""
        if self._alone and self._sha256 is None:
            return self.temporary("alone")
        return self._filling.tree / self.path

    @property
    def spot(self) -> str:
        """`place`, as text: asked for several times of each of very many files."""
        return str(self.place) if self._alone else f"{self._filling.tree}/{self.path}"

    def temporary(self, purpose: str) -> Path:
        return self._filling.workspace.temporary(f"{self._number}.{purpose}")

    @contextmanager
    def _faults(self, needed_bytes: int) -> Iterator[None]:
        """`disk_faults`, but a file that went with its ingest is no fault of the disk."""
        with disk_faults(self.address, needed_bytes=needed_bytes):
            try:
                yield
            except FileNotFoundError:
                if not self._filling.gone:
                    raise
                raise Cancelled(f"the ingest of `{self.path}` has ended") from None

    def _require_filling(self) -> None:
        if self._filling.ended:
            raise Cancelled(f"the ingest of `{self.path}` has ended")
        if self._sha256 is not None:
            raise ValueError(f"`{self.path}` is complete already")


def status(path: Path) -> os.stat_result | None:
    """lstat(2); None if it is gone: who has the claim on a file may have taken it."""
    try:
        return os.lstat(path)
    except FileNotFoundError:
        return None
