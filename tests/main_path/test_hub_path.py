"""From the hub through `ModelCache` to verified files: what is fetched, what is not, and what goes wrong in between."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from modelcache import Config, ModelCache, Progress, Refresh
from modelcache.abc.snapshot import Snapshot
from modelcache.digest import Algorithm
from modelcache.errors import AccessDenied, DigestMismatch, InvalidUri, UnknownScheme
from modelcache.fetch.progress import Phase
from modelcache.sources.huggingface import HubOptions
from modelcache.sources.retrying import RetryLimits
from modelcache.sources.s3 import S3Options
from modelcache.testing import faults
from modelcache.testing.fault_server import Call
from modelcache.testing.servers import SeaweedFS
from modelcache.testing.servers.hub import HubServer
from modelcache.testing.servers.hub_repository import HubRepository
from modelcache.testing.store_fixtures import NO_LIMITS

URI = "hf://org/model"
FILES = {
    "config.json": b'{"model_type": "llama"}',
    "empty.txt": b"",
    "tokenizer/vocabulary é.json": os.urandom(3000),
    "model-00001.safetensors": os.urandom(9_000_000),
    "model-00002.safetensors": os.urandom(2_000_000),
}


class Puller:
    """A cache and the last progress of its last pull."""

    def __init__(self, cache: ModelCache) -> None:
        self.cache = cache
        self.last = Progress("", Phase.RESOLVING)

    def pull(self, uri: str = URI, refresh: Refresh = Refresh.ALWAYS) -> Snapshot:
        return self.cache.ensure(uri, refresh=refresh, progress=self._see)

    def _see(self, progress: Progress) -> None:
        self.last = progress


def content(snapshot: Snapshot) -> dict[str, bytes]:
    return {str(path.relative_to(snapshot.path)): path.read_bytes() for path in snapshot.path.rglob("*") if path.is_file()}


def config_of(hub: HubServer, root: Path, s3: S3Options | None = None) -> Config:
    retry = RetryLimits(base_s=0.001, attempts=4)
    return Config.load(environ={}, root=root, hf=HubOptions(endpoint=hub.endpoint), retry=retry, s3=s3 or S3Options(), limits=NO_LIMITS)


@pytest.fixture
def hub() -> Iterator[HubServer]:
    with HubServer(page_entries=2) as server:
        yield server


@pytest.fixture
def repository(hub: HubServer) -> HubRepository:
    return hub.repository(files=FILES)


@pytest.fixture
def puller(hub: HubServer, tmp_path: Path) -> Iterator[Puller]:
    with ModelCache(config=config_of(hub, tmp_path / "store")) as cache:
        yield Puller(cache)


def test_a_pull_brings_every_file_compared_and_the_next_asks_once_or_not_at_all(
    hub: HubServer, repository: HubRepository, puller: Puller
) -> None:
    snapshot = puller.pull()
    assert content(snapshot) == FILES
    [ref] = puller.cache.refs(URI)
    assert ref.revision == repository.refs["main"]
    stated = {file.path: [digest.algorithm for digest in file.stated] for file in ref.files}
    assert stated == {path: [Algorithm.SHA256 if "model-" in path else Algorithm.GIT_SHA1] for path in FILES}
    hub.counts()
    assert puller.pull() == snapshot
    assert hub.counts() == {"info": 1}
    assert puller.pull(refresh=Refresh.AUTO) == snapshot
    assert puller.pull(f"{URI}:{ref.revision}") == snapshot
    hub.counts()
    assert puller.pull(f"{URI}:{ref.revision}", Refresh.AUTO) == snapshot
    assert hub.counts() == {}


def test_a_new_commit_fetches_only_what_changed(hub: HubServer, repository: HubRepository, puller: Puller) -> None:
    old = puller.pull()
    changed = {"config.json": b"{}", "model-00002.safetensors": os.urandom(1_000_000)}
    repository.commit({**changed, "empty.txt": None, "copy.safetensors": FILES["model-00001.safetensors"]})
    new = puller.pull()
    assert puller.last.bytes_fetched == sum(map(len, changed.values()))
    assert content(old) == FILES
    expected = FILES | changed | {"copy.safetensors": FILES["model-00001.safetensors"]}
    assert content(new) == {path: data for path, data in expected.items() if path != "empty.txt"}


def test_what_s3_brought_is_not_fetched_from_the_hub(
    hub: HubServer, repository: HubRepository, seaweedfs: SeaweedFS, bucket: str, tmp_path: Path
) -> None:
    name = "model-00001.safetensors"
    seaweedfs.put(bucket, f"m/{name}", FILES[name], checksum="SHA256")
    who = seaweedfs.reader
    s3 = S3Options(endpoint=seaweedfs.endpoint, access_key=who.access_key, secret_key=who.secret_key)
    with ModelCache(config=config_of(hub, tmp_path / "store", s3=s3)) as cache:
        puller = Puller(cache)
        first = puller.pull(f"s3://{bucket}/m")
        second = puller.pull(f"{URI}#include=*00001*")
        assert (puller.last.bytes_fetched, puller.last.hit) == (0, True)
        assert second == first
        assert hub.counts()["cdn"] == 0
        whole = puller.pull()
        assert puller.last.bytes_reused == len(FILES[name])
        assert (whole.path / name).samefile(first.path / name)


def test_equal_names_at_two_hubs_are_two_models(hub: HubServer, repository: HubRepository, tmp_path: Path) -> None:
    with HubServer() as other:
        other.repository(files=FILES | {"config.json": b"another"})
        with ModelCache(config=config_of(hub, tmp_path / "store")) as cache:
            first = cache.ensure(URI)
        with ModelCache(config=config_of(other, tmp_path / "store")) as cache:
            second = cache.ensure(URI)
            assert (second.path / "config.json").read_bytes() == b"another"
            assert (first.path / "config.json").read_bytes() == FILES["config.json"]
            assert len(cache.list()) == 2


@pytest.mark.parametrize("name", ["config.json", "model-00002.safetensors"])
def test_right_size_and_wrong_bytes_are_told_and_not_kept(
    hub: HubServer, repository: HubRepository, puller: Puller, tmp_path: Path, name: str
) -> None:
    commit = repository.refs["main"]
    if name == "config.json":
        hub.front.fail(f"/api/resolve-cache/models/org/model/{commit}/{name}", faults.wrong_bytes)
    else:
        hub.cdn.fail(f"/repos/org/model/{hashlib.sha256(FILES[name]).hexdigest()}", faults.wrong_bytes)
    with pytest.raises(DigestMismatch) as caught:
        puller.pull()
    assert caught.value.expected is not None
    assert caught.value.expected.startswith("git-sha1:" if name == "config.json" else "sha256:")
    wrong = hashlib.sha256(bytes(byte ^ 0xFF for byte in FILES[name])).hexdigest()
    assert not list((tmp_path / "store" / "blobs").rglob(wrong))
    assert puller.cache.list() == []


def test_urls_that_expire_in_mid_pull_are_replaced(hub: HubServer, repository: HubRepository, puller: Puller) -> None:
    def cut_and_expired(call: Call) -> None:
        hub.expire_urls()
        faults.cut_short(100_000)(call)

    # all expire once: twice within one request's renewal is a refusal
    for name, fault in (("model-00001.safetensors", cut_and_expired), ("model-00002.safetensors", faults.cut_short(100_000))):
        hub.cdn.fail(f"/repos/org/model/{hashlib.sha256(FILES[name]).hexdigest()}", fault, times=1)
    assert content(puller.pull()) == FILES
    assert puller.last.bytes_fetched == sum(map(len, FILES.values()))


def test_a_history_that_is_rewritten_in_mid_pull_gives_the_new_version(hub: HubServer, repository: HubRepository, puller: Puller) -> None:
    old = repository.refs["main"]

    def rewritten(call: Call) -> None:
        with hub.lock:
            repository.commit({"config.json": b"new"})
            repository.squash()
        call.reply(hub.front.reply_to(call.received))

    hub.front.fail(f"/org/model/resolve/{old}/config.json", rewritten, times=1)
    assert content(puller.pull()) == FILES | {"config.json": b"new"}
    [info] = puller.cache.list()
    assert info.refs[0].revision == repository.refs["main"]


def test_a_gated_repository_leaves_nothing(hub: HubServer, repository: HubRepository, puller: Puller) -> None:
    repository.gated = True
    with pytest.raises(AccessDenied):
        puller.pull()
    assert puller.cache.list() == []
    assert puller.cache.usage().blobs_bytes == 0


def test_a_token_is_in_memory_only(hub: HubServer, repository: HubRepository, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    repository.private = True
    token, wrong = hub.token(), "hf_" + "w" * 34
    repository.readers.add(token)
    told = []
    with ModelCache(config=config_of(hub, tmp_path / "store")) as cache:
        assert content(cache.ensure(f"hf://user:{token}@org/model")) == FILES
        for uri in (f"hf://{wrong}@org/model", f"hf://a%20b{wrong}@org/model", f"hf://{wrong}@org/model?token={wrong}"):
            with pytest.raises((AccessDenied, InvalidUri)) as caught:
                cache.ensure(uri, refresh=Refresh.ALWAYS)
            told.append(f"{caught.value!r} {caught.value.as_dict()} {caught.value.__context__!r}")
    written = b"".join(path.read_bytes() for path in (tmp_path / "store").rglob("*") if path.is_file() and "blobs" not in path.parts)
    shown = " ".join([*told, caplog.text, written.decode("latin-1")])
    assert "org/model" in shown
    assert token not in shown
    assert wrong not in shown
    assert "Signature=" not in shown


def test_the_environment_of_the_hubs_own_tools_is_enough(hub: HubServer, repository: HubRepository, tmp_path: Path) -> None:
    repository.private = True
    token = hub.token()
    repository.readers.add(token)
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "token").write_text(token)
    environ = {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(tmp_path / "hf")}
    with ModelCache(config=Config.load(environ, root=tmp_path / "store", limits=NO_LIMITS)) as cache:
        assert content(cache.ensure(URI)) == FILES
    environ["HF_HUB_DISABLE_IMPLICIT_TOKEN"] = "1"
    with ModelCache(config=Config.load(environ, root=tmp_path / "store", limits=NO_LIMITS)) as cache, pytest.raises(AccessDenied):
        cache.ensure(URI, refresh=Refresh.ALWAYS)


def test_another_hub_is_not_guessed(puller: Puller) -> None:
    with pytest.raises(UnknownScheme):
        puller.pull("modelscope://org/model")
