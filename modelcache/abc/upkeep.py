"""What a store on a disk is asked to keep itself sound: parts that can be saved, trees that can be put right."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from modelcache.abc.store import RefHead, Store
from modelcache.digest import Digest
from modelcache.patience import Cancellation


class Upkeep(Store, Protocol):
    """A store that can repair what a disk damaged. Nothing here writes into a published inode."""

    @property
    def read_only(self) -> bool: ...

    def heads(self) -> list[RefHead]:
        """The heads of all refs, those whose list of files is damaged among them."""
        ...

    def quarantined(self) -> frozenset[Digest]:
        """Contents of which a damaged inode is kept aside."""
        ...

    def salvage(self, digest: Digest, cancel: Cancellation) -> Iterator[tuple[int, memoryview]]:
        """The chunks that the damaged inodes of a content still hold as its chunk table says: index and bytes, each once.

        A view is good until the next. Nothing where the table is missing or damaged, too.
        """
        ...

    def mend(self, manifest: Digest) -> tuple[str, ...]:
        """Put the tree of a published snapshot right from blobs that are here; the paths that were changed.

        A file that is no inode of its blob gets a link to it by a rename: who has the old inode open keeps reading that one. What
        does not belong to the snapshot is removed. A file whose blob is not here stays as it is.

        Raises:
            NotCached: it is not published.
        """
        ...
