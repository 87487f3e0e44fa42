"""Tensors of a source that was opened: whole, or one rank's parts of them."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence

import torch

from modelcache.arriving.opening import Opened
from modelcache.loader.group import NodeGroup
from modelcache.loader.loading import Wishes, stream_tensors
from modelcache.loader.report import LoadReport
from modelcache.loader.shard_plan import Share
from modelcache.patience import Cancellation


def stream_opened(
    opened: Opened,
    names: Sequence[str],
    wishes: Wishes,
    *,
    share: Share | None = None,
    group: NodeGroup | None = None,
    report: LoadReport | None = None,
    cancel: Cancellation | None = None,
    progress: Callable[[int], None] | None = None,
) -> Generator[tuple[str, torch.Tensor], None, None]:
    """The tensors of these names; whether what arrived is what was published, `Opened.finish` tells afterwards.

    Args:
        share: this rank's parts; None: whole tensors.
        group: the ranks that read together.

    Raises:
        What `stream_tensors` and `stream_parts` raise.
    """
    checkpoint, open_file = opened.checkpoint, opened.open_file
    if share is None:
        extents = opened.plan(names, wishes.order, wishes.destination_of)
        found = stream_tensors(
            checkpoint,
            names,
            wishes,
            extents=extents,
            open_file=open_file,
            all_at_once=opened.all_at_once,
            report=report,
            cancel=cancel,
            progress=progress,
        )
        yield from found
        return
    from modelcache.loader.sharded import stream_parts  # 6 ms, which is a tenth of a load of what is in memory

    yield from stream_parts(
        checkpoint,
        names,
        wishes,
        share,
        group=group,
        bringing=opened.bringing,
        open_file=open_file,
        report=report,
        cancel=cancel,
        progress=progress,
    )
