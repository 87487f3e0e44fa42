"""What damage took out of service: refs whose snapshots are not here, and what tells them from those of an eviction that was cut off."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from functools import cache

from modelcache.abc.snapshot import Ref, RefHead
from modelcache.digest import Digest
from modelcache.store.parts import Parts


def dangling(parts: Parts) -> list[RefHead]:
    """Refs to no snapshot. Takes the shared store lock if there are any: somebody may be in the middle of an eviction."""
    heads = [head for head in parts.refs.every() if parts.snapshots.find(head.manifest) is None]
    if not heads:
        return []
    with parts.root.lock.shared():
        return [head for head in heads if is_dangling(parts, head)]


def is_dangling(parts: Parts, head: RefHead) -> bool:
    """Whether a ref is still here, leads where it did, and nothing is there."""
    now = parts.refs.head(head.key)
    return now is not None and now.manifest == head.manifest and parts.snapshots.find(head.manifest) is None


def of_no_use(parts: Parts) -> list[RefHead]:
    """Dangling refs of which nothing is in quarantine: no repair needs them."""
    heads, damaged = dangling(parts), _damaged(parts)
    awaiting = {ref.key for ref in _whole(parts, heads) if damaged(ref)}
    return [head for head in heads if head.key not in awaiting]


def out_of_service(parts: Parts, besides: Collection[Digest] = ()) -> list[Ref]:
    """`Upkeep.out_of_service`."""
    damaged = _damaged(parts)
    return [ref for ref in _whole(parts, dangling(parts)) if ref.manifest in besides or damaged(ref) or _is_all_here(parts, ref)]


def _whole(parts: Parts, heads: Iterable[RefHead]) -> Iterator[Ref]:
    for head in heads:
        ref = parts.refs.get(head.key)
        if ref is not None and ref.manifest == head.manifest:
            yield ref


def _damaged(parts: Parts) -> Callable[[Ref], bool]:
    """Whether something that a ref shows is in quarantine."""
    aside = cache(lambda compartment: parts.compartment(compartment).blobs.quarantined())
    return lambda ref: any(item.sha256 in aside(ref.key.compartment) for item in ref.files)


def _is_all_here(parts: Parts, ref: Ref) -> bool:
    """Its tree or manifest was wrong, and every file of it is sound."""
    blobs = parts.compartment(ref.key.compartment).blobs
    return all(blobs.has(item.sha256) for item in ref.files)
