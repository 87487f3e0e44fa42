"""How long to wait after what failed: twice as long each time, and not all nodes at once."""

from __future__ import annotations

import random
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Backoff:
    """Between `first_s` and `most_s`."""

    first_s: float
    most_s: float

    def after(self, failures: int, retry_after_s: float | None = None) -> float:
        """Seconds to wait after so many failures in a row (1 or more); not less than was asked for."""
        bound_s = min(self.first_s * 2.0 ** min(failures - 1, 30), self.most_s)
        return max(bound_s * random.uniform(0.5, 1.0), retry_after_s or 0.0)
