"""Azure Blob Storage through adlfs, against Azurite: the contract of every source, accounts, keys, refusals, a fork."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from modelcache.abc.source import Source
from modelcache.cache import ModelCache
from modelcache.config import Config
from modelcache.errors import AccessDenied, BadConfig, DigestMismatch, InvalidUri, NotFound, OriginUnreachable, ProtocolViolation
from modelcache.refresh import Refresh
from modelcache.sources.any_fsspec import AzureKey, CallersKeys, FsspecOptions, FsspecSource
from modelcache.testing.faulted_contract import FaultedContract
from modelcache.testing.servers.azurite import Azurite
from modelcache.testing.source_contract import NAMES, Place, SourceContract
from modelcache.transport import Timeouts
from modelcache.uri import StorageUri, UriSecrets
from tests.left_out import AZURITE

pytestmark = pytest.mark.beside("azurite")
MODEL = {"config.json": b"{}", "w/model.safetensors": bytes(range(256)) * 40_000, "ünï c+d%20": b"odd", "empty": b""}


@pytest.fixture(scope="module")
def azurite(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Azurite]:
    with Azurite(tmp_path_factory.mktemp("azurite"), AZURITE) as server:
        yield server


@contextmanager
def blobs(server: Azurite, container: str, account: str = "") -> Iterator[Any]:
    """Azure's own client of a container, which is made."""
    from azure.storage.blob import ContainerClient  # type: ignore[import-not-found,import-untyped,unused-ignore]

    connection = server.connection_of(account or server.account, server.key)
    with ContainerClient.from_connection_string(connection, container) as client:
        if not client.exists():
            client.create_container()
        yield client


@pytest.fixture
def container(azurite: Azurite) -> str:
    name = f"c{secrets.token_hex(6)}"
    with blobs(azurite, name) as client:
        for path, data in MODEL.items():
            client.upload_blob(f"m/{path}", data)
    return name


def config(directory: Path, variables: Mapping[str, str]) -> Config:
    roomy = {"MODELCACHE_HIGH_WATERMARK": "1", "MODELCACHE_LOW_WATERMARK": "1"}
    return Config.load({"HOME": str(directory), "MODELCACHE_AGENT": "none", **roomy, **variables})


@contextmanager
def cache(directory: Path, connection: str) -> Iterator[ModelCache]:
    with ModelCache(config=config(directory, {"AZURE_STORAGE_CONNECTION_STRING": connection})) as made:
        yield made


def files_of(path: Path) -> dict[str, bytes]:
    return {str(each.relative_to(path)): each.read_bytes() for each in path.rglob("*") if each.is_file()}


@pytest.mark.parametrize("form", ["az://{}/m", "abfs://{}/m", "abfss://{}/m", "abfs://{}@account.dfs.core.windows.net/m"])
def test_a_model_comes_whole_under_every_name_of_it(azurite: Azurite, container: str, tmp_path: Path, form: str) -> None:
    with cache(tmp_path, azurite.connection_string) as ours:
        snapshot = ours.ensure(form.format(container))
        assert files_of(snapshot.path) == MODEL
        [ref] = ours.refs(str(snapshot.digest))
        assert all(file.validator.startswith("etag:") for file in ref.files)


def test_accounts_with_one_container_are_two_origins(azurite: Azurite, container: str, tmp_path: Path) -> None:
    with blobs(azurite, container, "other") as client:
        client.upload_blob("m/config.json", b"of another account")
    found = {}
    for account in (azurite.account, "other"):
        with cache(tmp_path, azurite.connection_of(account, azurite.key)) as ours:
            snapshot = ours.ensure(f"az://{container}/m")
            found[account] = files_of(snapshot.path)["config.json"]
            assert all(azurite.key not in ref.key.origin for ref in ours.refs(str(snapshot.digest)))
    assert found == {azurite.account: b"{}", "other": b"of another account"}


def test_what_is_refused_and_what_is_missing(azurite: Azurite, container: str, tmp_path: Path) -> None:
    with cache(tmp_path, azurite.connection_string) as ours:
        for uri in (f"az://{container}/nothing", f"az://{container}0/m"):
            with pytest.raises(NotFound):
                ours.ensure(uri)
    with cache(tmp_path, azurite.connection_of(azurite.account, "B" * 43 + "=")) as ours, pytest.raises(AccessDenied) as caught:
        ours.ensure(f"az://{container}/m")
    assert "B" * 43 not in json.dumps(caught.value.as_dict(), default=str)
    with cache(tmp_path, azurite.connection_string.replace(str(azurite.port), "1")) as ours, pytest.raises(OriginUnreachable):
        ours.ensure(f"az://{container}/m")
    with ModelCache(config=config(tmp_path, {})) as ours, pytest.raises(BadConfig, match="az") as told:
        ours.ensure(f"az://{container}/m")
    assert "AZURE_STORAGE_ACCOUNT_NAME" in str(told.value.hint)


@pytest.mark.parametrize("end", ["?", "#", "?versionid=1"])
def test_a_name_that_adlfs_would_read_as_anothers_is_its_own(azurite: Azurite, container: str, tmp_path: Path, end: str) -> None:
    name = f"config.json{end}"
    with blobs(azurite, container) as client:
        client.upload_blob(f"m/{name}", b"another")
    with cache(tmp_path, azurite.connection_string) as ours:
        assert files_of(ours.ensure(f"az://{container}/m").path) == {**MODEL, name: b"another"}
        alone = f"az://{container}/m/{name}{'#' if '#' in end else '?'}"
        assert files_of(ours.ensure(alone).path) == {name: b"another"}
        if "versionid" in end:
            with pytest.raises(InvalidUri, match="names a version") as told:
                ours.ensure(alone.removesuffix("?"))
            assert "version_aware" in str(told.value.hint)


def test_the_stated_md5_is_compared(azurite: Azurite, container: str, tmp_path: Path) -> None:
    from azure.storage.blob import ContentSettings  # type: ignore[import-not-found,import-untyped,unused-ignore]

    with blobs(azurite, container) as client, cache(tmp_path, azurite.connection_string) as ours:
        client.get_blob_client("m/empty").set_http_headers(ContentSettings())
        [ref] = ours.refs(str(ours.ensure(f"az://{container}/m").digest))
        found = {file.path: [str(digest) for digest in file.stated] for file in ref.files}
        md5 = {path: f"md5:{hashlib.md5(data).hexdigest()}" for path, data in MODEL.items()}
        assert found == {path: [md5[path]] if path != "empty" else [] for path in MODEL}
        client.get_blob_client("m/config.json").set_http_headers(ContentSettings(content_md5=bytearray(16)))
        with pytest.raises(DigestMismatch) as told:
            ours.ensure(f"az://{container}/m", refresh=Refresh.ALWAYS)
        assert (told.value.expected, told.value.got) == (f"md5:{'0' * 32}", md5["config.json"])


def test_an_object_with_an_encoding_is_refused_by_name(azurite: Azurite, container: str, tmp_path: Path) -> None:
    from azure.storage.blob import ContentSettings  # type: ignore[import-not-found,import-untyped,unused-ignore]

    with blobs(azurite, container) as client:
        client.upload_blob("m/zipped", b"x", content_settings=ContentSettings(content_encoding="gzip"))
    with cache(tmp_path, azurite.connection_string) as ours:
        with pytest.raises(ProtocolViolation, match="Content-Encoding"):
            ours.ensure(f"az://{container}/m")
        assert files_of(ours.ensure(f"az://{container}/m#exclude=zipped").path) == MODEL


@pytest.mark.parametrize("rights", ["rl", "l"])
def test_a_shared_access_signature_opens_what_it_names_and_is_kept_nowhere(
    azurite: Azurite, container: str, tmp_path: Path, rights: str
) -> None:
    from azure.storage.blob import generate_container_sas  # type: ignore[import-not-found,import-untyped,unused-ignore]

    until = datetime.now(UTC) + timedelta(hours=1)
    token = generate_container_sas(azurite.account, container, account_key=azurite.key, permission=rights, expiry=until)
    endpoint = f"http://127.0.0.1:{azurite.port}/{azurite.account}"
    with cache(tmp_path, f"BlobEndpoint={endpoint};SharedAccessSignature={token}") as ours:
        if rights == "l":  # who may list and not read
            with pytest.raises(AccessDenied):
                ours.ensure(f"az://{container}/m")
        else:
            assert files_of(ours.ensure(f"az://{container}/m").path) == MODEL
    signature = token.rpartition("sig=")[2]
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and signature.encode() in path.read_bytes()]


def test_a_child_process_reads_too(azurite: Azurite, container: str, tmp_path: Path) -> None:
    """fsspec's loop runs in a thread, which a fork doesn't take along."""
    with cache(tmp_path / "parent", azurite.connection_string) as ours:
        ours.ensure(f"az://{container}/m")
    child = os.fork()
    if child == 0:
        try:
            with cache(tmp_path / "child", azurite.connection_string) as ours:
                os._exit(0 if files_of(ours.ensure(f"az://{container}/m").path) == MODEL else 1)
        finally:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


class Blobs:
    """A container of Azure's."""

    lists_many = True
    unsafe_names: tuple[str, ...] = ()

    def __init__(self, client: Any, name: str, source: Source) -> None:
        self.source = source
        self._client = client
        self._name = name

    def put(self, path: str, data: bytes) -> None:
        self._client.upload_blob(path, data, overwrite=True)

    overwrite = put

    def remove(self, path: str) -> None:
        self._client.delete_blob(path)

    def uri(self, path: str = "") -> StorageUri:
        return StorageUri("az", self._name, path)


class TestAzure(SourceContract):
    @pytest.mark.parametrize("name", [*NAMES, "#", "x#", "a?versionid=x"])
    def test_odd_names_are_listed_and_read(self, place: Place, name: str) -> None:
        super().test_odd_names_are_listed_and_read(place, name)

    @pytest.fixture
    def place(self, azurite: Azurite, tmp_path: Path) -> Iterator[Place]:
        name = f"c{secrets.token_hex(6)}"
        options = config(tmp_path, {"AZURE_STORAGE_CONNECTION_STRING": azurite.connection_string}).fsspec
        source = FsspecSource(StorageUri("az", name, ""), UriSecrets(), options, Timeouts())
        try:
            with blobs(azurite, name) as client:
                yield Blobs(client, name, source)
        finally:
            source.close()


class TestAzureOfCallers(TestAzure):
    """By Azure's own client, with the caller's key."""

    @pytest.fixture
    def place(self, azurite: Azurite, tmp_path: Path) -> Iterator[Place]:
        name = f"c{secrets.token_hex(6)}"
        keys = CallersKeys(AzureKey().with_connection(azurite.connection_string))
        source = FsspecSource(StorageUri("az", name, ""), UriSecrets(), FsspecOptions(callers=keys), Timeouts())
        try:
            with blobs(azurite, name) as client:
                yield Blobs(client, name, source)
        finally:
            source.close()


class TestAzureOfCallersFaulted(FaultedContract, TestAzureOfCallers):
    pass


class TestAzureFaulted(FaultedContract, TestAzure):
    pass
