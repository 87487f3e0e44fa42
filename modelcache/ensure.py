"""One `ensure` that has to ask the origin: resolve, hold what is here, fetch the rest, publish."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace

from modelcache.abc.source import Listing, RemoteFile, Source
from modelcache.abc.store import Ingest, IngestFile, Ref, RefFile, RefHead, RefKey, Route, Snapshot, Store
from modelcache.digest import Algorithm, Digest
from modelcache.errors import DigestMismatch, InvalidUri, NotCached, SourceChanged
from modelcache.fetch.engine import FetchEngine
from modelcache.fetch.fetch import Fetch, FetchRequest
from modelcache.fetch.plan import Priority
from modelcache.fetch.progress import Phase, Progress
from modelcache.fetch.route import available_memory_bytes, route_for_reader
from modelcache.manifest import Manifest, ManifestFile
from modelcache.patience import Cancellation
from modelcache.uri import StorageUri

CHANGE_TRIES = 3
"""An origin that changes under a fetch is listed again this often in all; one that still changes is told to the caller."""

REDEFINED_HINT = (
    "an earlier fetch of this very version had the expected digest, so either the bytes are damaged on their way, "
    "or the origin changed them and kept its name of the version; if it did, `modelcache rm URI` forgets the earlier one"
)


@dataclass(frozen=True, slots=True)
class Ensured:
    """What an ensure came to: the snapshot, and the last word of its progress (phase `done`)."""

    snapshot: Snapshot
    progress: Progress


class Ensure:
    """One resolution of one ref. `run` is called once, in the flight's thread; `look` and `hurry` by any waiting caller."""

    def __init__(
        self, store: Store, engine: FetchEngine, source: Source, uri: StorageUri, *, priority: Priority, route: Route | None
    ) -> None:
        """`route` None: somebody reads next, so through the page cache if it fits."""
        self._store = store
        self._engine = engine
        self._source = source
        self._uri = uri
        self._priority = priority
        self._route = route
        self._key = RefKey(str(uri), str(source.origin))
        self._started_s = time.monotonic()
        self._phase = Phase.RESOLVING
        self._fetch: Fetch | None = None

    def hurry(self, priority: Priority) -> None:
        """A caller of this priority waits, too: from now on it counts, if it is the higher one."""
        self._priority = min(self._priority, priority)
        fetch = self._fetch
        if fetch is not None:
            self._engine.hurry(fetch, priority)

    def look(self) -> Progress:
        """The state now."""
        fetch, phase = self._fetch, self._phase
        seen = fetch.look(phase) if fetch is not None else Progress(self._key.uri, phase)
        return replace(seen, elapsed_s=time.monotonic() - self._started_s)

    def run(self, cancel: Cancellation) -> Ensured:
        """Resolve the URI and bring in what is missing.

        Raises:
            SourceChanged: the origin changed under each of `CHANGE_TRIES` tries.
            What `Source.list`, `Source.open`, `Store.ingest` and the engine raise.
        """
        for tries_left in reversed(range(CHANGE_TRIES)):
            self._phase, self._fetch = Phase.RESOLVING, None
            try:
                return self._try(cancel)
            except SourceChanged:
                if tries_left == 0:
                    raise
        raise AssertionError("unreachable")

    def _try(self, cancel: Cancellation) -> Ensured:
        listing = self._list(cancel)
        cancel.check()
        ref = self._store.ref(self._key)
        return self._already_here(listing, ref) or self._bring(listing, ref, cancel)

    def _list(self, cancel: Cancellation) -> Listing:
        listing = self._source.list(self._uri, cancel)
        if self._uri.digest is None:
            return listing
        if len(listing.files) != 1:
            raise InvalidUri(
                f"`{self._uri}` names a digest, which fits a single file, but {len(listing.files)} files are there",
                got=str(self._uri.digest),
            )
        only = listing.files[0]
        stated = next((item for item in only.digests if item.algorithm is Algorithm.SHA256), None)
        if stated is not None and stated != self._uri.digest:
            raise DigestMismatch(
                f"the origin states another digest of `{self._uri}` than was asked for: expected {self._uri.digest}, got {stated}",
                address=str(self._uri),
                expected=str(self._uri.digest),
                got=str(stated),
                hint="the object was replaced, or the expected digest is wrong",
            )
        digests = tuple(item for item in only.digests if item.algorithm is not Algorithm.SHA256)
        return replace(listing, files=(replace(only, digests=(*digests, self._uri.digest)),))

    # -- nothing to fetch -------------------------------------------------------------------------------------------

    def _already_here(self, listing: Listing, ref: Ref | None) -> Ensured | None:
        """The snapshot, when every file's digest is known before a fetch and all of it is published."""
        known = _known_digests(listing, ref)
        digests = [known.get(item.path) for item in listing.files]
        if any(item is None for item in digests):
            return None
        manifest = _manifest(listing, [item for item in digests if item is not None])
        if ref is not None and ref.manifest == manifest.digest and ref.revision == listing.revision:
            snapshot = self._store.snapshot(manifest.digest)
            if snapshot is None:
                return None
            self._store.touch(ref, checked_at_s=time.time())
        else:
            snapshot = self._store.attach(self._ref(listing, manifest, ref, {}))
            if snapshot is None:
                return None
        return Ensured(snapshot, _hit_progress(self._key.uri, listing.size_bytes, len(listing.files), self._started_s))

    # -- something to fetch -----------------------------------------------------------------------------------------

    def _bring(self, listing: Listing, ref: Ref | None, cancel: Cancellation) -> Ensured:
        known = _known_digests(listing, ref)
        wanted = [IngestFile(item.path, item.size_bytes, _version(listing, item), known.get(item.path)) for item in listing.files]
        self._phase = Phase.RESERVING
        with ExitStack() as planning:
            planning.enter_context(self._engine.planning())
            ingest = self._store.ingest(self._key, wanted)
            try:
                fetch = self._start(listing, ingest, wanted)
                planning.close()
                return self._fill(listing, ref, ingest, fetch, cancel)
            except DigestMismatch as error:
                ingest.discard()
                if error.expected not in {str(digest) for item in listing.files for digest in item.digests}:
                    error.hint = REDEFINED_HINT
                raise
            finally:
                ingest.keep()  # nothing after publish or discard; else what is marked serves the next try

    def _start(self, listing: Listing, ingest: Ingest, wanted: list[IngestFile]) -> Fetch:
        route = self._route or route_for_reader(listing.size_bytes, available_memory_bytes())
        identities = tuple(item.version if item.sha256 is None else str(item.sha256) for item in wanted)
        remote = tuple(_compared(item, known.sha256) for item, known in zip(listing.files, wanted, strict=True))
        fetch = self._engine.start(FetchRequest(self._key.uri, self._source, remote, ingest, identities, self._priority, route))
        self._fetch, self._phase = fetch, Phase.FETCHING
        self._engine.hurry(fetch, self._priority)  # somebody may have come while it was not to be seen
        return fetch

    def _fill(self, listing: Listing, ref: Ref | None, ingest: Ingest, fetch: Fetch, cancel: Cancellation) -> Ensured:
        fetch.wait(cancel)
        self._phase = Phase.PUBLISHING
        digests = [item.sha256 for item in ingest.files]
        manifest = _manifest(listing, [item for item in digests if item is not None])
        compared = {
            item.path: tuple(digest for digest in fetch.compared[number] if digest in item.digests)
            for number, item in enumerate(listing.files)
            if number in fetch.compared
        }
        snapshot = ingest.publish(manifest, self._ref(listing, manifest, ref, compared))
        done = replace(fetch.look(Phase.DONE), elapsed_s=time.monotonic() - self._started_s, eta_s=0.0)
        return Ensured(snapshot, done)

    def _ref(self, listing: Listing, manifest: Manifest, before: Ref | None, compared: dict[str, tuple[Digest, ...]]) -> Ref:
        now_s = time.time()
        sha256_of = {item.path: item.sha256 for item in manifest.files}
        earlier = {item.path: item for item in before.files} if before is not None else {}
        files = []
        for item in listing.files:
            stated = compared.get(item.path)
            if stated is None:  # its blob was here: what the origin states of it is its sha256, or what was compared back then
                same = earlier.get(item.path)
                kept = same.stated if same is not None and same.sha256 == sha256_of[item.path] and same.validator == item.validator else ()
                stated = kept or tuple(digest for digest in item.digests if digest.algorithm is Algorithm.SHA256)
            files.append(RefFile(item.path, item.size_bytes, item.validator, sha256_of[item.path], stated))
        created_at_s = before.created_at_s if before is not None and before.manifest == manifest.digest else now_s
        return Ref(self._key, listing.revision, listing.immutable, manifest.digest, tuple(files), created_at_s, now_s)


def hit(store: Store, ref: RefHead, started_s: float) -> Ensured | None:
    """The ref's snapshot without asking the origin; None if it is gone."""
    snapshot = store.snapshot(ref.manifest)
    if snapshot is None:
        return None
    return Ensured(snapshot, _hit_progress(ref.key.uri, ref.size_bytes, ref.file_count, started_s))


def _hit_progress(uri: str, size_bytes: int, files: int, started_s: float) -> Progress:
    return Progress(
        uri=uri,
        phase=Phase.DONE,
        bytes_total=size_bytes,
        bytes_done=size_bytes,
        bytes_reused=size_bytes,
        files_total=files,
        files_done=files,
        eta_s=0.0,
        elapsed_s=time.monotonic() - started_s,
        hit=True,
    )


def _known_digests(listing: Listing, ref: Ref | None) -> dict[str, Digest]:
    """sha256 of the files whose bytes are known before a fetch: stated by the origin, or computed here of this very version."""
    known = {}
    if ref is not None:
        before = {item.path: item for item in ref.files}
        for item in listing.files:
            same = before.get(item.path)
            if same is not None and item.validator and (same.validator, same.size_bytes) == (item.validator, item.size_bytes):
                known[item.path] = same.sha256
    for item in listing.files:
        for digest in item.digests:
            if digest.algorithm is Algorithm.SHA256:
                known[item.path] = digest
    return known


def _compared(item: RemoteFile, known: Digest | None) -> RemoteFile:
    """With the digest that an earlier fetch of this very version defined among those it is compared with (DESIGN §2.1)."""
    return item if known is None or known in item.digests else replace(item, digests=(*item.digests, known))


def _manifest(listing: Listing, digests: list[Digest]) -> Manifest:
    return Manifest.of(ManifestFile(item.path, item.size_bytes, digest) for item, digest in zip(listing.files, digests, strict=True))


def _version(listing: Listing, item: RemoteFile) -> str:
    """Names these exact bytes: origin, place and validator. Empty when the origin gives no validator."""
    return f"{listing.origin}\n{item.locator}\n{item.validator}\n{item.size_bytes}" if item.resumable else ""


def expect_cached(ensured: Ensured | None, uri: StorageUri) -> Ensured:
    """Raises NotCached for an offline call that found nothing."""
    if ensured is None:
        raise NotCached(f"`{uri}` is not cached, and this call may not ask its origin", address=str(uri))
    return ensured


ProgressCallback = Callable[[Progress], None]
