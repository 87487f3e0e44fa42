"""Where everything of a store is; paths only, nothing is touched (`docs/format.md`)."""

from __future__ import annotations

import hashlib
import secrets
from pathlib import Path

from modelcache.abc.snapshot import RefKey
from modelcache.digest import Digest
from modelcache.paths import checked_compartment

FORMAT_VERSION = 1
TEMP_PREFIX = ".tmp-"
"""What is under such a name is no part of the store yet; made and renamed under the shared store lock."""
CLAIM_FILES = 16
FIXED_MTIME_S = 315_532_800
"""1980-01-01T00:00:00Z, the oldest time that zip archives can hold: blobs carry it, so that equal content gives equal archives."""

_HEX = "0123456789abcdef"


def is_hex(name: str, length: int) -> bool:
    """Without a pattern: that took a sixth of the time of looking at a hundred thousand blobs."""
    return len(name) == length and not name.strip(_HEX)


def half_digest(text: str) -> str:
    """The first 32 hex digits of sha256 of `text`."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]


class Layout:
    """The paths of the store at `root`; blobs and what is known of them are those of one compartment."""

    def __init__(self, root: Path, compartment: str = "") -> None:
        """Args: compartment: a checked name; empty: the part that all share."""
        self.root = root
        self.apart = root / "apart"
        contents = self.apart / checked_compartment(compartment) if compartment else root
        self.format = root / "format"
        self.lock = root / "lock"
        self.turnstile = root / "lock.turn"
        self.room_lock = root / "lock.room"
        self.verified = contents / "verified"
        self.blobs = contents / "blobs" / "sha256"
        self.tables = contents / "chunks" / "sha256"
        self.manifests = root / "manifests"
        self.refs = root / "refs"
        self.snapshots = root / "snapshots"
        self.leases = root / "leases"
        self.grants = root / "grants"
        self.node_key = root / "node.key"
        self.ingests = root / "ingest"
        self.trash = root / "trash"
        self.quarantine = contents / "quarantine"
        self.claims = root / "claims"

    @property
    def directories(self) -> tuple[Path, ...]:
        """Every directory of an empty store, parents first."""
        return (
            self.blobs.parent,
            self.blobs,
            self.tables.parent,
            self.tables,
            self.manifests,
            self.refs,
            self.snapshots,
            self.leases,
            self.grants,
            self.ingests,
            self.trash,
            self.quarantine,
            self.claims,
        )

    @property
    def compartment_directories(self) -> tuple[Path, ...]:
        """Every directory of an empty compartment, parents first; the last one is what makes it whole."""
        return (self.apart, self.quarantine.parent, self.blobs.parent, self.blobs, self.tables.parent, self.tables, self.quarantine)

    def within(self, compartment: str) -> Layout:
        """That of a compartment of this store."""
        return Layout(self.root, compartment)

    @property
    def locks(self) -> tuple[Path, ...]:
        return (self.lock, self.turnstile, self.room_lock, *self.claim_locks)

    @property
    def claim_locks(self) -> tuple[Path, ...]:
        """Files whose bytes are locked, one for each identity that somebody brings."""
        return tuple(self.claims / f"lock.{number:x}" for number in range(CLAIM_FILES))

    @property
    def record_directories(self) -> tuple[Path, ...]:
        """Where records are written under a temporary name first."""
        return (self.root, self.manifests, self.refs, self.leases, self.grants)

    def blob(self, digest: Digest, inode: int = 0) -> Path:
        """`inode` counts further inodes of equal content, made when a file system allows no more links to one."""
        name = digest.hex if inode == 0 else f"{digest.hex}.{inode}"
        return self.blobs / digest.hex[:2] / name

    def table(self, digest: Digest) -> Path:
        return self.tables / digest.hex[:2] / digest.hex

    def manifest(self, digest: Digest) -> Path:
        return self.manifests / f"{digest.hex}.json"

    def snapshot(self, digest: Digest) -> Path:
        return self.snapshots / digest.hex

    def ref(self, key: RefKey) -> Path:
        where = f"{key.origin}\0{key.compartment}" if key.compartment else key.origin
        return self.refs / f"{half_digest(key.uri)}{half_digest(where)}.json"

    def lease(self, lease_id: str) -> Path:
        return self.leases / f"{lease_id}.json"

    def grant(self, name: str) -> Path:
        return self.grants / f"{name}.json"

    def ingest(self, ingest_id: str) -> Path:
        return self.ingests / ingest_id

    @staticmethod
    def temporary(directory: Path) -> Path:
        """A name in `directory` that nobody else uses."""
        return directory / f"{TEMP_PREFIX}{secrets.token_hex(8)}"
