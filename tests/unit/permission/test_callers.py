"""What a caller's sources are made of: what it brings, and nothing of this process or machine."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from modelcache.cache import ModelCache
from modelcache.config import Config
from modelcache.errors import AccessDenied, AccessUnproved, BadConfig, DamagedRecord
from modelcache.mirrors import Mirror
from modelcache.permission import CALLERS_SCHEMES, Caller, Permission, expect_own
from modelcache.registry import SCHEMES, Registry
from modelcache.sources.any_fsspec import CallersKeys, FsspecOptions
from modelcache.sources.gcs import GcsOptions
from modelcache.sources.http import REQUESTS_OWN, HttpOptions
from modelcache.sources.huggingface import HubOptions
from modelcache.sources.retrying import RetryLimits
from modelcache.sources.s3 import S3Options
from modelcache.store.store import LocalStore
from modelcache.testing.fault_server import FaultServer
from modelcache.testing.servers.ports import free_ports
from modelcache.testing.store_fixtures import NO_LIMITS
from modelcache.transport import Proxies
from modelcache.uri import parse_uri


@pytest.fixture
def config(tmp_path: Path) -> Config:
    """Settings of a machine that has identities of its own."""
    return Config(
        root=tmp_path / "root",
        limits=NO_LIMITS,
        s3=S3Options(profile="node"),
        gs=GcsOptions(credentials_file=tmp_path / "gs.json"),
        hf=HubOptions(token_file=tmp_path / "token"),
        fsspec=FsspecOptions(azure={"account_key": "NODE"}, hdfs_secret_dir=tmp_path),
        mirrors=(Mirror("hf://", "s3://mirror/", profile="node"), Mirror("https://host/", "file:///srv/")),
    )


def test_a_caller_without_keys_is_anonymous_everywhere(config: Config) -> None:
    own = Caller("a", "x", b"", config).own_config
    assert (own.s3.profile, own.s3.anonymous) == (None, True)
    assert (own.gs.credentials_file, own.gs.anonymous) == (None, True)
    assert (own.hf.token_file, own.hf.anonymous) == (None, True)
    assert own.fsspec == FsspecOptions(callers=CallersKeys())
    assert (own.mirrors, own.proxies) == ((), Proxies())


def test_a_caller_s_own_keys_are_kept(config: Config) -> None:
    keys = replace(
        config,
        s3=S3Options(access_key="AK", secret_key="secret"),
        gs=GcsOptions(access_token="token"),
        hf=HubOptions(token="hf_token"),
    )
    own = Caller("a", "x", b"keys", keys).own_config
    assert (own.s3, own.gs, own.hf) == (keys.s3, keys.gs, keys.hf)
    assert "secret" not in repr(Caller("a", "x", b"secret", keys))
    with ModelCache(config=keys) as cache:
        assert repr(cache) == f"ModelCache('{config.root}')"


@pytest.mark.parametrize("name", sorted(REQUESTS_OWN))
def test_a_caller_s_headers_do_not_say_what_is_asked_of_whom(name: str) -> None:
    with pytest.raises(BadConfig, match=name):
        HttpOptions(headers={"host": {"X-Key": "1", name: "hunter2"}})


@pytest.mark.parametrize("scheme", [*(scheme for scheme in SCHEMES if scheme not in CALLERS_SCHEMES), "adl", "memory", "hdfs"])
def test_what_this_machine_would_read_with_its_own_identity_is_refused(config: Config, scheme: str) -> None:
    with ModelCache(config=config) as cache, pytest.raises(AccessDenied) as caught:
        cache.ensure(f"{scheme}:///place/model" if scheme == "file" else f"{scheme}://place/model", caller=Caller("a", "x", b"", config))
    assert caught.value.hint is not None
    assert not (config.root / "node.key").exists()


def test_a_caller_goes_the_node_s_ways_and_none_of_its_own(config: Config) -> None:
    node = replace(config, proxies=Proxies(http="http://proxy:3128", no_proxy="inside"), trust=replace(config.trust, refused_networks=()))
    permission = Permission(LocalStore(config.root, NO_LIMITS).grants, node)
    detours = replace(config, proxies=Proxies(http="http://mine:3128"), mirrors=(Mirror("hf://", "s3://mine/", anonymous=False),))
    found = permission.config_of(Caller("a", "x", b"", detours))
    assert found.proxies == node.proxies
    assert [(mirror.target, mirror.profile, mirror.anonymous) for mirror in found.mirrors] == [
        ("s3://mirror/", None, True),
        ("file:///srv/", None, None),
    ]


@pytest.mark.parametrize("target", ["s3://private/", "gs://private/", "hf://private/"])
@pytest.mark.parametrize("keyed", [False, True])
def test_no_mirror_of_the_node_gives_a_caller_the_identity_of_the_process(config: Config, target: str, keyed: bool) -> None:
    """Not by its profile or file, and not by `anonymous = false`, which has the SDK look for what this process is."""
    own = {"s3": S3Options(access_key="AK", secret_key="secret"), "gs": GcsOptions(access_token="T"), "hf": HubOptions(token="T")}
    settings = replace(config, **own) if keyed else config  # type: ignore[arg-type]  # a field each
    node = replace(config, mirrors=(Mirror("https://models/", target, anonymous=False),))
    permission = Permission(LocalStore(config.root, NO_LIMITS).grants, node)
    made: list[Config] = []
    registry = Registry(permission.config_of(Caller("a", "x", b"", settings)), lambda origin: None, expect_config=made.append)
    with registry.sources(*parse_uri("https://models/m")):
        registry.close()
    [used] = made
    expect_own(used)
    assert (used.s3.anonymous, used.gs.anonymous, used.hf.anonymous) == (not keyed, not keyed, not keyed)


@pytest.mark.parametrize(
    "found",
    [
        {"s3": S3Options()},
        {"s3": S3Options(profile="node")},
        {"gs": GcsOptions()},
        {"gs": GcsOptions(credentials_file=Path("key.json"))},
        {"hf": HubOptions()},
        {"hf": HubOptions(token="T", token_file=Path("token"))},
        {"fsspec": FsspecOptions(azure={"account_name": "node"})},
    ],
)
def test_settings_that_lead_to_an_identity_of_the_process_make_no_source(config: Config, found: dict[str, object]) -> None:
    """The last door, should settings of a caller ever come another way."""
    safe = Permission(LocalStore(config.root, NO_LIMITS).grants, config).config_of(Caller("a", "x", b"", config))
    registry = Registry(replace(safe, **found), lambda origin: None, expect_config=expect_own)  # type: ignore[arg-type]  # fields by name
    with pytest.raises(AccessDenied, match="identity"), registry.sources(*parse_uri("https://host/m")):
        pass


def test_a_damaged_key_of_the_node_is_told(config: Config) -> None:
    config.root.mkdir()
    with ModelCache(config=config) as cache:
        (config.root / "node.key").write_text("damaged")
        with pytest.raises(DamagedRecord, match="key"):
            cache.ensure("https://127.0.0.1:1/model", caller=Caller("a", "x", b"", config))


@pytest.mark.parametrize("fallback", [False, True])
def test_a_mirror_that_is_not_for_callers_is_no_way_around_it(tmp_path: Path, fallback: bool) -> None:
    """The owner's models come from the house; a caller's leave it only where the mirror says so."""
    (tmp_path / "house").mkdir()
    (tmp_path / "house" / "weights").write_bytes(b"house")
    with FaultServer() as server:
        server.put("/m/weights", b"original")
        mirrors = (Mirror(f"{server.endpoint}/m", f"file://{tmp_path}/house", fallback=fallback),)
        config = Config.load(environ={}, root=tmp_path / "root", mirrors=mirrors, limits=NO_LIMITS)
        with ModelCache(config=config) as cache:
            uri, caller = f"{server.endpoint}/m/weights", Caller("a", "x", b"", config)
            assert (cache.ensure(uri).path / "weights").read_bytes() == b"house"
            if fallback:
                assert (cache.ensure(uri, caller=caller).path / "weights").read_bytes() == b"original"
                return
            with pytest.raises(AccessDenied, match="file://"):
                cache.ensure(uri, caller=caller)
            assert cache.denials.by_code == {"access-denied": 1}
        assert server.received == []


@pytest.mark.parametrize("serves", [False, True])
def test_a_mirror_that_is_down_is_fallen_back_from_by_callers_too(tmp_path: Path, serves: bool) -> None:
    [closed] = free_ports(1)
    with FaultServer() as server:
        if serves:
            server.put("/m/weights", b"original")
        mirrors = (Mirror(f"{server.endpoint}/m", f"http://127.0.0.1:{closed}/m", fallback=True),)
        config = Config.load(
            environ={}, root=tmp_path / "root", mirrors=mirrors, retry=RetryLimits(base_s=0.001, attempts=2), limits=NO_LIMITS
        )
        with ModelCache(config=config) as cache:
            uri, caller = f"{server.endpoint}/m/weights", Caller("a", "x", b"", config)
            if serves:
                assert (cache.ensure(uri, caller=caller).path / "weights").read_bytes() == b"original"
                return
            with pytest.raises(AccessUnproved):
                cache.ensure(uri, caller=caller)
        assert server.received != []
