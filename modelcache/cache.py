"""`ModelCache`: from a URI to a verified snapshot on this machine."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TypeVar

from modelcache.abc.ingest import Route
from modelcache.abc.snapshot import Ref, RefHead, RefKey, Snapshot
from modelcache.abc.source import Listing, Source
from modelcache.abc.store import Limits, SnapshotInfo, Usage
from modelcache.abc.upkeep import Upkeep
from modelcache.carry.carrying import Carrying
from modelcache.config import Config
from modelcache.digest import HEX_LENGTHS, Algorithm, Digest, digits_of, sha256
from modelcache.ensure import Ensured, ProgressCallback, expect_cached, hit, last
from modelcache.errors import AccessDenied, NotCached
from modelcache.fetch.begun import Tell
from modelcache.fetch.engine import FetchEngine, Queued
from modelcache.fetch.flight import SingleFlight
from modelcache.fetch.plan import Priority
from modelcache.fetch.progress import Progress
from modelcache.leasing import Leasing
from modelcache.manifest import Manifest
from modelcache.naming import the_one
from modelcache.patience import Cancellation
from modelcache.permission import Admission, Caller, Denials, OwnersAdmission, Permission, expect_own, expect_served
from modelcache.places import expect_granted, first_hit, in_turn
from modelcache.prewarm import Lookup, Prewarming
from modelcache.refresh import Refresh as Refresh
from modelcache.registry import Registry, own_refs
from modelcache.single_files import SingleFiles
from modelcache.sources.throttled import Allowances, RateLimits
from modelcache.store.forked import is_of_this_process
from modelcache.store.leases import HeldElsewhere
from modelcache.store.making_room import Made
from modelcache.store.store import LocalStore
from modelcache.unpack import Unpacking, files_at
from modelcache.upkeep.repair import OpenSources
from modelcache.upkeep.upkeeping import Upkeeping
from modelcache.uri import StorageUri, UriSecrets, parse_uri

T = TypeVar("T")
HOLD_TRIES = 3
"""A snapshot that is evicted between `ensure` and its hold is brought in again this often in all."""

STALE_HINT = "a version of it is here: `--offline` (refresh `never`) gives it without asking the origin"

_FlightKey = tuple[RefKey, UriSecrets, str]
"""Callers share a fetch only with those who ask with the same credential and for the same identity: one that is refused refuses
nobody else, and nobody gets what another one proved."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What one caller asks a flight for."""

    uri: StorageUri
    admission: Admission
    priority: Priority
    reads_next: bool
    tell: Tell | None


class ModelCache(Upkeeping, Prewarming, Carrying, SingleFiles, Leasing):
    """A store and what fills it. A context manager; safe for many threads.

    `ensure` is the whole of it: in whatever state the store is, it returns a complete, verified, read-only directory or raises a
    `ModelCacheError`. Callers that ask for one model at the same time share one fetch."""

    def __init__(
        self, root: str | Path | None = None, *, config: Config | None = None, create: bool | None = None, elsewhere: HeldElsewhere = tuple
    ) -> None:
        """Open the store, creating it if the directory is new.

        Args:
            root: the store's directory; wins over `config.root`.
            create: False: a store that is not there is an error, not made; wins over `config.create`.
            config: settings; by default from the environment (`docs/operations.md`).
            elsewhere: holds that no lease tells of, such as mounts; raises DamagedRecord: they can't be told, so nothing is evicted.

        Raises:
            StoreError: the directory can't be used; the error says why.
            BadConfig: a setting makes no sense.
        """
        self.config = config or Config.load()
        self.root = Path(root) if root is not None else self.config.root
        create = self.config.create if create is None else create
        store = LocalStore(self.root, self.config.limits, create=create, allow_fuse=self.config.allow_fuse, elsewhere=elsewhere)
        self._store: Upkeep = store
        self._made_room: Callable[[], Made] = lambda: store.made_room
        self.change_limits: Callable[[Limits], None] = lambda limits: store.change_limits(limits)  # how much it may take, from then on
        self._permission = Permission(store.grants, self.config)
        self.denials: Denials = self._permission.denials  # how often callers were refused
        self.granted: Callable[[str, RefKey, Digest], bool] = self._permission.granted  # as `Permission.granted`
        self._begin(self.config.rates)
        is_of_this_process(self)

    def __repr__(self) -> str:
        return f"ModelCache({str(self.root)!r})"

    def _begin(self, rates: RateLimits) -> None:
        """What has threads, locks and connections."""
        self._engine = FetchEngine(self.config.engine)
        self.incoming = self._engine.incoming  # tells of bytes that come from origins
        self.rates = Allowances(rates)  # may be changed while fetches run
        self._engine.one_line = lambda: self.rates.limits.total is not None
        self._registry = Registry(self.config, on_throttle=self._engine.throttled, allowances=self.rates)
        self._flights: SingleFlight[_FlightKey, Ensured] = SingleFlight("ensure")
        self._lock = threading.Lock()
        self._ensures: dict[_FlightKey, Unpacking] = {}

    def forked(self) -> None:
        """In a child of this process: threads stayed behind, and two who read from one connection would mix up its bytes."""
        self._parents = (self._engine, self._registry)  # not closed: they are not ours
        self._begin(self.rates.limits)

    def __enter__(self) -> ModelCache:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Cancel what is in progress (chunks are kept) and give threads and connections back. Idempotent."""
        self._flights.join()
        self._engine.close()
        self._registry.close()

    # -- bringing models in -----------------------------------------------------------------------------------------

    def ensure(
        self,
        uri: str,
        *,
        refresh: Refresh = Refresh.AUTO,
        priority: Priority = Priority.WAITING,
        reads_next: bool = False,
        progress: ProgressCallback | None = None,
        cancel: Cancellation | None = None,
        caller: Caller | None = None,
        tell: Tell | None = None,
    ) -> Snapshot:
        """Have this model here: fetched if it is not, verified in any case, published whole.

        The snapshot stays until it is evicted; `open` keeps it from that.

        Args:
            uri: a storage URI (`docs/uris.md`); userinfo and signing parameters in it are used and forgotten.
            reads_next: somebody on this machine reads the files as soon as they are here: what is fetched then stays in the page
                cache if it fits (`docs/design/002-write-route.md`).
            progress: called from this thread now and then, and once at the end with phase `done`.
            cancel: ends the wait with `Cancelled`; what was fetched is kept for the next try.
            caller: of a store that several share: what their own credential can't read, they don't get (`docs/semantics.md`,
                Permission). None: the store's only owner.
            tell: of a fetch that has begun, for who takes its bytes as they arrive (`modelcache.arriving`).

        Returns:
            The snapshot; `stale` if it was due to be compared with its origin and that could not be asked.

        Raises:
            BadInput, Missing, AccessDenied, Unavailable, SourceChanged, ProtocolViolation, IntegrityError, NoSpace, StoreError.
        """
        refresh, priority = Refresh(refresh), Priority(priority)  # callers without types give a word, or one that means nothing
        parsed, secrets = parse_uri(uri)
        with self._places((parsed, secrets), caller, again=refresh is Refresh.ALWAYS) as places:
            ensured = self._found(places, parsed, refresh)
            if ensured is None:

                def ask(place: Admission) -> Ensured:
                    flight = (place.key, secrets, place.identity)
                    return self._ask(flight, Asked(parsed, place, priority, reads_next, tell), progress, cancel)

                ensured = in_turn(places, ask, lambda found: found.unavailable is None)
        if ensured.unavailable is not None and refresh is Refresh.ALWAYS:
            ensured.unavailable.hint = STALE_HINT
            raise ensured.unavailable
        if progress is not None:
            progress(ensured.progress)
        return ensured.snapshot

    def cached(self, uri: str, *, refresh: Refresh = Refresh.AUTO, caller: Caller | None = None) -> Ensured | None:
        """What `ensure` answers from what is here; None: it would ask an origin, or wait. Asks none, and waits for nobody. Raises BadInput,
        AccessDenied, StoreError; NotCached: nothing is here, and `refresh` is `never`."""
        refresh = Refresh(refresh)
        parsed, secrets = parse_uri(uri)
        if refresh is Refresh.ALWAYS:
            return None
        with self._places((parsed, secrets), caller, again=False) as places:
            return self._found(places, parsed, refresh)

    @contextmanager
    def open(
        self,
        uri: str,
        *,
        refresh: Refresh = Refresh.AUTO,
        priority: Priority = Priority.WAITING,
        progress: ProgressCallback | None = None,
        cancel: Cancellation | None = None,
        caller: Caller | None = None,
        tell: Tell | None = None,
        reads_next: bool = True,
    ) -> Iterator[Snapshot]:
        """`ensure` for a caller who reads next, and hold the snapshot for the block (or until this process ends)."""
        ask = partial(self.ensure, uri, refresh=refresh, priority=priority, reads_next=reads_next, caller=caller, tell=tell)
        with ExitStack() as held:
            for _ in range(HOLD_TRIES):
                snapshot = ask(progress=progress, cancel=cancel)
                try:
                    snapshot = replace(held.enter_context(self._store.hold(snapshot.digest, holder="open")), stale=snapshot.stale)
                except NotCached:
                    continue  # evicted between the two: start over (hold first, look second)
                break
            else:
                raise NotCached(f"`{parse_uri(uri)[0]}` was evicted each time before it could be held", hint="make room: `modelcache df`")
            yield snapshot

    def _look_up(self, uri: str, refresh: Refresh, cancel: Cancellation) -> Lookup | None:
        asked = parse_uri(uri)
        with self._places(asked, None, again=False) as places:
            if refresh is Refresh.NEVER or first_hit(places, lambda place: self._hit(place, refresh)) is not None:
                return None

            def look(place: Admission) -> Lookup | None:
                found = files_at(place.source, asked[0], cancel)
                return None if found is None else (found, self._store.ref(place.key))

            return in_turn(places, look)

    def _bring_ahead(self, uri: str, refresh: Refresh, look: ProgressCallback, cancel: Cancellation) -> Snapshot:
        return self.ensure(uri, refresh=refresh, priority=Priority.PREWARM, progress=look, cancel=cancel)

    def at_origin(self, uri: str, look: Callable[[Listing, Source], T], *, cancel: Cancellation | None = None) -> T:
        """What `look` makes of a listing of this URI and the source that gave it. Nothing is fetched into the store.

        Raises:
            What `Source.list` and `look` raise.
        """
        asked = parse_uri(uri)
        with self._places(asked, None, again=True) as places:
            return in_turn(places, lambda place: look(place.source.list(asked[0], cancel or Cancellation()), place.source))

    def check(self, uri: str, snapshot: Digest, caller: Caller) -> None:
        """Whether a caller may be shown a snapshot that an ensure of this URI gave them: looked at again just before they are.
        Asks no origin.

        Raises:
            AccessUnproved: their grant expired, was revoked, or is on another version or origin.
        """
        with self._places(parse_uri(uri), caller, again=False) as places:
            expect_granted(places, snapshot)

    @contextmanager
    def _places(self, asked: tuple[StorageUri, UriSecrets], caller: Caller | None, *, again: bool) -> Iterator[Sequence[Admission]]:
        """What somebody may have of each place that a URI can come from."""
        if caller is None:
            with self._registry.sources(*asked) as sources:
                yield [OwnersAdmission(self._store, source, asked[0]) for source in sources]
            return
        with self._counted(), ExitStack() as opened:
            expect_served(asked[0])
            registry = Registry(self._permission.config_of(caller), self._engine.throttled, self.rates, expect_served, expect_own)
            opened.callback(registry.close)
            sources = opened.enter_context(registry.sources(*asked))
            yield [self._permission.admit(caller, asked, source, again=again) for source in sources]

    @contextmanager
    def _counted(self) -> Iterator[None]:
        try:
            yield
        except AccessDenied as error:
            self._permission.denials.count(error)
            raise

    def _found(self, places: Sequence[Admission], uri: StorageUri, refresh: Refresh) -> Ensured | None:
        found = first_hit(places, lambda place: self._hit(place, refresh))
        return expect_cached(found, uri) if refresh is Refresh.NEVER else found

    def _hit(self, admission: Admission, refresh: Refresh) -> Ensured | None:
        started_s = time.monotonic()
        if refresh is Refresh.ALWAYS:
            return None
        if refresh is Refresh.NEVER:
            return last(self._store, admission, started_s)
        ref = self._store.head(admission.key)
        if ref is None or not self._fresh(ref) or not admission.sees(ref.revision, ref.manifest):
            return None
        return hit(self._store, ref, started_s)

    def _origins(self, asked: tuple[StorageUri, UriSecrets]) -> Sequence[str]:
        with self._registry.sources(*asked) as sources:
            return [str(source.origin) for source in sources]

    def _listed(self, asked: tuple[StorageUri, UriSecrets], cancel: Cancellation) -> Listing:
        with self._places(asked, None, again=True) as places:
            return in_turn(places, lambda place: place.source.list(asked[0], cancel))

    def _fresh(self, ref: RefHead) -> bool:
        return ref.immutable or 0 <= time.time() - ref.checked_at_s < self.config.refresh_s

    def _ask(self, flight: _FlightKey, asked: Asked, progress: ProgressCallback | None, cancel: Cancellation | None) -> Ensured:
        def do(flight_cancel: Cancellation) -> Ensured:
            route = self.config.write_route or (None if asked.reads_next else Route.DIRECT)
            who, limits = asked.admission, self.config.archive
            ensure = Unpacking(
                self._store, self._engine, who, asked.uri, priority=asked.priority, route=route, limits=limits, tell=asked.tell
            )
            with self._lock:
                self._ensures[flight] = ensure
            try:
                return ensure.run(flight_cancel)
            finally:
                with self._lock:
                    del self._ensures[flight]

        def look() -> None:
            ensure = self._ensures.get(flight)
            if ensure is not None:
                ensure.hurry(asked.priority)  # the flight may be of somebody who is not in a hurry
                if progress is not None:
                    progress(ensure.look())
                if asked.tell is not None and ensure.begun is not None:
                    asked.tell(ensure.begun)  # of what another caller began

        return self._flights.run(flight, do, cancel=cancel, look=look)

    # -- looking at what is here ------------------------------------------------------------------------------------

    def list(self) -> list[SnapshotInfo]:
        """Every snapshot, most recently used first."""
        return self._store.list()

    def find(self, name: str) -> SnapshotInfo:
        """The snapshot of a URI, a digest (`sha256:…` or hex) or its first 8 or more hex digits. Asks no origin.

        A URI is that of the first of the owner's own places of which something is here; other origins count where nothing is of those.

        Raises:
            NotCached: nothing here has that name. AmbiguousName: several have.
        """
        digits = digits_of(name)
        uri = None if digits is not None else str(parse_uri(name)[0])
        if uri is not None:
            named = [{ref.manifest: None for ref in refs} for refs in self._refs_of(name)]
        elif digits is not None and len(digits) == HEX_LENGTHS[Algorithm.SHA256]:
            named = [{sha256(digits): None}]
        else:
            named = [{info.digest: None for info in self._store.list() if digits and info.digest.hex.startswith(digits)}]
        infos = ([info for digest in of_one if (info := self._store.info(digest)) is not None] for of_one in named)
        found = next(filter(None, infos), [])
        return the_one(found, name, uri, self._store.list)

    def _refs_of(self, name: str) -> Sequence[Sequence[Ref]]:
        """What a URI is to the owner, place by place."""
        asked = parse_uri(name)
        return own_refs(self._store.refs(str(asked[0])), self.config, asked)

    def manifest(self, name: str) -> Manifest:
        """Paths, sizes and digests of a snapshot's files."""
        return self._store.manifest(self.find(name).digest)

    def refs(self, name: str) -> Sequence[Ref]:
        """The refs of a snapshot with what their origins said of each file; those that can't be read are left out."""
        found = [self._store.ref(ref.key) for ref in self.find(name).refs]
        return [ref for ref in found if ref is not None]

    def usage(self) -> Usage:
        """Where the room went."""
        return self._store.usage()

    def moving(self) -> Sequence[Progress]:
        """One look at each fetch of this process."""
        with self._lock:
            under_way = [*self._ensures.values()]
        return [ensure.look() for ensure in under_way]

    def queue(self) -> Sequence[Queued]:
        """Each fetch of this process: how urgent it is, and whether it has requests in flight or waits for others."""
        return self._engine.queue()

    @property
    def made_room(self) -> Made:
        """What this process has evicted for what came."""
        return self._made_room()

    @property
    def _open_sources(self) -> OpenSources:
        return lambda uri: self._registry.sources(uri, UriSecrets())
