"""Permission against servers that speak the real protocols: who may list and not read, impostors, outages."""

from __future__ import annotations

import os
import secrets
from base64 import b64encode
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from urllib.parse import quote

import pytest

from modelcache import Config, ModelCache, Progress, Refresh
from modelcache.abc.snapshot import Snapshot
from modelcache.errors import AccessDenied, AccessUnproved, AmbiguousName, DigestMismatch, NotCached, OriginUnreachable
from modelcache.permission import Caller
from modelcache.sources.huggingface import HubOptions
from modelcache.sources.retrying import RetryLimits
from modelcache.sources.s3 import S3Options
from modelcache.testing.audit import Moment, audit
from modelcache.testing.fault_server import FaultServer
from modelcache.testing.servers import Identity, SeaweedFS
from modelcache.testing.servers.hub import HubServer
from modelcache.testing.store_fixtures import NO_LIMITS
from modelcache.transport import Proxies

FILES = {"config.json": b"{}", "empty.txt": b"", "model.safetensors": os.urandom(5_000_000)}
URI = "hf://org/model"
QUICK = RetryLimits(base_s=0.001, attempts=3)


class Node:
    """A store that several callers share."""

    def __init__(self, root: Path, **sources: object) -> None:
        """`sources`: settings of the owner's own."""
        self.root = root
        self.config = replace(Config.load(environ={}, root=root, retry=QUICK, limits=NO_LIMITS), **sources)  # type: ignore[arg-type]
        self._stack = ExitStack()
        self.cache = self._stack.enter_context(ModelCache(config=self.config))

    def close(self) -> None:
        """Nothing is left over that a store has no name for, and no credential is in it."""
        self._stack.close()
        assert audit(self.root, Moment.CRASHED) == []

    def caller(self, who: str, credential: str, **sources: object) -> Caller:
        namespace, _, account = who.partition("/")
        return Caller(namespace, account, credential.encode(), replace(self.config, **sources))  # type: ignore[arg-type]

    def on_hub(self, who: str, hub: HubServer, token: str | None) -> Caller:
        return self.caller(who, token or "", hf=HubOptions(endpoint=hub.endpoint, token=token))

    def on_s3(self, who: str, endpoint: str, identity: Identity) -> Caller:
        options = S3Options(endpoint=endpoint, region="us-east-1", access_key=identity.access_key, secret_key=identity.secret_key)
        return self.caller(who, identity.access_key, s3=options)

    def grants(self) -> int:
        return len(list((self.root / "grants").iterdir()))


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    made = Node(tmp_path / "root")
    yield made
    made.close()


def content(snapshot: Snapshot) -> dict[str, bytes]:
    return {str(path.relative_to(snapshot.path)): path.read_bytes() for path in snapshot.path.rglob("*") if path.is_file()}


# -- a gated repository: tree 200, resolve 403 -------------------------------------------------------------------------


@pytest.mark.parametrize("here", [False, True])
def test_a_gated_repository_is_listed_and_not_granted(node: Node, hub: HubServer, here: bool) -> None:
    repository = hub.repository(files=FILES)
    repository.gated = True
    reader, stranger = hub.token(), hub.token()
    repository.readers.add(reader)
    allowed = node.on_hub("team-a/default", hub, reader)
    if here:
        assert content(node.cache.ensure(URI, caller=allowed)) == FILES
    before = node.grants()
    for who in (node.on_hub("team-b/default", hub, stranger), node.on_hub("team-a/default", hub, None)):
        for refresh in (Refresh.AUTO, Refresh.ALWAYS):
            with pytest.raises(AccessDenied):
                node.cache.ensure(URI, refresh=refresh, caller=who)
        with pytest.raises(AccessUnproved):
            node.cache.ensure(URI, refresh=Refresh.NEVER, caller=who)
    assert hub.counts()["tree"] > 0
    assert node.grants() == before
    assert node.cache.denials.by_code == {"access-denied": 4, "access-unproved": 2}
    repository.readers.add(stranger)
    late = node.on_hub("team-b/default", hub, stranger)
    hub.counts()
    assert content(node.cache.ensure(URI, caller=late)) == FILES
    assert not here or hub.counts()["cdn"] == 1  # a byte of the large file
    assert node.grants() == before + 1


def test_a_right_that_was_taken_back_ends_at_the_next_proof_and_at_the_bind(node: Node, hub: HubServer) -> None:
    repository = hub.repository(files=FILES)
    repository.gated = True
    token = hub.token()
    repository.readers.add(token)
    caller = node.on_hub("team-a/default", hub, token)
    snapshot = node.cache.ensure(URI, caller=caller)
    node.cache.check(URI, snapshot.digest, caller)
    hub.counts()
    node.cache.ensure(URI, caller=caller)
    assert hub.counts() == {}
    repository.readers.clear()
    node.cache.ensure(URI, caller=caller)
    with pytest.raises(AccessDenied):
        node.cache.ensure(URI, refresh=Refresh.ALWAYS, caller=caller)
    for again in (lambda: node.cache.check(URI, snapshot.digest, caller), lambda: node.cache.ensure(URI, caller=caller)):
        with pytest.raises(AccessDenied):
            again()


def test_nobody_gets_by_with_the_identity_of_the_node(node: Node, hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A caller without a token is anonymous, whatever token this process or the caller's settings could find here."""
    repository = hub.repository(files=FILES)
    repository.gated = True
    token = hub.token()
    repository.readers.add(token)
    (tmp_path / "token").write_text(token)
    sneaky = node.caller("team-b/default", "", hf=HubOptions(endpoint=hub.endpoint, token_file=tmp_path / "token"))
    with pytest.raises(AccessDenied):
        node.cache.ensure(URI, caller=sneaky)
    assert node.grants() == 0
    (tmp_path / "secret").write_bytes(b"of the node")
    for uri in (f"file://{tmp_path}/secret", str(tmp_path / "secret")):
        with pytest.raises(AccessDenied):
            node.cache.ensure(uri, caller=sneaky)


def test_the_keys_of_the_environment_are_not_a_caller_s(
    node: Node, seaweedfs: SeaweedFS, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seaweedfs.put(bucket, "m/f", b"weights")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", seaweedfs.admin.access_key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", seaweedfs.admin.secret_key)
    nobody = node.caller("team-b/default", "", s3=S3Options(endpoint=seaweedfs.endpoint, region="us-east-1"))
    with pytest.raises(AccessDenied):
        node.cache.ensure(f"s3://{bucket}/m", caller=nobody)
    assert node.grants() == 0


# -- S3: List and no Read -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("here", [False, True])
def test_an_identity_that_may_only_list_is_not_granted(node: Node, seaweedfs: SeaweedFS, bucket: str, here: bool) -> None:
    for path, data in FILES.items():
        seaweedfs.put(bucket, f"m/{path}", data)
    uri = f"s3://{bucket}/m"
    reader = node.on_s3("team-a/default", seaweedfs.endpoint, seaweedfs.reader)
    if here:
        assert content(node.cache.ensure(uri, caller=reader)) == FILES
    before = node.grants()
    lister = node.on_s3("team-b/default", seaweedfs.endpoint, seaweedfs.lister)
    with pytest.raises(AccessDenied):
        node.cache.ensure(uri, caller=lister)
    with pytest.raises(AccessUnproved):
        node.cache.ensure(uri, refresh=Refresh.NEVER, caller=lister)
    assert node.grants() == before == here


def test_secrets_in_the_uri_are_a_credential_of_their_own(node: Node, seaweedfs: SeaweedFS, bucket: str) -> None:
    seaweedfs.put(bucket, "m/f", b"weights")
    nobody = node.caller("team-a/default", "", s3=S3Options(endpoint=seaweedfs.endpoint, region="us-east-1"))
    key = f"{quote(seaweedfs.reader.access_key, safe='')}:{quote(seaweedfs.reader.secret_key, safe='')}"
    snapshot = node.cache.ensure(f"s3://{key}@{bucket}/m", caller=nobody)
    node.cache.check(f"s3://{key}@{bucket}/m", snapshot.digest, nobody)
    with pytest.raises(AccessDenied):
        node.cache.ensure(f"s3://{bucket}/m", caller=nobody)
    everything = b"".join(path.read_bytes() for path in node.root.rglob("*") if path.is_file())
    for secret in (seaweedfs.reader.access_key, seaweedfs.reader.secret_key):
        assert secret.encode() not in everything


# -- impostors ----------------------------------------------------------------------------------------------------------


def bucket_of(server: FaultServer, data: bytes, gateway: str = "") -> None:
    """One object, `m/weights`, in the bucket `bucket`; the ETag is said to be the same whatever the bytes."""
    row = f"<Contents><Key>m%2Fweights</Key><Size>{len(data)}</Size></Contents>"
    listed = f"<ListBucketResult><EncodingType>url</EncodingType><IsTruncated>false</IsTruncated>{row}</ListBucketResult>"
    server.put(f"{gateway}/bucket", listed.encode())
    server.put(f"{gateway}/bucket/m/weights", data, etag='"0123456789abcdef0123456789abcdef"')


@pytest.mark.parametrize("first", ["team-a", "team-b"])
def test_another_endpoint_with_the_same_names_sizes_and_etags_is_another_origin(node: Node, first: str) -> None:
    """Before and after: each namespace gets its own origin's bytes, and never the other's."""
    key = Identity("any", "AKANY", "secret")
    data = {"team-a": os.urandom(3_000_000), "team-b": os.urandom(3_000_000)}
    with FaultServer() as honest, FaultServer() as impostor:
        servers = {"team-a": honest, "team-b": impostor}
        for name, server in servers.items():
            bucket_of(server, data[name])
        second = "team-b" if first == "team-a" else "team-a"
        for name in (first, second, first, second):
            for refresh in (Refresh.AUTO, Refresh.ALWAYS, Refresh.NEVER):
                caller = node.on_s3(f"{name}/default", servers[name].endpoint, key)
                assert content(node.cache.ensure("s3://bucket/m", refresh=refresh, caller=caller)) == {"weights": data[name]}


@pytest.mark.parametrize("first", ["team-a", "team-b"])
def test_endpoints_of_one_host_that_differ_by_their_path_are_other_origins(node: Node, first: str) -> None:
    key = Identity("any", "AKANY", "secret")
    data = {"team-a": os.urandom(3_000_000), "team-b": os.urandom(3_000_000)}
    second = "team-b" if first == "team-a" else "team-a"
    with FaultServer() as server:
        callers = {name: node.on_s3(f"{name}/default", f"{server.endpoint}/{name}", key) for name in data}
        for name in data:
            bucket_of(server, data[name], f"/{name}")
        for name in (first, second, first, second):
            for refresh in (Refresh.AUTO, Refresh.ALWAYS, Refresh.NEVER):
                snapshot = node.cache.ensure("s3://bucket/m", refresh=refresh, caller=callers[name])
                assert content(snapshot) == {"weights": data[name]}
            node.cache.check("s3://bucket/m", snapshot.digest, callers[name])
            elsewhere = replace(callers[name], config=callers["team-b" if name == "team-a" else "team-a"].config)
            with pytest.raises(AccessUnproved):  # the same holder, whose URI now is of another place
                node.cache.check("s3://bucket/m", snapshot.digest, elsewhere)


def test_a_uri_is_to_the_owner_what_the_owner_s_own_place_has(tmp_path: Path) -> None:
    """What callers brought under it from elsewhere is in nobody's way, and counts only where the owner has nothing."""
    uri, key = "s3://bucket/m", {"region": "us-east-1", "access_key": "AK", "secret_key": "secret"}
    with FaultServer() as server:
        node = Node(tmp_path / "root", s3=S3Options(endpoint=f"{server.endpoint}/owner", **key))  # type: ignore[arg-type]
        found = {}
        for name in ("team-a", "team-b", "owner"):
            bucket_of(server, name.encode(), f"/{name}")
            s3 = S3Options(endpoint=f"{server.endpoint}/{name}", **key)  # type: ignore[arg-type]
            found[name] = node.cache.ensure(uri, caller=None if name == "owner" else node.caller(f"{name}/x", name, s3=s3))
            if name == "team-a":
                assert node.cache.find(uri).digest == found[name].digest
            if name == "team-b":
                with pytest.raises(AmbiguousName):
                    node.cache.find(uri)
        server.received.clear()
        assert node.cache.find(uri).digest == found["owner"].digest
        node.cache.pin(uri)
        node.cache.unpin(uri)
        node.cache.evict(uri)
        assert {info.digest for info in node.cache.list()} == {found["team-a"].digest, found["team-b"].digest}
        assert server.received == []
        with ModelCache(config=replace(node.config, s3=S3Options(profile="nobody"))) as cache, pytest.raises(AmbiguousName):
            cache.find(uri)  # settings that can't be used: it is looked at what is here
        node.close()


def test_what_the_owner_removes_stays_for_who_brought_it_from_elsewhere(tmp_path: Path) -> None:
    """Equal bytes are one snapshot, whoever brought them."""
    uri, key = "s3://bucket/m", {"region": "us-east-1", "access_key": "AK", "secret_key": "secret"}
    with FaultServer() as server:
        node = Node(tmp_path / "root", s3=S3Options(endpoint=f"{server.endpoint}/owner", **key))  # type: ignore[arg-type]
        s3 = S3Options(endpoint=f"{server.endpoint}/team-a", **key)  # type: ignore[arg-type]
        caller = node.caller("team-a/x", "team-a", s3=s3)
        for name in ("team-a", "owner"):
            bucket_of(server, b"weights", f"/{name}")
            snapshot = node.cache.ensure(uri, caller=caller if name == "team-a" else None)
        assert node.cache.evict(uri).freed_bytes == 0
        assert node.cache.ensure(uri, refresh=Refresh.NEVER, caller=caller) == snapshot
        with pytest.raises(NotCached):
            node.cache.ensure(uri, refresh=Refresh.NEVER)
        node.cache.evict(uri)  # now it is all there is under this name
        assert node.cache.list() == []
        node.close()


def test_a_caller_goes_through_the_node_s_proxy_and_through_none_of_its_own(tmp_path: Path) -> None:
    """Behind a proxy an http origin is what the proxy says it is, wherever it is. What the node brought is a hit."""
    uri, data = "http://weights.example/m/weights", os.urandom(100_000)
    with FaultServer() as honest, FaultServer() as proxy:
        for server in (honest, proxy):
            server.put(uri, data)
        node = Node(tmp_path / "root", proxies=Proxies(http=honest.endpoint))
        node.cache.ensure(uri)
        seen: list[Progress] = []
        caller = node.caller("team-b/default", "b", proxies=Proxies(http=proxy.endpoint))
        assert content(node.cache.ensure(uri, caller=caller, progress=seen.append)) == {"weights": data}
        assert (seen[-1].hit, seen[-1].bytes_fetched) == (True, 0)
        assert proxy.connections == 0
        node.close()


@pytest.mark.parametrize("by", ["uri", "header"])
def test_a_digest_that_is_claimed_and_not_served_gives_no_byte(node: Node, hub: HubServer, by: str) -> None:
    repository = hub.repository(files=FILES)
    repository.gated = True
    token = hub.token()
    repository.readers.add(token)
    secret = repository.at("main")
    assert secret is not None
    digest = secret[1]["model.safetensors"].sha256
    private = node.cache.ensure(URI, caller=node.on_hub("team-a/default", hub, token))
    links = (private.path / "model.safetensors").stat().st_nlink
    claim = {"x-amz-checksum-sha256": bytes_of(digest), "x-linked-etag": f'"{digest}"', "repr-digest": f"sha-256=:{bytes_of(digest)}:"}
    with FaultServer() as evil:
        evil.put("/model.safetensors", bytes(5_000_000), headers=claim if by == "header" else {})
        uri = f"{evil.endpoint}/model.safetensors" + (f"#sha256={digest}" if by == "uri" else "")
        with pytest.raises(DigestMismatch):
            node.cache.ensure(uri, caller=node.caller("team-b/default", "b"))
        evil.fail("/model.safetensors", lambda call: call.reply(replace(call.proper, status=403, body=b"")))
        with pytest.raises(AccessDenied):
            node.cache.ensure(uri, caller=node.caller("team-b/default", "b"))
    assert (private.path / "model.safetensors").stat().st_nlink == links
    assert node.grants() == 1
    assert len(list((node.root / "snapshots").iterdir())) == 1


def bytes_of(digits: str) -> str:
    return b64encode(bytes.fromhex(digits)).decode()


def test_a_hub_that_is_trusted_saves_a_fetch_after_a_byte_of_each_file(tmp_path: Path, hub: HubServer, seaweedfs: SeaweedFS) -> None:
    """And one that is not gives the bytes themselves."""
    bucket = seaweedfs.make_bucket(f"bucket-{secrets.token_hex(6)}")
    for path in ("config.json", "model.safetensors"):
        seaweedfs.put(bucket, f"m/{path}", FILES[path])
    hub.repository(files={"model.safetensors": FILES["model.safetensors"]})
    fetched = {}
    for trusted in (True, False):
        node = Node(tmp_path / f"trusted-{trusted}")
        trust = replace(node.config.trust, origins=(f"{hub.endpoint}",) if trusted else ())
        node.close()
        with ModelCache(config=replace(node.config, trust=trust)) as cache:
            cache.ensure(f"s3://{bucket}/m", caller=node.on_s3("team-a/default", seaweedfs.endpoint, seaweedfs.reader))
            seen: list[Progress] = []
            cache.ensure(URI, caller=node.on_hub("team-b/default", hub, None), progress=seen.append)
            fetched[trusted] = seen[-1].bytes_fetched
    assert fetched == {True: 0, False: len(FILES["model.safetensors"])}


def test_the_digest_of_a_uri_is_no_word_of_the_trusted_origin_that_it_is_asked_of(tmp_path: Path, hub: HubServer) -> None:
    """A small file of a public repository, of which the hub states no sha256, and the digest of somebody else's file of its size."""
    private = os.urandom(300)
    hub.repository("org/private", files={"config.json": private}).gated = True
    hub.repositories["org/private"].readers.add(token := hub.token())
    hub.repository("org/public", files={"config.json": bytes(300), "weights.safetensors": FILES["model.safetensors"]})
    node = Node(tmp_path / "root")
    node.close()
    with ModelCache(config=replace(node.config, trust=replace(node.config.trust, origins=(hub.endpoint,)))) as cache:
        cache.ensure("hf://org/private", caller=node.on_hub("team-a/default", hub, token))
        stranger = node.on_hub("team-b/default", hub, None)
        with pytest.raises(DigestMismatch):
            cache.ensure(f"hf://org/public#include=config.json&sha256={sha256(private).hexdigest()}", caller=stranger)
        cache.ensure("hf://org/public#include=w*", caller=node.on_hub("team-a/default", hub, None))
        seen: list[Progress] = []
        weights = sha256(FILES["model.safetensors"]).hexdigest()
        cache.ensure(f"hf://org/public#include=w*&sha256={weights}", caller=stranger, progress=seen.append)
        assert seen[-1].bytes_fetched == 0  # the hub states this one itself
    node.close()


# -- outages ------------------------------------------------------------------------------------------------------------


def test_an_outage_is_told_by_stale_and_by_hints(tmp_path: Path) -> None:
    node = Node(tmp_path / "root")
    with FaultServer() as server:
        server.put("/weights", b"weights", etag='"1"')
        uri, held, other = f"{server.endpoint}/weights", node.caller("a/x", "a"), node.caller("b/x", "b")
        mine = node.cache.ensure(uri, caller=held)
        owners = node.cache.ensure(uri)
    assert not mine.stale
    for caller in (held, None):
        with ModelCache(config=replace(node.config, refresh_s=0.0)) as cache:
            stale = cache.ensure(uri, caller=caller)
            assert (stale.stale, stale.path) == (True, owners.path)
            with cache.open(uri, caller=caller) as opened:
                assert opened.stale
            with pytest.raises(OriginUnreachable) as caught:
                cache.ensure(uri, refresh=Refresh.ALWAYS, caller=caller)
            assert "--offline" in str(caught.value.hint)
            assert not cache.ensure(uri, refresh=Refresh.NEVER, caller=caller).stale
    with pytest.raises(AccessUnproved):
        node.cache.ensure(uri, caller=other)
    node.close()
