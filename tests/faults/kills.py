"""Processes that are killed at random instants while they fill a store, and the models that they fill it with."""

from __future__ import annotations

import random
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

from modelcache.patience import Deadline
from modelcache.testing.store_filling import content
from modelcache.units import MIB

DEADLINE_S = 120
COMMAND = (sys.executable, "-c", "import sys; from modelcache.cli.main import main; sys.exit(main())", "--json")
SHARED = content(6 * MIB + 11, seed=1)
TWO_MODELS = {
    "one": {"w.safetensors": content(17 * MIB + 5, seed=2), "shared.bin": SHARED, "config.json": b"1", "empty": b""},
    "two": {"deep/w.safetensors": content(13 * MIB, seed=3), "shared.bin": SHARED, "tokenizer.json": content(3000, seed=4)},
}


def killed_at_random(process: subprocess.Popen[str], chance: random.Random, *, within_s: float, store: Path | None) -> bool:
    """SIGKILL at a random instant; whether that was before its end.

    Args:
        within_s: the latest instant.
        store: counted from when somebody has begun to write to this store, which takes a while to come to; None: from now.
    """
    deadline = Deadline.after(DEADLINE_S)
    while store is not None and not any((store / "ingest").iterdir()) and process.poll() is None:
        assert not deadline.passed
        with suppress(subprocess.TimeoutExpired):
            process.wait(0.002)
    with suppress(subprocess.TimeoutExpired):
        process.wait(chance.uniform(0.0, within_s))
    process.kill()
    told, errors = process.communicate()
    assert process.returncode in (0, -9), f"{process.returncode}: {told} {errors}"
    return process.returncode == -9
