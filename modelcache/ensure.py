"""One `ensure` that has to ask the origin: resolve, hold what is here, fetch the rest, publish."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace

from modelcache.abc.ingest import Ingest, IngestFile, Route
from modelcache.abc.snapshot import Ref, RefFile, RefHead, RefKey, Snapshot
from modelcache.abc.source import Listing, RemoteFile, Source
from modelcache.abc.store import Store
from modelcache.digest import Algorithm, Digest
from modelcache.errors import (
    AccessDenied,
    AccessUnproved,
    DamagedBlob,
    DigestMismatch,
    NotCached,
    OriginUntrusted,
    SourceChanged,
    Unavailable,
)
from modelcache.fetch.begun import Begun, Tell
from modelcache.fetch.engine import FetchEngine
from modelcache.fetch.fetch import Fetch
from modelcache.fetch.plan import Priority
from modelcache.fetch.progress import Phase, Progress, hit_progress, said
from modelcache.fetch.request import FetchRequest
from modelcache.fetch.route import available_memory_bytes, route_for_reader
from modelcache.fetch.turns import Awaited
from modelcache.manifest import Manifest, ManifestFile
from modelcache.patience import Cancellation
from modelcache.permission import Admission, OwnersAdmission
from modelcache.stated import compared_with, expect_stated, pinned
from modelcache.uri import StorageUri

CHANGE_TRIES = 3
"""An origin that changes under a fetch, or a blob of it found damaged meanwhile: it is listed again this often in all, then told."""
LATELY_S = 10.0
"""A caller who has not looked for so long has gone, and with it the hurry that it lent to a fetch of others. Callers look every 0.2 s."""

REDEFINED_HINT = (
    "an earlier fetch of this very version had the expected digest, so either the bytes are damaged on their way, "
    "or the origin changed them and kept its name of the version; if it did, `modelcache rm URI` forgets the earlier one"
)


@dataclass(frozen=True, slots=True)
class Ensured:
    """What an ensure came to: the snapshot, and the last word of its progress (phase `done`).

    Attributes:
        unavailable: why the origin could not be asked, when the snapshot is therefore the last version that is known (`stale`).
    """

    snapshot: Snapshot
    progress: Progress
    unavailable: Unavailable | None = None


@dataclass(frozen=True, slots=True)
class _Resolved:
    """What the URI is now.

    Attributes:
        ref: what it was before.
        known: sha256 by path of the files that need no fetching if their blobs are here.
    """

    listing: Listing
    ref: Ref | None
    known: dict[str, Digest]


class Ensure:
    """One resolution of one ref. `run` is called once, in the flight's thread; `look` and `hurry` by any waiting caller.

    Attributes:
        begun: the last fetch that was begun.
    """

    def __init__(
        self,
        store: Store,
        engine: FetchEngine,
        source: Source,
        uri: StorageUri,
        *,
        priority: Priority,
        route: Route | None,
        admission: Admission | None = None,
        tell: Tell | None = None,
    ) -> None:
        """
        Args:
            route: None: somebody reads next, so through the page cache if it fits.
            tell: of the fetch, as soon as it has begun, and of each that takes its place.
            admission: of who asks, with `source` as its source; None: the store's only owner.
        """
        self._store = store
        self._engine = engine
        self._source = source
        self._admission = admission or OwnersAdmission(store, source, uri)
        self._uri = uri
        self._priority = priority
        self._hurrying = threading.Lock()
        self._asked = dict.fromkeys(Priority, float("-inf")) | {priority: time.monotonic()}
        self._route = route
        self._key = RefKey(str(uri), str(source.origin), self._admission.key.compartment)
        self._started_s = time.monotonic()
        self._phase, self._phase_began_s = Phase.RESOLVING, self._started_s
        self._fetch: Fetch | None = None
        self._tell = tell
        self.begun: Begun | None = None
        self._ahead: Awaited | None = None
        self._cancel = Cancellation()

    def hurry(self, priority: Priority) -> None:
        """A caller of this priority waits, too, and says so again and again: the highest of those counts that said so lately."""
        with self._hurrying:
            now_s = time.monotonic()
            self._asked[priority] = now_s
            self._priority = min(level for level in Priority if now_s - self._asked[level] <= LATELY_S)
            if self._fetch is not None:
                self._engine.hurry(self._fetch, self._priority)
        ahead = self._ahead
        if ahead is not None:
            ahead.hurry(self._priority)

    def look(self) -> Progress:
        """The state now; of who is ahead, while this waits for its turn."""
        ahead = self._ahead
        if ahead is not None:
            return replace(ahead.look(), elapsed_s=time.monotonic() - self._started_s)
        fetch, phase = self._fetch, self._phase
        seen = fetch.look(phase) if fetch is not None else Progress(self._key.uri, phase, waiting=said(self._cancel.waits))
        return replace(seen, elapsed_s=time.monotonic() - self._started_s)

    def run(self, cancel: Cancellation) -> Ensured:
        """Resolve the URI and bring in what is missing.

        Raises:
            SourceChanged, DamagedBlob: the origin changed, or a blob was found damaged, under each of `CHANGE_TRIES` tries.
            What `Source.list`, `Source.open`, `Store.ingest` and the engine raise.
        """
        self._cancel = cancel
        for tries_left in reversed(range(CHANGE_TRIES)):
            self._phase, self._phase_began_s, self._fetch = Phase.RESOLVING, time.monotonic(), None
            try:
                return self._try(cancel)
            except (SourceChanged, DamagedBlob):
                if tries_left == 0:
                    raise
            except AccessDenied:
                self._admission.refused()
                raise
            finally:
                self._enter(self._phase)
        raise AssertionError("unreachable")

    def _enter(self, phase: Phase) -> None:
        """The phase before it has ended."""
        began_s, self._phase_began_s = self._phase_began_s, time.monotonic()
        self._engine.incoming.tell_phase(self._key.uri, self._phase, self._phase_began_s - began_s)
        self._phase = phase

    def _try(self, cancel: Cancellation) -> Ensured:
        try:
            listing = self._list(cancel)
        except OriginUntrusted:
            raise  # that is no outage: somebody answered, and not who should
        except Unavailable as error:
            return self._stale(error)
        cancel.check()
        resolved = self._resolved(listing, self._store.ref(self._key))
        return self._already_here(resolved, cancel) or self._in_turn(resolved, cancel)

    def _in_turn(self, resolved: _Resolved, cancel: Cancellation) -> Ensured:
        """Bring it, unless another asker does just now: then see afterwards what is still missing. One ingest of it books its room."""
        listing, turn = resolved.listing, (self._key, resolved.listing.revision)
        if self._engine.turns.ahead(turn) is not None:
            self._admission.prove(listing.files, cancel)  # who has no right waits for nothing
        with self._engine.turns.take(turn, self, cancel, self._follow):
            newer, waited, self._ahead = self._newer_ref(resolved), self._ahead is not None, None
            if newer is None and not waited:
                return self._bring(resolved, cancel)
            resolved = self._resolved(listing, newer or resolved.ref)
            return self._already_here(resolved, cancel) or self._bring(resolved, cancel)

    def _resolved(self, listing: Listing, ref: Ref | None) -> _Resolved:
        return _Resolved(listing, ref, self._admission.known(listing, ref))

    def _follow(self, ahead: Awaited) -> None:
        self._ahead = ahead
        ahead.hurry(self._priority)

    def _stale(self, error: Unavailable) -> Ensured:
        """The last version that may be handed out. Raises `error` if there is none, AccessUnproved if none may be."""
        try:
            found = last(self._store, self._admission, self._started_s)
        except AccessUnproved as refusal:
            raise refusal.because(error) from error
        if found is None:
            raise error
        return Ensured(replace(found.snapshot, stale=True), replace(found.progress, stale=True), error)

    def _list(self, cancel: Cancellation) -> Listing:
        listing = self._source.list(self._uri, cancel)
        return listing if listing.uri.digest is None else pinned(listing, listing.uri.digest)

    # -- nothing to fetch -------------------------------------------------------------------------------------------

    def _already_here(self, resolved: _Resolved, cancel: Cancellation) -> Ensured | None:
        """The snapshot, when every file's digest is known before a fetch and all of it is published."""
        listing, ref = resolved.listing, resolved.ref
        digests = [resolved.known.get(item.path) for item in listing.files]
        if any(item is None for item in digests):
            return None
        manifest = self._manifest(listing, [item for item in digests if item is not None])
        if not self._admission.sees(listing.revision, manifest.digest):
            if self._store.snapshot(manifest.digest) is None:
                return None
            self._admission.prove(listing.files, cancel)
            self._admission.proved(listing.revision, manifest)
        if ref is not None and ref.manifest == manifest.digest and ref.revision == listing.revision:
            snapshot = self._store.snapshot(manifest.digest)
            if snapshot is None:
                return None
            self._store.touch(ref, checked_at_s=time.time())
        else:
            snapshot = self._store.attach(self._ref(resolved, manifest, {}))
            if snapshot is None:
                return None
        return Ensured(snapshot, hit_progress(self._key.uri, listing.size_bytes, len(listing.files), self._started_s))

    # -- something to fetch -----------------------------------------------------------------------------------------

    def gather(self, listing: Listing, cancel: Cancellation) -> Ingest:
        """Have every file of a listing of this URI here, complete and proved, unpublished. The caller ends the ingest.

        Raises:
            What `Source.open`, `Store.ingest` and the engine raise; what was fetched is kept then.
        """
        return self._gather(self._resolved(listing, self._store.ref(self._key)), cancel)[0]

    def _bring(self, resolved: _Resolved, cancel: Cancellation) -> Ensured:
        ingest, fetch = self._gather(resolved, cancel)
        try:
            return self._publish(resolved, ingest, fetch)
        finally:
            ingest.keep()  # nothing after publish; else what is marked serves the next try

    def _gather(self, resolved: _Resolved, cancel: Cancellation) -> tuple[Ingest, Fetch]:
        listing, known = resolved.listing, resolved.known
        home = self._key.compartment
        here = [item for item in listing.files if item.path in known and self._store.has_blob(known[item.path], home)]
        self._admission.prove(here, cancel)
        wanted = [IngestFile(item.path, item.size_bytes, _version(listing, item), known.get(item.path), home) for item in listing.files]
        self._enter(Phase.RESERVING)
        with ExitStack() as planning, ExitStack() as failing:
            planning.enter_context(self._engine.planning())
            ingest = self._store.ingest(self._key, wanted, cancel)
            failing.callback(ingest.keep)  # nothing after discard
            try:
                fetch = self._start(resolved, ingest, wanted)
                planning.close()
                fetch.wait(cancel)
                self._admission.prove(listing.files, cancel)  # what others brought, or an earlier try
                expect_stated(listing, ingest.files)
            except DigestMismatch as error:
                ingest.discard()
                if error.expected not in self._stated(listing):
                    error.hint = REDEFINED_HINT
                raise
            failing.pop_all()
        return ingest, fetch

    def _stated(self, listing: Listing) -> set[str]:
        """All that the origin states of these files' bytes."""
        told = [] if self._fetch is None else self._fetch.told.values()
        return {str(digest) for digests in (*(item.digests for item in listing.files), *told) for digest in digests}

    def _newer_ref(self, resolved: _Resolved) -> Ref | None:
        """The ref, if another process has filed it since it was resolved here."""
        head = self._store.head(self._key)
        return self._store.ref(self._key) if head is not None and (resolved.ref is None or resolved.ref.head != head) else None

    def _known_by_now(self, resolved: _Resolved) -> dict[int, Digest]:
        """By file number, what is known now and was not before."""
        ref = self._newer_ref(resolved)
        known = {} if ref is None else self._admission.known(resolved.listing, ref)
        return {number: known[item.path] for number, item in enumerate(resolved.listing.files) if item.path in known}

    def _start(self, resolved: _Resolved, ingest: Ingest, wanted: list[IngestFile]) -> Fetch:
        listing = resolved.listing
        route = self._route or route_for_reader(listing.size_bytes, available_memory_bytes())
        request = FetchRequest(
            uri=self._key.uri,
            source=self._source,
            remote=tuple(compared_with(item, known.sha256) for item, known in zip(listing.files, wanted, strict=True)),
            ingest=ingest,
            identities=tuple(item.identity for item in wanted),
            priority=self._priority,
            route=route,
            known=lambda: self._known_by_now(resolved),
        )
        fetch = self._engine.start(request)
        with self._hurrying:
            self._fetch = fetch
            self._enter(Phase.FETCHING)
            self._engine.hurry(fetch, self._priority)  # somebody may have come while it was not to be seen
        self.begun = Begun(listing, ingest, fetch)
        if self._tell is not None:
            self._tell(self.begun)
        return fetch

    def _publish(self, resolved: _Resolved, ingest: Ingest, fetch: Fetch) -> Ensured:
        listing = resolved.listing
        self._enter(Phase.PUBLISHING)
        digests = [item.sha256 for item in ingest.files]
        manifest = self._manifest(listing, [item for item in digests if item is not None])
        compared = {
            item.path: tuple(digest for digest in fetch.compared[number] if digest in (*item.digests, *fetch.told.get(number, ())))
            for number, item in enumerate(listing.files)
            if number in fetch.compared
        }
        resolved = replace(resolved, ref=self._newer_ref(resolved) or resolved.ref)
        snapshot = ingest.publish(manifest, self._ref(resolved, manifest, compared))
        self._admission.proved(listing.revision, manifest)
        done = replace(fetch.look(Phase.DONE), elapsed_s=time.monotonic() - self._started_s, eta_s=0.0)
        return Ensured(snapshot, done)

    def _manifest(self, listing: Listing, digests: list[Digest]) -> Manifest:
        files = (ManifestFile(item.path, item.size_bytes, digest) for item, digest in zip(listing.files, digests, strict=True))
        return Manifest.of(files, self._key.compartment)

    def _ref(self, resolved: _Resolved, manifest: Manifest, compared: dict[str, tuple[Digest, ...]]) -> Ref:
        listing, before = resolved.listing, resolved.ref
        now_s = time.time()
        sha256_of = {item.path: item.sha256 for item in manifest.files}
        earlier = {item.path: item for item in before.files} if before is not None else {}
        files = []
        for item in listing.files:
            stated, claimed = compared.get(item.path), False
            if stated is None:  # its blob was here: what the origin states of it is its sha256, or what was compared back then
                same = earlier.get(item.path)
                if same is not None and (same.sha256, same.validator) != (sha256_of[item.path], item.validator):
                    same = None
                stated = (same.stated if same is not None else ()) or tuple(
                    digest for digest in item.digests if digest.algorithm is Algorithm.SHA256
                )
                fetched = same is not None and item.validator != "" and not same.claimed
                claimed = not fetched and (sha256_of[item.path] in item.digests or (same is not None and same.claimed))
            files.append(RefFile(item.path, item.size_bytes, item.validator, sha256_of[item.path], stated, claimed))
        created_at_s = before.created_at_s if before is not None and before.manifest == manifest.digest else now_s
        return Ref(self._key, listing.revision, listing.immutable, manifest.digest, tuple(files), created_at_s, now_s)


def hit(store: Store, ref: RefHead, started_s: float) -> Ensured | None:
    """The ref's snapshot without asking the origin; None if it is gone."""
    snapshot = store.snapshot(ref.manifest)
    if snapshot is None:
        return None
    return Ensured(snapshot, hit_progress(ref.key.uri, ref.size_bytes, ref.file_count, started_s))


def last(store: Store, admission: Admission, started_s: float) -> Ensured | None:
    """The last version that may be handed out without asking the origin; None if nothing is here. Raises AccessUnproved: none may be."""
    for digest in admission.last():
        snapshot = store.snapshot(digest)
        if snapshot is not None:
            manifest = store.manifest(digest)
            return Ensured(snapshot, hit_progress(admission.key.uri, manifest.size_bytes, len(manifest.files), started_s))
    return None


def _version(listing: Listing, item: RemoteFile) -> str:
    """Names these exact bytes: origin, place and validator. Empty when the origin gives no validator."""
    return f"{listing.origin}\n{item.locator}\n{item.validator}\n{item.size_bytes}" if item.resumable else ""


def expect_cached(ensured: Ensured | None, uri: StorageUri) -> Ensured:
    """Raises NotCached for an offline call that found nothing."""
    if ensured is None:
        raise NotCached(f"`{uri}` is not cached, and this call may not ask its origin", address=str(uri))
    return ensured


ProgressCallback = Callable[[Progress], None]
