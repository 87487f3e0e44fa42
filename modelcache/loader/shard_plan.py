"""Which part of each tensor a rank has, and which bytes of the file that takes. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from math import prod

from modelcache.errors import BadShard, NoSuchTensor
from modelcache.loader.checkpoint import Checkpoint, Order
from modelcache.loader.header import TensorEntry
from modelcache.loader.plan import EXTENT_BYTES, Destination, Extent, extents_of
from modelcache.ranges import ByteRange
from modelcache.units import KIB

RUN_BYTES = 256 * KIB
"""A slice is read by itself where its contiguous runs are at least so long. Below, a disk takes about as long for the runs as for all that
lies between them: 128 KiB at random came at 0.4 of the rate of 1 MiB in a row (fio, on a virtual disk)."""


@dataclass(frozen=True, slots=True)
class Owned:
    """A tensor that one rank has, and no other: an expert's, a layer's.

    Attributes:
        rank: which one.
    """

    rank: int


Rule = int | Owned | None
"""A dimension that is split in equal parts, from the front or, negative, from the back; an owner; None: every rank has all of it."""


@dataclass(frozen=True, slots=True)
class ShardPlan:
    """How tensors are split.

    Attributes:
        rules: by name or shell pattern. A tensor's own name wins, then the longest pattern that fits, of equally long ones the first.
            What none fits every rank has whole.
    """

    rules: Mapping[str, Rule] = field(repr=False)
    _patterns: tuple[str, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Raises BadShard: a rule that is none."""
        for pattern, rule in self.rules.items():
            if type(rule) is not int and not isinstance(rule, Owned | None):
                raise BadShard(f"the plan's rule for `{pattern}` is no dimension, no owner and not None", got=repr(rule)[:100])
        object.__setattr__(self, "_patterns", tuple(sorted(self.rules, key=len, reverse=True)))

    def rule(self, name: str) -> Rule:
        """What becomes of the tensor of this name."""
        if name in self.rules:
            return self.rules[name]
        return next((self.rules[pattern] for pattern in self._patterns if fnmatchcase(name, pattern)), None)

    def check_names(self, checkpoint: Checkpoint) -> None:
        """Raises NoSuchTensor: a name or pattern that fits no tensor, so that something stays whole which was to be split."""
        for pattern in self.rules:
            if pattern not in checkpoint.place and not any(fnmatchcase(name, pattern) for name in checkpoint.place):
                raise NoSuchTensor(f"the plan has `{pattern}`, and no tensor fits it", address=str(checkpoint.root), got=pattern)


@dataclass(frozen=True, slots=True)
class Part:
    """What one rank has of one tensor.

    Attributes:
        file: number of the checkpoint's file.
        whole: the tensor as the file has it.
        shape: of the part, in elements as the header counts them.
        pieces: what is read of the file, in order, each by itself a tensor: the whole, or the part's contiguous runs.
        dim: None: the pieces one after the other are the part. Else the part is the rank's share of this dimension of the one piece.
        is_common: every rank reads the same piece.
    """

    file: int
    whole: TensorEntry
    shape: tuple[int, ...]
    pieces: tuple[TensorEntry, ...]
    dim: int | None
    is_common: bool

    @property
    def size_bytes(self) -> int:
        return prod(self.shape) * self.whole.dtype.bits // 8

    @property
    def entry(self) -> TensorEntry:
        """Of a file that has nothing else."""
        return TensorEntry(self.whole.name, self.whole.dtype, self.shape, ByteRange(0, self.size_bytes))


@dataclass(frozen=True, slots=True)
class Share:
    """One rank of some, and how they split a model."""

    rank: int
    world: int
    plan: ShardPlan

    def __post_init__(self) -> None:
        """Raises BadShard: no such rank, or an owner that is none."""
        self._check_rank("the rank", self.rank)
        for pattern, rule in self.plan.rules.items():
            if isinstance(rule, Owned):
                self._check_rank(f"the owner of `{pattern}`", rule.rank)

    def _check_rank(self, what: str, rank: int) -> None:
        if not 0 <= rank < self.world:
            raise BadShard(f"{what} is none of the world's", expected=f"0 to {self.world - 1}", got=str(rank))

    def parts(self, checkpoint: Checkpoint, names: Sequence[str]) -> dict[str, Part]:
        """What this rank has of these tensors, by name, in their order; those of other owners are not in it.

        Raises:
            NoSuchTensor: the plan names what the checkpoint doesn't have.
            BadShard: a tensor has no such dimension, or can't be split so.
        """
        self.plan.check_names(checkpoint)
        found = {name: self._part(*checkpoint.place[name], self.plan.rule(name), str(checkpoint.root)) for name in names}
        return {name: part for name, part in found.items() if part is not None}

    def entries(self, checkpoint: Checkpoint, names: Sequence[str]) -> dict[str, TensorEntry]:
        """Its parts of these tensors, as a file of this rank's own would have them. Raises as `parts`."""
        return {name: part.entry for name, part in self.parts(checkpoint, names).items()}

    def _part(self, file: int, entry: TensorEntry, rule: Rule, address: str) -> Part | None:
        if isinstance(rule, Owned):
            return Part(file, entry, entry.shape, (entry,), None, is_common=False) if rule.rank == self.rank else None
        if rule is None or self.world == 1:
            if rule is not None:
                _dim(entry, rule, address)
            return Part(file, entry, entry.shape, (entry,), None, is_common=True)
        dim = _dim(entry, rule, address)
        if entry.shape[dim] % self.world:
            message = f"dimension {rule} of tensor `{entry.name}` can't be split in {self.world} equal parts"
            raise BadShard(message, address=address, expected=f"a multiple of {self.world}", got=str(entry.shape[dim]))
        shape = (*entry.shape[:dim], entry.shape[dim] // self.world, *entry.shape[dim + 1 :])
        run_bits = prod(shape[dim:]) * entry.dtype.bits
        if run_bits % 8:
            message = f"a part of tensor `{entry.name}`, split along dimension {rule} for {self.world} ranks, ends within a byte"
            raise BadShard(message, address=address, expected="whole bytes", got=f"{run_bits} bits")
        if run_bits // 8 < RUN_BYTES or entry.span.size_bytes == 0:
            return Part(file, entry, shape, (entry,), dim, is_common=True)
        return Part(file, entry, shape, tuple(self._runs(entry, shape, dim, run_bits // 8)), None, is_common=False)

    def _runs(self, entry: TensorEntry, shape: tuple[int, ...], dim: int, run_bytes: int) -> Iterator[TensorEntry]:
        count = prod(shape[:dim])
        for number in range(count):
            start = entry.span.start + (number * self.world + self.rank) * run_bytes
            yield TensorEntry(entry.name, entry.dtype, shape if count == 1 else shape[dim:], ByteRange(start, start + run_bytes))


def extents_of_parts(
    parts: Mapping[str, Part], *, order: Order, destination: Destination, common_apart: bool, extent_bytes: int = EXTENT_BYTES
) -> list[Extent]:
    """What a rank reads for its parts. Nothing between two pieces is read along: it is what other ranks have.

    Args:
        common_apart: what all ranks read is in extents of its own, the same for every rank that gives the same names and order, and
            destinations that change at the same names.
        extent_bytes: an extent is ended at the next piece beyond this.
    """
    found = [(part.file, piece) for part in parts.values() for piece in part.pieces]
    if order == "file":
        found.sort(key=lambda place: (place[0], place[1].span))

    def place(name: str) -> object:
        return destination(name), common_apart and parts[name].is_common

    return extents_of(found, destination=place, gap_bytes=0, extent_bytes=extent_bytes)


def _dim(entry: TensorEntry, rule: int, address: str) -> int:
    """From the front. Raises BadShard: the tensor has no such dimension."""
    count = len(entry.shape)
    if not -count <= rule < count:
        expected = f"{-count} to {count - 1}" if count else "None: it has no dimensions"
        message = f"tensor `{entry.name}` of shape {list(entry.shape)} has no dimension {rule}"
        raise BadShard(message, address=address, expected=expected, got=str(rule))
    return rule % count
