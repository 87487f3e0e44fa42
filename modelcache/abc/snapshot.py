"""What a store shows: snapshots, and the refs that lead to them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from modelcache.digest import Digest


@dataclass(frozen=True, slots=True)
class RefKey:
    """What a ref is filed under: canonical URI and origin, as text.

    Attributes:
        compartment: the namespace whose own part of the store this is in (`isolation: namespace`); empty: the part that all share.
    """

    uri: str
    origin: str
    compartment: str = ""


@dataclass(frozen=True, slots=True)
class RefFile:
    """One file of a resolved ref.

    Attributes:
        validator: what the origin named this version by (may be empty).
        sha256: of its bytes, computed here.
        stated: digests that the origin stated and that were compared; empty means `digest: computed`.
        claimed: the sha256 is the origin's word: a blob of that name was here, and no byte of it was read there.
    """

    path: str
    size_bytes: int
    validator: str
    sha256: Digest
    stated: tuple[Digest, ...] = ()
    claimed: bool = False


@dataclass(frozen=True, slots=True)
class Ref:
    """What a URI at an origin resolved to.

    Attributes:
        revision: the origin's name of the version, or a fingerprint.
        immutable: never needs to be resolved again.
        manifest: names the snapshot.
        created_at_s: Unix time of the first resolution to this manifest.
        checked_at_s: Unix time at which the origin last confirmed it.
    """

    key: RefKey
    revision: str
    immutable: bool
    manifest: Digest
    files: tuple[RefFile, ...]
    created_at_s: float
    checked_at_s: float

    @property
    def head(self) -> RefHead:
        return RefHead(
            key=self.key,
            revision=self.revision,
            immutable=self.immutable,
            manifest=self.manifest,
            size_bytes=sum(item.size_bytes for item in self.files),
            file_count=len(self.files),
            created_at_s=self.created_at_s,
            checked_at_s=self.checked_at_s,
        )


@dataclass(frozen=True, slots=True)
class RefHead:
    """A ref without its list of files: all that a hit needs, whatever the number of files."""

    key: RefKey
    revision: str
    immutable: bool
    manifest: Digest
    size_bytes: int
    file_count: int
    created_at_s: float
    checked_at_s: float


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A published directory of one manifest: complete, verified, read-only.

    Attributes:
        digest: the manifest's.
        path: the directory; files in it are hard links to blobs.
        stale: of an ensure: it was due to be compared with its origin, which could not be asked. The last version that is known.
    """

    digest: Digest
    path: Path
    stale: bool = False
