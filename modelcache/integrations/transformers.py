"""Models of transformers out of the cache: `from_pretrained("s3://models/llama")`. Comes with `modelcache[serve]`.

transformers builds the model, renames, converts and ties weights, and fills what no checkpoint holds; it gets the tensors from the loader
instead of reading the files itself. `docs/loading.md` says what is left to transformers whole.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from modelcache.errors import NotInstalled

try:
    import torch
    import transformers
    from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled
    from transformers.utils import is_accelerate_available
except ModuleNotFoundError as error:
    raise NotInstalled.needed_for("models of transformers need", error, "modelcache[serve]") from None

from modelcache.arriving.model import AskedModel
from modelcache.cache import ModelCache
from modelcache.errors import BadCheckpoint, BadConfig, ModuleMismatch, NotFound
from modelcache.integrations.awaited import AwaitedTensor, AwaitedTensors
from modelcache.integrations.reading import Forms, Reading, goes_straight
from modelcache.loader.checkpoint import Checkpoint
from modelcache.loader.devices import one_device
from modelcache.loader.group import NodeGroup
from modelcache.loader.report import LoadReport
from modelcache.loader.tensors import torch_form
from modelcache.patience import Cancellation

CONFIG = "config.json"
FIRST = (CONFIG, "generation_config.json")
"""What is read before tensors are. Of other small files only their names matter."""
ADAPTER = "adapter_config.json"
WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
"""What transformers looks for, in its order (`SAFE_WEIGHTS_NAME`, `SAFE_WEIGHTS_INDEX_NAME`): other files beside them are not read."""
IN_THE_URI = frozenset({"cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token"})
"""Arguments about where a model comes from: the URI says that, and the cache's settings."""
OURS = frozenset({"output_loading_info", "state_dict", "torch_dtype"})
ITS_OWN = frozenset(
    {
        "adapter_kwargs", "device_map", "device_mesh", "disable_mmap", "distributed_config", "gguf_file", "key_mapping", "max_memory",
        "offload_buffers", "offload_folder", "quantization_config", "tp_plan", "tp_size", "use_safetensors", "variant", "weights_only",
    }
)  # fmt: skip
"""Arguments about how files are read or where parts go: transformers reads the files itself then."""
QUANTIZED = frozenset({"fp8", "mxfp4"})
"""Quantizations (`quant_method`) that take tensors from memory as from files, on a CPU; other quantizers decide how files are read."""
SHOWN = 5


class _Building:
    """Models are built one at a time: transformers changes torch's default dtype and its own classes while it builds one, and two threads
    that do leave them so for good. A fork begins anew."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        os.register_at_fork(after_in_child=self._forked)

    def _forked(self) -> None:
        self.lock = threading.RLock()


_building = _Building()


def from_pretrained(
    source: str | os.PathLike[str],
    *,
    cache: ModelCache | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | str | None = "auto",
    auto_class: Any = None,
    strict: bool = True,
    ranks: tuple[int, int] | None = None,
    group: NodeGroup | str | None = None,
    verified_only: bool = False,
    report: LoadReport | None = None,
    cancel: Cancellation | None = None,
    **kwargs: Any,
) -> Any:
    """A model in eval mode with its weights and its generation config, as transformers' own `from_pretrained` of the files makes it.

    On a CPU, parameters that are in the page cache are mapped and not copied, unless `dtype` makes transformers cast them. Of a URI that
    isn't here the configuration comes first, and the parameters are filled as they arrive. No model is given before all of it is
    verified and published.

    Args:
        source: a storage URI (fetched if it isn't here, held until the model is loaded) or a directory.
        cache: for URIs; None: the one that the environment describes.
        device: that the model is loaded to; None: host memory.
        dtype: as transformers takes it; `auto`: the configuration's, else the checkpoint's.
        auto_class: `transformers.AutoModel…` or a class of models; None: the one that `config.json` names (`architectures`).
        strict: parameters that the checkpoint has no values for are an error. False: transformers makes some up and warns.
        ranks: (rank, world) of processes that load the whole model, each its own, at the same time; with `group`.
        group: those of them that are on this node, as `modelcache.load` takes it: the files are read once for all, and a model that isn't
            here comes to all from one of them, as it arrives.
        verified_only: of a model that arrives, no parameter is filled before its file is verified.
        report: filled with what the load took; nothing if transformers reads by itself.
        kwargs: what else transformers' `from_pretrained` takes, apart from where the model comes from.

    Raises:
        NotFound: there is no `config.json`.
        BadConfig: an argument that the URI, or this function, has instead; a group, for a model that transformers reads by itself.
        BadCheckpoint: what is there is no model that transformers has a class for.
        BadShard: `ranks` without `group`, or the other way round.
        NoSuchDevice, DeviceFault, NoDeviceMemory.
        ModuleMismatch: parameters are missing.
        What `modelcache.load` raises, and what transformers does (`RuntimeError`: shapes that differ).
    """
    _check(kwargs)
    place = None if device is None else one_device(device)
    reading = Reading.of(ranks, group, place if _takes_tensors_on(place) else None, report, cancel)
    how = reading.how(verified_only=verified_only)
    files = AskedModel(source, how, cache=cache, cancel=cancel, seen=reading.report, member=reading.member)
    if group is not None and not ITS_OWN.isdisjoint(kwargs):
        raise _no_group(files.address)
    with files:
        asked = _Asked.of(files, dtype, kwargs)
        weights = asked.weights(place)
        if weights is None and group is not None:
            raise _no_group(files.address)
        if weights is None:
            model, info = asked.by_itself(asked.kind(auto_class), place)
        else:
            model, info = asked.with_tensors_of(weights, asked.kind(auto_class), reading)
            if place is not None:
                model = model.to(place)
        if strict and info["missing_keys"]:
            raise _missing(sorted(info["missing_keys"]), asked.address)
    return model


def tokenizer(source: str | os.PathLike[str], *, cache: ModelCache | None = None, **kwargs: Any) -> Any:
    """The model's tokenizer (`transformers.AutoTokenizer`).

    Raises:
        BadConfig: an argument that the URI has instead. What `ModelCache.ensure` raises, and what transformers does.
    """
    _check(kwargs)
    with _directory(source, cache) as path:
        return transformers.AutoTokenizer.from_pretrained(path, local_files_only=True, **kwargs)


@dataclass(frozen=True, slots=True)
class _Asked:
    """A model, and how it is wanted.

    Attributes:
        path: a directory with its configuration, and maybe no more.
        rest: of `kwargs`, what is none of the configuration's fields.
    """

    files: AskedModel = field(repr=False)
    path: Path
    dtype: torch.dtype | str | None
    kwargs: Mapping[str, Any] = field(repr=False)
    config: Any = field(repr=False)
    rest: Mapping[str, Any] = field(repr=False)

    @classmethod
    def of(cls, files: AskedModel, dtype: torch.dtype | str | None, kwargs: Mapping[str, Any]) -> _Asked:
        """Raises NotFound: there is no configuration. What `ModelCache.ensure` raises."""
        if not ITS_OWN.isdisjoint(kwargs) or kwargs.get("trust_remote_code"):
            files.whole()
        path = files.first(FIRST, then=next(filter(files.has, WEIGHTS), None))
        return cls(files, path, dtype, kwargs, *_config(files, path, kwargs))

    @property
    def address(self) -> str:
        return self.files.address

    def weights(self, device: torch.device | None) -> str | None:
        """What the loader reads; None: transformers reads by itself, because the files or the arguments want what the loader doesn't do."""
        by_itself = (
            not ITS_OWN.isdisjoint(self.kwargs),
            not self._plain() and (device is not None or self._quantization() not in QUANTIZED),
            getattr(self.config, "transformers_weights", None) is not None,
            bool(getattr(type(self.config), "extra_files", ())),
            self._brings_code(),
            self.files.has(ADAPTER),
            is_deepspeed_zero3_enabled(),
        )
        if any(by_itself):
            return None
        return next(filter(self.files.has, WEIGHTS), None)

    def kind(self, given: Any) -> Any:
        """The class to call: the given one, else that of the configuration. Raises BadCheckpoint: transformers has none."""
        if given is not None:
            return given
        name = next(iter(getattr(self.config, "architectures", None) or []), "AutoModel")
        for auto_name, place in (getattr(self.config, "auto_map", None) or {}).items():
            if self._brings_code() and auto_name.startswith("AutoModel") and str(place).endswith(f".{name}"):
                return getattr(transformers, auto_name)
        found = getattr(transformers, name, None)
        if found is None:
            raise BadCheckpoint(
                f"transformers {transformers.__version__} has no class of models `{name}`",
                address=self.address,
                hint="name a class (auto_class=…), install a newer transformers, or allow the model's own code (trust_remote_code=True)",
            )
        return found

    def by_itself(self, kind: Any, device: torch.device | None) -> tuple[Any, dict[str, Any]]:
        """transformers' own way, from the verified files."""
        path = self.files.whole()
        place = {} if device is None else {"device_map": device}
        with _building.lock:
            pair = kind.from_pretrained(path, dtype=self.dtype, local_files_only=True, output_loading_info=True, **place, **self.kwargs)
        return pair[0], pair[1]

    def with_tensors_of(self, weights: str, kind: Any, reading: Reading) -> tuple[Any, dict[str, Any]]:
        """transformers' way with tensors in memory, or on their way there: it takes them without a directory, and for a class that is none
        of the auto classes."""
        opened = self.files.open(weights)
        forms = _forms(opened.checkpoint)
        gpu = reading.gpu
        if gpu is not None and not goes_straight(forms, self._wanted_dtype(), gpu):
            gpu = None  # the model is moved there when it is whole
        read = partial(reading.tensors, opened, forms, gpu)
        # under a `device_map` transformers first takes memory of the whole model's size there, to have it for what comes then
        with AwaitedTensors(read, forms, reading.cancel, at_first_ask=gpu is not None) as awaited:
            with _building.lock:
                try:
                    model, info = self._filled(kind, awaited.by_name, {} if gpu is None else {"device_map": {"": gpu}})
                except Exception:
                    awaited.expect_sound()  # whatever transformers makes of an error of reading
                    raise
            awaited.finish()
        opened.finish(reading.report)
        model.config.name_or_path = model.name_or_path = str(self.files.whole())
        if model.can_generate() and self.kwargs.get("generation_config") is None:
            model.generation_config = _generation_config(self.path)
        return model, info

    def _filled(self, kind: Any, tensors: Mapping[str, AwaitedTensor], place: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
        config = self.config
        if not issubclass(kind, transformers.PreTrainedModel):
            kind, config = _concrete(kind, config, self.rest)
        pair = kind.from_pretrained(
            None, config=config, state_dict=tensors, dtype=self.dtype, output_loading_info=True, **place, **self.rest
        )
        return pair[0], pair[1]

    def _wanted_dtype(self) -> torch.dtype | None:
        """None: the checkpoint's."""
        wanted = getattr(self.config, "dtype", None) if self.dtype in (None, "auto") else self.dtype
        return getattr(torch, wanted) if isinstance(wanted, str) else wanted

    def _plain(self) -> bool:
        return getattr(self.config, "quantization_config", None) is None

    def _quantization(self) -> str:
        """The method of a configuration that isn't plain."""
        said = self.config.quantization_config
        method = said.get("quant_method") if isinstance(said, Mapping) else getattr(said, "quant_method", None)
        return str(getattr(method, "value", method))

    def _brings_code(self) -> bool:
        return bool(getattr(self.config, "auto_map", None)) and bool(self.kwargs.get("trust_remote_code"))


def _takes_tensors_on(device: torch.device | None) -> bool:
    """Whether transformers puts parameters there by itself: with accelerate, on GPUs. Else the loaded model is moved."""
    return device is not None and device.type == "cuda" and is_accelerate_available()


def _forms(checkpoint: Checkpoint) -> Forms:
    """Dtype and shape of every tensor. Raises BadCheckpoint: torch has no such."""
    return {name: torch_form(entry, str(checkpoint.shards[shard].path)) for name, (shard, entry) in checkpoint.place.items()}


def _config(files: AskedModel, path: Path, kwargs: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The model's configuration, and the arguments that are none of its fields."""
    rest = dict(kwargs)
    given = rest.pop("config", None)
    if isinstance(given, transformers.PreTrainedConfig):
        return given, rest
    if not files.has(CONFIG):
        raise NotFound(f"there is no `{CONFIG}`", address=files.address, hint="transformers needs one: name the directory of a model")
    code = {"trust_remote_code": rest.pop("trust_remote_code")} if "trust_remote_code" in rest else {}
    config, rest = transformers.AutoConfig.from_pretrained(given or path, return_unused_kwargs=True, local_files_only=True, **code, **rest)
    return config, {**rest, **code}


def _concrete(auto_class: Any, config: Any, rest: Mapping[str, Any]) -> tuple[Any, Any]:
    """The class that an auto class has for a configuration, and the (part of the) configuration that it takes."""
    choice = {name: rest[name] for name in ("attn_implementation", "trust_remote_code") if name in rest}
    with torch.device("meta"):
        empty = auto_class.from_config(config, **choice)
    return type(empty), empty.config


def _generation_config(path: Path) -> Any:
    try:
        return transformers.GenerationConfig.from_pretrained(path, local_files_only=True)
    except OSError:  # there is none: older models have its fields in config.json
        return transformers.GenerationConfig.from_pretrained(path, config_file_name=CONFIG, local_files_only=True, _from_model_config=True)


@contextmanager
def _directory(source: str | os.PathLike[str], cache: ModelCache | None) -> Iterator[Path]:
    """The files of a URI, held for the block, or those of a directory."""
    text = os.fspath(source)
    if "://" not in text:
        yield Path(text)
        return
    with ExitStack() as stack:
        used = cache or stack.enter_context(ModelCache())
        yield stack.enter_context(used.open(text)).path


def _check(kwargs: Mapping[str, Any]) -> None:
    for name in kwargs:
        if name in IN_THE_URI:
            raise BadConfig(f"where the model comes from is said by the URI, and not by `{name}`", got=name, hint="see docs/uris.md")
        if name in OURS:
            raise BadConfig(f"`{name}` is no argument of modelcache's from_pretrained", got=name)


def _no_group(address: str) -> BadConfig:
    return BadConfig("transformers reads this model by itself, and no group can do that together", address=address)


def _missing(names: list[str], address: str) -> ModuleMismatch:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    shown = ", ".join(f"`{name}`" for name in names[:SHOWN])
    return ModuleMismatch(
        f"the checkpoint has no values for {shown}{more}", address=address, hint="strict=False has transformers make some up"
    )
