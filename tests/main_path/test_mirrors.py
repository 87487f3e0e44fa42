"""Models of the Hub out of an internal bucket: a credential of the mirror's own, and what happens when it can't serve."""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Callable, Iterator
from http.client import HTTPConnection
from pathlib import Path
from random import Random
from typing import Any

import pytest

from modelcache import Config, ModelCache, Refresh
from modelcache.errors import AccessDenied, BadConfig, NotCached, NotFound, OriginUnreachable
from modelcache.mirrors import Mirror
from modelcache.registry import Registry
from modelcache.sources.any_fsspec import FsspecOptions
from modelcache.sources.claims import ClaimMounts
from modelcache.sources.huggingface import HubOptions
from modelcache.sources.retrying import RetryLimits
from modelcache.testing.archives import Written, contents, tar_of, write_tree
from modelcache.testing.crash import flip_bit
from modelcache.testing.fault_server import FaultServer, Received, Reply
from modelcache.testing.servers import FtpServer, Identity, Nginx, NginxOptions, SeaweedFS
from modelcache.testing.servers.certificates import Certificate
from modelcache.testing.servers.hub import HubServer
from modelcache.testing.servers.ports import LOOPBACK
from modelcache.testing.store_filling import digest_of
from modelcache.testing.store_fixtures import NO_LIMITS
from modelcache.units import MIB
from modelcache.uri import parse_uri

FILES = {"config.json": b"{}", "model.safetensors": Random(1).randbytes(3 * MIB), "tokenizer/a b.json": b"[]"}
OTHER = {"config.json": b'{"from": "the hub"}'}
URI = "hf://meta-llama/Llama"
RETRY = RetryLimits(base_s=0.001, attempts=2)


def fill(server: SeaweedFS, bucket: str, prefix: str, files: dict[str, bytes]) -> None:
    for path, data in files.items():
        server.put(bucket, f"{prefix}/{path}", data)


@pytest.fixture
def profile(seaweedfs: SeaweedFS, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A profile of the SDK with the reader's keys, and no other credential anywhere."""
    who = seaweedfs.reader
    place = tmp_path / "credentials"
    place.write_text(f"[mirror]\naws_access_key_id = {who.access_key}\naws_secret_access_key = {who.secret_key}\n")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(place))
    return "mirror"


Open = Callable[..., ModelCache]


@pytest.fixture
def open_cache(tmp_path: Path, hub: HubServer) -> Iterator[Open]:
    """A cache with these mirrors; the same store each time."""
    opened: list[ModelCache] = []

    def make(*mirrors: Mirror, **more: Any) -> ModelCache:
        hf = HubOptions(endpoint=hub.endpoint)
        cache = ModelCache(
            config=Config.load(environ={}, root=tmp_path / "store", mirrors=mirrors, hf=hf, retry=RETRY, **more, limits=NO_LIMITS)
        )
        opened.append(cache)
        return cache

    yield make
    for cache in opened:
        cache.close()


def test_a_model_of_the_hub_comes_from_a_bucket_under_its_own_name(
    seaweedfs: SeaweedFS, bucket: str, profile: str, hub: HubServer, open_cache: Open
) -> None:
    fill(seaweedfs, bucket, "hf/meta-llama/Llama", FILES)
    cache = open_cache(Mirror("hf://meta-llama/", f"s3://{bucket}/hf/meta-llama/", endpoint=seaweedfs.endpoint, profile=profile))
    snapshot = cache.ensure(URI)
    assert contents(snapshot.path) == FILES
    [ref] = cache.refs(URI)
    assert (ref.key.uri, ref.key.origin) == (f"{URI}:main", seaweedfs.endpoint)
    assert contents(cache.ensure(f"{URI}/tokenizer#include=*.json").path) == {"a b.json": b"[]"}
    for refresh in Refresh:
        assert cache.ensure(URI, refresh=refresh) == snapshot
    with pytest.raises(NotFound, match="revision"):
        cache.ensure(f"{URI}:v1")
    assert hub.counts() == {}
    hub.repository("other/model", OTHER)
    assert contents(cache.ensure("hf://other/model").path) == OTHER


def test_revisions_have_places_of_their_own(seaweedfs: SeaweedFS, bucket: str, profile: str, open_cache: Open) -> None:
    fill(seaweedfs, bucket, "Llama/main", FILES)
    fill(seaweedfs, bucket, "Llama/v1.0", OTHER)
    to = f"s3://{bucket}/{{name}}/{{revision}}"
    cache = open_cache(Mirror("hf://meta-llama", to, endpoint=seaweedfs.endpoint, profile=profile))
    assert contents(cache.ensure(URI).path) == FILES
    assert contents(cache.ensure(f"{URI}:v1.0").path) == OTHER


@pytest.mark.parametrize("why", ["missing", "down"])
@pytest.mark.parametrize("fallback", [False, True])
def test_the_original_place_serves_only_where_it_may(
    seaweedfs: SeaweedFS, bucket: str, profile: str, hub: HubServer, open_cache: Open, why: str, fallback: bool
) -> None:
    hub.repository("meta-llama/Llama", OTHER)
    endpoint = seaweedfs.endpoint if why == "missing" else "http://127.0.0.1:9"
    cache = open_cache(Mirror("hf://", f"s3://{bucket}", endpoint=endpoint, profile=profile, fallback=fallback))
    if not fallback:
        with pytest.raises(NotFound if why == "missing" else OriginUnreachable) as caught:
            cache.ensure(URI)
        assert f"s3://{bucket}" in str(caught.value) or endpoint in str(caught.value)
        assert hub.counts() == {}
        return
    snapshot = cache.ensure(URI)
    assert contents(snapshot.path) == OTHER
    assert [ref.key.origin for ref in cache.refs(URI)] == [hub.endpoint]
    hub.counts()
    assert cache.ensure(URI) == snapshot
    assert cache.ensure(URI, refresh=Refresh.NEVER) == snapshot
    assert hub.counts() == {}
    fill(seaweedfs, bucket, "meta-llama/Llama", FILES)
    newest = cache.ensure(URI, refresh=Refresh.ALWAYS)
    assert contents(newest.path) == (FILES if why == "missing" else OTHER)
    [outcome] = cache.prewarm([URI], refresh=Refresh.ALWAYS).outcomes
    assert outcome.snapshot == newest


@pytest.mark.parametrize("why", ["missing", "down"])
def test_files_are_looked_at_read_and_repaired_where_their_model_comes_from(hub: HubServer, open_cache: Open, why: str) -> None:
    """What the mirror doesn't have is at its original place for whoever asks for single files, and for a repair, too."""
    hub.repository("meta-llama/Llama", OTHER)
    with FaultServer() as server:
        cache = open_cache(Mirror("hf://", server.endpoint if why == "missing" else "http://127.0.0.1:9", fallback=True))
        file = f"{URI}/config.json"
        assert [(entry.path, entry.size_bytes) for entry in cache.entries(file)] == [("", len(OTHER["config.json"]))]
        snapshot = cache.ensure(URI)
        for offline in (False, True):
            assert [entry.path for entry in cache.entries(URI, offline=offline)] == ["config.json"]
            with cache.cached_file(file, offline=offline) as found:
                assert found is not None
                assert found.read_bytes() == OTHER["config.json"]
        [blob] = (cache.root / "blobs").rglob(digest_of(OTHER["config.json"]).hex)
        flip_bit(blob, 3)
        report = cache.repair()
        assert [repaired.uri for repaired in report.blobs] == [f"{URI}:main"]
        assert report.restored == (snapshot.digest,)
        assert contents(snapshot.path) == OTHER


def test_a_name_is_what_the_first_place_has(hub: HubServer, open_cache: Open) -> None:
    """As `ensure` answers it: the mirror's, once it has the model, and the original place's where nothing is here of the mirror."""
    hub.repository("meta-llama/Llama", OTHER)
    uri = f"{URI}/config.json"
    with FaultServer() as server:
        cache = open_cache(Mirror("hf://", server.endpoint, fallback=True))
        original = cache.ensure(uri)
        server.put("/meta-llama/Llama/config.json", FILES["config.json"])
        mirrored = cache.ensure(uri, refresh=Refresh.ALWAYS)
        assert mirrored != original
        assert cache.ensure(uri, refresh=Refresh.NEVER) == mirrored
        assert cache.find(uri).digest == mirrored.digest
        for remaining in (original, None):
            assert cache.evict(uri).uris == (f"{URI}:main/config.json",)
            assert [info.digest for info in cache.list()] == ([] if remaining is None else [remaining.digest])
        with pytest.raises(NotCached):
            cache.find(uri)


def test_a_mirror_that_refuses_is_no_reason_to_go_elsewhere(seaweedfs: SeaweedFS, bucket: str, hub: HubServer, open_cache: Open) -> None:
    fill(seaweedfs, bucket, "meta-llama/Llama", FILES)
    hub.repository("meta-llama/Llama", OTHER)
    cache = open_cache(Mirror("hf://", f"s3://{bucket}", endpoint=seaweedfs.endpoint, anonymous=True, fallback=True))
    with pytest.raises(AccessDenied):
        cache.ensure(URI)
    assert hub.counts() == {}


def test_a_stale_version_of_the_mirror_counts_when_nobody_serves(
    seaweedfs: SeaweedFS, bucket: str, profile: str, open_cache: Open, hub: HubServer
) -> None:
    fill(seaweedfs, bucket, "meta-llama/Llama", FILES)
    with Nginx(seaweedfs.directory, NginxOptions(upstream=seaweedfs.endpoint)) as front:
        mirror = Mirror("hf://", f"s3://{bucket}", endpoint=front.endpoint, profile=profile, fallback=True)
        snapshot = open_cache(mirror).ensure(URI)
    cache = open_cache(mirror, refresh_s=0.0)
    again = cache.ensure(URI)  # not at the hub, and the mirror is down
    assert (again.digest, again.stale) == (snapshot.digest, True)
    hub.repository("meta-llama/Llama", OTHER)
    assert contents(cache.ensure(URI).path) == OTHER


def test_a_mirror_has_a_ca_of_its_own_and_web_servers_have_mirrors(
    certificate: Certificate, tmp_path: Path, open_cache: Open, nginx: Nginx
) -> None:
    name = secrets.token_hex(6)
    (nginx.directory / name).mkdir()
    inner = tmp_path / "inner"
    write_tree(inner, {"copy/m.tar": tar_of([Written("f", b"archive of the mirror")])})
    with Nginx(inner, NginxOptions(certificate=certificate)) as server:
        original = f"{nginx.endpoint}/{name}/m.tar"
        cache = open_cache(Mirror(f"{nginx.endpoint}/{name}", f"{server.endpoint}/copy", ca_file=certificate.ca, fallback=True))
        nginx.requests()
        assert contents(cache.ensure(original).path) == {"f": b"archive of the mirror"}
        [ref] = cache.refs(original)
        assert ref.key.origin.startswith(f"{server.endpoint}#ca=")
        assert nginx.requests() == []
        strict = open_cache(Mirror(f"{nginx.endpoint}/{name}", f"{server.endpoint}/copy", fallback=True))
        (nginx.directory / name / "m.tar").write_bytes(tar_of([Written("f", b"original")]))
        with pytest.raises(OriginUnreachable, match="certificate"):  # that is no outage
            strict.ensure(original)


def test_a_mirror_with_a_ca_is_verified_whatever_is_said_of_other_endpoints(tmp_path: Path, certificate: Certificate) -> None:
    settings = [{"from": "hf://", "to": "s3://b", "endpoint": "https://in.house", "ca_file": str(certificate.ca), "anonymous": True}]
    config = Config.load({"HOME": str(tmp_path), "S3_VERIFY_SSL": "0", "MODELCACHE_MIRRORS": json.dumps(settings)})
    registry = Registry(config, on_throttle=lambda origin: None)
    with registry.source(*parse_uri("hf://o/m")) as mirrored, registry.source(*parse_uri("s3://b/m")) as other:
        assert mirrored.origin.verified
        assert mirrored.origin.ca_sha256 is not None
        assert not other.origin.verified
    registry.close()


def test_a_token_goes_to_no_mirror_that_it_was_not_given_for(hub: HubServer, tmp_path: Path) -> None:
    token = hub.token()
    (tmp_path / "token").write_text(hub.token())
    with HubServer() as mirror:
        mirror.tokens |= hub.tokens
        mirror.repository("o/m", OTHER)
        for credentials_file in (None, tmp_path / "token"):
            config = Config.load(
                environ={},
                root=tmp_path / f"store-{credentials_file is None}",
                limits=NO_LIMITS,
                hf=HubOptions(endpoint=hub.endpoint, token=token),
                mirrors=(Mirror("hf://", "hf://", endpoint=mirror.endpoint, credentials_file=credentials_file),),
            )
            with ModelCache(config=config) as cache:
                assert contents(cache.ensure("hf://o/m:main").path) == OTHER
        sent = {received.headers.get("authorization", "") for received in mirror.front.received}
    assert sent == {"", f"Bearer {(tmp_path / 'token').read_text()}"}
    assert hub.counts() == {}


def test_a_mirror_that_fsspec_serves_has_a_credential_of_its_own(tmp_path: Path, open_cache: Open) -> None:
    options = tmp_path / "ftp.json"
    with FtpServer(tmp_path / "ftp") as server:
        write_tree(server.root / "meta-llama" / "Llama", FILES)
        options.write_text(json.dumps({"username": server.user, "password": server.password}))
        there = f"ftp://{server.authority}/"
        storage = {"ftp": {"username": "somebody", "password": "else"}}
        cache = open_cache(Mirror("hf://", there, credentials_file=options), fsspec=FsspecOptions(storage))
        assert contents(cache.ensure(URI).path) == FILES
        with pytest.raises(AccessDenied):
            cache.ensure(f"{there}meta-llama/Llama")
    for text, why in (('["a"', "JSON object"), ("[" * 60_000, "JSON object"), (None, "can't be read")):
        options.unlink() if text is None else options.write_text(text)
        with pytest.raises(BadConfig, match=why) as caught:
            open_cache(Mirror("hf://", there, credentials_file=options)).ensure("hf://o/m")
        assert caught.value.address == str(options)


def test_weights_on_a_claim_are_a_mirror_too(tmp_path: Path, open_cache: Open) -> None:
    write_tree(tmp_path / "mounted", {f"hf/meta-llama/Llama/{path}": data for path, data in FILES.items()})
    mirror = Mirror("hf://", "pvc://models/hf")
    cache = open_cache(mirror, pvc=ClaimMounts(claims={"models": tmp_path / "mounted"}))
    assert contents(cache.ensure(URI).path) == FILES
    assert [ref.key.origin for ref in cache.refs(URI)] == ["pvc://models"]
    with pytest.raises(BadConfig, match="`models` is mounted") as caught:
        open_cache(mirror).ensure(f"{URI}/tokenizer")
    assert "MODELCACHE_PVC_ROOT" in str(caught.value.hint)


def test_settings_of_mirrors(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text(
        '[[mirror]]\nfrom = "hf://"\nto = "s3://models/hf"\nendpoint = "https://minio:9000"\nfallback = true\n[pvc.claims]\na = "/mnt/a"\n'
    )
    config = Config.load(environ={"HOME": "/"}, file=file)
    assert config.mirrors == (Mirror("hf://", "s3://models/hf", endpoint="https://minio:9000", fallback=True),)
    assert config.pvc == ClaimMounts(claims={"a": Path("/mnt/a")})
    environ = {
        "MODELCACHE_MIRRORS": '[{"from": "hf://o", "to": "gs://b"}]',
        "MODELCACHE_PVC_CLAIMS": "x=/y,z=/w",
        "MODELCACHE_PVC_ROOT": "/v",
    }
    config = Config.load(environ=environ, file=file)
    assert config.mirrors == (Mirror("hf://o", "gs://b"),)
    assert config.pvc == ClaimMounts(Path("/v"), {"x": Path("/y"), "z": Path("/w")})
    file.write_text('[[mirror]]\nfrom = "hf://"\nto = "pvc://models"\nprofile = "x"\n')
    with pytest.raises(BadConfig, match="profile"):
        Config.load(environ={}, file=file)


# -- a credential that is changed in the middle of a fetch --------------------------------------------------------------


class Gate(FaultServer):
    """Before a real S3 server: passes requests on, and refuses one access key as Amazon does a deleted one."""

    def __init__(self, server: SeaweedFS, on_range: Callable[[int], None]) -> None:
        super().__init__()
        self.revoked = "none"
        self.refused = 0
        self._server = server
        self._on_range = on_range
        self._ranges = 0

    def reply_to(self, received: Received) -> Reply:
        key = re.search(r"Credential=([^/]+)/", received.headers.get("authorization", ""))
        if key is not None and key.group(1) == self.revoked:
            self.refused += 1
            body = b"<?xml version='1.0'?><Error><Code>InvalidAccessKeyId</Code><Message>no such key</Message></Error>"
            return Reply(403, {"Content-Type": "application/xml"}, body)
        onward = HTTPConnection(LOOPBACK, self._server.port, timeout=20)
        try:
            onward.request(received.method, received.target, received.body or None, dict(received.headers))
            answer = onward.getresponse()
            headers = {name: value for name, value in answer.getheaders() if name.lower() not in ("transfer-encoding", "connection")}
            reply = Reply(answer.status, headers, answer.read())
        finally:
            onward.close()
        if "range" in received.headers:
            self._ranges += 1
            self._on_range(self._ranges)
        return reply


def test_a_key_that_is_rotated_in_the_middle_of_a_fetch_is_asked_for_again(
    seaweedfs: SeaweedFS, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, open_cache: Open
) -> None:
    keys, config = tmp_path / "keys.json", tmp_path / "aws-config"
    config.write_text(f"[profile mirror]\ncredential_process = cat {keys}\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(config))

    def give(who: Identity) -> None:
        keys.write_text(json.dumps({"Version": 1, "AccessKeyId": who.access_key, "SecretAccessKey": who.secret_key}))

    def rotate(number: int) -> None:
        if number == 2:
            give(seaweedfs.reader)
            gate.revoked = seaweedfs.admin.access_key

    give(seaweedfs.admin)
    files = {f"part-{number}": Random(number).randbytes(5 * MIB) for number in range(6)}
    fill(seaweedfs, bucket, "meta-llama/Llama", files)
    with Gate(seaweedfs, rotate) as gate:
        mirror = Mirror("hf://", f"s3://{bucket}", endpoint=gate.endpoint, profile="mirror", path_style=True)
        assert contents(open_cache(mirror).ensure(URI).path) == files
        assert gate.refused > 0


def test_what_is_offline_and_mirrored_is_not_cached(open_cache: Open) -> None:
    with pytest.raises(NotCached):
        open_cache(Mirror("hf://", "s3://bucket", fallback=True)).ensure(URI, refresh=Refresh.NEVER)
