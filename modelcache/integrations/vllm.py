"""vLLM's load format `modelcache`: weights out of the cache. `docs/loading.md` says how vLLM is started with it.

vLLM finds `register` through the entry point group `vllm.general_plugins`, in every process that it starts; each worker loads by
itself, and processes of one machine share what is fetched through the store.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any
from weakref import WeakKeyDictionary

import torch
from vllm.config import get_current_vllm_config
from vllm.distributed import get_world_group
from vllm.logger import init_logger
from vllm.model_executor.model_loader import BaseModelLoader, register_model_loader

from modelcache.cache import ModelCache
from modelcache.errors import BadConfig, ModuleMismatch, NotFound, SourceChanged
from modelcache.loading import stream
from modelcache.units import GIB
from modelcache.uri import parse_uri

FORMAT = "modelcache"
OPTION = "--model-loader-extra-config"
CONFIG = "config.json"
WEIGHTS = ("model.safetensors.index.json", "model.safetensors")
"""What vLLM reads where a directory has other safetensors beside them, too (`SAFE_WEIGHTS_INDEX_NAME`; then what transformers reads)."""
SHOWN = 5

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
        weights: the file or index that is meant, from the snapshot's root; None: the one that vLLM takes, too.
    """

    uri: str | None = None
    weights: str | None = None

    @classmethod
    def read(cls, given: object) -> ExtraConfig:
        """Raises BadConfig: a key or value that makes no sense. InvalidUri."""
        if not isinstance(given, Mapping):
            raise BadConfig(f"{OPTION} is no JSON object", got=type(given).__name__, hint='as in \'{"uri": "s3://models/llama"}\'')
        for name, value in given.items():
            if name not in cls.__slots__:
                raise BadConfig(f"{OPTION} has no key `{name}`", expected=", ".join(cls.__slots__), got=str(name))
            if not isinstance(value, str) or not value:
                raise BadConfig(f"`{name}` in {OPTION} is no text", got=type(value).__name__)
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
        with self._files(model_config, None):
            pass

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

    def get_all_weights(self, model_config: Any, model: Any) -> Any:
        """Whole tensors in file order; vLLM's models take their rank's part of each. vLLM asks for these itself when it reloads."""
        if getattr(model, "secondary_weights", ()):
            raise BadConfig(f"{type(model).__name__} takes weights from a second model, which the load format `{FORMAT}` doesn't load")
        started_s, size_bytes = time.monotonic(), 0
        with self._files(model_config, model) as files:
            for name, tensor in stream(files):
                size_bytes += tensor.nbytes
                yield name, tensor
        log.info("Loaded %.2f GiB of `%s` in %.2f s", size_bytes / GIB, self._extra.uri or model_config.model, time.monotonic() - started_s)

    @contextmanager
    def _files(self, model_config: Any, model: Any) -> Iterator[Path]:
        """What `stream` reads, held for the block."""
        uri = self._extra.uri
        if uri is None or _is_another(model_config, model):
            yield _weights(Path(model_config.model), self._extra.weights if uri is None else None)
            return
        with ModelCache() as cache, cache.open(uri) as snapshot:
            files = _weights(snapshot.path, self._extra.weights)
            if model is not None:
                _expect_one_version(uri, snapshot.digest.hex)
                _warn_of_another_config(uri, snapshot.path, Path(model_config.model))
                _loaded_from[model] = model_config.model
            yield files


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
    names = (named,) if named is not None else WEIGHTS
    found = next((directory / name for name in names if (directory / name).exists()), None)
    if found is None and named is not None:
        raise NotFound(f"the model has no `{named}`", address=str(directory))
    return found or directory


def _expect_one_version(uri: str, digest: str) -> None:
    """All workers of one engine look at what a name means at their own time, and maybe on machines of their own.

    Raises:
        SourceChanged: theirs differ.
    """
    group = get_world_group()
    if group.world_size == 1:
        return
    everybodys: list[str] = [""] * group.world_size
    torch.distributed.all_gather_object(everybodys, digest, group=group.cpu_group)
    if other := next((each for each in everybodys if each != digest), None):
        raise SourceChanged(
            "workers of one engine have different versions of a model",
            address=str(parse_uri(uri)[0]),
            expected=f"sha256:{digest}",
            got=f"sha256:{other}",
            hint="name an exact version in the URI, or pull it on every machine before",
        )


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
