"""What a fetch is asked to do."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from modelcache.abc.ingest import Ingest, Route
from modelcache.abc.source import RemoteFile, Source
from modelcache.digest import Digest
from modelcache.fetch.plan import Priority


@dataclass(frozen=True, slots=True)
class FetchRequest:
    """Bring every file of `ingest` that is not complete in from `source`.

    Attributes:
        uri: canonical, for progress and errors.
        remote: the listed files, in the order of `ingest.files`. Each is compared with all of its `digests`.
        identities: one text per file; files of equal, non-empty identity have equal bytes and are fetched once.
        route: how bytes go to disk.
        known: by file number, digests that have become known since the ingest was asked for; asked when it has got claims, for who
            had them before may have published.
    """

    uri: str
    source: Source
    remote: tuple[RemoteFile, ...]
    ingest: Ingest
    identities: tuple[str, ...]
    priority: Priority
    route: Route
    known: Callable[[], Mapping[int, Digest]] = dict
