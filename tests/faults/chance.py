"""Random choices that a run can repeat, and a quick place for stores that come and go by the hundred."""

from __future__ import annotations

import os
import random
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

MEMORY = Path("/dev/shm")


def seed_of(config: pytest.Config) -> int:
    """The run's seed (`make test SEED=…`), or a new one; shown by pytest when the test fails."""
    given = config.getoption("hypothesis_seed", None)
    seed = int(given) if str(given or "").isdecimal() else random.SystemRandom().getrandbits(32)
    print(f"seed: {seed}")
    return seed


def soak_rounds(default: int) -> int:
    """How many rounds a soak test makes: the variable SOAK, or a default that takes minutes."""
    return int(os.environ.get("SOAK") or default)


@contextmanager
def quick_directory() -> Iterator[Path]:
    """An empty directory in memory where there is one; gone after the block."""
    place = MEMORY if os.access(MEMORY, os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=place, prefix="modelcache-test-") as name:
        yield Path(name)
