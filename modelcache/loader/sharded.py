"""One rank's parts of a checkpoint, read alone or together with the other ranks of the node."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing

import torch

from modelcache.loader.assembly import assembled
from modelcache.loader.brought import Bringing, taking_part
from modelcache.loader.checkpoint import Checkpoint
from modelcache.loader.files import Opener
from modelcache.loader.group import NodeGroup
from modelcache.loader.loading import Wishes, stream_tensors
from modelcache.loader.plan import EXTENT_BYTES, plan
from modelcache.loader.report import LoadReport
from modelcache.loader.shard_file import open_shard
from modelcache.loader.shard_plan import Share, extents_of_parts
from modelcache.loader.together import reading_together
from modelcache.patience import Cancellation


def stream_parts(
    checkpoint: Checkpoint,
    names: Sequence[str],
    wishes: Wishes,
    share: Share,
    *,
    group: NodeGroup | None = None,
    bringing: Bringing | None = None,
    open_file: Opener = open_shard,
    report: LoadReport | None = None,
    cancel: Cancellation | None = None,
    progress: Callable[[int], None] | None = None,
) -> Iterator[tuple[str, torch.Tensor]]:
    """This rank's parts of these tensors, as `stream_tensors` gives whole ones; contiguous, and each memory of its own or a file's pages.

    Args:
        group: the ranks that read together; None: this one reads alone.
        bringing: the rank of the group that has the files, which still arrive; None: all ranks have them.
        progress: called with the bytes of all tensors from which parts were handed out, as far as they were read.

    Raises:
        NoSuchTensor: the plan names what the checkpoint doesn't have. BadShard: a tensor can't be split so.
        GroupBroken: the group did not meet, or lost a rank. What `stream_tensors` raises.
    """
    seen, stop = report or LoadReport(), cancel or Cancellation()
    member = None if group is None else group.member(share.rank, share.world)
    parts = share.parts(checkpoint, names)
    extents = extents_of_parts(
        parts,
        order=wishes.order,
        destination=wishes.destination_of,
        common_apart=member is not None and bringing is None,
        extent_bytes=EXTENT_BYTES if bringing is None else bringing.extent_bytes,
    )
    with ExitStack() as ends:
        if member is not None and bringing is not None:
            whole = plan(checkpoint, names, order=wishes.order, gap_bytes=0, extent_bytes=bringing.extent_bytes)
            open_file = ends.enter_context(taking_part(checkpoint, whole, extents, member, bringing, open_file, stop))
        elif member is not None:
            common = [extent for extent in extents if parts[extent.tensors[0].name].is_common]
            open_file = ends.enter_context(reading_together(checkpoint, common, member, open_file, stop))
        pieces = stream_tensors(
            checkpoint, list(parts), wishes, extents=extents, open_file=open_file, report=seen, cancel=stop, progress=progress
        )
        ends.enter_context(closing(pieces))
        yield from assembled(pieces, parts, share, address=str(checkpoint.root), report=seen)
