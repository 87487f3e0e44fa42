"""Verify: read everything back, take what is damaged out of service, name what is wrong."""

from __future__ import annotations

import os
import stat
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from modelcache.abc.store import Damage, VerifyReport, by_snapshot
from modelcache.abc.upkeep import ScrubLimits
from modelcache.chunks import ChunkTable, chunk_count
from modelcache.digest import Digest
from modelcache.errors import DamagedRecord, NotCached
from modelcache.manifest import Manifest
from modelcache.patience import Cancellation
from modelcache.store.background import RateLimit, give_way
from modelcache.store.blobs import EMPTY
from modelcache.store.faults import unless_unwritable
from modelcache.store.mending import Mending
from modelcache.store.parts import Compartment, Parts
from modelcache.store.reading import Counting, Reading, bad_chunks, read_all, read_file, reason
from modelcache.store.records import read
from modelcache.store.removal import Removal
from modelcache.store.trash import inode_names
from modelcache.store.withdrawn import out_of_service
from modelcache.units import GIB

SAVE_BYTES = 4 * GIB
"""After so much the times are written down: a scrub that is killed reads no more than this again."""


Times = defaultdict[str, dict[str, int]]
"""By compartment and hex digits of a blob: when it was read back, Unix time."""


@dataclass(frozen=True, slots=True)
class Subject:
    """A file to read: a blob's inode, or a file of a snapshot that is none (then `snapshot` says whose)."""

    compartment: Compartment
    path: Path
    digest: Digest
    inode: int
    size_bytes: int
    snapshot: Digest | None


class Scrub:
    """`Store.verify`. On a store that can't be written everything is named and nothing is changed."""

    def __init__(self, parts: Parts, removal: Removal, mending: Mending) -> None:
        self._parts = parts
        self._removal = removal
        self._mending = mending
        self._layout = parts.root.layout

    def verify(self, manifest: Digest | None, cancel: Cancellation, progress: Callable[[int, int], None] | None) -> VerifyReport:
        """Raises NotCached, Cancelled."""
        if manifest is not None and self._parts.snapshots.find(manifest) is None:
            raise NotCached(f"there is no snapshot `{manifest}`", address=str(self._layout.root))
        digests = self._parts.snapshots.every() if manifest is None else [manifest]
        damages = list(self._records()) if manifest is None else []
        manifests: dict[Digest, Manifest] = {}
        damages += self._survey(digests, manifests)
        subjects = list(self._subjects(manifests.values(), everything=manifest is None)) + list(self._strays(manifests))
        counting = Counting(sum(subject.size_bytes for subject in subjects), progress)
        readings = read_all([subject.path for subject in subjects], cancel, counting)
        times: Times = defaultdict(dict)
        for subject, reading in zip(subjects, readings, strict=True):
            if reading is not None:
                damages += self._judge(subject, reading)
                self._note(times, subject, reading)
        self._save(times)
        return self._report(len(digests), len(subjects), counting, damages, manifest)

    def scrub(self, limits: ScrubLimits, cancel: Cancellation, progress: Callable[[int, int], None] | None) -> VerifyReport:
        """`Upkeep.scrub`. Reads in a thread of lowest priority, blobs that were longest not read back first."""
        digests = self._parts.snapshots.every()
        damages = [*self._records(), *self._survey(digests, {})]
        subjects = self._by_age()
        total_bytes = sum(subject.size_bytes for subject in subjects)
        counting = Counting(total_bytes if limits.budget_bytes is None else min(total_bytes, limits.budget_bytes), progress)
        rate = RateLimit(limits.bytes_per_s, cancel)
        times: Times = defaultdict(dict)
        saved_bytes = blobs = 0
        try:
            with ThreadPoolExecutor(1, "scrub", initializer=give_way) as reader:
                for subject in subjects:
                    if limits.budget_bytes is not None and counting.done_bytes >= limits.budget_bytes:
                        break
                    reading = reader.submit(read_file, subject.path, cancel, counting, rate).result()
                    if reading is None:
                        continue
                    blobs += 1
                    damages += self._judge(subject, reading)
                    self._note(times, subject, reading)
                    if counting.done_bytes - saved_bytes >= SAVE_BYTES:
                        self._save(times)
                        saved_bytes = counting.done_bytes
        finally:
            self._save(times)
        return self._report(len(digests), blobs, counting, damages)

    def _report(self, snapshots: int, blobs: int, counting: Counting, damages: list[Damage], only: Digest | None = None) -> VerifyReport:
        withdrawn = {digest for damage in damages for digest in damage.withdrawn}
        gone = (ref for ref in out_of_service(self._parts, withdrawn) if only in (None, ref.manifest) or ref.manifest in withdrawn)
        ordered = tuple(sorted(damages, key=lambda damage: str(damage.path)))
        return VerifyReport(snapshots, blobs, counting.done_bytes, ordered, by_snapshot(gone))

    def _by_age(self) -> list[Subject]:
        """The inodes of all blobs, those never read back first, then the longest ago."""
        times = {compartment.name: compartment.verified.times() for compartment in self._parts.compartments()}
        subjects = self._subjects((), everything=True)
        return sorted(subjects, key=lambda item: (times.get(item.compartment.name, {}).get(item.digest.hex, 0), item.path.name))

    def _note(self, times: Times, subject: Subject, reading: Reading) -> None:
        if reason(subject.digest, reading) is None:
            times[subject.compartment.name][subject.digest.hex] = int(self._parts.root.clock())
        else:
            times[subject.compartment.name].pop(subject.digest.hex, None)

    def _save(self, times: Times) -> None:
        for name, of_one in times.items():
            if of_one and not self._parts.root.read_only:
                compartment = self._parts.compartment(name)
                with unless_unwritable():
                    compartment.verified.add(of_one, {digest.hex for _, digest, _ in compartment.blobs.every()})

    # -- records and trees ----------------------------------------------------------------------------------------

    def _records(self) -> Iterator[Damage]:
        """Refs, grants and leases that can't be read. A ref is written anew as far as what is left of it proves itself. Else it is
        removed, as a grant is: the next resolution or proof writes it. A lease is not: nobody knows what it holds."""
        for error in self._parts.refs.damaged():
            yield self._damaged_ref(error)
        for error in self._parts.grants.damaged():
            path = Path(str(error.address))
            why = error.message
            if not self._parts.root.read_only:
                with self._parts.root.lock.shared():
                    self._parts.grants.discard_damaged(path)
                why = f"{why}; removed"
            yield Damage(path, None, why, (), (), ())
        for error in self._parts.leases.damaged():
            yield Damage(Path(str(error.address)), None, f"{error.message}; while it is here nothing is evicted", (), (), ())

    def _damaged_ref(self, error: DamagedRecord) -> Damage:
        path = Path(str(error.address))
        if self._parts.root.read_only:
            return Damage(path, None, error.message, (), (), ())
        with self._parts.root.lock.exclusive():  # Nobody writes another meanwhile.
            rebuilt = self._mending.ref(path) if self._parts.refs.is_damaged(path) else None
            if rebuilt is None:
                self._parts.refs.discard_damaged(path)
            else:
                self._parts.refs.put(rebuilt)
        done = "removed" if rebuilt is None else f"`{rebuilt.key.uri}` is written anew"
        return Damage(path, None, f"{error.message}; {done}", (), (), (), None if rebuilt is None else rebuilt.key)

    def _survey(self, digests: Iterable[Digest], manifests: dict[Digest, Manifest]) -> Iterator[Damage]:
        """Manifests and trees, without the bytes of files; the manifests that can be read are put into `manifests`."""
        for digest in digests:
            yield from self._open(digest, manifests)
        for digest, found in manifests.items():
            yield from self._check_tree(digest, found)

    def _open(self, digest: Digest, manifests: dict[Digest, Manifest]) -> Iterator[Damage]:
        try:
            manifests[digest] = self._parts.snapshots.manifest(digest)
        except NotCached:
            return  # Evicted meanwhile.
        except DamagedRecord as error:
            rebuilt = None if self._parts.root.read_only else self._mending.manifest(digest)
            if rebuilt is not None and self._rewritten(rebuilt):
                manifests[digest] = rebuilt
                yield Damage(self._layout.manifest(digest), None, f"{error.message}; written anew", (), (), ())
            else:
                yield self._withdrawn(self._layout.manifest(digest), error.message, digest)

    def _rewritten(self, manifest: Manifest) -> bool:
        with self._parts.root.lock.exclusive():
            return self._parts.snapshots.rewrite(manifest)

    def _check_tree(self, digest: Digest, manifest: Manifest) -> Iterator[Damage]:
        """Files that are missing, are something else, or don't belong there."""
        top = self._layout.snapshot(digest)
        wanted = {item.path: item for item in manifest.files}
        found = {str(path.relative_to(top)) for path in _files(top)}
        wrong = dict.fromkeys(found - wanted.keys(), "it does not belong to the snapshot")
        for path, item in wanted.items():
            try:
                status = os.lstat(top / path)
            except FileNotFoundError:
                wrong[path] = "it is missing"
                continue
            if not stat.S_ISREG(status.st_mode) or status.st_size != item.size_bytes:
                wrong[path] = f"it is not a file of {item.size_bytes} bytes"
        if wrong and self._parts.snapshots.find(digest) is not None:
            for path, why in sorted(wrong.items()):
                yield self._withdrawn(top / path, why, digest)

    # -- bytes ----------------------------------------------------------------------------------------------------

    def _subjects(self, manifests: Iterable[Manifest], *, everything: bool) -> Iterator[Subject]:
        """The inodes of the blobs."""
        if everything:
            for compartment in self._parts.compartments():
                for path, digest, found in compartment.blobs.every():
                    yield Subject(compartment, path, digest, found.st_ino, found.st_size, None)
            return
        for name, digest in sorted({(manifest.compartment, item.sha256) for manifest in manifests for item in manifest.files}):
            compartment = self._parts.compartment(name)
            for path, found in compartment.blobs.inodes(digest):
                yield Subject(compartment, path, digest, found.st_ino, found.st_size, None)

    def _strays(self, manifests: dict[Digest, Manifest]) -> Iterator[Subject]:
        """Files of snapshots that are no inode of their blob: a blob whose name was lost, or a file that somebody replaced."""
        seen: set[int] = set()
        for digest, manifest in manifests.items():
            compartment = self._parts.compartment(manifest.compartment)
            for item in manifest.files:
                if item.sha256 == EMPTY:
                    continue
                path = self._layout.snapshot(digest) / item.path
                try:
                    inode = os.lstat(path).st_ino
                except FileNotFoundError:
                    continue
                if inode in seen or any(found.st_ino == inode for _, found in compartment.blobs.inodes(item.sha256)):
                    continue
                seen.add(inode)
                yield Subject(compartment, path, item.sha256, inode, item.size_bytes, digest)

    def _judge(self, subject: Subject, reading: Reading) -> Iterator[Damage]:
        why = reason(subject.digest, reading)
        if why is None:
            yield from self._mend(subject, reading)
            return
        table, _ = self._table(subject)
        chunks = bad_chunks(table, reading)
        if self._parts.root.read_only:
            yield Damage(subject.path, subject.digest, why, chunks, (), tuple(self._showing(subject.digest, subject.inode)))
            return
        aside = None
        with self._parts.root.lock.exclusive():
            if subject.snapshot is None and subject.path.exists() and os.lstat(subject.path).st_ino == subject.inode:
                aside = subject.compartment.blobs.quarantine(subject.path, subject.digest)
            # Only now: whoever publishes from here on finds that the inode is no blob's, whoever did before is seen.
            withdrawn, held = self._removal.withdraw_damaged(self._showing(subject.digest, subject.inode))
        self._parts.trash.empty()
        yield Damage(subject.path, subject.digest, why, chunks, tuple(withdrawn), tuple(held), aside=aside)

    def _mend(self, subject: Subject, reading: Reading) -> Iterator[Damage]:
        """The bytes are right: put right what else is said of them."""
        if self._parts.root.read_only:
            return
        blobs = subject.compartment.blobs
        if subject.snapshot is not None and not blobs.has(subject.digest):
            with self._parts.root.lock.shared():
                blobs.adopt(subject.digest, subject.path)
        if chunk_count(reading.size_bytes) < 2:
            return
        table, why = self._table(subject)
        right = ChunkTable(reading.size_bytes, reading.marks)
        if table != right:
            with self._parts.root.lock.shared():
                blobs.replace_table(subject.digest, right)
            why = why or "the chunk table does not match the blob"
            path = self._layout.within(subject.compartment.name).table(subject.digest)
            yield Damage(path, subject.digest, f"{why}; written anew", (), (), ())

    @staticmethod
    def _table(subject: Subject) -> tuple[ChunkTable | None, str | None]:
        try:
            found = subject.compartment.blobs.table(subject.digest)
        except DamagedRecord as error:
            return None, error.message
        return found, None if found is not None else "the chunk table is missing"

    def _showing(self, digest: Digest, inode: int) -> Iterator[Digest]:
        """Snapshots one of whose files is this inode."""
        for name in self._parts.snapshots.every():
            if self._may_show(name, digest) and inode in inode_names(self._layout.snapshot(name)):
                yield name

    def _may_show(self, name: Digest, digest: Digest) -> bool:
        """Whether a manifest names this content, or can't be read. Not parsed: the exclusive store lock is held."""
        try:
            return digest.hex.encode() in read(self._layout.manifest(name))
        except (DamagedRecord, FileNotFoundError):
            return True

    def _withdrawn(self, path: Path, why: str, snapshot: Digest) -> Damage:
        """Take a snapshot whose manifest or tree is wrong out of service."""
        if self._parts.root.read_only:
            return Damage(path, None, why, (), (), (snapshot,))
        with self._parts.root.lock.exclusive():
            withdrawn, held = self._removal.withdraw_damaged([snapshot])
        self._parts.trash.empty()
        return Damage(path, None, why, (), tuple(withdrawn), tuple(held))


def _files(top: Path) -> Iterator[Path]:
    for parent, _, names in os.walk(top):
        for name in names:
            yield Path(parent, name)
