"""What a caller's sources are made of: what it brings, and nothing of this process or machine."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from modelcache.abc.source import Origin
from modelcache.cache import ModelCache
from modelcache.config import Config
from modelcache.errors import AccessDenied, AccessUnproved, BadConfig, DamagedRecord
from modelcache.mirrors import Mirror
from modelcache.permission import CALLERS_SCHEMES, Caller, Permission
from modelcache.registry import SCHEMES
from modelcache.sources.gcs import GcsOptions
from modelcache.sources.http import REQUESTS_OWN, HttpOptions
from modelcache.sources.huggingface import HubOptions
from modelcache.sources.retrying import RetryLimits
from modelcache.sources.s3 import S3Options
from modelcache.store.store import LocalStore
from modelcache.testing.fault_server import FaultServer
from modelcache.testing.guarded_source import GuardedSource
from modelcache.testing.memory_source import MemorySource
from modelcache.testing.servers.ports import free_ports
from modelcache.testing.store_fixtures import NO_LIMITS
from modelcache.transport import Proxies
from modelcache.uri import UriSecrets, parse_uri


@pytest.fixture
def config(tmp_path: Path) -> Config:
    """Settings of a machine that has identities of its own."""
    return Config(
        root=tmp_path / "root",
        s3=S3Options(profile="node"),
        gs=GcsOptions(credentials_file=tmp_path / "gs.json"),
        hf=HubOptions(token_file=tmp_path / "token"),
        mirrors=(Mirror("hf://", "s3://mirror/", profile="node"), Mirror("https://host/", "file:///srv/")),
    )


def test_a_caller_without_keys_is_anonymous_everywhere(config: Config) -> None:
    own = Caller("a", "x", b"", config).own_config
    assert (own.s3.profile, own.s3.anonymous) == (None, True)
    assert (own.gs.credentials_file, own.gs.anonymous) == (None, True)
    assert (own.hf.token_file, own.hf.anonymous) == (None, True)
    assert [(mirror.profile, mirror.credentials_file) for mirror in own.mirrors] == [(None, None), (None, None)]


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


@pytest.mark.parametrize("name", sorted(REQUESTS_OWN))
def test_a_caller_s_headers_do_not_say_what_is_asked_of_whom(name: str) -> None:
    with pytest.raises(BadConfig, match=name):
        HttpOptions(headers={"host": {"X-Key": "1", name: "hunter2"}})


@pytest.mark.parametrize("scheme", [*(scheme for scheme in SCHEMES if scheme not in CALLERS_SCHEMES), "az", "memory", "hdfs"])
def test_what_this_machine_would_read_with_its_own_identity_is_refused(config: Config, scheme: str) -> None:
    with ModelCache(config=config) as cache, pytest.raises(AccessDenied) as caught:
        cache.ensure(f"{scheme}:///place/model" if scheme == "file" else f"{scheme}://place/model", caller=Caller("a", "x", b"", config))
    assert caught.value.hint is not None
    assert not (config.root / "node.key").exists()


def test_detours_of_a_caller_s_own_are_other_origins_and_one_s_own_for_all_who_take_them(config: Config) -> None:
    store = LocalStore(config.root, NO_LIMITS)
    permission = Permission(store.grants, config)
    source = GuardedSource(MemorySource({}), lambda path: True)
    asked = (parse_uri("s3://bucket/model")[0], UriSecrets())

    def origin(who: str, settings: Config) -> str:
        return permission.admit(Caller(who, "x", who.encode(), settings), asked, source, again=False).key.origin

    straight = replace(config, s3=S3Options(access_key="AK", secret_key="secret"))
    proxied = replace(config, proxies=Proxies(http="http://user:password@proxy:3128"))
    other = replace(config, proxies=Proxies(http="http://user:other@proxy:3128"))
    mirrored = replace(config, mirrors=(Mirror("s3://bucket/", "s3://elsewhere/"),))
    assert {origin("a", straight), origin("b", config)} == {str(Origin("memory://origin:1"))}
    ways = [origin("a", settings) for settings in (straight, proxied, other, mirrored)]
    assert len(set(ways)) == 4
    assert not any("password" in way or "proxy:3128" in way for way in ways)
    assert origin("b", proxied) == ways[1]


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
        config = Config.load(environ={}, root=tmp_path / "root", mirrors=mirrors)
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
        config = Config.load(environ={}, root=tmp_path / "root", mirrors=mirrors, retry=RetryLimits(base_s=0.001, attempts=2))
        with ModelCache(config=config) as cache:
            uri, caller = f"{server.endpoint}/m/weights", Caller("a", "x", b"", config)
            if serves:
                assert (cache.ensure(uri, caller=caller).path / "weights").read_bytes() == b"original"
                return
            with pytest.raises(AccessUnproved):
                cache.ensure(uri, caller=caller)
        assert server.received != []
