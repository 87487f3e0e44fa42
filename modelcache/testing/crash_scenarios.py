"""Scripts of what people do to a store, step by step, to be killed at every change to the disk and gone on with."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from modelcache.abc.grants import Grant, Holder
from modelcache.abc.snapshot import RefKey
from modelcache.abc.store import Limits
from modelcache.errors import BodyCut, DigestMismatch, InUse, NotCached
from modelcache.patience import Cancellation
from modelcache.testing.crash import flip_bit
from modelcache.testing.crash_bench import NO_LIMITS, Bench, State, chunk_bytes, models, stating_nothing, stating_sha256, stating_wrong
from modelcache.testing.store_filling import digest_of, manifest_of

Step = Callable[[Bench], None]


@dataclass(frozen=True)
class Scenario:
    """Attributes:
    prepare: done undisturbed, once.
    steps: each is killed at every change that it makes, and then done again.
    shown: what the store shows in the end: name → model.
    damaged: hex sha256 of what the script damages, and in the end has repaired.
    wasted_bytes: fetched again beyond the one chunk of a crash, because they are wrong and so not kept.
    """

    prepare: Sequence[Step]
    steps: Sequence[Step]
    shown: Mapping[str, str]
    limits: Limits = NO_LIMITS
    damaged: frozenset[str] = frozenset()
    wasted_bytes: int = 0


# -- steps ------------------------------------------------------------------------------------------------------------


def offer(name: str, model: str | None = None) -> Step:
    return lambda bench: bench.offer(name, model)


def ensure(name: str, state: State = stating_nothing) -> Step:
    def step(bench: Bench) -> None:
        bench.ensure(name, state=state)

    return step


def evict(name: str) -> Step:
    return lambda bench: bench.evict(name)


def make(bench: Bench) -> None:
    bench.store()


def collect(bench: Bench) -> None:
    bench.store().collect()


def verify(bench: Bench) -> None:
    bench.store().verify(None, Cancellation())


def pin(bench: Bench) -> None:
    store = bench.store()
    digest = bench.digest(store, "first")
    assert store.pin(digest, holder="somebody") == store.pin(digest, holder="somebody")
    with suppress(InUse):
        store.evict(digest)
        raise AssertionError("a pinned snapshot was evicted")


def unpin(bench: Bench) -> None:
    store = bench.store()
    store.unpin(bench.digest(store, "first"), holder="somebody")


def lease(bench: Bench) -> None:
    store = bench.store()
    digest = bench.digest(store, "first")
    taken = store.lease(digest, holder="a pod", ttl_s=3600)
    store.renew(taken.id, ttl_s=7200)
    assert store.release(taken.id)
    with store.hold(digest, holder="a process"), suppress(InUse):
        store.evict(digest)
        raise AssertionError("a held snapshot was evicted")


def prove(bench: Bench) -> None:
    """A caller's proof, remembered, revoked and given again."""
    store = bench.store()
    holder, key = Holder("team", "default", store.grants.mac(b"a credential")), RefKey("s3://bucket/model", "https://s3.example:443")
    now_s = store.grants.now_s()
    grant = Grant(holder, key, "1", manifest_of(bench.models["first"]).digest, (), now_s, now_s + 3600)
    store.grants.put(grant)
    assert store.grants.of_holder(holder, key.uri) == [grant]
    assert store.grants.revoke(holder, key) == 1
    assert store.grants.of_namespace("team") == []
    store.grants.put(grant)


def hold_what_is_gone(bench: Bench) -> None:
    store = bench.store()
    digest = manifest_of(bench.models["first, later"]).digest
    with suppress(NotCached):
        store.pin(digest, holder="somebody")
        raise AssertionError("what is not here was pinned")
    with suppress(NotCached):
        store.lease(digest, holder="a pod", ttl_s=3600)
        raise AssertionError("what is not here was leased")


def break_off(bench: Bench) -> None:
    """A fetch that the origin breaks off in its second chunk."""
    with suppress(BodyCut):
        bench.ensure("third", cut=("model.safetensors", chunk_bytes() * 3 // 2))


def mismatch(bench: Bench) -> None:
    with suppress(DigestMismatch):
        bench.ensure("third", state=stating_wrong)
        raise AssertionError("wrong bytes were published")


def damage(bench: Bench) -> None:
    """Turn a bit of the weights' blob over, unless they are out of service already."""
    digits = weights_digits()
    path = bench.root / "blobs" / "sha256" / digits[:2] / digits
    if path.exists() and digest_of(path.read_bytes()).hex == digits:
        flip_bit(path, 5)


def damage_table(bench: Bench) -> None:
    """Turn a bit of the weights' chunk table over."""
    digits = weights_digits()
    flip_bit(bench.root / "chunks" / "sha256" / digits[:2] / digits, 30)


def weights_digits() -> str:
    return digest_of(models()["first"]["weights/model.safetensors"]).hex


# -- scripts ----------------------------------------------------------------------------------------------------------


def scenarios() -> dict[str, Scenario]:
    """Every script, at this process's size of chunks."""
    both = [offer("first"), offer("second"), ensure("first"), ensure("second", stating_sha256)]
    changed = [offer("first", "first, later"), ensure("first")]
    return {
        "publish": Scenario(
            prepare=[offer("first"), offer("second")],
            steps=[make, ensure("first"), ensure("second"), ensure("first"), ensure("second", stating_sha256)],
            shown={"first": "first", "second": "second"},
        ),
        "share": Scenario(
            prepare=[offer("first"), offer("second"), ensure("first")],
            steps=[ensure("second", stating_sha256), *changed],
            shown={"first": "first, later", "second": "second"},
        ),
        "resume": Scenario(
            prepare=[offer("third"), make],
            steps=[break_off, ensure("third")],
            shown={"third": "third"},
        ),
        "mismatch": Scenario(
            prepare=[offer("third"), offer("first"), ensure("first")],
            steps=[mismatch, ensure("third", stating_sha256)],
            shown={"first": "first", "third": "third"},
            wasted_bytes=2 * sum(map(len, models()["third"].values())),
        ),
        "archive": Scenario(
            prepare=[offer("archive"), make],
            steps=[ensure("archive"), ensure("archive")],
            shown={"archive": "third"},
        ),
        "hold": Scenario(
            prepare=both,
            steps=[pin, lease, prove, evict("second"), unpin, collect],
            shown={"first": "first"},
        ),
        "evict": Scenario(
            prepare=[*both, *changed, break_off_third],
            steps=[evict("second"), evict("first"), hold_what_is_gone, collect],
            shown={},
        ),
        "room": Scenario(
            prepare=[offer("first"), offer("third"), ensure("first")],
            steps=[ensure("third"), ensure("first")],
            shown={"first": "first"},
            limits=_one_model_fits(),
        ),
        "repair": Scenario(
            prepare=both,
            steps=[damage, verify, *both, damage_table, verify],
            shown={"first": "first", "second": "second"},
            damaged=frozenset({weights_digits()}),
        ),
        "mend": Scenario(
            prepare=[*both, pin_first],
            steps=[damage, repair, *both],
            shown={"first": "first", "second": "second"},
            damaged=frozenset({weights_digits()}),
        ),
    }


def pin_first(bench: Bench) -> None:
    store = bench.store()
    store.pin(bench.digest(store, "first"), holder="somebody")


def repair(bench: Bench) -> None:
    report = bench.repair()
    assert report.unrepaired == (), report


def break_off_third(bench: Bench) -> None:
    bench.offer("third")
    break_off(bench)


def _one_model_fits() -> Limits:
    block_bytes = 4096
    first = sum(-(-len(data) // block_bytes) * block_bytes for data in models()["first"].values())
    return replace(NO_LIMITS, max_bytes=first + 3 * block_bytes)
