"""What a load took: bytes by the way they came, seconds by phase."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from modelcache.loader.files import Way


@dataclass
class LoadReport:
    """What a load took; filled while it goes on.

    Attributes:
        wanted_bytes: of all tensors that are read; 0 until the headers were.
        read_bytes: by the way they came; what lies between wanted tensors and is read along is in it.
        fetched_s: until the snapshot of a URI was here and held, or until its fetch had begun. Not in `seconds`.
        opened_s: headers, and opening the files.
        waited_s: for bytes, beyond what was read while the consumer worked.
        placed_s: tensors made of bytes, copied to devices that have no staging, cast. Work on a device that goes on by itself isn't seen.
        consumed_s: in the hands of who iterates.
        verified_s: of a model that arrived, from the last tensor until all of it was verified and published. Not in `seconds`.
    """

    wanted_bytes: int = 0
    tensors: int = 0
    tensor_bytes: int = 0
    read_bytes: Counter[Way] = field(default_factory=Counter)
    fetched_s: float = 0.0
    opened_s: float = 0.0
    waited_s: float = 0.0
    placed_s: float = 0.0
    consumed_s: float = 0.0
    verified_s: float = 0.0

    @property
    def seconds(self) -> float:
        """From the first header to the last tensor."""
        return self.opened_s + self.waited_s + self.placed_s + self.consumed_s

    @property
    def rate_bytes_per_s(self) -> float:
        """Tensors' bytes per second of `seconds`."""
        return self.tensor_bytes / self.seconds if self.seconds else 0.0
