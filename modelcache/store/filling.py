"""What the files of one ingest share while they are filled."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path

from modelcache.store.blobs import Blobs
from modelcache.store.descriptors import Descriptors
from modelcache.store.lock import StoreLock
from modelcache.store.workspace import Workspace


@dataclass
class Filling:
    """What the files of one ingest share.

    Attributes:
        changed: guards their state; notified whenever a range arrives or the ingest ends.
        tree: where the files are now (a published tree has moved).
        direct: cleared for good once the file system refuses O_DIRECT.
    """

    workspace: Workspace
    blobs: Blobs
    lock: StoreLock
    changed: threading.Condition
    tree: Path
    descriptors: Descriptors
    direct: bool = True
    ended: bool = False
    gone: bool = False
