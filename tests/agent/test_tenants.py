"""Tenants of the real agent, through the driver's socket: what their secrets open, and what they don't."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from modelcache.agent.client import AgentClient, Identity
from modelcache.errors import AccessDenied, AccessUnproved, BadConfig, OriginUnreachable
from modelcache.fetch.progress import Progress
from modelcache.refresh import Refresh
from modelcache.testing.agents import RunningAgent, agent
from modelcache.testing.fault_server import FaultServer
from modelcache.testing.servers import SeaweedFS
from tests.servers.test_permission import bucket_of


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory, seaweedfs: SeaweedFS) -> Iterator[RunningAgent]:
    """Its process, and its machine's file, have keys that read everything."""
    directory = tmp_path_factory.mktemp("n")
    file = directory / "c.toml"
    file.write_text(f'[[mirror]]\nfrom = "hf://"\nto = "s3://of-the-mirror/"\nendpoint = "{seaweedfs.endpoint}"\nanonymous = false\n')
    keys = seaweedfs.admin
    environ = {"AWS_ACCESS_KEY_ID": keys.access_key, "AWS_SECRET_ACCESS_KEY": keys.secret_key, "AWS_DEFAULT_REGION": "us-east-1"}
    with agent(directory, environ | {"NO_PROXY": "inside"}, options=["--config", str(file)]) as running:
        yield running


def secret_of(server: SeaweedFS, access_key: str = "", secret_key: str = "") -> dict[str, str]:
    place = {"S3_ENDPOINT": server.endpoint.removeprefix("http://"), "S3_USE_HTTPS": "0"}
    return place | {"AWS_ACCESS_KEY_ID": access_key, "AWS_SECRET_ACCESS_KEY": secret_key}


def test_a_tenant_reads_with_the_key_of_its_secret_and_with_no_other(node: RunningAgent, seaweedfs: SeaweedFS, bucket: str) -> None:
    data = b"w" * 100_000
    seaweedfs.put(bucket, "m/weights", data)
    uri, reader = f"s3://{bucket}/m", seaweedfs.reader
    own = secret_of(seaweedfs, reader.access_key, reader.secret_key)
    with AgentClient(node.driver) as driver:
        denied = [secret_of(seaweedfs, reader.access_key, "wrong"), secret_of(seaweedfs)]
        for again in range(2):  # nothing is here, and then all of it
            for secret in denied:
                with pytest.raises(AccessDenied):
                    driver.ensure(uri, identity=Identity("team-b", "default", secret))
            had = driver.ensure(uri, identity=Identity("team-a", "default", own))
            assert (had.snapshot.path / "weights").read_bytes() == data, again


def test_a_mirror_gives_a_tenant_nothing_that_its_own_key_does_not(node: RunningAgent, seaweedfs: SeaweedFS) -> None:
    seaweedfs.make_bucket("of-the-mirror")
    seaweedfs.put("of-the-mirror", "o/m/weights", b"of the node")
    reader = seaweedfs.reader
    own = {"AWS_ACCESS_KEY_ID": reader.access_key, "AWS_SECRET_ACCESS_KEY": reader.secret_key}
    with AgentClient(node.driver) as driver, AgentClient(node.admin) as admin:
        [brought] = admin.prewarm(["hf://o/m"]).outcomes
        for secret in ({}, secret_of(seaweedfs)):
            with pytest.raises(AccessDenied):
                driver.ensure("hf://o/m", identity=Identity("team-b", "default", secret))
        had = driver.ensure("hf://o/m", identity=Identity("team-a", "default", own))
        assert brought.snapshot is not None
        assert had.snapshot.digest == brought.snapshot.digest


@pytest.mark.parametrize("name", ["MODELCACHE_CONFIG", "MODELCACHE_MIRRORS", "AWS_CA_BUNDLE", "http_proxy"])
def test_a_secret_leads_to_no_file_and_no_way_of_its_own(node: RunningAgent, seaweedfs: SeaweedFS, name: str) -> None:
    with AgentClient(node.driver) as driver, pytest.raises(BadConfig, match=name) as caught:
        driver.ensure("s3://b/k", identity=Identity("team-b", "default", secret_of(seaweedfs) | {name: "/dev/zero"}))
    assert "/dev/zero" not in str(caught.value.as_dict())


def test_isolated_namespaces_share_no_inode(tmp_path: Path, seaweedfs: SeaweedFS, bucket: str) -> None:
    """The namespace is the one that the driver's socket told; the administrator's is none of them."""
    data = b"w" * 100_000
    seaweedfs.put(bucket, "m/weights", data)
    uri, reader = f"s3://{bucket}/m", seaweedfs.reader
    secret = secret_of(seaweedfs, reader.access_key, reader.secret_key)
    keys = {"AWS_ACCESS_KEY_ID": reader.access_key, "AWS_SECRET_ACCESS_KEY": reader.secret_key, "AWS_DEFAULT_REGION": "us-east-1"}
    environ = keys | {"MODELCACHE_ISOLATION": "namespace", "AWS_ENDPOINT_URL_S3": seaweedfs.endpoint}
    with agent(tmp_path, environ) as running, AgentClient(running.driver) as driver, AgentClient(running.admin) as admin:
        found = {"": admin.ensure(uri).snapshot}
        for namespace in ("team-a", "team-b"):
            looks: list[Progress] = []
            had = driver.ensure(uri, identity=Identity(namespace, "default", secret), progress=looks.append)
            assert not any(look.hit for look in looks)
            found[namespace] = had.snapshot
        assert driver.ensure(uri, identity=Identity("team-a", "other", secret)).snapshot == found["team-a"]
        files = {namespace: (snapshot.path / "weights") for namespace, snapshot in found.items()}
        assert [path.read_bytes() for path in files.values()] == [data] * 3
        assert len({path.stat().st_ino for path in files.values()}) == 3
        assert {path.stat().st_nlink for path in files.values()} == {2}
        refs = {info.digest: [head.key.compartment for head in info.refs] for info in admin.list()}
        assert refs == {snapshot.digest: [namespace] for namespace, snapshot in found.items()}
        assert admin.show(uri).info.digest == found[""].digest
        with pytest.raises(BadConfig, match="namespace"):
            driver.ensure(uri, identity=Identity("../team-a", "default", secret))


def test_whoever_may_only_list_gets_nothing_and_whoever_may_read_all_of_it(node: RunningAgent, seaweedfs: SeaweedFS, bucket: str) -> None:
    """One namespace's private model, asked for by another one."""
    data = b"p" * 100_000
    seaweedfs.put(bucket, "private/weights", data)
    uri = f"s3://{bucket}/private"
    own, lists = ({"access_key": who.access_key, "secret_key": who.secret_key} for who in (seaweedfs.reader, seaweedfs.lister))
    with AgentClient(node.driver) as driver, AgentClient(node.admin) as admin:
        before = admin.status(brief=True).denials
        driver.ensure(uri, identity=Identity("team-a", "default", secret_of(seaweedfs, **own)))
        other = Identity("team-b", "default", secret_of(seaweedfs, **lists))
        for refresh in Refresh:
            with pytest.raises(AccessDenied):
                driver.ensure(uri, identity=other, refresh=refresh, lease=("pod", 60.0))
        assert sum(admin.status(brief=True).denials.values()) == sum(before.values()) + len(Refresh)
        told = [each for each in admin.recent() if each.event == "failed" and each.model == uri]
        assert {(each.error, each.fields["namespace"]) for each in told} == {("access-denied", "team-b"), ("access-unproved", "team-b")}
        assert lists["secret_key"] not in str(told)
        assert [info.leases for info in admin.list() if uri in {ref.key.uri for ref in info.refs}] == [()]
        had = driver.ensure(uri, identity=Identity("team-b", "default", secret_of(seaweedfs, **own)))
        assert (had.snapshot.path / "weights").read_bytes() == data


@pytest.mark.parametrize("first", ["team-a", "team-b"])
def test_an_endpoint_that_imitates_another_is_believed_by_its_own_namespace_alone(node: RunningAgent, first: str) -> None:
    """The same bucket, names, sizes and ETags, whoever comes first."""
    second = "team-b" if first == "team-a" else "team-a"
    with FaultServer() as honest, FaultServer() as impostor, AgentClient(node.driver) as driver:
        servers, data = {"team-a": honest, "team-b": impostor}, {"team-a": b"a" * 3_000_000, "team-b": b"b" * 3_000_000}
        for name, server in servers.items():
            bucket_of(server, data[name])
        for name in (first, second, first, second):
            secret = {"AWS_ENDPOINT_URL_S3": servers[name].endpoint, "AWS_ACCESS_KEY_ID": "AKANY", "AWS_SECRET_ACCESS_KEY": "any"}
            for refresh in (Refresh.AUTO, Refresh.ALWAYS, Refresh.NEVER):
                had = driver.ensure("s3://bucket/m", identity=Identity(name, "default", secret), refresh=refresh)
                assert (had.snapshot.path / "weights").read_bytes() == data[name]


def test_while_an_origin_is_down_who_proved_a_right_has_the_last_version_and_others_are_told(tmp_path: Path) -> None:
    environ = {"MODELCACHE_REFRESH_S": "0", "MODELCACHE_RETRY_DEADLINE_S": "1", "MODELCACHE_REFUSED_NETWORKS": "169.254.0.0/16"}
    a, b = Identity("team-a", "default", {}), Identity("team-b", "default", {})
    with agent(tmp_path, environ) as running, AgentClient(running.driver) as driver, AgentClient(running.admin) as admin:
        with FaultServer() as server:
            server.put("/m/weights", b"w" * 1000)
            uri, other = f"{server.endpoint}/m/weights", f"{server.endpoint}/m/other"
            had = driver.ensure(uri, identity=a)
        again = driver.ensure(uri, identity=a)  # nobody listens there any more
        assert (again.snapshot.path, again.snapshot.stale) == (had.snapshot.path, True)
        assert admin.ensure(uri).snapshot.stale
        with pytest.raises(AccessUnproved):
            driver.ensure(uri, identity=b)
        assert admin.status(brief=True).denials == {"access-unproved": 1}
        with pytest.raises(OriginUnreachable):
            driver.ensure(uri, identity=a, refresh=Refresh.ALWAYS)
        with pytest.raises(OriginUnreachable):
            admin.ensure(other)
