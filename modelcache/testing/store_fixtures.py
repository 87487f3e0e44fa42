"""Types of the fixtures that the store contract asks for."""

from __future__ import annotations

from collections.abc import Callable

from modelcache.abc.snapshot import Snapshot
from modelcache.abc.store import Limits, Store
from modelcache.digest import Digest
from modelcache.testing.store_filling import content
from modelcache.units import MIB

MakeStore = Callable[[Limits], Store]
Read = Callable[[Snapshot, str], bytes]
Leftovers = Callable[[], list[str]]
DamageBlob = Callable[[Digest, int], None]

NO_LIMITS = Limits(max_bytes=None, high_watermark=1.0, low_watermark=1.0)
MODEL = {"config.json": b'{"model_type": "tiny"}\n', "weights/model.safetensors": content(9 * MIB + 77, seed=1), "empty": b""}
"""Three chunks, one chunk, none."""


class Clock:
    """Unix time in seconds that only moves when told."""

    def __init__(self, now_s: float) -> None:
        self.now_s = now_s

    def __call__(self) -> float:
        return self.now_s

    def pass_(self, seconds: float) -> None:
        self.now_s += seconds


def model(seed: int, size_bytes: int = MIB) -> dict[str, bytes]:
    """A model of one file of other bytes than any other seed's."""
    return {"model.safetensors": content(size_bytes, seed)}
