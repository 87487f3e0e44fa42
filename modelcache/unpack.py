"""An ensure of a place that may be an archive: that is gathered, read, and let go of once its members are published."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import replace

from modelcache.abc.ingest import IncomingFile, Ingest, Route
from modelcache.abc.snapshot import Ref, RefKey
from modelcache.abc.source import Listing, RemoteFile, Source
from modelcache.abc.store import Store
from modelcache.digest import Digest
from modelcache.ensure import Ensure, Ensured
from modelcache.errors import BadArchive, IntegrityError, NoSpace
from modelcache.fetch.begun import Begun, Tell
from modelcache.fetch.engine import FetchEngine
from modelcache.fetch.plan import Priority
from modelcache.fetch.progress import Progress
from modelcache.manifest import Manifest
from modelcache.patience import Cancellation
from modelcache.permission import Admission
from modelcache.sources.archive import MEMBER, ArchiveLimits, ArchiveSource, look_for_archive
from modelcache.stated import pinned
from modelcache.uri import StorageUri

KEPT_AS_FILES = ("hf", "modelscope")
"""Schemes whose archives KServe does not unpack."""


def files_at(source: Source, uri: StorageUri, cancel: Cancellation) -> Listing | None:
    """What a snapshot of this place would have; None: it is an archive, and what that has is known when it is here. As `Source.list`."""
    if _kept_as_files(uri):
        return source.list(uri, cancel)
    found, is_archive = look_for_archive(source, uri, cancel)
    return None if is_archive else found


def _kept_as_files(uri: StorageUri) -> bool:
    return uri.scheme in KEPT_AS_FILES or not uri.unpack


class Unpacking:
    """`Ensure`, whatever the place is; used like it.

    The archive is an ingest of the store under its own name (`#unpack=false`): its room is booked, a broken fetch of it goes on where
    it ended, and one that nobody came back for is collected. It is never published, and removed when its members are, or when it
    proves to be none.
    """

    def __init__(
        self,
        store: Store,
        engine: FetchEngine,
        admission: Admission,
        uri: StorageUri,
        *,
        priority: Priority,
        route: Route | None,
        limits: ArchiveLimits,
        tell: Tell | None = None,
    ) -> None:
        """As `Ensure`, which see. Of an archive, the fetch that is told of is that of its members, once it is here."""
        self._address = str(uri)
        self._started_s = time.monotonic()
        self._shelf = _Shelf(store, engine, admission, uri, priority)
        source = ArchiveSource(admission.source, self._shelf.bring, self._shelf.remembered, limits)
        members: Admission = admission if _kept_as_files(uri) else MembersAdmission(admission, source)
        self._ensure = Ensure(store, engine, members.source, uri, priority=priority, route=route, admission=members, tell=tell)

    def hurry(self, priority: Priority) -> None:
        """As `Ensure.hurry`."""
        self._shelf.hurry(priority)
        self._ensure.hurry(priority)

    def look(self) -> Progress:
        """As `Ensure.look`; of the archive, while that is on its way."""
        seen = self._shelf.look() or self._ensure.look()
        return replace(seen, uri=self._address, elapsed_s=time.monotonic() - self._started_s)

    @property
    def begun(self) -> Begun | None:
        """As of `Ensure`."""
        return self._ensure.begun

    def run(self, cancel: Cancellation) -> Ensured:
        """As `Ensure.run`.

        Raises also:
            BadArchive: the archive can't be unpacked.
        """
        try:
            ensured = self._ensure.run(cancel)
        except (BadArchive, IntegrityError, NoSpace):
            self._shelf.discard()  # of no use, or in the way
            raise
        except BaseException:
            self._shelf.keep()
            raise
        self._shelf.discard()
        return Ensured(ensured.snapshot, self._shelf.counted(ensured.progress), ensured.unavailable)


class MembersAdmission:
    """An admission whose source lists members of archives: they are proved by their archive, which was brought, or read a byte of."""

    def __init__(self, admission: Admission, source: ArchiveSource) -> None:
        self._admission = admission
        self._source = source

    @property
    def source(self) -> Source:
        return self._source

    @property
    def key(self) -> RefKey:
        return self._admission.key

    @property
    def identity(self) -> str:
        return self._admission.identity

    def of(self, uri: StorageUri) -> Admission:
        return self._admission.of(uri)

    def sees(self, revision: str, manifest: Digest) -> bool:
        return self._admission.sees(revision, manifest)

    def last(self) -> Sequence[Digest]:
        return self._admission.last()

    def known(self, listing: Listing, ref: Ref | None) -> dict[str, Digest]:
        return self._admission.known(listing, ref)

    def prove(self, files: Iterable[RemoteFile], cancel: Cancellation) -> None:
        """Raises also SourceChanged: the archive of a member is another one."""
        self._admission.prove([file for file in files if not self._source.vouches_for(file)], cancel)

    def proved(self, revision: str, manifest: Manifest) -> None:
        self._admission.proved(revision, manifest)

    def refused(self) -> None:
        self._admission.refused()


class _Shelf:
    """The archive of one ensure, on its way or at hand."""

    def __init__(self, store: Store, engine: FetchEngine, admission: Admission, uri: StorageUri, priority: Priority) -> None:
        self._store = store
        self._engine = engine
        self._admission = admission
        self._uri = uri
        self._priority = priority
        self._gathering: Ensure | None = None
        self._ingest: Ingest | None = None
        self._fetched_bytes = 0

    def bring(self, listing: Listing, cancel: Cancellation) -> IncomingFile:
        """Have the archive that this is the listing of."""
        self.keep()  # an earlier version
        if self._uri.digest is not None:
            listing = pinned(listing, self._uri.digest)
        if listing.size_bytes == 0:
            raise BadArchive("the archive is empty", address=str(self._uri))
        admission = self._admission.of(listing.uri)
        gathering = Ensure(
            self._store, self._engine, admission.source, listing.uri, priority=self._priority, route=None, admission=admission
        )
        self._gathering = gathering
        try:
            self._ingest = gathering.gather(listing, cancel)
        finally:
            self._gathering = None
            self._fetched_bytes += gathering.look().bytes_fetched
        return self._ingest.files[0]

    def remembered(self, revision: str, listing: Listing, cancel: Cancellation) -> tuple[RemoteFile, ...] | None:
        """The files of this revision, if all are here. Who may not have them without a proof reads a byte of the archive."""
        ref = self._store.ref(self._admission.key)
        if ref is None or ref.revision != revision or self._store.snapshot(ref.manifest) is None:
            return None
        if not all(file.validator.startswith(MEMBER) for file in ref.files):
            return None  # a ref that was rebuilt: it does not say of which archive these are
        if not self._admission.sees(revision, ref.manifest):
            self._admission.of(listing.uri).prove(listing.files, cancel)
        return tuple(RemoteFile(file.path, file.size_bytes, file.path, file.validator, file.stated) for file in ref.files)

    def hurry(self, priority: Priority) -> None:
        self._priority = min(self._priority, priority)  # of a fetch that is to begin; its own callers' looks put it right
        gathering = self._gathering
        if gathering is not None:
            gathering.hurry(priority)

    def look(self) -> Progress | None:
        gathering = self._gathering
        return None if gathering is None else gathering.look()

    def counted(self, progress: Progress) -> Progress:
        """What came over the network is the archive."""
        if self._ingest is None:
            return progress
        return replace(progress, bytes_fetched=self._fetched_bytes, hit=progress.hit and self._fetched_bytes == 0)

    def keep(self) -> None:
        """End the ingest, for another try to go on with."""
        if self._ingest is not None:
            self._ingest.keep()

    def discard(self) -> None:
        """Remove it."""
        if self._ingest is not None:
            self._ingest.discard()
