"""What the node's caches give to pods that could prove nothing themselves: no caller proves a right to a `file://` URI."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from daemonset.calls import Calls, Waiters
from daemonset.keeping import CallerOf, Keeper
from daemonset.metrics import Metrics
from daemonset.service import Access, AgentService, Seen
from daemonset.shares import Shares
from daemonset.tenants import caller_of
from modelcache.abc.grants import Isolation
from modelcache.agent.v1 import agent_pb2 as pb
from modelcache.cache import ModelCache
from modelcache.config import Config
from modelcache.errors import AccessDenied, BadConfig, NotFound
from modelcache.k8s.node import State, WantedModel
from modelcache.patience import Cancellation
from modelcache.permission import Caller
from modelcache.sources.s3 import S3Options
from modelcache.testing.fault_server import Call, FaultServer, Reply
from modelcache.testing.polling import until
from modelcache.testing.store_fixtures import NO_LIMITS


class Node:
    """A store, what keeps it, and the driver's socket."""

    def __init__(self, root: Path, by: CallerOf, isolation: Isolation = Isolation.NONE, endpoint: str | None = None) -> None:
        config = Config(root=root, limits=NO_LIMITS, s3=S3Options(endpoint=endpoint, region="us-east-1", anonymous=True))
        self.cache = ModelCache(config=replace(config, trust=replace(config.trust, isolation=isolation)))
        metrics = Metrics(self.cache)
        self.keeper = Keeper(self.cache, metrics, by, threading.Event().set, secrets_namespace="secrets")
        self.shares = Shares(self.cache)
        access = Access(speaks_for_callers=True)
        self.service = AgentService(self.cache, Calls(), Waiters(1), access, Seen(metrics), self.shares)

    def keep(self, **models: WantedModel) -> None:
        self.keeper.want({model.key: model for model in models.values()}, {})
        with self.keeper:
            until(lambda: all(report.state is State.DOWNLOADED for report in self.keeper.reports().values()), "all to be here")

    def pod(self, namespace: str, uri: str, *, waits: bool = False, **secret: str) -> bytes:
        """What a pod reads; refused: raises AccessDenied. `waits`: it is not here yet."""
        caller = caller_of(namespace, "default", secret, self.cache.config)
        request = pb.EnsureRequest(uri=uri, lease_holder="pod", lease_ttl_s=60.0)
        share = self.shares.of(uri, caller)
        had = self.service._here(request, caller, share)
        assert waits == (had is None)
        found = had[1] if had else self.service._ensured(request, caller, share, lambda look: None, Cancellation())
        assert found.lease.id
        return (Path(found.path) / "weights").read_bytes()


@contextmanager
def node(
    root: Path, by: CallerOf = lambda model, cancel: None, isolation: Isolation = Isolation.NONE, endpoint: str | None = None
) -> Iterator[Node]:
    made = Node(root, by, isolation, endpoint)
    with made.cache, made.shares.given_by(made.keeper):
        yield made


def model(directory: Path, name: str) -> str:
    (directory / name).mkdir()
    (directory / name / "weights").write_bytes(name.encode())
    return f"file://{directory / name}"


def test_a_cluster_cache_serves_every_namespace_and_a_namespaces_cache_its_own(tmp_path: Path) -> None:
    ours, theirs = model(tmp_path, "ours"), model(tmp_path, "theirs")
    wanted = {"ours": WantedModel("ours", ours), "theirs": WantedModel("theirs", theirs, "a")}
    with node(tmp_path / "root") as found:
        found.keep(**wanted)
        assert [found.pod(namespace, ours) for namespace in ("a", "b")] == [b"ours"] * 2
        assert found.pod("a", theirs) == b"theirs"
        with pytest.raises(AccessDenied):
            found.pod("b", theirs, waits=True)
        found.keeper.want({"a/theirs": wanted["theirs"]}, {})
        with pytest.raises(AccessDenied):
            found.pod("a", ours, waits=True)
        found.keeper.want(wanted, {})

    # an agent that begins anew while the API server can't be asked: by what is pinned
    with node(tmp_path / "root") as found:
        assert [found.pod("a", theirs), found.pod("a", ours), found.pod("b", ours)] == [b"theirs", b"ours", b"ours"]
        with pytest.raises(AccessDenied):
            found.pod("b", theirs, waits=True)
        found.keeper.want({}, {}, evict=False)
        with pytest.raises(AccessDenied):
            found.pod("b", ours, waits=True)


def test_a_pod_waits_for_what_its_cache_does_not_have_yet_and_hears_nothing_of_why_it_cant(tmp_path: Path) -> None:
    def secret_is_missing(model: WantedModel, cancel: Cancellation) -> Caller | None:
        raise BadConfig("the secret `hidden` is not there")

    ours = model(tmp_path, "ours")
    with node(tmp_path / "root") as found:
        found.keeper.want({"ours": WantedModel("ours", ours)}, {})
        assert found.pod("b", ours, waits=True) == b"ours"
    with node(tmp_path / "other", secret_is_missing) as found:
        found.keeper.want({"ours": WantedModel("ours", ours)}, {})
        with pytest.raises(AccessDenied) as caught:
            found.pod("b", ours, waits=True)
        assert "hidden" not in str(caught.value.as_dict())


def test_namespaces_that_are_kept_apart_are_served_by_their_own_caches_alone(tmp_path: Path) -> None:
    ours, theirs = model(tmp_path, "ours"), model(tmp_path, "theirs")
    with node(tmp_path / "root", isolation=Isolation.NAMESPACE) as found:
        found.keep(ours=WantedModel("ours", ours), theirs=WantedModel("theirs", theirs, "a"))
        assert found.pod("a", theirs) == b"theirs"
        with pytest.raises(AccessDenied):
            found.pod("a", ours, waits=True)


def test_who_brings_a_credential_in_the_uri_or_an_endpoint_asks_for_what_is_there(tmp_path: Path) -> None:
    with node(tmp_path / "root") as found:
        found.keeper.want({"m": WantedModel("m", "s3://b/m"), "n": WantedModel("n", "https://h/n?X-Amz-Signature=s")}, {})
        caller = caller_of("b", "default", {}, found.cache.config)
        elsewhere = caller_of("b", "default", {"AWS_ENDPOINT_URL": "http://elsewhere:9000"}, found.cache.config)
        assert found.shares.of("s3://b/m", caller) is not None
        assert found.shares.of("s3://b/m/", caller) == found.shares.of("s3://b/m", caller)
        for uri, who in (
            ("s3://k:s@b/m", caller),
            ("s3://b/m", elsewhere),
            ("https://h/n", caller),
            ("s3://b/m/part", caller),
            ("", caller),
        ):
            assert found.shares.of(uri, who) is None, uri


def bucket(server: FaultServer, gateway: str, name: str, data: bytes) -> str:
    """Puts `m/weights` into a bucket behind a gateway; that gateway's endpoint."""
    row = f"<Contents><Key>m%2Fweights</Key><Size>{len(data)}</Size></Contents>"
    listed = f"<ListBucketResult><EncodingType>url</EncodingType><IsTruncated>false</IsTruncated>{row}</ListBucketResult>"
    server.put(f"/{gateway}/{name}", listed.encode())
    server.put(f"/{gateway}/{name}/m/weights", data, etag='"1"')
    return f"{server.endpoint}/{gateway}"


def test_what_a_cache_has_is_not_given_under_a_name_that_a_tenant_gave_it_at_an_endpoint_of_its_own(tmp_path: Path) -> None:
    """While the API server has not told what is wanted: by pins, which say of what cache they are and not of what URI."""
    with FaultServer() as server:
        here, clusters = f"{server.endpoint}/node", bucket(server, "clusters", "ours", b"weights")
        mine = bucket(server, "b", "theirs", b"weights")

        def secret(model: WantedModel, cancel: Cancellation) -> Caller | None:
            return caller_of("secrets", "default", {"AWS_ENDPOINT_URL": clusters}, found.cache.config)

        def away(model: WantedModel, cancel: Cancellation) -> Caller | None:
            raise BadConfig("the API server is away")

        with node(tmp_path / "root", secret, endpoint=here) as found:
            found.keep(ours=WantedModel("ours", "s3://ours/m"))
            assert found.pod("b", "s3://theirs/m", waits=True, AWS_ENDPOINT_URL=mine) == b"weights"
        with node(tmp_path / "root", away, endpoint=here) as found:
            assert found.pod("a", "s3://ours/m") == b"weights"
            with pytest.raises(NotFound):
                found.pod("a", "s3://theirs/m", waits=True)
            found.keeper.want({"ours": WantedModel("ours", "s3://theirs/m")}, {})
            with found.keeper:
                until(lambda: found.keeper.reports()["ours"].error_code is not None, "it to be tried")
            assert found.keeper.reports()["ours"].state is State.ERROR


def test_what_a_tenant_may_read_and_the_node_may_not_comes_to_no_cache_of_the_node_s(tmp_path: Path) -> None:
    def for_the_tenant_alone(call: Call) -> None:
        known = call.received.headers.get("authorization") == "Bearer tenant"
        call.reply(call.proper if known else replace(call.proper, status=403, body=b""))

    with FaultServer() as server, node(tmp_path / "root") as found:
        server.put("/weights", b"weights", etag='"1"')
        server.fail("/weights", for_the_tenant_alone)
        uri = f"{server.endpoint}/weights"
        secret = {"127.0.0.1-headers": '{"Authorization": "Bearer tenant"}'}
        assert found.pod("b", uri, waits=True, **secret) == b"weights"
        found.keeper.want({"m": WantedModel("m", uri)}, {})
        with pytest.raises(AccessDenied):
            found.pod("c", uri, waits=True)
        with found.keeper:
            until(lambda: found.keeper.reports()["m"].error_code is not None, "it to be tried")
        assert (found.keeper.reports()["m"].state, found.keeper.reports()["m"].error_code) == (State.ERROR, "access-denied")
        server.fail("/weights", lambda call: call.reply(call.proper))
        assert found.pod("c", uri, waits=True) == b"weights"


def test_what_the_node_may_only_list_comes_to_no_cache_of_the_node_s(tmp_path: Path) -> None:
    with FaultServer() as server, node(tmp_path / "root", endpoint=f"{server.endpoint}/gateway") as found:
        bucket(server, "gateway", "ours", b"weights")
        key = "/gateway/ours/m/weights"

        def listed_and_not_read(call: Call) -> None:
            may = call.received.method == "HEAD" or "authorization" in call.received.headers
            call.reply(call.proper if may else Reply(403, {}, b""))

        server.fail(key, listed_and_not_read)
        uri, secret = "s3://ours/m", {"AWS_ACCESS_KEY_ID": "AK", "AWS_SECRET_ACCESS_KEY": "secret"}
        assert found.pod("b", uri, waits=True, **secret) == b"weights"
        found.keeper.want({"m": WantedModel("m", uri)}, {})
        with pytest.raises(AccessDenied):
            found.pod("c", uri, waits=True)
        with found.keeper:
            until(lambda: found.keeper.reports()["m"].error_code == "access-denied", "it to be tried", deadline_s=20.0)
