"""`load`, `stream` and `open_checkpoint`: tensors of a model that a URI or a path names. torch comes with `modelcache[torch]`."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from modelcache.cache import ModelCache
from modelcache.errors import BadConfig
from modelcache.loader.checkpoint import Checkpoint
from modelcache.loader.checkpoint import open_checkpoint as open_local
from modelcache.patience import Cancellation

if TYPE_CHECKING:
    import torch

    from modelcache.loader.into import Fit
    from modelcache.loader.loading import LoadReport


def load(
    source: str | os.PathLike[str],
    *,
    device: torch.device | str | None = None,
    names: Iterable[str] | None = None,
    dtype: torch.dtype | None = None,
    report: LoadReport | None = None,
    cache: ModelCache | None = None,
    cancel: Cancellation | None = None,
    progress: Callable[[int], None] | None = None,
) -> dict[str, torch.Tensor]:
    """Every tensor of a safetensors checkpoint, by name, in file order.

    What is in the page cache is mapped and not copied; the rest is read around the cache into memory of its own, several reads at a
    time. Tensors may be written; no file is. The files must not shrink while mapped tensors are used (snapshots never do).

    Args:
        source: a storage URI (it is fetched first if it isn't here, and held while it is read), a safetensors file, a directory of
            shards with or without an index, or the index itself.
        device: None: host memory.
        names: of tensors, or shell patterns; None: all.
        dtype: that floating-point tensors are cast to, on their device.
        report: filled with what the load took.
        cache: for URIs; None: the one that the environment describes.
        progress: called with the bytes of tensors that are done.

    Raises:
        NotFound: there are no safetensors files.
        NoSuchTensor: a name fits no tensor.
        BadCheckpoint: the files are no checkpoint.
        StoreFault: the disk failed. MemoryError. Cancelled. What `ModelCache.ensure` raises.
    """
    return dict(stream(source, device=device, names=names, dtype=dtype, report=report, cache=cache, cancel=cancel, progress=progress))


def stream(
    source: str | os.PathLike[str],
    *,
    device: torch.device | str | None = None,
    names: Iterable[str] | None = None,
    dtype: torch.dtype | None = None,
    report: LoadReport | None = None,
    cache: ModelCache | None = None,
    cancel: Cancellation | None = None,
    progress: Callable[[int], None] | None = None,
) -> Generator[tuple[str, torch.Tensor], None, None]:
    """As `load`, one tensor after the other: what the consumer drops is given back while the rest is read."""
    expect_torch()
    from modelcache.loader.loading import Wishes, stream_tensors

    wishes = Wishes(device, dtype)
    with ExitStack() as held:
        checkpoint = open_checkpoint(source, cache=cache, held=held, cancel=cancel)
        yield from stream_tensors(checkpoint, checkpoint.select(names), wishes, report=report, cancel=cancel, progress=progress)


def timed_load(
    source: str | os.PathLike[str],
    *,
    device: torch.device | str | None = None,
    cache: ModelCache | None = None,
    cancel: Cancellation | None = None,
) -> LoadReport:
    """Load every tensor, drop them, and say what it took. Raises: as `load`."""
    expect_torch()
    from modelcache.loader.loading import LoadReport

    report = LoadReport()
    for _ in stream(source, device=device, report=report, cache=cache, cancel=cancel):
        pass
    return report


def expect_torch() -> None:
    """Raises BadConfig: it is not installed."""
    try:
        import modelcache.loader.loading  # noqa: F401
    except ModuleNotFoundError as error:
        raise BadConfig(f"tensors need {error.name}, which is not installed", hint="pip install 'modelcache[torch]'") from None


def load_into(
    module: torch.nn.Module,
    source: str | os.PathLike[str],
    *,
    prefix: str = "",
    strict: bool = True,
    assign: bool = False,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
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
        device, dtype: of the tensors, as `load` takes them.

    Raises:
        ModuleMismatch: names or shapes differ. What `load` raises; then some are filled and others not.
    """
    _expect_torch()
    from modelcache.loader.into import expect_whole, fill, fit
    from modelcache.loader.loading import Wishes, stream_tensors

    with ExitStack() as held:
        checkpoint = open_checkpoint(source, cache=cache, held=held, cancel=cancel)
        found = fit(module, checkpoint, prefix)
        if strict:
            expect_whole(found, str(checkpoint.root))
        names = [name for name in checkpoint.place if name in found.slots]
        tensors = stream_tensors(checkpoint, names, Wishes(device, dtype), report=report, cancel=cancel)
        fill(found, tensors, assign=assign, address=str(checkpoint.root))
    return found


def open_checkpoint(
    source: str | os.PathLike[str], *, cache: ModelCache | None = None, held: ExitStack | None = None, cancel: Cancellation | None = None
) -> Checkpoint:
    """Names, shapes, dtypes and places of a checkpoint's tensors, without reading them. Needs no torch.

    Args:
        held: what a URI's snapshot is held by; None: it is not held, and may be evicted before it is read.

    Raises: as `load`.
    """
    text = os.fspath(source)
    if "://" not in text:
        return open_local(Path(text))
    with ExitStack() as own:
        stack = own if held is None else held
        used = cache or stack.enter_context(ModelCache())
        snapshot = stack.enter_context(used.open(text, cancel=cancel))
        return open_local(snapshot.path)


def release_memory() -> int:
    """Give the memory that earlier loads left for the next one back to the machine; how many bytes."""
    from modelcache.loader.loading import memory

    return memory.release()


def _expect_torch() -> None:
    try:
        import torch  # noqa: F401
    except ModuleNotFoundError as error:
        raise BadConfig(f"tensors need {error.name}, which is not installed", hint="pip install 'modelcache[torch]'") from None
