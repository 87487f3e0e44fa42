"""How tensors are read for transformers: where to, by whom, and what shares memory."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from math import prod

import torch

from modelcache.arriving.opening import How, Opened
from modelcache.arriving.tensors import stream_opened
from modelcache.errors import BadShard
from modelcache.integrations.awaited import Tensors
from modelcache.loader.devices import left_bytes
from modelcache.loader.group import Member, NodeGroup
from modelcache.loader.loading import Wishes
from modelcache.loader.report import LoadReport
from modelcache.loader.shard_plan import ShardPlan, Share
from modelcache.patience import Cancellation

Forms = Mapping[str, tuple[torch.dtype, tuple[int, ...]]]
"""Dtype and shape by name."""


@dataclass(frozen=True, slots=True)
class Reading:
    """What a caller said of it.

    Attributes:
        share: this rank among those that read the same together; None: it reads by itself.
        gpu: that tensors are read to; None: host memory.
    """

    share: Share | None
    group: NodeGroup | None
    gpu: torch.device | None
    report: LoadReport
    cancel: Cancellation

    @classmethod
    def of(
        cls,
        ranks: tuple[int, int] | None,
        group: NodeGroup | str | None,
        gpu: torch.device | None,
        report: LoadReport | None,
        cancel: Cancellation | None,
    ) -> Reading:
        """Raises BadShard."""
        if (ranks is None) != (group is None):
            raise BadShard("a group needs to know which of how many ranks this is, and ranks read together in a group alone")
        share = None if ranks is None else Share(*ranks, ShardPlan({}))
        together = NodeGroup(group) if isinstance(group, str) else group
        return cls(share, together, gpu, report or LoadReport(), cancel or Cancellation())

    @property
    def member(self) -> Member | None:
        """This process in the group. Raises BadShard."""
        return None if self.share is None or self.group is None else self.group.member(self.share.rank, self.share.world)

    def how(self, *, verified_only: bool) -> How:
        """The source is opened."""
        return How(verified_only=verified_only, in_host=self.group is None and self.gpu is None, keeps_all=True)

    def tensors(self, opened: Opened, forms: Forms, gpu: torch.device | None, cancel: Cancellation) -> Tensors:
        """Those of these names, each when its bytes are where they go: transformers takes them in threads and streams of its own.

        Raises: as `stream_opened`.
        """
        wishes = Wishes(gpu, apart=is_one_of_many)
        found = stream_opened(opened, list(forms), wishes, share=self.share, group=self.group, report=self.report, cancel=cancel)
        with closing(found):
            for name, tensor in found:
                if gpu is not None:
                    torch.cuda.current_stream(gpu).synchronize()
                yield name, tensor
                del tensor


def goes_straight(forms: Forms, dtype: torch.dtype | None, gpu: torch.device) -> bool:
    """Whether a GPU takes the tensors of a checkpoint as they come: it has room for them, and for the second form of what is merged or
    cast, which is there with the first for a while.

    Args:
        dtype: of the model's numbers; None: the checkpoint's.

    Raises:
        DeviceFault.
    """
    needed_bytes = 0
    for name, (own, shape) in forms.items():
        becomes = dtype if dtype is not None and own.is_floating_point else own
        needed_bytes += own.itemsize * prod(shape)
        if becomes != own or is_one_of_many(name):
            needed_bytes += becomes.itemsize * prod(shape)
    return needed_bytes <= left_bytes(gpu)


def is_one_of_many(name: str) -> bool:
    """Whether it is a tensor of a list inside of a layer, as an expert's: those are merged, and let go, while their neighbours stay.

    As names go: `model.layers.3.mlp.experts.17.up_proj.weight`, the layer's number and the expert's.
    """
    return sum(part.isdecimal() for part in name.split(".")) > 1
