"""A store of several callers, for the tests of what each of them gets."""

from __future__ import annotations

from dataclasses import replace

from modelcache.abc.grants import Holder, Trust
from modelcache.abc.ingest import Route
from modelcache.digest import Digest
from modelcache.ensure import Ensure, Ensured
from modelcache.fetch.engine import FetchEngine
from modelcache.fetch.plan import Priority
from modelcache.patience import Cancellation
from modelcache.permission import CallersAdmission
from modelcache.sources.witnessed import WitnessedSource
from modelcache.testing.fetching import SMALL_CHUNK_BYTES as CHUNK
from modelcache.testing.fetching import place
from modelcache.testing.guarded_source import GuardedSource
from modelcache.testing.memory_source import MemorySource, State
from modelcache.testing.memory_store import MemoryStore
from modelcache.testing.store_filling import content
from modelcache.testing.store_fixtures import Clock

MODEL = {"config.json": b"{}", "empty": b"", "model.safetensors": content(9 * CHUNK + 7, 1), "other.safetensors": content(5 * CHUNK, 2)}
WEIGHTS = "model.safetensors"
READABLE = sorted(path for path, data in MODEL.items() if data)
TTL_S = 1000.0
TRUSTED = "memory://hub:1"


def everything(path: str) -> bool:
    return True


def nothing(path: str) -> bool:
    return False


class Yard:
    """A store of several callers, with an engine and a clock."""

    def __init__(self, engine: FetchEngine) -> None:
        self.clock = Clock(1_700_000_000.0)
        self.store = MemoryStore(clock=self.clock)
        self.engine = engine
        self.trust = Trust(grant_ttl_s=TTL_S, origins=(TRUSTED,), proof_requests=3)

    def admission(self, who: str, source: GuardedSource, *, again: bool = False, digest: Digest | None = None) -> CallersAdmission:
        """`who` is `namespace/service account`; its name is its credential."""
        namespace, _, account = who.partition("/")
        holder = Holder(namespace, account, self.store.grants.mac(who.encode()))
        uri = replace(place(), digest=digest)
        return CallersAdmission(self.store.grants, self.trust, holder, WitnessedSource(source, source.origin), uri, again=again)

    def prepare(self, who: str, source: GuardedSource, *, again: bool = False, digest: Digest | None = None) -> Ensure:
        admission = self.admission(who, source, again=again, digest=digest)
        uri = replace(place(), digest=digest)
        return Ensure(self.store, self.engine, admission.source, uri, priority=Priority.WAITING, route=Route.BUFFERED, admission=admission)

    def ensure(self, who: str, source: GuardedSource, *, again: bool = False, digest: Digest | None = None) -> Ensured:
        return self.prepare(who, source, again=again, digest=digest).run(Cancellation())

    def own(self, source: MemorySource, digest: Digest | None = None) -> Ensured:
        """As the store's owner."""
        uri = replace(place(), digest=digest)
        return Ensure(self.store, self.engine, source, uri, priority=Priority.WAITING, route=Route.BUFFERED).run(Cancellation())

    def content(self, ensured: Ensured) -> dict[str, bytes]:
        digest = ensured.snapshot.digest
        return {item.path: self.store.file(digest, item.path) for item in self.store.manifest(digest).files}

    def granted(self, who: str) -> int:
        return len(self.store.grants.of_holder(self.admission(who, GuardedSource(MemorySource({}), nothing))._holder, str(place())))


def claiming(claims: dict[bytes, Digest]) -> State:
    """States of these bytes another digest, of all others nothing."""
    return lambda data: (claims[data],) if data in claims else ()
