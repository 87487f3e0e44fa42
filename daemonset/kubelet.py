"""kubelet's thresholds on a file system that the store shares with it: how full the store may make it. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace

from modelcache.abc.store import Limits
from modelcache.errors import BadConfig
from modelcache.units import parse_bytes

AVAILABLE = ("nodefs.available", "imagefs.available")
"""Below it kubelet evicts pods: `evictionHard` and `evictionSoft` of its configuration."""
IMAGE_GC = "imageGCHighThresholdPercent"
"""From it on kubelet removes images."""
CLEAR_SHARE = 0.02
"""Of the file system: others write between two looks of kubelet, which come every 10 s."""
_PERCENT = re.compile(r"(\d+(?:\.\d+)?)%?")


def parse(text: str) -> Mapping[str, str]:
    """Of `nodefs.available=10%,imagefs.available=20Gi,imageGCHighThresholdPercent=85`; kubelet's `<` stands for `=`, too.

    Raises:
        BadConfig: it can't be read, or names something else.
    """
    found = {}
    for part in text.split(","):
        name, _, value = part.strip().replace("<", "=", 1).partition("=")
        if name not in (*AVAILABLE, IMAGE_GC):
            raise BadConfig(f"no threshold of kubelet's that counts here: `{name}`", got=part, hint=f"{', '.join(AVAILABLE)} or {IMAGE_GC}")
        if _most(name, value, 1 << 40) is None:
            raise BadConfig(
                f"`{value}` is no value of {name}", got=part, hint="a share such as `10%`, or of `.available` a size such as `20Gi`"
            )
        found[name] = value
    return found


def capped(limits: Limits, thresholds: Mapping[str, str], total_bytes: int) -> Limits:
    """Limits under which a file system of this size stays clear of every threshold.

    Raises:
        BadConfig: no room is left.
    """
    shares = [most for name, value in thresholds.items() if (most := _most(name, value, total_bytes)) is not None]
    high = min([limits.high_watermark, *(share - CLEAR_SHARE for share in shares)])
    if high <= 0:
        given = ",".join(f"{name}={value}" for name, value in thresholds.items())
        raise BadConfig("kubelet's thresholds leave the store no room", got=given, hint="give the store a file system of its own")
    return replace(limits, high_watermark=high, low_watermark=min(limits.low_watermark, high))


def _most(name: str, value: str, total_bytes: int) -> float | None:
    """The share that may be used before kubelet acts; None: not a value of this threshold."""
    percent = _PERCENT.fullmatch(value)
    if name == IMAGE_GC:
        return None if percent is None or not 0 <= float(percent[1]) <= 100 else float(percent[1]) / 100
    if percent is not None and value.endswith("%"):
        return None if float(percent[1]) > 100 else 1 - float(percent[1]) / 100
    try:
        return 1 - parse_bytes(value) / total_bytes
    except BadConfig:
        return None
