"""kubelet's thresholds on a file system that the store shares with it: which count, and how full the store may make it. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from modelcache.abc.store import Limits
from modelcache.errors import BadConfig
from modelcache.units import parse_bytes

AVAILABLE = ("nodefs.available", "imagefs.available")
"""Below it kubelet evicts pods: `evictionHard` and `evictionSoft` of its configuration."""
IMAGE_GC = "imageGCHighThresholdPercent"
"""From it on kubelet removes images."""
CLEAR_SHARE = 0.02
"""Of the file system: others write between two looks of kubelet, which come every 10 s."""
NODEFS, IMAGEFS = "nodefs", "imagefs"
"""kubelet's own file system, and that of the images, which may be one."""
FILE_SYSTEM_OF = {"nodefs.available": NODEFS, "imagefs.available": IMAGEFS, IMAGE_GC: IMAGEFS}
SAME_SIZE_SHARE = 0.01
"""Two sizes that differ by less are taken for those of one file system: btrfs leaves a reserve out of its own that grows with its metadata
(up to 512 MiB). Inodes tell nothing: XFS and btrfs make them as they are needed."""
Thresholds = Sequence[tuple[str, str]]
"""Names and values. Of one name there may be several: all of them count."""
_EXPONENT = re.compile(r"\d+(?:\.\d+)?[eE][+-]?\d{1,2}")
_PERCENT = re.compile(r"(\d+(?:\.\d+)?)%?")


def parse(text: str) -> Thresholds:
    """Of `nodefs.available=10%,imagefs.available=20Gi,imageGCHighThresholdPercent=85`; kubelet's `<` stands for `=`, too.

    Raises:
        BadConfig: it can't be read, or names something else.
    """
    found = []
    for part in text.split(","):
        name, _, value = part.strip().replace("<", "=", 1).partition("=")
        if name not in (*AVAILABLE, IMAGE_GC):
            raise BadConfig(f"no threshold of kubelet's that counts here: `{name}`", got=part, hint=f"{', '.join(AVAILABLE)} or {IMAGE_GC}")
        if _most(name, value, 1 << 40) is None:
            raise BadConfig(
                f"`{value}` is no value of {name}", got=part, hint="a share such as `10%`, or of `.available` a size such as `20Gi`"
            )
        found.append((name, value))
    return found


def told(configz: Mapping[str, Any]) -> Thresholds:
    """What kubelet says that it is configured with: its `/configz`. A threshold of nothing is none.

    Raises:
        BadConfig: it is no such answer, or a value in it can't be read.
    """
    config = configz.get("kubeletconfig")
    if not isinstance(config, dict):
        raise BadConfig("the answer has no configuration of a kubelet")
    found = []
    for kind in ("evictionHard", "evictionSoft"):
        signals = config.get(kind) or {}
        if not isinstance(signals, dict):
            raise BadConfig(f"`{kind}` has no thresholds by name", got=ascii(signals)[:80])
        found += [(name, signals[name]) for name in AVAILABLE if name in signals]
    if config.get(IMAGE_GC) is not None:
        found.append((IMAGE_GC, config[IMAGE_GC]))
    for name, value in found:
        if isinstance(value, bool) or not isinstance(value, str | int) or _most(name, str(value), 1 << 40) is None:
            raise BadConfig(f"no value of {name} that can be read", got=ascii(value)[:80])
    return [(name, str(value)) for name, value in found if not _is_off(name, str(value))]


@dataclass(frozen=True, slots=True)
class Sizes:
    """Bytes of kubelet's file systems, free or not; None: it doesn't tell."""

    nodefs: int | None
    imagefs: int | None

    def may_hold(self, name: str, total_bytes: int) -> bool | None:
        """Whether a file system of this size may be the one of this name. None: nobody knows."""
        told = self.nodefs if name == NODEFS else self.imagefs
        return None if told is None else abs(told - total_bytes) <= SAME_SIZE_SHARE * total_bytes


def sizes_told(summary: Mapping[str, Any]) -> Sizes:
    """Of kubelet's `/stats/summary`. Raises BadConfig: it is no such answer."""
    node = summary.get("node")
    if not isinstance(node, dict):
        raise BadConfig("the answer has no statistics of a node")
    runtime = node.get("runtime")
    return Sizes(_capacity(node.get("fs")), _capacity(runtime.get("imageFs") if isinstance(runtime, dict) else None))


def _capacity(told: object) -> int | None:
    size = told.get("capacityBytes") if isinstance(told, dict) else None
    return size if isinstance(size, int) and not isinstance(size, bool) and size > 0 else None


def text_of(threshold: tuple[str, str]) -> str:
    return "=".join(threshold)


def capped(limits: Limits, thresholds: Thresholds, total_bytes: int) -> Limits:
    """Limits under which a file system of this size stays clear of every threshold; where that leaves no room, watermarks of 0."""
    shares = [most for name, value in thresholds if (most := _most(name, value, total_bytes)) is not None]
    high = max(0.0, min([limits.high_watermark, *(share - CLEAR_SHARE for share in shares)]))
    return replace(limits, high_watermark=high, low_watermark=min(limits.low_watermark, high))


def expect_room(limits: Limits, thresholds: Thresholds) -> None:
    """Raises BadConfig: thresholds leave none."""
    if limits.high_watermark == 0:
        given = ",".join(map(text_of, thresholds))
        raise BadConfig("kubelet's thresholds leave the store no room", got=given, hint="give the store a file system of its own")


def _most(name: str, value: str, total_bytes: int) -> float | None:
    """The share that may be used before kubelet acts; None: not a value of this threshold."""
    percent = _PERCENT.fullmatch(value)
    if name == IMAGE_GC:
        return None if percent is None or not 0 <= float(percent[1]) <= 100 else float(percent[1]) / 100
    if percent is not None and value.endswith("%"):
        return None if float(percent[1]) > 100 else 1 - float(percent[1]) / 100
    try:
        size = float(value) if _EXPONENT.fullmatch(value) else parse_bytes(value)
        return 1 - size / total_bytes
    except BadConfig:
        return None


def _is_off(name: str, value: str) -> bool:
    """Whether kubelet takes it for none (`parseThresholdStatement`), or nothing that a store does would change what it does."""
    return value in ("0%", "100%") or (name == IMAGE_GC and value in ("0", "100")) or _most(name, value, 1 << 40) == 1
