"""fsspec's names of options, as settings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from modelcache.config import Config
from modelcache.errors import BadConfig
from modelcache.integrations.options import configured
from modelcache.sources.s3 import S3Options

SECRET = "never-to-be-shown"


@pytest.fixture
def config() -> Config:
    return Config.load(environ={"HOME": "/nowhere", "AWS_PROFILE": "work"})


def test_s3fs_options(config: Config) -> None:
    options = {
        "username": "AK",
        "password": SECRET,
        "token": "T",
        "anon": False,
        "endpoint_url": "https://s3.example.org",
        "client_kwargs": {"region_name": "eu-west-1", "verify": "/etc/ca.pem"},
        "config_kwargs": {"s3": {"addressing_style": "path"}},
        "version_aware": True,
        "use_listings_cache": False,
    }

    assert configured(config, "s3", options).s3 == S3Options(
        endpoint="https://s3.example.org",
        region="eu-west-1",
        path_style=True,
        ca_file=Path("/etc/ca.pem"),
        access_key="AK",
        secret_key=SECRET,
        session_token="T",
    )
    nobody = configured(config, "s3", {"anon": True, "client_kwargs": {"endpoint_url": "http://a:1", "verify": False}}).s3
    assert (nobody.anonymous, nobody.profile, nobody.endpoint, nobody.verify_tls) == (True, None, "http://a:1", False)
    assert configured(config, "s3", {"profile": "other"}).s3.profile == "other"
    assert configured(config, "s3", {}) == config


def test_gcsfs_options(config: Config, tmp_path: Path) -> None:
    (tmp_path / "key.json").write_text("{}")

    assert configured(config, "gs", {"token": "anon", "project": "p"}).gs.anonymous
    assert configured(config, "gs", {"token": str(tmp_path / "key.json")}).gs.credentials_file == tmp_path / "key.json"
    assert configured(config, "gs", {"token": "google_default", "endpoint_url": "http://a:1"}).gs.endpoint == "http://a:1"
    with pytest.raises(BadConfig) as raised:
        configured(config, "gs", {"token": SECRET})
    assert SECRET not in str(raised.value.as_dict())


def test_hub_options(config: Config) -> None:
    hub = configured(config, "hf", {"token": "hf_abc", "endpoint": "https://hub.example.org"}).hf

    assert (hub.token, hub.endpoint, hub.anonymous) == ("hf_abc", "https://hub.example.org", False)
    assert configured(config, "hf", {"token": False}).hf.anonymous
    assert configured(config, "hf", {"token": True}) == config


def test_options_of_what_is_read_through_fsspec_go_there(config: Config) -> None:
    found = configured(config, "abfs", {"account_name": "models", "account_key": SECRET})

    assert found.fsspec.storage == {"abfs": {"account_name": "models", "account_key": SECRET}}
    assert SECRET not in repr(found)
    assert configured(config, "abfs", {}) == config


@pytest.mark.parametrize(
    ("scheme", "options"),
    [
        ("s3", {"sse_key": SECRET}),
        ("s3", {"client_kwargs": SECRET}),
        ("s3", {"config_kwargs": {"proxies": {"http": SECRET}}}),
        ("s3", {"config_kwargs": {"s3": {"addressing_style": "sideways"}}}),
        ("s3", {"key": "AK"}),
        ("http", {"client_kwargs": {"headers": {"Authorization": SECRET}}}),
        ("file", {"auto_mkdir": True}),
        (None, {"cache_storage": "/tmp/x"}),
    ],
)
def test_what_can_t_be_honoured_is_refused_and_not_shown(config: Config, scheme: str | None, options: dict[str, Any]) -> None:
    with pytest.raises(BadConfig) as raised:
        configured(config, scheme, options)

    assert SECRET not in str(raised.value.as_dict())
