"""What the filesystems of fsspec are made with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class FsspecOptions:
    """Settings of fsspec's filesystems.

    Attributes:
        storage: by scheme, the arguments of its filesystem (`storage_options`), as its documentation names them. Secrets.
    """

    storage: Mapping[str, Mapping[str, Any]] = field(default_factory=dict, repr=False)
