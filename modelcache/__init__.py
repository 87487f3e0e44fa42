"""Model weights, verified and shared, from any object store to every process of a machine.

`ModelCache.ensure(uri)` returns a complete, verified, read-only directory. Names are imported when first used, so that
`import modelcache` costs nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from modelcache import errors as errors
    from modelcache.abc.snapshot import Snapshot as Snapshot
    from modelcache.cache import ModelCache as ModelCache
    from modelcache.cache import Refresh as Refresh
    from modelcache.config import Config as Config
    from modelcache.errors import ModelCacheError as ModelCacheError
    from modelcache.fetch.plan import Priority as Priority
    from modelcache.fetch.progress import Progress as Progress
    from modelcache.loader.group import NodeGroup as NodeGroup
    from modelcache.loader.report import LoadReport as LoadReport
    from modelcache.loader.shard_plan import Owned as Owned
    from modelcache.loading import load as load
    from modelcache.loading import load_into as load_into
    from modelcache.loading import load_slice as load_slice
    from modelcache.loading import open_checkpoint as open_checkpoint
    from modelcache.loading import release_memory as release_memory
    from modelcache.loading import stream as stream
    from modelcache.patience import Cancellation as Cancellation
    from modelcache.permission import Caller as Caller

__version__ = "0.1.0"

_HOMES = {
    "Caller": "modelcache.permission",
    "Cancellation": "modelcache.patience",
    "Config": "modelcache.config",
    "LoadReport": "modelcache.loader.report",
    "ModelCache": "modelcache.cache",
    "ModelCacheError": "modelcache.errors",
    "NodeGroup": "modelcache.loader.group",
    "Owned": "modelcache.loader.shard_plan",
    "Priority": "modelcache.fetch.plan",
    "Progress": "modelcache.fetch.progress",
    "Refresh": "modelcache.cache",
    "Snapshot": "modelcache.abc.snapshot",
    "load": "modelcache.loading",
    "load_into": "modelcache.loading",
    "load_slice": "modelcache.loading",
    "open_checkpoint": "modelcache.loading",
    "release_memory": "modelcache.loading",
    "stream": "modelcache.loading",
}
__all__ = [*sorted(_HOMES), "__version__"]


def __getattr__(name: str) -> Any:
    home = "modelcache.errors" if name == "errors" else _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    if name == "errors":  # the whole tree: `except modelcache.errors.NotFound`
        return import_module(home)
    return getattr(import_module(home), name)
