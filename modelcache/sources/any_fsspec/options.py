"""What the filesystems of fsspec are made with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

AZURE_SCHEMES = ("az", "abfs", "abfss")


@dataclass(frozen=True, slots=True)
class FsspecOptions:
    """Settings of fsspec's filesystems.

    Attributes:
        storage: by scheme, the arguments of its filesystem (`storage_options`), as its documentation names them. Secrets.
        hdfs_secret_dir: where KServe's secret of HDFS lies, with a file for each of its keys; read for each connection. None: `hdfs`
            and `webhdfs` URIs name their name node.
        azure: arguments of the filesystem of `az`, `abfs` and `abfss`, where `storage` doesn't name them. Secrets.
    """

    storage: Mapping[str, Mapping[str, Any]] = field(default_factory=dict, repr=False)
    azure: Mapping[str, str] = field(default_factory=dict, repr=False)

    hdfs_secret_dir: Path | None = None

    def arguments(self, scheme: str) -> dict[str, Any]:
        """Of the filesystem of a scheme."""
        return (dict(self.azure) if scheme in AZURE_SCHEMES else {}) | dict(self.storage.get(scheme, {}))
