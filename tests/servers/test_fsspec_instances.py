"""Instances of fsspec's file systems: what each is made with, of which nothing secret is told, and whom it serves."""

from __future__ import annotations

import json
import logging
from typing import Any
from urllib.parse import quote

import fsspec
import pytest
from fsspec.implementations.asyn_wrapper import AsyncFileSystemWrapper
from fsspec.implementations.memory import MemoryFileSystem

from modelcache.errors import InvalidUri, OriginUnreachable, UnknownScheme
from modelcache.patience import Cancellation
from modelcache.ranges import ByteRange
from modelcache.sources.any_fsspec import FsspecOptions, FsspecSource
from modelcache.testing.source_contract import read
from modelcache.transport import Timeouts
from modelcache.uri import parse_uri
from tests.servers.shelf import DATA, Shelf, listed, put, source_of


def test_a_package_that_is_missed_only_when_connecting_is_named(shelf: type[Shelf], monkeypatch: pytest.MonkeyPatch) -> None:
    """As pyarrow by `hdfs`, whose class can be imported without."""

    def missing(self: Shelf, **_: Any) -> None:
        raise ModuleNotFoundError("No module named 'pyarrow'")

    monkeypatch.setattr(Shelf, "__init__", missing)
    with pytest.raises(UnknownScheme, match="the package that serves `shelf://` is not installed") as caught:
        listed(source_of("shelf://m"))
    assert not caught.value.retryable
    assert caught.value.hint is not None


def test_the_uris_user_and_the_settings_become_arguments_and_are_never_told(shelf: type[Shelf], caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    put("/m/f", DATA)
    options = FsspecOptions({"shelf": {"account": "a", "secret_thing": "s3cr3t"}, "ftp": {"password": "other"}})
    shelf.made.clear()
    text = f"shelf://me:{quote('p@ss/word', safe='')}@m"
    uri, secrets = parse_uri(text)
    source = FsspecSource(uri, secrets, options, Timeouts())
    assert read(source, listed(source).files[0]) == DATA
    assert shelf.made == [{"account": "a", "secret_thing": "s3cr3t", "username": "me", "password": "p@ss/word"}]
    said = repr([source, source._home, options]) + str(source.origin) + caplog.text
    assert not [secret for secret in ("s3cr3t", "p@ss/word", "p%40ss") if secret in said]
    source.close()


def test_other_accounts_and_users_are_other_origins_and_other_secrets_are_not(shelf: type[Shelf]) -> None:
    def origin(text: str, **arguments: Any) -> str:
        return str(source_of(text, FsspecOptions({"shelf": arguments})).origin)

    bare = origin("shelf://m")
    assert bare == "shelf://m"
    kinds = {bare, origin("shelf://m", account="a"), origin("shelf://m", account="b"), origin("shelf://me:x@m"), origin("shelf://you:x@m")}
    assert len(kinds) == 5
    assert origin("shelf://m", account="a") == origin("shelf://m", account="a", key="k", client={"sas_token": "t"})
    assert origin("shelf://me:x@m") == origin("shelf://me:y@m")


def test_credentials_that_a_scheme_has_no_use_for_are_refused() -> None:
    with pytest.raises(InvalidUri, match="take no user or password"):
        source_of("memory://me:secret@m")
    with pytest.raises(InvalidUri, match="take no signing parameters") as caught:
        source_of("shelf://m/f?sig=0f0f") if "shelf" in fsspec.available_protocols() else source_of("memory://m/f?sig=0f0f")
    assert "MODELCACHE_FSSPEC_" in str(caught.value.hint)
    assert "0f0f" not in str(caught.value.as_dict())


def test_the_locator_and_the_listing_hold_no_secret(shelf: type[Shelf]) -> None:
    put("/m/f", DATA)
    source = source_of("shelf://me:hidden@m")
    found = listed(source, "shelf://m")
    assert "hidden" not in json.dumps([file.locator for file in found.files]) + repr(found) + str(found.origin)


def test_an_instance_serves_one_call_at_a_time_is_kept_and_goes_when_it_failed(shelf: type[Shelf]) -> None:
    put("/m/f", DATA)
    source = source_of("shelf://m")
    shelf.made.clear()
    [file] = listed(source).files
    assert read(source, file) == DATA
    assert read(source, file, ByteRange(5, 9)) == DATA[5:9]
    assert len(shelf.made) == 1
    bodies = [source.open(file, ByteRange(0, 10), Cancellation()) for _ in range(3)]
    assert len(shelf.made) == 3
    for body in bodies:
        body.close()
    shelf.raises = ConnectionResetError()
    with pytest.raises(OriginUnreachable):
        read(source, file)
    shelf.raises = None
    assert read(source, file) == DATA
    assert len(shelf.made) == 4  # the two that were idle went with it: their server is likely gone


def test_a_filesystem_that_is_asynchronous_inside_is_shared() -> None:
    made: list[object] = []
    wrapped: Any = AsyncFileSystemWrapper.wrap_class(MemoryFileSystem)

    class Asynchronous(wrapped):  # type: ignore[misc]
        def __init__(self, **arguments: Any) -> None:
            made.append(arguments)
            super().__init__(**arguments)

        @classmethod
        def _strip_protocol(cls, path: str) -> str:
            stripped: str = MemoryFileSystem._strip_protocol(path.removeprefix("shelf://"))
            return stripped

    fsspec.register_implementation("shelf", Asynchronous, clobber=True)
    memory = MemoryFileSystem()
    memory.pipe_file("/async-m/d/f", DATA)
    source = source_of("shelf://async-m")
    [file] = listed(source, "shelf://async-m").files
    assert file.path == "d/f"
    bodies = [source.open(file, ByteRange(at, at + 10), Cancellation()) for at in range(3)]
    for at, body in enumerate(bodies):
        buffer = memoryview(bytearray(10))
        assert body.readinto(buffer) == 10
        assert buffer == DATA[at : at + 10]
        body.close()
    assert read(source, file) == DATA
    assert len(made) == 1
    memory.rm("/async-m", recursive=True)
