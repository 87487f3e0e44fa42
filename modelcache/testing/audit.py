"""What a store's directory must look like, found by looking there and not through the store: format 1 and its promises.

Nothing of `modelcache.store` is used here, so that a mistake there is not repeated here.
"""

from __future__ import annotations

import os
import re
import stat
from collections import Counter
from collections.abc import Collection, Iterator
from enum import StrEnum
from pathlib import Path

from modelcache.chunks import ChunkTable, chunk_count, chunk_range
from modelcache.errors import DamagedRecord
from modelcache.manifest import Manifest
from modelcache.testing.audit_records import (
    awaits_repair,
    check_format,
    check_grant,
    check_lease,
    check_node_key,
    check_ref,
    check_verified,
    named_manifest,
)
from modelcache.testing.store_filling import digest_of, mark_of

FIXED_MTIME_S = 315_532_800
DIRECTORIES = ("blobs", "chunks", "manifests", "refs", "snapshots", "leases", "grants", "ingest", "trash", "quarantine", "claims")
LOCKS = ("lock", "lock.turn", "lock.room")
CLAIMS = tuple(f"lock.{digit}" for digit in "0123456789abcdef")
TEMPORARY = re.compile(r"\.tmp-[0-9a-f]{16}")
BLOB = re.compile(r"([0-9a-f]{64})(?:\.([1-9][0-9]*))?")
NAMESPACE = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
COMPARTMENT = ("blobs", "chunks", "quarantine")
HEX64 = re.compile(r"[0-9a-f]{64}")
HEX32 = re.compile(r"[0-9a-f]{32}")
PREFIX = re.compile(r"[0-9a-f]{2}")
INGEST_PARTS = {"lock", "plan.json", "journal", "tree", "tmp", "reserved"}
INGEST_TEMPORARY = re.compile(r"plan\.json|reserved|[0-9]+\.(?:link|blob|chunks|alone)")


class Moment(StrEnum):
    """When the audit looks: how much may lie around."""

    CRASHED = "crashed"
    """Processes may have been killed or be at work: half-done steps may be seen, but only those of the recovery table."""
    SETTLED = "settled"
    """Nobody is at work, and `collect` has run without grace: nothing at all is left over."""


def audit(root: Path, moment: Moment, *, damaged: Collection[str] = (), quarantined: Collection[str] = ()) -> list[str]:
    """Every violation, as a line that names the path; empty if there is none.

    Args:
        root: of a store that has been opened at least once, or of one whose first opening crashed.
        damaged: hex sha256 of contents that are damaged just now, on purpose: a blob of this name may hold other bytes, and a file of
            a snapshot may be a quarantined inode of it.
        quarantined: hex sha256 of what may be in the quarantine.
    """
    return _Audit(root, moment, damaged, quarantined).findings()


Content = tuple[str, str]
"""Compartment and hex digits of a blob."""


class _Audit:
    def __init__(self, root: Path, moment: Moment, damaged: Collection[str], quarantined: Collection[str]) -> None:
        self._root = root
        self._settled = moment is Moment.SETTLED
        self._damaged = damaged
        self._quarantined = quarantined
        self._found: list[str] = []
        self._homes = {"": root} | {path.name: path for path in sorted((root / "apart").glob("*"))}
        """Compartments and where they are; the first is the one that all share."""
        self._blobs: dict[Content, dict[int, int]] = {}
        """number of the inode's name → inode"""
        self._sizes: dict[Content, int] = {}
        self._names: Counter[int] = Counter()
        self._links: dict[int, int] = {}
        self._manifests: dict[str, Manifest] = {}
        self._trees: set[str] = set()

    def findings(self) -> list[str]:
        if not (self._root / "format").exists():
            return self._unfinished()
        self._top()
        self._check_blobs()
        self._check_tables()
        self._check_manifests()
        self._check_quarantine()
        self._check_snapshots()
        self._check_refs()
        self._check_leases()
        self._check_grants()
        self._check_ingests()
        self._check_trash()
        self._check_claims()
        self._check_names()
        return sorted(self._found)

    # -- what is said -----------------------------------------------------------------------------------------------

    def _wrong(self, path: Path, why: str) -> None:
        self._found.append(f"{path.relative_to(self._root)}: {why}")

    def _left_over(self, path: Path, why: str) -> None:
        """Allowed right after a crash, and not once the store has settled."""
        if self._settled:
            self._wrong(path, f"left over: {why}")

    def _expect(self, path: Path, condition: bool, why: str) -> None:
        if not condition:
            self._wrong(path, why)

    def _mode(self, path: Path, *allowed: int) -> None:
        mode = stat.S_IMODE(os.lstat(path).st_mode)
        self._expect(path, mode in allowed, f"has mode {mode:04o}, not {' or '.join(f'{one:04o}' for one in allowed)}")

    def _file(self, path: Path, *modes: int) -> bool:
        """A regular file of one of these modes; its name is counted."""
        found = os.lstat(path)
        if not stat.S_ISREG(found.st_mode):
            self._wrong(path, "is not a regular file")
            return False
        self._mode(path, *modes)
        self._names[found.st_ino] += 1
        self._links[found.st_ino] = found.st_nlink
        return True

    def _entries(self, directory: Path, *modes: int) -> Iterator[Path]:
        """What is in a directory of the store, temporary names judged and left out."""
        self._mode(directory, *modes)
        for name in sorted(os.listdir(directory)):
            if TEMPORARY.fullmatch(name):
                self._left_over(directory / name, "a temporary name")
                self._file(directory / name, 0o600, 0o444, 0o400)
            else:
                yield directory / name

    # -- the top ----------------------------------------------------------------------------------------------------

    def _unfinished(self) -> list[str]:
        """A store whose making was interrupted: an empty directory, but for temporary files."""
        if not self._root.exists():
            return ["there is no directory"] if self._settled else []
        for path in sorted(self._root.iterdir()):
            self._expect(path, TEMPORARY.fullmatch(path.name) is not None, "is here, but `format` is not")
        return sorted(self._found) if not self._settled else [*sorted(self._found), "there is no `format`"]

    def _top(self) -> None:
        for path in self._entries(self._root, 0o700):
            if path.name == "format":
                self._file(path, 0o400)
                self._expect(path, check_format(path.read_bytes()), "is not a format file")
            elif path.name in LOCKS:
                self._file(path, 0o600)
                self._expect(path, path.stat().st_size == 0, "a lock is not empty")
            elif path.name == "verified":
                self._check_verified(path)
            elif path.name == "agent":  # locked by who serves the store, and left there
                self._file(path, 0o600)
            elif path.name == "node.key":
                self._file(path, 0o600)
                self._expect(path, check_node_key(path.read_bytes()), "is not a key")
            elif path.name == "apart":
                for home in self._entries(path, 0o700):
                    self._check_home(home)
            elif path.name not in (*DIRECTORIES, "lost+found"):
                self._wrong(path, "is no part of a store")
        for name in (*DIRECTORIES, *LOCKS):
            if not (self._root / name).exists():
                self._left_over(self._root / name, "missing: making the store was interrupted")

    def _check_home(self, home: Path) -> None:
        self._expect(home, NAMESPACE.fullmatch(home.name) is not None and home.is_dir(), "is no compartment")
        for path in self._entries(home, 0o700):
            if path.name == "verified":
                self._check_verified(path)
            else:
                self._expect(path, path.name in COMPARTMENT and path.is_dir(), "is no part of a compartment")

    def _check_verified(self, path: Path) -> None:
        self._file(path, 0o600)
        self._expect(path, check_verified(path.read_bytes()), "is no record of verified blobs")

    def _under(self, *parts: str) -> Path | None:
        path = self._root.joinpath(*parts)
        return path if path.is_dir() else None

    def _two_levels(self, directory: str) -> Iterator[tuple[str, Path]]:
        """The files of `DIRECTORY/sha256/ab/` of each compartment."""
        for compartment, home in self._homes.items():
            for path in self._entries(home / directory, 0o700) if (home / directory).is_dir() else ():
                self._expect(path, path.name == "sha256", "is no part of a store")
                for prefix in self._entries(path, 0o700):
                    self._expect(prefix, PREFIX.fullmatch(prefix.name) is not None and prefix.is_dir(), "is no prefix directory")
                    yield from ((compartment, each) for each in self._entries(prefix, 0o700))

    # -- blobs and tables -------------------------------------------------------------------------------------------

    def _check_blobs(self) -> None:
        for compartment, path in self._two_levels("blobs"):
            match = BLOB.fullmatch(path.name)
            if match is None or path.parent.name != path.name[:2]:
                self._wrong(path, "is no name of a blob")
            elif self._file(path, 0o444):
                self._check_blob(path, (compartment, match[1]), int(match[2] or 0))
        for content, numbers in self._blobs.items():
            # One gap is what a crash in a quarantine leaves; the next publish fills it.
            self._expect(self._blob(content), max(numbers) <= len(numbers), f"its inodes are numbered {sorted(numbers)}")

    def _blob(self, content: Content, directory: str = "blobs") -> Path:
        compartment, digits = content
        return self._homes[compartment] / directory / "sha256" / digits[:2] / digits

    def _check_blob(self, path: Path, content: Content, number: int) -> None:
        found, digits = path.lstat(), content[1]
        self._expect(path, found.st_size > 0, "a blob of no bytes")
        self._expect(path, found.st_mtime == FIXED_MTIME_S, f"has mtime {found.st_mtime}")
        data = path.read_bytes()
        got = digest_of(data).hex
        self._expect(path, got == digits or digits in self._damaged, f"WRONG BYTES: its sha256 is {got}")
        self._blobs.setdefault(content, {})[number] = found.st_ino
        self._sizes[content] = found.st_size
        if chunk_count(found.st_size) > 1:
            self._check_table_of(path, content, data)
        if found.st_nlink == 1:
            self._left_over(path, "no snapshot and no ingest names it")

    def _check_table_of(self, blob: Path, content: Content, data: bytes) -> None:
        table = self._blob(content, "chunks")
        if not table.is_file():
            self._wrong(blob, "has more than one chunk and no chunk table")
            return
        spans = [chunk_range(index, len(data)) for index in range(chunk_count(len(data)))]
        marks = tuple(mark_of(data[span.start : span.stop]) for span in spans)
        same = table.read_bytes() == ChunkTable(len(data), marks).encode()
        self._expect(table, same or content[1] in self._damaged, "is not the chunk table of its blob")

    def _check_tables(self) -> None:
        for compartment, path in self._two_levels("chunks"):
            if not self._file(path, 0o444):
                continue
            if HEX64.fullmatch(path.name) is None or path.parent.name != path.name[:2]:
                self._wrong(path, "is no name of a chunk table")
            elif (compartment, path.name) not in self._blobs:
                if not any(self._homes[compartment].joinpath("quarantine").glob(f"{path.name}.*")):
                    self._left_over(path, "there is no blob of this name")
            else:
                self._expect(path, chunk_count(self._sizes[compartment, path.name]) > 1, "the table of a blob of one chunk")

    # -- manifests and snapshots ------------------------------------------------------------------------------------

    def _records(self, directory: str) -> Iterator[tuple[Path, str, bytes]]:
        """Path, name without suffix and bytes of the records of a directory."""
        top = self._under(directory)
        if top is None:
            return
        for path in self._entries(top, 0o700):
            if not path.name.endswith(".json"):
                self._wrong(path, "is no record")
            elif self._file(path, 0o600):
                yield path, path.name.removesuffix(".json"), path.read_bytes()

    def _check_manifests(self) -> None:
        for path, name, data in self._records("manifests"):
            self._expect(path, digest_of(data).hex == name, "its bytes are not what its name says")
            try:
                self._manifests[name] = Manifest.decode(data)
            except DamagedRecord as error:
                self._wrong(path, str(error))
            if not (self._root / "snapshots" / name).is_dir():
                self._left_over(path, "there is no snapshot of this name")

    def _check_snapshots(self) -> None:
        top = self._under("snapshots")
        if top is None:
            return
        for path in self._entries(top, 0o700):
            self._expect(path, HEX64.fullmatch(path.name) is not None and path.is_dir(), "is no snapshot")
            # In the middle of a publish or an eviction the top may still, or already, be writable.
            self._mode(path, *((0o555,) if self._settled else (0o555, 0o755)))
            self._trees.add(path.name)
            manifest = self._manifests.get(path.name)
            files = dict(self._tree(path))
            if manifest is None:
                self._left_over(path, "there is no manifest of this name")
                continue
            wanted = {item.path: item for item in manifest.files}
            for name in sorted(files.keys() ^ wanted.keys()):
                self._wrong(path / name, "is not in the manifest" if name in files else "is missing")
            for name in files.keys() & wanted.keys():
                item = wanted[name]
                self._check_member(path / name, files[name], item.size_bytes, (manifest.compartment, item.sha256.hex))

    def _tree(self, top: Path) -> Iterator[tuple[str, os.stat_result]]:
        for parent, directories, files in os.walk(top):
            for name in directories:
                path = Path(parent, name)
                self._mode(path, *((0o555,) if self._settled else (0o555, 0o755)))  # In the middle of a repair, as the top.
                self._expect(path, any(path.iterdir()), "an empty directory in a snapshot")
            for name in files:
                path = Path(parent, name)
                if self._file(path, 0o444):
                    yield str(path.relative_to(top)), path.lstat()

    def _check_member(self, path: Path, found: os.stat_result, size_bytes: int, content: Content) -> None:
        self._expect(path, found.st_size == size_bytes, f"has {found.st_size} bytes, the manifest says {size_bytes}")
        self._expect(path, found.st_mtime == FIXED_MTIME_S, f"has mtime {found.st_mtime}")
        if size_bytes == 0:
            self._expect(path, found.st_nlink == 1, "an empty file is linked")
        elif found.st_ino not in self._blobs.get(content, {}).values() and content[1] not in self._damaged:
            self._wrong(path, f"is no inode of blob {content[1]}")

    def _check_quarantine(self) -> None:
        tops = (home / "quarantine" for home in self._homes.values())
        for path in (each for top in tops if top.is_dir() for each in self._entries(top, 0o700)):
            match = re.fullmatch(r"([0-9a-f]{64})\.[0-9]+", path.name)
            self._expect(path, match is not None, "is no name of a quarantined blob")
            self._file(path, 0o444)
            self._expect(path, match is not None and match[1] in self._quarantined, "nothing of this name was damaged")

    # -- refs and leases --------------------------------------------------------------------------------------------

    def _published(self, digits: str) -> bool:
        return digits in self._manifests and digits in self._trees

    def _check_refs(self) -> None:
        for path, name, data in self._records("refs"):
            why = check_ref(data, name)
            self._expect(path, why is None, str(why))
            if why is None and not self._published(named_manifest(data)) and not awaits_repair(data, self._homes):
                self._left_over(path, "its snapshot is not here")

    def _check_leases(self) -> None:
        for path, name, data in self._records("leases"):
            why = check_lease(data, name)
            self._expect(path, why is None, str(why))
            if why is None and not self._published(named_manifest(data)):
                self._left_over(path, "a lease to a snapshot that is not here")
            if not name.startswith("pin-"):
                self._left_over(path, "a lease of nobody")

    def _check_grants(self) -> None:
        for path, name, data in self._records("grants"):
            self._expect(path, (why := check_grant(data, name)) is None, str(why))

    # -- on the way in and out --------------------------------------------------------------------------------------

    def _check_ingests(self) -> None:
        top = self._under("ingest")
        for path in () if top is None else self._entries(top, 0o700):
            self._left_over(path, "an ingest")
            self._expect(path, HEX32.fullmatch(path.name) is not None and path.is_dir(), "is no ingest")
            for part in sorted(path.iterdir()):
                if part.name not in INGEST_PARTS:
                    self._wrong(part, "is no part of an ingest")
                elif part.name == "tree":
                    self._count(part)
                elif part.name == "tmp":
                    for temporary in sorted(part.iterdir()):
                        self._expect(temporary, INGEST_TEMPORARY.fullmatch(temporary.name) is not None, "is no temporary file of an ingest")
                    self._count(part)
                else:
                    self._file(part, 0o600)

    def _check_trash(self) -> None:
        top = self._under("trash")
        for path in () if top is None else self._entries(top, 0o700):
            self._left_over(path, "in the trash")
            self._count(path)

    def _check_claims(self) -> None:
        top = self._under("claims")
        for path in () if top is None else self._entries(top, 0o700):
            self._expect(path, path.name in CLAIMS and self._file(path, 0o600) and path.stat().st_size == 0, "is no file to lock")
        for name in CLAIMS:
            if top is not None and not (top / name).exists():
                self._left_over(top / name, "missing: making the store was interrupted")

    def _count(self, path: Path) -> None:
        """Count the names in something that is judged as a whole."""
        if not path.is_dir():
            self._file(path, 0o400, 0o444, 0o600)
            return
        self._mode(path, 0o555, 0o700, 0o755)
        for each in sorted(path.iterdir()):
            self._count(each)

    def _check_names(self) -> None:
        """Every name of every file was seen: nothing of the store is named elsewhere."""
        for content, numbers in self._blobs.items():
            for inode in numbers.values():
                seen, said = self._names[inode], self._links[inode]
                self._expect(self._blob(content), seen == said, f"has {said} names, of which {seen} are in the store")
