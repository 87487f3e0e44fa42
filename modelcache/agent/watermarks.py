"""How full a node's agent lets its store make the disk, and why."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

KUBELET, FLAGS, NONE = "kubelet", "flags", "none"
"""Where thresholds come from: kubelet's own configuration, options of the agent, or there are none."""


@dataclass(frozen=True, slots=True)
class Watermarks:
    """Kubelet's thresholds that count for a store.

    Attributes:
        source: KUBELET, FLAGS or NONE.
        thresholds: each as `nodefs.available=10%`.
        high: the share of the file system that may be used, by anyone.
        why: kubelet's own are not known, or not as they are now; None: they are.
    """

    source: str
    thresholds: Sequence[str]
    high: float
    why: str | None = None

    def __str__(self) -> str:
        said = f"kubelet's thresholds: {', '.join(self.thresholds) or 'none'}"
        of = f" ({_OF[self.source]})" if self.source in _OF else ""
        return said + of + ("" if self.why is None else f"; it does not tell all: {self.why}")


_OF = {KUBELET: "told by kubelet", FLAGS: "given as options"}
