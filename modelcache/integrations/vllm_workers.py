"""The workers of one vLLM engine, which load the same model at the same time: on which nodes they are, and whether they have the same."""

from __future__ import annotations

import os
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from vllm.distributed import get_world_group

from modelcache.errors import SourceChanged
from modelcache.loader.group import NodeGroup
from modelcache.uri import parse_uri

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
NETWORK = Path("/proc/self/ns/net")


@dataclass(frozen=True, slots=True)
class Workers:
    """This worker among those that load together.

    Attributes:
        world: how many there are.
        exchange: a group of torch's over which they tell each other small things; None: there is one worker.
    """

    rank: int = 0
    world: int = 1
    exchange: Any = field(default=None, repr=False)

    @classmethod
    def of(cls, model_config: Any) -> Workers:
        """Those that load this model: all of the engine's, but a draft model is loaded by some, and each of them is by itself."""
        if model_config.runner_type == "draft":
            return cls()
        world = get_world_group()
        return cls(world.rank_in_group, world.world_size, world.cpu_group) if world.world_size > 1 else cls()

    @property
    def alone(self) -> bool:
        return self.world == 1

    def together(self, wanted: bool) -> NodeGroup | None:
        """Those on this node, which read whole tensors once for all of them; None: each by itself. Every worker must ask."""
        if self.alone or not wanted:
            return None
        told: list[tuple[str, str]] = self._told((_node(), uuid.uuid4().hex))
        mine = [rank for rank, (node, _) in enumerate(told) if node == told[self.rank][0]]
        return NodeGroup(told[mine[0]][1], ranks=mine)

    def expect_the_same(self, uri: str, digest: str) -> None:
        """All look at what a name means at their own time, and maybe on machines of their own. Every worker must ask.

        Raises:
            SourceChanged: theirs is another snapshot.
        """
        if self.alone:
            return
        told: list[str] = self._told(digest)
        if other := next((each for each in told if each != digest), None):
            raise SourceChanged(
                "workers of one engine have different versions of a model",
                address=str(parse_uri(uri)[0]),
                expected=f"sha256:{digest}",
                got=f"sha256:{other}",
                hint="name an exact version in the URI, or pull it on every machine before",
            )

    def _told(self, mine: object) -> list[Any]:
        """What each says, by rank."""
        said: list[Any] = [None] * self.world
        torch.distributed.all_gather_object(said, mine, group=self.exchange)
        return said


def _node(boot_id: Path = BOOT_ID, network: Path = NETWORK) -> str:
    """Where processes find each other: of one kernel, one network namespace (`unix(7)`, abstract sockets) and one user."""
    return f"{boot_id.read_text().strip()} {network.readlink()} {os.geteuid()}"
