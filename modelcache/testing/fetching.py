"""Fetch engines and requests, in few words, over a `MemorySource` and any store: for tests."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest

import modelcache.chunks
import modelcache.fetch.buffers
import modelcache.fetch.run
import modelcache.fetch.small_files
from modelcache.abc.ingest import IngestFile, Route
from modelcache.abc.snapshot import RefKey
from modelcache.abc.source import Listing, RemoteFile, Source
from modelcache.abc.store import Store
from modelcache.digest import Algorithm, Digest
from modelcache.fetch.buffers import Buffer
from modelcache.fetch.concurrency import ConcurrencyBounds
from modelcache.fetch.engine import EngineLimits, FetchEngine
from modelcache.fetch.fetch import Fetch
from modelcache.fetch.plan import Priority
from modelcache.fetch.request import FetchRequest
from modelcache.patience import Cancellation
from modelcache.testing.memory_store import MemoryStore
from modelcache.testing.store_filling import digest_of, table_of
from modelcache.uri import StorageUri

SMALL_CHUNK_BYTES = 4096


@contextmanager
def small_chunks(size_bytes: int = SMALL_CHUNK_BYTES) -> Iterator[int]:
    """Chunks of a few KiB inside the block, so that files of hundreds of them are cheap; gives their size."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(modelcache.chunks, "CHUNK_BYTES", size_bytes)
        patch.setattr(modelcache.fetch.small_files, "SMALL_BYTES", size_bytes)
        yield size_bytes


@contextmanager
def running_engine(requests: int = 4, *, spare_buffers: int = 4) -> Iterator[FetchEngine]:
    """An engine with a fixed number of requests in flight, closed after the block."""
    engine = FetchEngine(EngineLimits(ConcurrencyBounds(requests, requests, requests), spare_buffers))
    try:
        yield engine
    finally:
        engine.close()


def place(name: str = "model") -> StorageUri:
    """A URI of a `MemorySource`, which asks for everything in it."""
    return StorageUri("memory", "origin", name)


def stated_sha256(file: RemoteFile) -> Digest | None:
    return next((digest for digest in file.digests if digest.algorithm is Algorithm.SHA256), None)


def version_of(listing: Listing, file: RemoteFile, name: str) -> str:
    return f"{listing.origin} {file.locator} {file.validator} {name}" if file.resumable else ""


def request_for(
    store: Store,
    source: Source,
    name: str = "model",
    *,
    priority: Priority = Priority.WAITING,
    identities: Sequence[str] | None = None,
) -> FetchRequest:
    """Everything that the source has, into a new ingest of the store; by default no file is shared with other fetches.

    `identities` are what fetches share files by. Their ingests don't, unless the source states digests: each has claims of its own.
    """
    uri = place(name)
    listing = source.list(uri, Cancellation())
    wanted = [IngestFile(file.path, file.size_bytes, version_of(listing, file, name), stated_sha256(file)) for file in listing.files]
    ingest = store.ingest(RefKey(str(uri), str(listing.origin)), wanted)
    return FetchRequest(
        uri=str(uri),
        source=source,
        remote=listing.files,
        ingest=ingest,
        identities=tuple(identities) if identities is not None else ("",) * len(listing.files),
        priority=priority,
        route=Route.BUFFERED,
    )


def finish(fetch: Fetch) -> None:
    """Wait until it has ended; what it raises is raised."""
    fetch.wait(Cancellation())


def check_filled(store: MemoryStore, request: FetchRequest, files: Mapping[str, bytes]) -> None:
    """Every file of the ingest is published with the right bytes and the right chunk table."""
    for incoming in request.ingest.files:
        data = files[incoming.path]
        digest = digest_of(data)
        assert incoming.sha256 == digest, incoming.path
        assert store.shelf.blobs[digest].data == data, incoming.path
        assert store.shelf.blobs[digest].table == table_of(data), incoming.path


@contextmanager
def counted_buffers() -> Iterator[Callable[[], int]]:
    """Gives a function that tells the most buffers that were alive at a time inside the block."""
    alive: weakref.WeakSet[Buffer] = weakref.WeakSet()
    most = 0
    lock = threading.Lock()

    class Counted(Buffer):
        __slots__ = ("__weakref__",)

        def __init__(self) -> None:
            super().__init__()
            nonlocal most
            with lock:
                alive.add(self)
                most = max(most, len(alive))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(modelcache.fetch.buffers, "Buffer", Counted)
        patch.setattr(modelcache.fetch.run, "Buffer", Counted)
        yield lambda: most


@contextmanager
def in_background(do: Callable[[], object], deadline_s: float = 20.0) -> Iterator[None]:
    """Runs it beside the block, and raises after the block what it raised."""
    with ThreadPoolExecutor(1) as threads:
        running = threads.submit(do)
        yield
        running.result(deadline_s)
