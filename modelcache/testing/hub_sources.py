"""Hub sources for tests: against the fake hub, as an origin whose history is rewritten with each change."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from modelcache.abc.source import Source
from modelcache.sources.huggingface import HubOptions, HubSource
from modelcache.testing.servers.hub import HubServer
from modelcache.transport import Timeouts
from modelcache.uri import StorageUri

PATIENT = Timeouts(20, 20)


@contextmanager
def hub_source(server: HubServer, token: str | None = None, **options: object) -> Iterator[HubSource]:
    """A source that is closed after the block."""
    given: dict[str, object] = {"endpoint": server.endpoint, "token": token} | options
    source = HubSource(HubOptions(**given), PATIENT)  # type: ignore[arg-type]  # its fields, by name
    try:
        yield source
    finally:
        source.close()


class RewrittenRepository:
    """A place of the source contract: a repository whose earlier commits are gone after each change, as after a squash of its history.

    (Where they stay, they stay readable: a commit names its version for good.)
    """

    lists_many = True
    unsafe_names: tuple[str, ...] = ("new\nline", "tab\t", "\udcff", "..")

    def __init__(self, server: HubServer, source: Source) -> None:
        self.source = source
        self._server = server
        self._repository = server.repository("org/model")

    def put(self, path: str, data: bytes) -> None:
        self._change({path: data})

    overwrite = put

    def remove(self, path: str) -> None:
        self._change({path: None})

    def uri(self, path: str = "") -> StorageUri:
        return StorageUri("hf", "org/model", path, revision="main")

    def _change(self, changes: dict[str, bytes | None]) -> None:
        with self._server.lock:
            self._repository.commit(changes)
            self._repository.squash()
