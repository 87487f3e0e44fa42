"""What the filesystems of fsspec are made with."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from modelcache.errors import BadConfig
from modelcache.sources.any_fsspec.azure_key import AzureKey
from modelcache.sources.any_fsspec.hdfs import HdfsKeys

MAX_FILE_BYTES = 64 << 10
AZURE_SCHEMES = ("az", "abfs", "abfss")


@dataclass(frozen=True, slots=True)
class CallersKeys:
    """What a caller of a shared store brings; without any of it, it is nobody.

    Attributes:
        azure: of `az`, `abfs` and `abfss`.
        hdfs: of `hdfs` and `webhdfs`; None: `webhdfs` URIs name their name node.
    """

    azure: AzureKey = field(default_factory=AzureKey)
    hdfs: HdfsKeys | None = None


@dataclass(frozen=True, slots=True)
class FsspecOptions:
    """Settings of fsspec's filesystems.

    Attributes:
        storage: by scheme, the arguments of its filesystem (`storage_options`), as its documentation names them. Secrets.
        hdfs_secret_dir: where KServe's secret of HDFS lies, with a file for each of its keys; read for each connection. None: `hdfs`
            and `webhdfs` URIs name their name node.
        azure: arguments of the filesystem of `az`, `abfs` and `abfss`, where `storage` doesn't name them. Secrets.
        callers: the keys of the caller that these are settings of, who has nothing else; None: the owner's settings.
    """

    storage: Mapping[str, Mapping[str, Any]] = field(default_factory=dict, repr=False)
    azure: Mapping[str, str] = field(default_factory=dict, repr=False)

    hdfs_secret_dir: Path | None = None
    callers: CallersKeys | None = None

    def arguments(self, scheme: str) -> dict[str, Any]:
        """Of the filesystem of a scheme."""
        return (dict(self.azure) if scheme in AZURE_SCHEMES else {}) | dict(self.storage.get(scheme, {}))

    def with_file(self, scheme: str, path: Path) -> FsspecOptions:
        """The arguments of one scheme's filesystem that a file has as a JSON object, over those that are here.

        Raises: BadConfig: names the file, never what is in it.
        """
        try:
            with path.open("rb") as file:
                told = json.loads(file.read(MAX_FILE_BYTES))
        except OSError as error:
            raise BadConfig(f"the file can't be read ({error.strerror})", address=str(path)) from None
        except (ValueError, RecursionError):
            told = None
        if not isinstance(told, dict):
            hint = "storage options by the names of fsspec's filesystem, as in [fsspec.storage]"
            raise BadConfig("the file holds no JSON object", address=str(path), hint=hint) from None
        return replace(self, storage={**self.storage, scheme: {**self.storage.get(scheme, {}), **told}})
