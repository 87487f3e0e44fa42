"""What the lease of a volume is called: by the CSI driver that takes it, and by the agent that keeps it while the volume is there."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

PREFIX = "volume:"


@dataclass(frozen=True, slots=True)
class Volume:
    """A volume of a pod.

    Attributes:
        id: CSI's.
        target: the directory that the snapshot is mounted at, by its absolute path.
    """

    id: str
    target: Path

    @property
    def holder(self) -> str:
        """`volume:<id>:<target>`."""
        return f"{PREFIX}{self.id}:{self.target}"

    @classmethod
    def of(cls, holder: str) -> Volume | None:
        """The volume whose lease has this holder; None: it is another's."""
        volume_id, sign, target = holder.removeprefix(PREFIX).partition(":/")
        return cls(volume_id, Path(f"/{target}")) if holder.startswith(PREFIX) and sign else None
