"""Where no caller's URI may lead. Loopback stands for the refused network: it is the one that there is."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from modelcache.cache import ModelCache
from modelcache.config import DEFAULT_TRUST, Config
from modelcache.errors import AccessUnproved, AddressRefused, BadConfig
from modelcache.permission import Caller
from modelcache.sources.retrying import RetryLimits
from modelcache.testing import faults
from modelcache.testing.fault_server import FaultServer
from modelcache.testing.store_fixtures import NO_LIMITS
from modelcache.transport import Proxies


def config_of(root: Path, *networks: str) -> Config:
    return Config.load(
        environ={},
        root=root,
        limits=NO_LIMITS,
        retry=RetryLimits(base_s=0.001, attempts=2),
        trust=replace(DEFAULT_TRUST, refused_networks=networks),
    )


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "0.0.0.0", "127.1", "[::ffff:127.0.0.1]"])
def test_neither_an_address_nor_a_name_leads_there(tmp_path: Path, host: str) -> None:
    config = config_of(tmp_path / "root", "127.0.0.0/8", "::1/128")
    with FaultServer() as server, ModelCache(config=config) as cache:
        server.put("/weights", b"of the node")
        uri = f"{server.at(host)}/weights"
        with pytest.raises(AddressRefused) as caught:
            cache.ensure(uri, caller=Caller("a", "x", b"", config))
        assert caught.value.retryable is False
        assert (server.connections, cache.denials.by_code) == (0, {"address-refused": 1})
        if ":" not in host:  # the server has no address of the sixth version
            assert (cache.ensure(uri).path / "weights").read_bytes() == b"of the node"  # the owner's own goes wherever the owner says


def test_no_redirect_leads_there(tmp_path: Path) -> None:
    config = config_of(tmp_path / "root", "127.0.0.2/32")
    with FaultServer() as server, ModelCache(config=config) as cache:
        server.put("/secret", b"of the node")
        server.fail("/weights", faults.redirect(f"{server.at('127.0.0.2')}/secret"))
        with pytest.raises(AddressRefused, match=r"127\.0\.0\.2"):
            cache.ensure(f"{server.endpoint}/weights", caller=Caller("a", "x", b"", config))
        assert {received.target for received in server.received} == {"/weights"}


@pytest.mark.parametrize(
    "address",
    [
        *("169.254.169.254", "fe80::1%eth0", "fd00:ec2::254", "100.100.100.200", "169.254.170.2"),
        *("::ffff:169.254.169.254", "64:ff9b::a9fe:a9fe", "64:ff9b:1::a9fe:a9fe", "2002:a9fe:a9fe::1", "::169.254.169.254"),
        *("2001:0:a9fe:a9fe::1", "2852039166", "0xa9fea9fe", "169.254.43518", "169.254.169.254."),
    ],
)
def test_where_clouds_give_out_credentials_is_refused_unless_somebody_says_otherwise(address: str) -> None:
    assert Proxies(refused_networks=DEFAULT_TRUST.refused_networks).refuses(address)
    assert not Proxies().refuses(address)


@pytest.mark.parametrize(
    "address", ["8.8.8.8", "2606:4700::1111", "64:ff9b::808:808", "2002:808:808::1", "::1", "models.example.org", "169", ""]
)
def test_others_are_not(address: str) -> None:
    assert not Proxies(refused_networks=DEFAULT_TRUST.refused_networks).refuses(address)


def test_a_proxy_of_a_caller_s_own_does_not_lead_there(tmp_path: Path) -> None:
    """Whoever names the proxy says where the bytes come from; the node's own may be where it likes."""
    config = config_of(tmp_path / "root", "127.0.0.0/8")
    uri = "http://models.invalid/weights"
    with FaultServer() as server:
        server.put(uri, b"of the node")
        proxied = replace(config, proxies=Proxies(http=server.endpoint))
        with ModelCache(config=config) as cache:
            with pytest.raises(AccessUnproved):
                cache.ensure(uri, caller=Caller("a", "x", b"", proxied))
            assert server.connections == 0
        with ModelCache(config=proxied) as cache:
            assert (cache.ensure(uri, caller=Caller("a", "x", b"", config)).path / "weights").read_bytes() == b"of the node"


def test_networks_are_read_from_the_environment() -> None:
    assert Config.load({"HOME": "/nowhere", "MODELCACHE_REFUSED_NETWORKS": "10.0.0.0/8, ::1"}).trust.refused_networks == (
        "10.0.0.0/8",
        "::1/128",
    )
    with pytest.raises(BadConfig, match="network"):
        Config.load({"HOME": "/nowhere", "MODELCACHE_REFUSED_NETWORKS": "10.0.0.1/8"})
