"""vLLM's load format `modelcache`: weights out of the cache. `docs/loading.md` says how vLLM is started with it.

vLLM finds `register` through the entry point group `vllm.general_plugins`, in every process that it starts; workers of one machine
load together.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any
from weakref import WeakKeyDictionary

from modelcache.errors import NotInstalled

try:
    import torch
    from vllm.config import get_current_vllm_config
    from vllm.logger import init_logger
    from vllm.model_executor.model_loader import BaseModelLoader, register_model_loader
except ModuleNotFoundError as error:
    raise NotInstalled.needed_for("the load format needs", error, "vllm") from None

from modelcache.arriving.model import AskedModel
from modelcache.arriving.opening import How
from modelcache.arriving.tensors import stream_opened
from modelcache.cache import ModelCache, Refresh
from modelcache.errors import BadConfig, ModuleMismatch, NotFound
from modelcache.integrations.vllm_workers import Workers
from modelcache.loader.group import NodeGroup
from modelcache.loader.loading import Wishes
from modelcache.loader.report import LoadReport
from modelcache.loader.shard_plan import ShardPlan, Share
from modelcache.loading import stream
from modelcache.units import GIB
from modelcache.uri import parse_uri

FORMAT = "modelcache"
OPTION = "--model-loader-extra-config"
CONFIG = "config.json"
SHOWN = 5

Tensors = Generator[tuple[str, torch.Tensor], None, None]

log = init_logger("vllm.modelcache")

_loaded_from: WeakKeyDictionary[Any, str] = WeakKeyDictionary()
"""By model of this process: the directory that vLLM named when a URI's weights were loaded into it."""


def register() -> None:
    """Make the load format known to vLLM. Called by vLLM in each of its processes; calling it again changes nothing."""
    register_model_loader(FORMAT)(ModelCacheLoader)


@dataclass(frozen=True, slots=True)
class ExtraConfig:
    """What `--model-loader-extra-config` says.

    Attributes:
        uri: whose weights are loaded; None: those in the model's directory.
        weights: the file or index that is meant, from the snapshot's root; None: the one index there, else every safetensors file.
        together: workers of one node read a file once for all of them; False: each by itself.
    """

    uri: str | None = None
    weights: str | None = None
    together: bool = True

    @classmethod
    def read(cls, given: object) -> ExtraConfig:
        """Raises BadConfig: a key or value that makes no sense. InvalidUri."""
        if not isinstance(given, Mapping):
            raise BadConfig(f"{OPTION} is no JSON object", got=type(given).__name__, hint='as in \'{"uri": "s3://models/llama"}\'')
        for name, value in given.items():
            if name not in cls.__slots__:
                raise BadConfig(f"{OPTION} has no key `{name}`", expected=", ".join(cls.__slots__), got=str(name))
            kind, what = (bool, "true or false") if name == "together" else (str, "text")
            if not isinstance(value, kind) or value == "":
                raise BadConfig(f"`{name}` in {OPTION} is not {what}", got=type(value).__name__ if value != "" else "nothing")
        read = cls(**given)
        if read.uri is not None and parse_uri(read.uri)[1]:
            raise BadConfig(
                f"the URI in {OPTION} holds a credential, and vLLM logs its arguments",
                address=str(parse_uri(read.uri)[0]),
                hint="give it by modelcache's settings or the environment (docs/operations.md)",
            )
        if read.weights is not None and (PurePosixPath(read.weights).is_absolute() or ".." in PurePosixPath(read.weights).parts):
            raise BadConfig(f"`weights` in {OPTION} leads out of the model", got=read.weights)
        return read


class ModelCacheLoader(BaseModelLoader):  # type: ignore[misc]  # vLLM is not looked into
    """Loads a URI's weights, or those in the model's directory. Raises, beside what is said, what `ModelCache.open` and `stream` do."""

    def __init__(self, load_config: Any) -> None:
        """Raises BadConfig, InvalidUri: the extra config makes no sense."""
        super().__init__(load_config)
        self._extra = ExtraConfig.read(load_config.model_loader_extra_config)

    def download_model(self, model_config: Any) -> None:
        """Have the snapshot here, without loading it. Raises NotFound: the weights are not in it."""
        if self._extra.uri is None:
            _weights(Path(model_config.model), self._extra.weights)
            return
        with ModelCache() as cache:
            _weights(cache.ensure(self._extra.uri).path, self._extra.weights)

    def load_weights(self, model: Any, model_config: Any) -> None:
        """Fill a model that vLLM built.

        Raises:
            ModuleMismatch: the checkpoint has no values for some parameters.
            SourceChanged: this worker's snapshot is not that of the others.
            NotFound, BadConfig: there are no weights where they should be.
        """
        with closing(self.get_all_weights(model_config, model)) as weights:
            loaded = model.load_weights(weights)
        if loaded is not None and model_config.quantization is None:
            _expect_filled(model, loaded)

    def get_all_weights(self, model_config: Any, model: Any) -> Tensors:
        """Whole tensors in file order; vLLM's models take their rank's part of each. vLLM asks for these itself when it reloads."""
        if getattr(model, "secondary_weights", ()):
            raise BadConfig(f"{type(model).__name__} takes weights from a second model, which the load format `{FORMAT}` doesn't load")
        uri = None if _is_another(model_config, model) else self._extra.uri
        workers = Workers.of(model_config)
        started_s, size_bytes = time.monotonic(), 0
        with ExitStack() as held:
            cache = None if uri is None else held.enter_context(ModelCache())
            with closing(self._tensors(uri, Path(model_config.model), cache, workers)) as tensors:
                for name, tensor in tensors:
                    size_bytes += tensor.nbytes
                    yield name, tensor
            if uri is not None and cache is not None:
                _loaded_from[model] = model_config.model
                _warn_of_another_config(uri, cache.ensure(uri, refresh=Refresh.NEVER).path, Path(model_config.model))
        log.info("Loaded %.2f GiB of `%s` in %.2f s", size_bytes / GIB, uri or model_config.model, time.monotonic() - started_s)

    def _tensors(self, uri: str | None, directory: Path, cache: ModelCache | None, workers: Workers) -> Tensors:
        """Of a model that isn't here as they arrive; workers of one node have them from one that brings them."""
        group = workers.together(self._extra.together)
        if uri is not None:
            yield from _of_uri(uri, self._extra.weights, cache, workers, group)
            return
        place = _weights(directory, self._extra.weights if self._extra.uri is None else None)
        yield from stream(place, group=group, shard=None if group is None else (workers.rank, workers.world, {}))


def _of_uri(uri: str, named: str | None, cache: ModelCache | None, workers: Workers, group: NodeGroup | None) -> Tensors:
    """Raises NotFound: it has no such weights. SourceChanged. What `stream` raises."""
    share = None if group is None else Share(workers.rank, workers.world, ShardPlan({}))
    member = None if group is None else group.member(workers.rank, workers.world)
    with AskedModel(uri, How(in_host=group is None), cache=cache, member=member) as files:
        if named is not None and "/" in named:
            files.whole()
        if named is not None and not files.has(named):
            raise _has_no(named, files.address)
        opened = files.open(named)
        yield from stream_opened(opened, opened.checkpoint.select(None), Wishes(), share=share, group=group)
        opened.finish(LoadReport())
        workers.expect_the_same(uri, files.digest.hex)


def _has_no(named: str, address: str) -> NotFound:
    return NotFound(f"the model has no `{named}`", address=address)


def _is_another(model_config: Any, model: Any) -> bool:
    """Whether the URI doesn't mean this model: a draft model of its own, or a directory that vLLM reloads a model from."""
    if model_config.runner_type == "draft":
        return bool(model_config.model != get_current_vllm_config().model_config.model)
    return model is not None and _loaded_from.get(model, model_config.model) != model_config.model


def _weights(directory: Path, named: str | None) -> Path:
    """The file, index or directory to read. Raises NotFound, BadConfig."""
    if not directory.is_dir():
        raise BadConfig(
            f"the load format `{FORMAT}` reads a directory on this machine, or a URI",
            got=str(directory),
            hint=f'vllm serve "$(modelcache pull -q URI)" --load-format {FORMAT}',
        )
    if named is None:
        return directory
    if not (directory / named).is_file():
        raise _has_no(named, str(directory))
    return directory / named


def _warn_of_another_config(uri: str, snapshot: Path, directory: Path) -> None:
    ours, theirs = snapshot / CONFIG, directory / CONFIG
    if ours.is_file() and theirs.is_file() and ours.read_bytes() != theirs.read_bytes():
        log.warning("The `%s` in `%s` is not that of `%s`: another version, or changed by hand", CONFIG, directory, uri)


def _expect_filled(model: Any, loaded: set[str]) -> None:
    """vLLM's own rule (`DefaultModelLoader.track_weights_loading`): what a module quantizes or packs may be missing.

    Raises:
        ModuleMismatch: other parameters are.
    """
    excused = {
        f"{prefix}.{name}" if prefix else name
        for prefix, module in model.named_modules()
        if getattr(module, "quant_method", None) is not None
        for name, _ in module.named_parameters()
    }
    missing = sorted({name for name, _ in model.named_parameters()} - loaded - excused)
    if missing:
        more = f" and {len(missing) - SHOWN} more" if len(missing) > SHOWN else ""
        raise ModuleMismatch(
            f"the checkpoint has no values for {', '.join(f'`{name}`' for name in missing[:SHOWN])}{more}",
            hint="is the model's directory that of these weights?",
        )
