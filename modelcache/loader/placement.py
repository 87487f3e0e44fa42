"""Where each tensor goes: one device for all, or by name."""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import TypeAlias

import torch

from modelcache.errors import NoSuchDevice

Device: TypeAlias = torch.device | str
HOST = torch.device("cpu")


class Placement:
    """Which device each tensor goes to.

    A mapping's keys are names or shell patterns (`model.layers.0.*`). A tensor's own name wins, then the longest pattern that fits, of
    equally long ones the first; what none fits goes to host memory. Keys that fit no tensor change nothing: one mapping may
    serve a load of some names.
    """

    def __init__(self, wish: Device | Mapping[str, Device] | None) -> None:
        """Raises NoSuchDevice: torch knows none of that name. Whether the machine has it is not looked at."""
        by_name: Mapping[str, Device] = {} if wish is None else wish if isinstance(wish, Mapping) else {"*": wish}
        self._exact = {name: named(device) for name, device in by_name.items()}
        self._patterns = sorted(self._exact, key=len, reverse=True)

    @property
    def devices(self) -> frozenset[torch.device]:
        """Every device that it names."""
        return frozenset(self._exact.values())

    @property
    def in_host(self) -> bool:
        """Whether everything stays in host memory."""
        return all(device.type == HOST.type for device in self._exact.values())

    def device_of(self, name: str) -> torch.device:
        """Where the tensor of this name goes."""
        if name in self._exact:
            return self._exact[name]
        return next((self._exact[pattern] for pattern in self._patterns if fnmatchcase(name, pattern)), HOST)


def named(device: Device) -> torch.device:
    """Raises NoSuchDevice: torch knows none of that name."""
    try:
        return torch.device(device)
    except RuntimeError as error:
        raise NoSuchDevice("torch knows no such device", address=str(device), hint="such as `cpu` or `cuda:0`") from error
