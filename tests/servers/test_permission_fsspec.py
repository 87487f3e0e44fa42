"""Permission where fsspec's filesystems are read for callers: Azure's blobs and HDFS, by the keys of a caller's secret and nothing else."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import fsspec.config
import pytest

from daemonset.tenants import caller_of
from modelcache.cache import ModelCache
from modelcache.config import Config
from modelcache.errors import (
    AccessDenied,
    AccessUnproved,
    AddressRefused,
    BadConfig,
    InvalidUri,
    ModelCacheError,
    OriginBusy,
    OriginUntrusted,
    ProtocolViolation,
)
from modelcache.permission import Caller
from modelcache.refresh import Refresh
from modelcache.sources.any_fsspec import HdfsKeys, sessions
from modelcache.sources.any_fsspec.callers import as_blobs
from modelcache.sources.retrying import RetryLimits
from modelcache.testing.audit import Moment, audit
from modelcache.testing.azure_stand_in import CONTAINER, AzureStandIn
from modelcache.testing.fault_server import Call, FaultServer
from modelcache.testing.servers import WebHdfs
from modelcache.testing.servers.certificates import Certificate
from modelcache.testing.store_fixtures import NO_LIMITS
from modelcache.transport import Proxies
from modelcache.uri import parse_uri

KEY, OTHER, LISTER = ("A" * 43 + "=", "B" * 43 + "=", "C" * 43 + "=")
MODEL = {"config.json": b"{}", "w/model.safetensors": bytes(range(256)) * 30_000}
URI = f"az://{CONTAINER}/m"
NODES = {
    "AZURE_STORAGE_ACCOUNT_KEY": KEY,
    "AZURE_STORAGE_CONNECTION_STRING": f"AccountName=nodes;AccountKey={KEY}",
    "FSSPEC_ABFS_ACCOUNT_KEY": KEY,
    "AZURE_CLIENT_ID": "node",
    "HTTP_PROXY": "http://127.0.0.1:1",
    "HTTPS_PROXY": "http://127.0.0.1:1",
}
"""Of the process: none of it counts for a caller."""


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModelCache]:
    for name, text in NODES.items():
        monkeypatch.setenv(name, text)
    for scheme in ("abfs", "webhdfs"):
        monkeypatch.setitem(fsspec.config.conf, scheme, {"user": "node", "password": "hunter2", "account_key": KEY})
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / ".netrc").write_text("machine 127.0.0.1 login node password hunter2\n")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("NETRC", str(tmp_path / "home" / ".netrc"))
    config = Config.load(environ={}, root=tmp_path / "root", retry=RetryLimits(base_s=0.001, attempts=2), limits=NO_LIMITS)
    with ModelCache(config=config) as made:
        yield made
    assert audit(tmp_path / "root", Moment.CRASHED) == []


@pytest.fixture
def azure() -> Iterator[AzureStandIn]:
    with FaultServer() as server:
        yield filled(server)


def filled(server: FaultServer, account: str = "account") -> AzureStandIn:
    made = AzureStandIn(server, account, {KEY: {"list", "get"}, LISTER: {"list"}, "s1gnature": {"list", "get"}})
    for name, data in MODEL.items():
        made.put(f"m/{name}", data)
    return made


def place_of(azure: AzureStandIn, **more: str) -> dict[str, str]:
    return {"AZURE_ACCOUNT_NAME": azure.account, "AZURE_SERVICE_URL": azure.endpoint, **more}


def who(cache: ModelCache, secret: Mapping[str, str], namespace: str = "a") -> Caller:
    return caller_of(namespace, "default", secret, cache.config)


def read(cache: ModelCache, caller: Caller, uri: str = URI, refresh: Refresh = Refresh.AUTO) -> dict[str, bytes]:
    root = cache.ensure(uri, caller=caller, refresh=refresh).path
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


FORMS = {
    "key": {"AZURE_STORAGE_ACCESS_KEY": KEY},
    "signature": {"AZURE_STORAGE_SAS_TOKEN": "?sv=2024-01-01&sig=s1gnature"},
    "connection": {"AZURE_STORAGE_CONNECTION_STRING": f"AccountName=account;AccountKey={KEY};BlobEndpoint=http://HERE/account"},
}


@pytest.mark.parametrize("form", FORMS)
def test_blobs_are_read_with_each_kind_of_key(cache: ModelCache, azure: AzureStandIn, form: str, caplog: pytest.LogCaptureFixture) -> None:
    here = azure.server.endpoint.removeprefix("http://")
    secret = {name: text.replace("HERE", here) for name, text in FORMS[form].items()}
    with caplog.at_level(logging.INFO):
        assert read(cache, who(cache, secret if form == "connection" else place_of(azure, **secret))) == MODEL
    written = b"".join(path.read_bytes() for path in cache.config.root.rglob("*") if path.is_file())
    assert [text for text in (KEY, "s1gnature") if text.encode() in written or text in caplog.text] == []


def test_the_uris_that_kserve_has_for_blobs_are_read_with_its_keys(cache: ModelCache, azure: AzureStandIn) -> None:
    caller = who(cache, place_of(azure, AZURE_STORAGE_ACCESS_KEY=KEY))
    azure.put("m/a b#c?d", b"odd")
    for uri, found in (
        ("m", MODEL | {"a b#c?d": b"odd"}),
        ("m/w", {"model.safetensors": MODEL["w/model.safetensors"]}),
        ("m/a%20b%23c%3Fd", {"a b#c?d": b"odd"}),
    ):
        assert read(cache, caller, f"https://account.blob.core.windows.net/{CONTAINER}/{uri}") == found
    for host in ("another.blob.core.windows.net", "account.blob.core.windows.net.example", "account.dfs.core.windows.net"):
        assert as_blobs(parse_uri(f"https://{host}/{CONTAINER}/m")[0], caller.config.fsspec.callers) is None  # a file of a web server


def test_a_principal_signs_in_at_its_own_tenant(
    cache: ModelCache, certificate: Certificate, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    secret = {"AZ_TENANT_ID": "t-1", "AZ_CLIENT_ID": "me", "AZ_CLIENT_SECRET": "pa55word", "AZ_SUBSCRIPTION_ID": "s"}
    with FaultServer(certificate) as server:
        azure = filled(server)
        azure.principal, azure.rights["pa55word"] = ("me", "pa55word"), {"list", "get"}
        azure.signs_in("t-1")
        secret |= place_of(azure, AZURE_AUTHORITY_HOST=server.endpoint)
        with pytest.raises(OriginUntrusted):
            read(cache, who(cache, secret))
        assert azure.issued == []
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate.ca))
        assert read(cache, who(cache, secret)) == MODEL
        assert len(azure.issued) == 1
        with pytest.raises(AccessDenied) as told:
            read(cache, who(cache, secret | {"AZ_CLIENT_SECRET": "hunter2"}))
        assert "hunter2" not in json.dumps(told.value.as_dict()) + caplog.text
        token = {"AZURE_ACCESS_TOKEN": azure.issued[0], "AZURE_ACCESS_EXPIRES_ON_SECONDS": "99999999999"}
        assert read(cache, who(cache, place_of(azure, **token), "b")) == MODEL
        with pytest.raises(AccessDenied, match="ended"):
            read(cache, who(cache, place_of(azure, **(token | {"AZURE_ACCESS_EXPIRES_ON_SECONDS": "1"})), "b"))


def test_an_outage_of_the_sign_in_takes_no_right_away(cache: ModelCache, certificate: Certificate, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate.ca))
    with FaultServer(certificate) as server:
        azure = filled(server)
        azure.principal, azure.rights["pa55word"] = ("me", "pa55word"), {"list", "get"}
        azure.signs_in("t-1")
        keys = {
            "AZURE_TENANT_ID": "t-1",
            "AZURE_CLIENT_ID": "me",
            "AZURE_CLIENT_SECRET": "pa55word",
            "AZURE_AUTHORITY_HOST": server.endpoint,
        }
        caller = who(cache, place_of(azure, **keys))
        assert read(cache, caller) == MODEL
        server.fail("/t-1/oauth2/v2.0/token", lambda call: call.hang_up())
        assert read(cache, caller) == MODEL
        with pytest.raises(ModelCacheError):
            read(cache, caller, refresh=Refresh.ALWAYS)
        assert read(cache, caller, refresh=Refresh.NEVER) == MODEL


def test_who_may_not_read_gets_nothing_of_what_is_here(cache: ModelCache, azure: AzureStandIn) -> None:
    """With no, a wrong, a list-only and the right key; what is here, and whoever brought it."""
    first = who(cache, place_of(azure, AZURE_STORAGE_KEY=KEY))
    assert read(cache, first) == MODEL
    for keys in ({}, {"AZURE_STORAGE_ACCOUNT_KEY": OTHER}, {"AZURE_STORAGE_ACCOUNT_KEY": LISTER}):
        stranger = who(cache, place_of(azure, **keys), "b")
        for refresh in (Refresh.AUTO, Refresh.ALWAYS):
            with pytest.raises(AccessDenied):
                read(cache, stranger, refresh=refresh)
        with pytest.raises(AccessUnproved):
            read(cache, stranger, refresh=Refresh.NEVER)
    asked = len(azure.server.received)
    assert read(cache, who(cache, place_of(azure, AZURE_STORAGE_KEY=KEY), "b")) == MODEL
    of_key = [call for call in azure.server.received[asked:] if azure.credential_of(call) == KEY]  # others' may still be on their way
    reads = [call.headers.get("x-ms-range") for call in of_key if call.method == "GET" and "model.safetensors" in call.target]
    assert reads == ["bytes=0-0"]
    del azure.rights[KEY]
    with pytest.raises(AccessDenied):
        read(cache, first, refresh=Refresh.ALWAYS)
    for refresh in (Refresh.AUTO, Refresh.NEVER):
        with pytest.raises(AccessDenied):
            read(cache, first, refresh=refresh)


def test_an_endpoint_of_one_s_own_is_nobody_else_s_and_an_account_is_one_account_s(cache: ModelCache, azure: AzureStandIn) -> None:
    with FaultServer() as server:
        impostor = filled(server)
        for name in MODEL:
            impostor.put(f"m/{name}", b"x" * len(MODEL[name]))
        for uri in (URI, f"abfs://{CONTAINER}@account.dfs.core.windows.net/m"):
            wrong = read(cache, who(cache, place_of(impostor, AZURE_STORAGE_KEY=KEY), "b"), uri)
            assert wrong != MODEL
            assert read(cache, who(cache, place_of(azure, AZURE_STORAGE_KEY=KEY)), uri) == MODEL
    with pytest.raises(AccessDenied, match="another Azure account"):
        read(cache, who(cache, place_of(azure, AZURE_STORAGE_KEY=KEY)), f"abfs://{CONTAINER}@victim.dfs.core.windows.net/m")


def test_when_the_origin_is_away_who_proved_it_has_the_last_version(cache: ModelCache, azure: AzureStandIn) -> None:
    allowed, stranger = (who(cache, place_of(azure, AZURE_STORAGE_KEY=KEY), name) for name in ("a", "b"))
    read(cache, allowed)
    azure.server.fail(f"/{azure.account}/{CONTAINER}", lambda call: call.hang_up())
    with pytest.raises(AccessUnproved):
        read(cache, stranger)
    assert read(cache, allowed, refresh=Refresh.NEVER) == MODEL


def test_a_place_that_no_caller_s_may_lead_to_is_not_asked(tmp_path: Path) -> None:
    """Whether its address is written, or its name leads there."""
    config = Config.load(environ={}, root=tmp_path / "root", limits=NO_LIMITS)
    networks = (*config.trust.refused_networks, "127.0.0.0/8", "::1/128")
    config = replace(config, trust=replace(config.trust, refused_networks=networks))
    secrets = [
        {"HDFS_NAMENODE": "http://localhost:1"},
        {"AZURE_ACCOUNT_NAME": "account", "AZURE_SERVICE_URL": "http://169.254.169.254/account", "AZURE_STORAGE_KEY": KEY},
        {"HDFS_NAMENODE": "http://169.254.169.254:80;http://[::ffff:169.254.169.254]:80"},
        {"HDFS_NAMENODE": "https://[fd00:ec2::254]:443", "TLS_SKIP_VERIFY": "true"},
    ]
    with ModelCache(config=config) as cache:
        for secret in secrets:
            with pytest.raises(AddressRefused):
                read(cache, who(cache, secret), "hdfs://m" if "HDFS_NAMENODE" in secret else URI)
        with pytest.raises(AddressRefused):
            read(cache, who(cache, {}), "webhdfs://169.254.169.254:80/m")


def test_a_caller_goes_the_node_s_way_to_them(tmp_path: Path) -> None:
    with FaultServer() as proxy:
        ways = Proxies(http=proxy.endpoint, no_proxy="127.0.0.1")
        config = Config.load(
            environ={}, root=tmp_path / "root", proxies=ways, retry=RetryLimits(base_s=0.001, attempts=1), limits=NO_LIMITS
        )
        with ModelCache(config=config) as cache:
            for node in ("http://nn.example:9870", "http://127.0.0.1:1"):
                with pytest.raises(ModelCacheError):
                    read(cache, who(cache, {"HDFS_NAMENODE": node}), "hdfs://m")
    assert {call.target.partition("?")[0] for call in proxy.received} == {"http://nn.example:9870/webhdfs/v1/m"}


@pytest.fixture
def hdfs(tmp_path: Path) -> Iterator[WebHdfs]:
    (tmp_path / "hdfs" / "m" / "w").mkdir(parents=True)
    for name, data in MODEL.items():
        (tmp_path / "hdfs" / "m" / name).write_bytes(data)
    with WebHdfs(tmp_path / "hdfs") as server:
        yield server


def test_hdfs_is_read_as_the_secret_says_and_by_nobody_else(cache: ModelCache, hdfs: WebHdfs, tmp_path: Path) -> None:
    place = {"HDFS_NAMENODE": f"http://{hdfs.authority}", "HDFS_ROOTPATH": "/", "N_THREADS": "4"}
    secret = place | {"USER_PROXY": "someone", "HEADERS": '{"X-Token": "t0ken"}'}
    for uri in ("hdfs://m", "webhdfs://m"):
        assert read(cache, who(cache, secret), uri) == MODEL
    assert {query["doas"] for _, _, query in hdfs.books.asked} == {"someone"}
    assert all(headers["X-Token"] == "t0ken" and "Authorization" not in headers for headers in hdfs.books.headers)
    assert b"t0ken" not in b"".join(path.read_bytes() for path in cache.config.root.rglob("*") if path.is_file())
    with pytest.raises(AccessDenied, match="hdfs"):
        read(cache, who(cache, {}, "b"), "hdfs://m")
    with pytest.raises(AccessUnproved):
        read(cache, who(cache, secret, "b"), "hdfs://m", Refresh.NEVER)
    with WebHdfs(tmp_path / "hdfs") as own:  # of the tenant's own, under the same name
        theirs = who(cache, {"HDFS_NAMENODE": f"http://{own.authority}"}, "b")
        asked = len(hdfs.books.asked)
        assert read(cache, theirs, "hdfs://m") == MODEL
        assert len(hdfs.books.asked) == asked
    hdfs.books.standby = True  # a 403, and nobody's right is in question
    with pytest.raises(OriginBusy):
        read(cache, who(cache, secret), "hdfs://m", Refresh.ALWAYS)
    hdfs.books.standby = False
    assert read(cache, who(cache, secret), "hdfs://m", Refresh.NEVER) == MODEL
    hdfs.books.denied.append("/m")
    with pytest.raises(AccessDenied):
        read(cache, who(cache, secret), "hdfs://m", Refresh.ALWAYS)
    with pytest.raises(AccessDenied):
        read(cache, who(cache, secret), "hdfs://m")


def test_an_answer_without_an_end_is_not_waited_for(cache: ModelCache, monkeypatch: pytest.MonkeyPatch) -> None:
    def forever(call: Call) -> None:
        call.send(b"HTTP/1.1 200 OK\r\nX-More: ")
        call.ended.wait()

    with FaultServer() as server:
        uri = f"webhdfs://127.0.0.1:{server.port}/m"
        monkeypatch.setattr(sessions, "MAX_ANSWER_BYTES", 1000)
        server.put("/webhdfs/v1/m", b"x" * 2000)
        with pytest.raises(ProtocolViolation, match="1000 bytes"):
            read(cache, who(cache, {}), uri)
        monkeypatch.setattr(sessions, "ANSWER_S", 0.2)
        server.fail("/webhdfs/v1/m", forever)
        with pytest.raises(AccessUnproved, match="could not be reached"):  # and did not wait in vain
            read(cache, who(cache, {}), uri)


def test_without_a_secret_a_uri_names_its_name_node_and_nobody_signs_in(cache: ModelCache, hdfs: WebHdfs) -> None:
    uri = f"webhdfs://{hdfs.authority}/m"
    assert read(cache, who(cache, {}), uri) == MODEL
    assert not any("Authorization" in headers for headers in hdfs.books.headers)  # the netrc has a password for this host
    assert read(cache, who(cache, {}), f"webhdfs://me@{hdfs.authority}/m") == MODEL
    with pytest.raises(InvalidUri):
        read(cache, who(cache, {"HDFS_NAMENODE": f"http://{hdfs.authority}"}), "hdfs://me:pw@m/w")


UNUSABLE = [
    ({"AZURE_CLIENT_ID": "me"}, "client secret"),
    ({"AZ_CLIENT_ID": "me", "AZ_CLIENT_SECRET": "hunter2"}, "tenant id"),
    ({"AZURE_STORAGE_ACCESS_KEY": "hunter2!"}, "base64"),
    ({"AZURE_STORAGE_SAS_TOKEN": "hunter2"}, "sig"),
    ({"AZURE_STORAGE_CONNECTION_STRING": "AccountKey=hunter2"}, "base64|account"),
    ({"AZURE_ACCOUNT_NAME": "Hunter2"}, "account"),
    ({"AZURE_AUTHORITY_HOST": "http://hunter2"}, "https"),
    ({"USER_PROXY": "hunter2"}, "name node"),
    ({"HDFS_NAMENODE": "http://nn:1", "KERBEROS_PRINCIPAL": "hunter2"}, "Kerberos"),
    ({"HDFS_NAMENODE": "http://nn:1", "TLS_CERT": "hunter2"}, "TLS_KEY"),
    ({"HDFS_NAMENODE": "http://nn:1", "HEADERS": '{"Host": "hunter2"}'}, "Host"),
]


@pytest.mark.parametrize(("secret", "why"), UNUSABLE)
def test_what_a_secret_lacks_is_said_at_the_door(cache: ModelCache, secret: dict[str, str], why: str) -> None:
    with pytest.raises(BadConfig, match=f"(?i){why}") as told:
        who(cache, secret)
    assert "hunter2" not in json.dumps(told.value.as_dict()).lower()


def test_certificates_of_a_secret_are_in_no_file(cache: ModelCache, certificate: Certificate) -> None:
    """KServe's secret has the certificate of the client, its key, and who vouches for the name nodes."""
    tls = {"TLS_CA": certificate.ca.read_text(), "TLS_CERT": certificate.chain.read_text(), "TLS_KEY": certificate.key.read_text()}
    [node] = HdfsKeys({"HDFS_NAMENODE": "https://nn:1", **tls}).secret().nodes
    assert all(path.startswith("/proc/self/fd/") for path in (*node["session_cert"], node["session_verify"]))
    with FaultServer(certificate) as server:
        listing: dict[str, object] = {"FileStatuses": {"FileStatus": []}}
        status = {"FileStatus": {"type": "DIRECTORY", "length": 0, "modificationTime": 1, "pathSuffix": ""}}
        server.put("/webhdfs/v1/m", json.dumps(listing | status).encode())
        for secret in (tls, {"TLS_SKIP_VERIFY": "true"}):
            with pytest.raises(ModelCacheError, match="no file"):
                read(cache, who(cache, {"HDFS_NAMENODE": server.endpoint, **secret}), "hdfs://m")
        with pytest.raises(OriginUntrusted):
            read(cache, who(cache, {"HDFS_NAMENODE": server.endpoint}), "hdfs://m")
