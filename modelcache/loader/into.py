"""Tensors into the parameters and buffers of a module: which goes where is settled, and refused, before anything is changed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch

from modelcache.errors import BadCheckpoint, ModuleMismatch
from modelcache.loader.checkpoint import Checkpoint
from modelcache.loader.header import TensorEntry
from modelcache.loader.shard_plan import Share
from modelcache.loader.tensors import torch_form

SHOWN = 5


@dataclass(frozen=True, slots=True)
class Slot:
    """One tensor of a module, and every place that it has there: more than one where it is tied.

    Attributes:
        places: (module, name in it).
    """

    tensor: torch.Tensor = field(repr=False)
    places: list[tuple[torch.nn.Module, str]] = field(repr=False)


@dataclass(frozen=True, slots=True)
class Fit:
    """How a checkpoint fits a module.

    Attributes:
        slots: of the names that are read, as the checkpoint has them.
        missing: names of the module that the checkpoint has no tensor for, under their own name or one that they are tied to.
        unexpected: names of the checkpoint that the module doesn't have.
        without_values: buffers that no checkpoint holds and that are on the meta device: who built the module there must fill them.
    """

    slots: Mapping[str, Slot] = field(repr=False)
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    without_values: tuple[str, ...]


def fit(module: torch.nn.Module, checkpoint: Checkpoint, prefix: str, share: Share | None = None) -> Fit:
    """Compare names and shapes. `prefix` begins those names of the checkpoint that are meant, and is none of the module's.

    Args:
        share: the module is this rank's part, and what other ranks own is not looked for. None: it is all.

    Raises:
        ModuleMismatch: shapes differ.
        NoSuchTensor: the plan names what the checkpoint doesn't have. BadShard: a tensor can't be split so.
        BadCheckpoint: torch has no such dtype.
    """
    by_name = _slots(module)
    meant = [name for name in checkpoint.place if name.startswith(prefix)]
    entries = {name: checkpoint.place[name][1] for name in meant} if share is None else share.entries(checkpoint, meant)
    names = {name.removeprefix(prefix): name for name in entries}
    found = {name: full for name, full in names.items() if name in by_name}
    _check_shapes({full: by_name[name].tensor for name, full in found.items()}, entries, checkpoint)
    filled = {id(by_name[name]) for name in found}
    kept = set(module.state_dict(keep_vars=True))
    return Fit(
        slots={full: by_name[name] for name, full in found.items()},
        missing=tuple(name for name, slot in by_name.items() if id(slot) not in filled),
        unexpected=tuple(full for name, full in names.items() if name not in by_name),
        without_values=tuple(name for name, buffer in module.named_buffers() if buffer.is_meta and name not in kept),
    )


def expect_whole(found: Fit, address: str) -> None:
    """Raises ModuleMismatch: names are missing or unexpected, or buffers without values."""
    complaints = {
        "the checkpoint has no tensor for": found.missing,
        "the module has no": found.unexpected,
        "no checkpoint has values for the buffers that are on the meta device:": found.without_values,
    }
    told = "; ".join(f"{what} {_shown(names)}" for what, names in complaints.items() if names)
    if told:
        raise ModuleMismatch(told, address=address)


def fill(found: Fit, tensors: Iterable[tuple[str, torch.Tensor]], *, assign: bool, address: str) -> None:
    """Put each tensor in its slot. A slot on the meta device gets the tensor itself; another one too with `assign`, and else its values.

    Raises:
        BadCheckpoint: names that the module ties have different values; some slots are filled then.
    """
    taken: dict[int, tuple[str, torch.Tensor]] = {}
    for name, tensor in tensors:
        slot = found.slots[name]
        first, before = taken.get(id(slot), ("", None))
        if before is None:
            taken[id(slot)] = name, _put(slot, tensor, assign=assign)
        elif not _same(before, tensor.to(before)):
            raise BadCheckpoint(f"tensors `{first}` and `{name}` differ, and the module ties them", address=address)


def _put(slot: Slot, tensor: torch.Tensor, *, assign: bool) -> torch.Tensor:
    """What the slot holds then."""
    if not (assign or slot.tensor.is_meta):
        with torch.no_grad():
            slot.tensor.copy_(tensor)
        return slot.tensor.detach()
    value = tensor
    if isinstance(slot.tensor, torch.nn.Parameter):
        differentiable = tensor.is_floating_point() or tensor.is_complex()
        value = torch.nn.Parameter(tensor, requires_grad=slot.tensor.requires_grad and differentiable)
    for module, name in slot.places:
        setattr(module, name, value)
    return tensor


def _slots(module: torch.nn.Module) -> dict[str, Slot]:
    """Every parameter and persistent buffer by each of its names; those that are one tensor share one slot."""
    slots: dict[int, Slot] = {}
    by_name: dict[str, Slot] = {}
    kept = module.state_dict(keep_vars=True)
    for prefix, part in module.named_modules(remove_duplicate=False):
        for name, tensor in [*part._parameters.items(), *part._buffers.items()]:
            full = f"{prefix}.{name}" if prefix else name
            if tensor is None or full not in kept:
                continue
            slot = slots.setdefault(id(tensor), Slot(tensor, []))
            slot.places.append((part, name))
            by_name[full] = slot
    return by_name


def _check_shapes(wanted: Mapping[str, torch.Tensor], entries: Mapping[str, TensorEntry], checkpoint: Checkpoint) -> None:
    different = []
    for name, tensor in wanted.items():
        _, shape = torch_form(entries[name], str(checkpoint.shards[checkpoint.place[name][0]].path))
        if tuple(tensor.shape) != shape:
            different.append((name, list(tensor.shape), list(shape)))
    if different:
        name, expected, got = different[0]
        more = f" and {len(different) - 1} more" if len(different) > 1 else ""
        message = f"tensor `{name}`{more} has another shape than in the module"
        raise ModuleMismatch(message, address=str(checkpoint.root), expected=str(expected), got=str(got))


def _same(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Bit by bit."""
    return bool(torch.equal(one.flatten().view(torch.uint8), other.flatten().view(torch.uint8)))


def _shown(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(f"`{name}`" for name in names[:SHOWN]) + more
