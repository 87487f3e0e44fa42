"""Repair: what `verify` found damaged is fetched again, a chunk at a time, and put back in its places."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, ExitStack, suppress
from dataclasses import dataclass, replace

import xxhash

from modelcache.abc.ingest import Ingest, IngestFile, Route
from modelcache.abc.snapshot import Ref, RefFile, RefKey
from modelcache.abc.source import Listing, RemoteFile, Source
from modelcache.abc.store import VerifyReport, by_snapshot
from modelcache.abc.upkeep import Upkeep
from modelcache.chunks import chunk_range
from modelcache.digest import Algorithm, Digest
from modelcache.errors import Cancelled, DamagedBlob, DamagedRecord, ModelCacheError, NotCached, NotFound, StoreReadOnly
from modelcache.fetch.engine import FetchEngine
from modelcache.fetch.fetch import Fetch
from modelcache.fetch.plan import Priority
from modelcache.fetch.request import FetchRequest
from modelcache.manifest import Manifest, ManifestFile
from modelcache.patience import Cancellation
from modelcache.uri import StorageUri, parse_uri

OpenSources = Callable[[StorageUri], AbstractContextManager[Sequence[Source]]]
"""Those that a URI can come from, in turn."""


@dataclass(frozen=True, slots=True)
class RepairedBlob:
    """A blob that is whole again.

    Attributes:
        uri: who served what was missing.
    """

    digest: Digest
    size_bytes: int
    uri: str


@dataclass(frozen=True, slots=True)
class MendedSnapshot:
    """A snapshot that was held all the time, its damaged files replaced.

    Attributes:
        files: paths that are other inodes now. Who has the old ones open or mapped still reads those.
        holders: who held it.
    """

    digest: Digest
    files: tuple[str, ...]
    holders: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Unrepaired:
    """What could not be repaired, why, and what to do about it.

    Attributes:
        digest: of a blob or of a snapshot.
        uris: names that lead to it.
    """

    digest: Digest
    uris: tuple[str, ...]
    why: str
    advice: str


@dataclass(frozen=True, slots=True)
class RepairReport:
    """Attributes:
    verified: what was found, and taken out of service; `out_of_service` is what still is.
    kept_bytes: sound chunks of damaged blobs.
    fetched_bytes: over the network.
    restored: snapshots that were out of service and are back.
    resolved: URIs of damaged refs that the origin confirmed.
    """

    verified: VerifyReport
    blobs: tuple[RepairedBlob, ...]
    kept_bytes: int
    fetched_bytes: int
    restored: tuple[Digest, ...]
    mended: tuple[MendedSnapshot, ...]
    resolved: tuple[str, ...]
    unrepaired: tuple[Unrepaired, ...]


class Repair:
    """One repair of a store. `run` is called once."""

    def __init__(self, store: Upkeep, engine: FetchEngine, open_sources: OpenSources, cancel: Cancellation) -> None:
        """Raises StoreReadOnly: before anything is read for it."""
        if store.read_only:
            raise StoreReadOnly("a store that can't be written can't be repaired", address=store.address)
        self._store = store
        self._engine = engine
        self._open_sources = open_sources
        self._cancel = cancel
        self._blobs: list[RepairedBlob] = []
        self._kept_bytes = self._fetched_bytes = 0
        self._failures: dict[Digest, list[str]] = {}
        self._uris: dict[Digest, list[str]] = {}
        self._unrepaired: list[Unrepaired] = []

    def run(self, verified: VerifyReport, uri: str | None = None) -> RepairReport:
        """Put right what `verified` names, and what earlier ones took out of service.

        Args:
            uri: only what this name leads to; None: everything.

        Raises:
            StoreReadOnly, StoreFault, Cancelled. What an origin does wrong, or room that lacks, is reported, not raised.
        """
        with ExitStack() as held:
            withdrawn = self._withdrawn(verified, uri)
            shown = {digest for damage in verified.damages for digest in damage.still_held}
            for compartment in sorted({ref.key.compartment for ref in withdrawn} | {self._home(digest) for digest in shown}):
                self._bring_all(self._missing(withdrawn, shown, compartment), withdrawn, held, compartment)
            restored = self._restore(withdrawn)
            mended = [self._mend(digest) for digest in sorted(shown)]
        resolved = [damage.ref.uri for damage in verified.damages if damage.ref is not None and self._resolve(damage.ref)]
        gone = {item.digest for item in verified.out_of_service}
        left = by_snapshot(ref for ref in self._store.out_of_service(gone) if uri in (None, ref.key.uri))
        return RepairReport(
            verified=replace(verified, out_of_service=left),
            blobs=tuple(self._blobs),
            kept_bytes=self._kept_bytes,
            fetched_bytes=self._fetched_bytes,
            restored=tuple(restored),
            mended=tuple(item for item in mended if item is not None),
            resolved=tuple(resolved),
            unrepaired=tuple(self._unrepaired),
        )

    # -- what is to be done -----------------------------------------------------------------------------------------

    def _withdrawn(self, verified: VerifyReport, uri: str | None) -> list[Ref]:
        """Refs whose snapshots damage took out of service, now or earlier."""
        gone = {digest for damage in verified.damages for digest in damage.withdrawn}
        found = [ref for ref in self._store.out_of_service(gone) if uri in (None, ref.key.uri)]
        unnamed = [digest for digest in gone - {ref.manifest for ref in found} if self._store.info(digest) is None]
        for digest in sorted(unnamed) if uri is None else []:
            advice = "pull its URI again; equal bytes that are still here are not fetched again"
            self._unrepaired.append(Unrepaired(digest, (), "no ref that can be read leads to it", advice))
        return found

    def _home(self, digest: Digest) -> str:
        """The compartment of a snapshot."""
        try:
            return self._store.manifest(digest).compartment
        except (NotCached, DamagedRecord):
            return ""

    def _missing(self, withdrawn: Iterable[Ref], shown: Iterable[Digest], compartment: str) -> dict[Digest, int]:
        """Contents that are not in this part of the store and should be, with their sizes."""
        files: list[RefFile | ManifestFile] = [item for ref in withdrawn if ref.key.compartment == compartment for item in ref.files]
        for digest in shown:
            with suppress(NotCached):
                manifest = self._store.manifest(digest)
                files += manifest.files if manifest.compartment == compartment else ()
        return {item.sha256: item.size_bytes for item in files if not self._store.has_blob(item.sha256, compartment)}

    # -- bytes ------------------------------------------------------------------------------------------------------

    def _bring_all(self, missing: dict[Digest, int], withdrawn: list[Ref], held: ExitStack, compartment: str) -> None:
        """Ask one ref of the compartment after the other for what is still missing; those first whose snapshots wait for it."""
        first = dict.fromkeys(ref.key for ref in withdrawn)
        for key in dict.fromkeys([*first, *(head.key for head in self._store.heads())]):
            if key.compartment != compartment:
                continue
            todo = {digest: size for digest, size in missing.items() if not self._store.has_blob(digest, compartment)}
            if not todo:
                return
            ref = self._store.ref(key)
            if ref is not None and any(item.sha256 in todo for item in ref.files):
                self._bring(ref, todo, held)
        for digest in missing:
            if not self._store.has_blob(digest, compartment):
                self._give_up(digest)

    def _give_up(self, digest: Digest) -> None:
        said = self._failures.get(digest, [])
        why = "; ".join(said) if said else "no ref that can be read shows it"
        advice = "repair again when an origin serves it, or `modelcache pull` a URI that has it; the damaged file is in quarantine"
        self._unrepaired.append(Unrepaired(digest, tuple(self._uris.get(digest, ())), why, advice))

    def _bring(self, ref: Ref, todo: dict[Digest, int], held: ExitStack) -> None:
        """Bring those of `todo` in that the origin of this ref still has. They are held until the repair ends."""
        wanted = sorted({item.sha256 for item in ref.files} & todo.keys())
        for digest in wanted:
            self._uris.setdefault(digest, []).append(ref.key.uri)
        try:
            uri, _ = parse_uri(ref.key.uri)
            with self._open_sources(uri) as sources:
                source = _of_origin(sources, uri, ref)
                listing = source.list(uri, self._cancel)
                remote = {digest: found for digest in wanted if (found := _serving(listing, ref, digest)) is not None}
                for digest in wanted:
                    if digest not in remote:
                        self._failed([digest], f"`{uri}` has another version now")
                if remote:
                    self._fetch(ref, source, remote, held)
        except (Cancelled, StoreReadOnly):
            raise
        except ModelCacheError as error:
            self._failed([digest for digest in wanted if not self._store.has_blob(digest, ref.key.compartment)], str(error))

    def _failed(self, digests: Iterable[Digest], why: str) -> None:
        for digest in digests:
            self._failures.setdefault(digest, []).append(why)

    def _fetch(self, ref: Ref, source: Source, remote: dict[Digest, RemoteFile], held: ExitStack) -> None:
        """An ingest of the blobs alone, in which their sound chunks stand already: the engine checks them and fetches the rest."""
        key = _repairing(ref)
        files = [IngestFile(digest.hex, item.size_bytes, str(digest), digest, key.compartment) for digest, item in remote.items()]
        self._salvage(key, files)
        with ExitStack() as bringing:
            with self._engine.planning():
                ingest = self._store.ingest(key, files)
                bringing.callback(_end, ingest)  # At once if it fails: others may bring these bytes, and the next ref is asked for them.
                fetch = self._start(ref, source, remote, (ingest, files))
            fetch.wait(self._cancel)
            held.push(bringing.pop_all())
        done = fetch.look()
        self._kept_bytes += done.bytes_reused
        self._fetched_bytes += done.bytes_fetched
        self._blobs += [RepairedBlob(digest, item.size_bytes, ref.key.uri) for digest, item in remote.items()]

    def _start(self, ref: Ref, source: Source, remote: dict[Digest, RemoteFile], into: tuple[Ingest, Sequence[IngestFile]]) -> Fetch:
        ingest, files = into
        listed = tuple(_compared(item, digest) for digest, item in remote.items())
        identities = tuple(file.identity for file in files)
        request = FetchRequest(ref.key.uri, source, listed, ingest, identities, Priority.REPAIR, Route.DIRECT)
        return self._engine.start(request)

    def _salvage(self, key: RefKey, files: list[IngestFile]) -> None:
        """Write the sound chunks of the damaged inodes, as an interrupted fetch would have left them."""
        ingest = self._store.ingest(key, files)
        try:
            for file in ingest.files:
                if file.sha256 is not None or not file.claimed:
                    continue
                known = file.hints()
                for index, view in self._store.salvage(Digest(Algorithm.SHA256, file.path), self._cancel, key.compartment):
                    if index not in known:
                        file.write(chunk_range(index, file.size_bytes).start, view, Route.DIRECT)
                        file.mark(index, xxhash.xxh3_128_digest(view))
        finally:
            ingest.keep()

    # -- places -----------------------------------------------------------------------------------------------------

    def _restore(self, withdrawn: Iterable[Ref]) -> list[Digest]:
        """Publish again what is whole again: links to blobs that are here; nothing is fetched."""
        restored: list[Digest] = []
        for ref in withdrawn:
            head = self._store.head(ref.key)
            if head is None or head.manifest != ref.manifest or ref.manifest in restored:
                continue  # Somebody pulled a later version, or removed it, meanwhile.
            home = ref.key.compartment
            if not all(self._store.has_blob(item.sha256, home) for item in ref.files):
                continue
            manifest = Manifest.of((ManifestFile(item.path, item.size_bytes, item.sha256) for item in ref.files), home)
            wanted = [IngestFile(item.path, item.size_bytes, "", item.sha256, home) for item in manifest.files]
            ingest = self._store.ingest(_repairing(ref), wanted)
            try:
                if manifest.digest == ref.manifest and _is_published(ingest, manifest, ref):
                    restored.append(ref.manifest)
                else:
                    advice = f"`modelcache pull {ref.key.uri}`"
                    self._unrepaired.append(Unrepaired(ref.manifest, (ref.key.uri,), "its files are not all here any more", advice))
            finally:
                ingest.discard()
        return restored

    def _mend(self, digest: Digest) -> MendedSnapshot | None:
        holders = sorted({lease.holder for lease in self._store.leases() if lease.manifest == digest})
        try:
            files = self._store.mend(digest)
        except NotCached:
            return None
        except DamagedRecord as error:
            advice = "end what holds it, then verify again: that takes it out of service"
            self._unrepaired.append(Unrepaired(digest, (), error.message, advice))
            return None
        return MendedSnapshot(digest, files, tuple(holders)) if files else None

    # -- refs -------------------------------------------------------------------------------------------------------

    def _resolve(self, key: RefKey) -> bool:
        """Ask the origin what a damaged ref had said of it; whether it is the same version and the ref says so again."""
        ref = self._store.ref(key)
        if ref is None:
            return False
        try:
            uri, _ = parse_uri(key.uri)
            with self._open_sources(uri) as sources:
                renewed = _renewed(ref, _of_origin(sources, uri, ref).list(uri, self._cancel))
        except Cancelled:
            raise
        except ModelCacheError as error:
            self._unrepaired.append(Unrepaired(ref.manifest, (key.uri,), str(error), "the next pull asks the origin again"))
            return False
        return renewed is not None and self._store.attach(renewed) is not None


def _repairing(ref: Ref) -> RefKey:
    """What the ingest of a repair is filed under: no URI of a model."""
    return replace(ref.key, uri=f"repair {ref.key.uri}")


def _of_origin(sources: Sequence[Source], uri: StorageUri, ref: Ref) -> Source:
    """Raises NotFound: none is what the ref was read from."""
    found = next((source for source in sources if str(source.origin) == ref.key.origin), None)
    if found is None:
        now = " or ".join(f"`{source.origin}`" for source in sources)
        raise NotFound(f"`{uri}` was read from `{ref.key.origin}`, and the settings now lead to {now}")
    return found


def _serving(listing: Listing, ref: Ref, digest: Digest) -> RemoteFile | None:
    """A file of the listing whose bytes have this digest: the origin states it, or it is the version that had it."""
    for item in listing.files:
        if digest in item.digests:
            return item
    listed = {item.path: item for item in listing.files}
    for file in ref.files:
        same = listed.get(file.path)
        if file.sha256 != digest or same is None or any(stated.algorithm is Algorithm.SHA256 for stated in same.digests):
            continue
        if (same.validator, same.size_bytes) == (file.validator, file.size_bytes):
            return same
    return None


def _compared(item: RemoteFile, digest: Digest) -> RemoteFile:
    return item if digest in item.digests else replace(item, digests=(*item.digests, digest))


def _renewed(ref: Ref, listing: Listing) -> Ref | None:
    """The ref as the origin confirms it; None if it has another version now."""
    listed = {item.path: item for item in listing.files}
    if {(file.path, file.size_bytes) for file in ref.files} != {(item.path, item.size_bytes) for item in listing.files}:
        return None
    same_versions = all(file.validator and file.validator == listed[file.path].validator for file in ref.files)
    if listing.revision != ref.revision and not same_versions:
        return None
    files = []
    for file in ref.files:
        item = listed[file.path]
        stated = file.stated or tuple(digest for digest in item.digests if digest == file.sha256)
        files.append(replace(file, validator=item.validator, stated=stated))
    return replace(ref, revision=listing.revision, immutable=listing.immutable, files=tuple(files), checked_at_s=time.time())


def _is_published(ingest: Ingest, manifest: Manifest, ref: Ref) -> bool:
    """Publish it if all of it is here, and still sound as far as anybody knows."""
    if any(file.sha256 is None for file in ingest.files):
        return False
    try:
        ingest.publish(manifest, ref)
    except DamagedBlob:
        return False
    return True


def _end(ingest: Ingest) -> None:
    """What was brought in is in its places; what was not is kept for the next repair."""
    if all(file.sha256 is not None for file in ingest.files):
        ingest.discard()
    else:
        ingest.keep()
