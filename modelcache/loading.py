"""`load`, `stream` and `open_checkpoint`: tensors of a model that a URI or a path names. torch comes with `modelcache[torch]`."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import ExitStack, closing
from pathlib import Path
from typing import TYPE_CHECKING

from modelcache.arriving.opening import How, open_source
from modelcache.cache import ModelCache
from modelcache.config import Config
from modelcache.errors import BadShard, NotInstalled
from modelcache.loader.checkpoint import Checkpoint, Order
from modelcache.loader.checkpoint import open_checkpoint as open_local
from modelcache.loader.group import Member, NodeGroup
from modelcache.loader.options import DEFAULT_OPTIONS, DeviceOptions
from modelcache.loader.report import LoadReport
from modelcache.loader.shard_plan import Rule, ShardPlan, Share
from modelcache.loader.slices import Index, cut
from modelcache.patience import Cancellation

if TYPE_CHECKING:
    import torch

    from modelcache.loader.into import Fit
    from modelcache.loader.loading import Wishes
    from modelcache.loader.placement import Device


def load(
    source: str | os.PathLike[str],
    *,
    device: Device | Mapping[str, Device] | None = None,
    names: Iterable[str] | None = None,
    order: Order = "file",
    dtype: torch.dtype | None = None,
    shard: tuple[int, int, Mapping[str, Rule]] | None = None,
    group: NodeGroup | str | None = None,
    may_map: bool | None = None,
    verified_only: bool = False,
    report: LoadReport | None = None,
    cache: ModelCache | None = None,
    cancel: Cancellation | None = None,
    progress: Callable[[int], None] | None = None,
) -> dict[str, torch.Tensor]:
    """Every tensor of a safetensors checkpoint, by name, in file order.

    What a store published and is in the page cache is mapped and not copied; the rest is read into memory of its own, several reads at
    a time, around the page cache unless it is there. Tensors may be written; no file is.

    Args:
        source: a storage URI (what isn't here is fetched, loaded as it arrives, and held while it is read), a safetensors file, a
            directory of shards with or without an index, or the index itself.
        device: None: host memory. A mapping: from names or shell patterns to devices; a name wins, then the longest pattern, and
            what none fits stays in host memory.
        names: of tensors, or shell patterns; None: all.
        order: `given`: tensors are read and handed out as `names` has them; a scattered order costs a request for each.
        dtype: that floating-point tensors are cast to, on their device.
        shard: rank, world and plan: this rank's parts alone. The plan maps names or shell patterns to the dimension that is split in
            `world` equal parts, to `Owned(rank)`, or to None (whole, as what no pattern fits).
        group: the ranks of the shard on this node, which load at the same time: what several of them need is read from the disk once.
            A name that no other job on the node has, or a `NodeGroup`. A model that isn't here one of them brings, and the others have
            it from there as it arrives. None: this one reads what it needs by itself.
        may_map: files that are not a store's are mapped, too, where they are in memory: whoever says so knows that nobody makes them
            shorter while their tensors are used (that ends the process by SIGBUS). None: only those that are certain to stay as they
            are. False: none.
        verified_only: of a model that arrives, a file's tensors are handed out when all of the file is verified; else as its bytes
            come, and the call ends with an error if they prove wrong (`docs/loading.md`, Arriving).
        report: filled with what the load took.
        cache: for URIs; None: the one that the environment describes.
        progress: called with the bytes of tensors that are done.

    Raises:
        NotInstalled: there is no torch.
        NotFound: there are no safetensors files.
        NoSuchTensor: a name fits no tensor, of `names` or of the plan.
        BadCheckpoint: the files are no checkpoint, or changed while they were read.
        BadShard: a tensor can't be split so, or ranks of a group ask for different things.
        GroupBroken: a rank of the group died, left or did not come in time.
        DigestMismatch: tensors of a model that arrived were made of bytes that proved wrong: drop what was handed out.
        FileFault: this process can't read a file. StoreFault: the disk failed. MemoryError. Cancelled. What `ModelCache.ensure` raises.
    """
    wishes, share = _wishes(device, dtype, order, cache), _share(shard, group)
    how = How(may_map, verified_only, in_host=wishes.placement.in_host and share is None, keeps_all=True)
    found = _tensors(source, names, wishes, how, share=share, group=group, report=report, cache=cache, cancel=cancel, progress=progress)
    return dict(found)


def stream(
    source: str | os.PathLike[str],
    *,
    device: Device | Mapping[str, Device] | None = None,
    names: Iterable[str] | None = None,
    order: Order = "file",
    dtype: torch.dtype | None = None,
    shard: tuple[int, int, Mapping[str, Rule]] | None = None,
    group: NodeGroup | str | None = None,
    may_map: bool | None = None,
    verified_only: bool = False,
    report: LoadReport | None = None,
    cache: ModelCache | None = None,
    cancel: Cancellation | None = None,
    progress: Callable[[int], None] | None = None,
) -> Generator[tuple[str, torch.Tensor], None, None]:
    """As `load`, one tensor after the other: what the consumer drops is given back while the rest is read.

    Of a model that arrives, the end comes when all of it is verified and published. A consumer who stops before that ends the fetch,
    too; what was fetched is kept for the next one.
    """
    wishes, share = _wishes(device, dtype, order, cache), _share(shard, group)
    how = How(may_map, verified_only, in_host=wishes.placement.in_host and share is None)
    yield from _tensors(source, names, wishes, how, share=share, group=group, report=report, cache=cache, cancel=cancel, progress=progress)


def _wishes(device: Device | Mapping[str, Device] | None, dtype: torch.dtype | None, order: Order, cache: ModelCache | None) -> Wishes:
    """Raises NotInstalled: there is no torch. What `Wishes` raises."""
    expect_torch()
    from modelcache.loader.loading import Wishes

    return Wishes(device, dtype, order, _gpu_options(device, cache))


def _tensors(
    source: str | os.PathLike[str],
    names: Iterable[str] | None,
    wishes: Wishes,
    how: How,
    *,
    share: Share | None,
    group: NodeGroup | str | None,
    report: LoadReport | None,
    cache: ModelCache | None,
    cancel: Cancellation | None,
    progress: Callable[[int], None] | None,
) -> Generator[tuple[str, torch.Tensor], None, None]:
    from modelcache.arriving.tensors import stream_opened

    seen = report or LoadReport()
    with ExitStack() as held:
        opened = open_source(source, how, cache=cache, held=held, cancel=cancel, seen=seen, member=_member(share, group))
        chosen = opened.checkpoint.select(names, order=wishes.order)
        yield from stream_opened(
            opened, chosen, wishes, share=share, group=_node_group(group), report=seen, cancel=cancel, progress=progress
        )
        opened.finish(seen)


def _gpu_options(device: Device | Mapping[str, Device] | None, cache: ModelCache | None) -> DeviceOptions:
    """As settings have them; they are read only where they matter. Raises BadConfig."""
    if device is None or str(device) == "cpu":
        return DEFAULT_OPTIONS
    return (Config.load() if cache is None else cache.config).gpu


def _share(shard: tuple[int, int, Mapping[str, Rule]] | None, group: NodeGroup | str | None) -> Share | None:
    """Raises BadShard: there is no such rank, or a group of nobody knows whom."""
    if shard is not None:
        if len(shard) != 3:
            raise BadShard("a shard is a rank, the number of ranks and a plan", got=str(shard), hint="shard=(0, 2, {}) splits nothing")
        rank, world, plan = shard
        return Share(rank, world, ShardPlan(plan))
    if group is not None:
        raise BadShard(
            "a group reads for ranks, and this load has none", hint="give `shard=(rank, world, plan)`; an empty plan splits nothing"
        )
    return None


def _node_group(group: NodeGroup | str | None) -> NodeGroup | None:
    return NodeGroup(group) if isinstance(group, str) else group


def _member(share: Share | None, group: NodeGroup | str | None) -> Member | None:
    """This process in the group. Raises BadShard."""
    found = _node_group(group)
    return None if share is None or found is None else found.member(share.rank, share.world)


def timed_load(
    source: str | os.PathLike[str],
    *,
    device: Device | Mapping[str, Device] | None = None,
    cache: ModelCache | None = None,
    cancel: Cancellation | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> LoadReport:
    """Load every tensor, drop them, and say what it took.

    Args:
        progress: called with the bytes of tensors that are done, and of all.

    Raises: as `load`.
    """
    report = LoadReport()

    def show(done_bytes: int) -> None:
        if progress is not None:
            progress(done_bytes, report.wanted_bytes)

    for _ in stream(source, device=device, report=report, cache=cache, cancel=cancel, progress=show):
        pass
    return report


def expect_torch() -> None:
    """Raises NotInstalled."""
    try:
        import torch  # noqa: F401
    except ModuleNotFoundError as error:
        raise NotInstalled.needed_for("tensors need", error, "modelcache[torch]") from None


def load_into(
    module: torch.nn.Module,
    source: str | os.PathLike[str],
    *,
    prefix: str = "",
    strict: bool = True,
    assign: bool = False,
    device: Device | Mapping[str, Device] | None = None,
    dtype: torch.dtype | None = None,
    shard: tuple[int, int, Mapping[str, Rule]] | None = None,
    group: NodeGroup | str | None = None,
    may_map: bool | None = None,
    verified_only: bool = False,
    report: LoadReport | None = None,
    cache: ModelCache | None = None,
    cancel: Cancellation | None = None,
) -> Fit:
    """Fill the parameters and persistent buffers of a module by name. Nothing is changed unless all names and shapes fit.

    Those on the meta device get the checkpoint's tensors themselves (mapped, where `load` maps); the others its values, in their own
    dtype and on their own device. What is tied stays tied.

    Args:
        prefix: of those names in the checkpoint that are meant: `text_model.` for a module that is the text model alone.
        strict: names that only one side has are an error, and so are buffers on the meta device that no checkpoint holds (which are
            not persistent). False: the caller looks at what is returned.
        assign: all get the tensors themselves; an optimizer that was made before still has the old ones.
        shard: the module is this rank's part of the model: its shapes are those of the plan's parts, and it has no place for what other
            ranks own. A plan that splits nothing: all ranks have the same module.
        device, dtype, group, may_map, verified_only: of the tensors, as `load` takes them. Ranks of a group fill the same names.

    Raises:
        ModuleMismatch: names or shapes differ. What `load` raises; then some are filled and others not.
    """
    expect_torch()
    from modelcache.arriving.tensors import stream_opened
    from modelcache.loader.into import expect_whole, fill, fit
    from modelcache.loader.loading import Wishes

    share = _share(shard, group)
    seen = report or LoadReport()
    with ExitStack() as held:
        wishes = Wishes(device, dtype, options=_gpu_options(device, cache))
        how, member = How(may_map, verified_only, in_host=wishes.placement.in_host and share is None), _member(share, group)
        opened = open_source(source, how, cache=cache, held=held, cancel=cancel, seen=seen, member=member)
        address = str(opened.checkpoint.root)
        found = fit(module, opened.checkpoint, prefix, share)
        if strict:
            expect_whole(found, address)
        names = [name for name in opened.checkpoint.place if name in found.slots]
        tensors = stream_opened(opened, names, wishes, share=share, group=_node_group(group), report=seen, cancel=cancel)
        with closing(tensors):
            fill(found, tensors, assign=assign, address=address)
        opened.finish(seen)
    return found


def load_slice(
    source: str | os.PathLike[str],
    name: str,
    index: Index,
    *,
    device: Device | None = None,
    dtype: torch.dtype | None = None,
    may_map: bool | None = None,
    report: LoadReport | None = None,
    cache: ModelCache | None = None,
    cancel: Cancellation | None = None,
) -> torch.Tensor:
    """A part of one tensor: only its rows are read. `load_slice(source, "lm_head.weight", slice(0, 1000))`

    Args:
        index: of the first dimension, or of several: `(slice(None), slice(0, 64))` reads all rows and copies what is meant out of them.
        device, dtype, may_map, report, cache: as `load` takes them.

    Raises:
        IndexError: the tensor has no such part. NoSuchTensor: there is none of this very name. What `load` raises.
    """
    expect_torch()
    from modelcache.loader.loading import Wishes, stream_tensors

    seen = report or LoadReport()
    wishes = Wishes(device, dtype, options=_gpu_options(device, cache))
    with ExitStack() as held:
        how = How(may_map, in_host=wishes.placement.in_host)
        opened = open_source(source, how, cache=cache, held=held, cancel=cancel, seen=seen)
        shard, entry = opened.checkpoint.find(name)
        part = cut(entry, index)
        rows = stream_tensors(
            opened.checkpoint, [name], wishes, extents=[part.extent(shard)], open_file=opened.open_file, report=seen, cancel=cancel
        )
        [(_, tensor)] = rows
        opened.finish(seen)
    return tensor[(slice(None), *part.rest)].contiguous() if part.rest else tensor


def open_checkpoint(
    source: str | os.PathLike[str], *, cache: ModelCache | None = None, held: ExitStack | None = None, cancel: Cancellation | None = None
) -> Checkpoint:
    """Names, shapes, dtypes and places of a checkpoint's tensors, in files on this machine, without reading them. Needs no torch.

    A URI that isn't here is fetched, all of it, as by `ModelCache.ensure`; `modelcache.inspecting.inspect` (`modelcache inspect URI`)
    reads the headers alone, at the origin.

    Args:
        held: what a URI's snapshot is held by; None: it is not held, and may be evicted before it is read.

    Raises: as `load`.
    """
    with ExitStack() as own:
        return open_local(_local(source, cache=cache, held=own if held is None else held, cancel=cancel))


def _local(source: str | os.PathLike[str], *, cache: ModelCache | None, held: ExitStack, cancel: Cancellation | None) -> Path:
    """Where a source is on this machine; a URI's snapshot is fetched if it isn't here, and held."""
    text = os.fspath(source)
    if "://" not in text:
        return Path(text)
    used = cache or held.enter_context(ModelCache())
    return held.enter_context(used.open(text, cancel=cancel)).path


def release_memory() -> int:
    """Give the memory that earlier loads left for the next one back to the machine, what is pinned for devices, too; how many bytes."""
    from modelcache.loader.loading import release_memory as release

    return release()
