"""`pvc://`: PersistentVolumeClaims that are mounted here, as they are inside a pod."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from modelcache.abc.source import Body, Listing, Origin, RemoteFile
from modelcache.errors import BadConfig, ModelCacheError, NotFound
from modelcache.patience import Cancellation
from modelcache.ranges import ByteRange
from modelcache.sources.local import LocalSource
from modelcache.uri import StorageUri


@dataclass(frozen=True, slots=True)
class ClaimMounts:
    """Where PersistentVolumeClaims are mounted on this machine, or in this pod.

    Attributes:
        root: a directory that has each claim under its name.
        claims: claim → its mount; goes before `root`.
    """

    root: Path | None = None
    claims: Mapping[str, Path] = field(default_factory=dict)

    def of(self, claim: str, address: str) -> str:
        """Raises BadConfig: nobody said where it is."""
        if claim in self.claims:
            return str(self.claims[claim])
        if self.root is not None:
            return str(self.root / claim)
        raise BadConfig(
            f"nothing says where the claim `{claim}` is mounted",
            address=address,
            got=claim,
            hint="mount it, and name the directory: MODELCACHE_PVC_CLAIMS=CLAIM=/PATH, or MODELCACHE_PVC_ROOT for one that has each claim "
            "under its name",
        )


class ClaimSource:
    """`pvc://CLAIM/PATH` as the files of the claim's mount. Links are followed inside of the mount only. Safe for many threads.

    The origin is the claim, wherever it is mounted.
    """

    def __init__(self, claim: str, mounts: ClaimMounts) -> None:
        """Raises BadConfig: the claim is mounted nowhere that is known."""
        self._claim = claim
        self._mount = os.path.realpath(mounts.of(claim, f"pvc://{claim}"))
        self._files = LocalSource(within=self._mount)

    @property
    def origin(self) -> Origin:
        return Origin(f"pvc://{self._claim}")

    def list(self, uri: StorageUri, cancel: Cancellation) -> Listing:
        """As `Source.list`."""
        if not Path(self._mount).is_dir():
            hint = f"is the claim mounted at `{self._mount}`?"
            raise NotFound(f"the claim `{self._claim}` is not here", address=str(uri), hint=hint)
        place = os.path.join(self._mount, uri.path) if uri.path else self._mount
        try:
            found = self._files.list(replace(uri, scheme="file", authority="", path=place), cancel)
        except ModelCacheError as error:
            error.address = str(uri)
            if not os.path.lexists(place):
                error.hint = f"check the spelling: the claim is mounted at `{self._mount}`"
            raise
        return replace(found, uri=uri, origin=self.origin)

    def open(self, file: RemoteFile, span: ByteRange, cancel: Cancellation) -> Body:
        """As `Source.open`."""
        return self._files.open(file, span, cancel)

    def close(self) -> None:
        """Nothing is kept open."""
