"""Which processes of a node read a model together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from modelcache.errors import BadShard
from modelcache.loader.plan import BLOCK_BYTES
from modelcache.units import MIB, format_bytes

MEMORY_BYTES = 256 * MIB
"""32 blocks: those that are read, those that wait for the slowest rank, and as many again."""
MAX_MEMORY_BYTES = 512 * MIB
"""More brings nothing, and would let more messages wait for a rank that stands still than a socket holds (about 270, `wmem_default`)."""
TIMEOUT_S = 120.0


@dataclass(frozen=True, slots=True)
class NodeGroup:
    """Ranks on one node, of one user, that load the same at the same time: what several of them need is read by one.

    Attributes:
        name: that no other job on this node has: a run's id, a port of it.
        ranks: of the shard's that are on this node; None: all.
        memory_bytes: shared by all of them while they load, at most; 8 MiB to 512 MiB. The first rank's counts.
        timeout_s: until all have come, and then until another block has.
    """

    name: str
    ranks: Sequence[int] | None = None
    memory_bytes: int = MEMORY_BYTES
    timeout_s: float = TIMEOUT_S

    def __post_init__(self) -> None:
        """Raises BadShard: a value that can't be."""
        if not self.name:
            raise BadShard("a group needs a name")
        if not BLOCK_BYTES <= self.memory_bytes <= MAX_MEMORY_BYTES:
            expected = f"{format_bytes(BLOCK_BYTES)} to {format_bytes(MAX_MEMORY_BYTES)}"
            raise BadShard(f"group `{self.name}` can't share so much memory", expected=expected, got=format_bytes(self.memory_bytes))
        if not self.timeout_s > 0:
            raise BadShard(f"group `{self.name}` has no time to meet", expected="over 0 s", got=f"{self.timeout_s} s")

    def member(self, rank: int, world: int) -> Member:
        """This process in the group. Raises BadShard: `rank` is not among its ranks, or one is none of the world's."""
        ranks = tuple(sorted(set(range(world) if self.ranks is None else self.ranks)))
        if not set(ranks) <= set(range(world)) or rank not in ranks:
            message = f"group `{self.name}` has other ranks than this process's among {world}"
            raise BadShard(message, expected=str(list(ranks)), got=str(rank))
        return Member(self, rank, ranks)


@dataclass(frozen=True, slots=True)
class Member:
    """One process of a group.

    Attributes:
        ranks: all of the group's, in order.
    """

    group: NodeGroup
    rank: int
    ranks: tuple[int, ...]
