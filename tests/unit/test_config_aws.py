"""When the AWS SDK is left out: where it would find nothing that isn't in plain sight."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from modelcache.config import Config
from modelcache.sources.s3 import Key, S3Source
from modelcache.sources.s3.fixed import FixedEndpoint

PLAIN = {
    "HOME": "/nowhere",
    "AWS_ENDPOINT_URL": "http://127.0.0.1:9",
    "AWS_ACCESS_KEY_ID": "AK",
    "AWS_SECRET_ACCESS_KEY": "SK",
    "AWS_SESSION_TOKEN": "T",
}


def test_a_key_in_the_environment_and_an_endpoint_are_enough() -> None:
    s3 = Config.load(PLAIN).s3
    assert (s3.complete, s3.key, s3.region) == (True, Key("AK", "SK", "T"), "us-east-1")
    assert set(s3.secrets) == {"AK", "SK", "T"}
    assert "SK" not in repr(s3)
    source = S3Source(s3)
    assert isinstance(source._control, FixedEndpoint)
    source.close()


@pytest.mark.parametrize(("older", "token"), [("OLD", "OLD"), ("", None)])
def test_the_older_name_of_the_session_token_goes_first_as_in_the_sdk(older: str, token: str | None) -> None:
    assert Config.load({**PLAIN, "AWS_SECURITY_TOKEN": older}).s3.key == Key("AK", "SK", token)


@pytest.mark.parametrize(
    "more",
    [
        {"AWS_ENDPOINT_URL": ""},  # Amazon's: rules of its own for endpoints
        {"AWS_PROFILE": "work"},  # names another key than the environment's
        {"AWS_SECRET_ACCESS_KEY": ""},
        {"AWS_CREDENTIAL_EXPIRATION": "2030-01-01T00:00:00Z"},  # is read again by the SDK
        {"S3_USER_VIRTUAL_BUCKET": "1"},
    ],
)
def test_the_sdk_is_asked_for_the_rest(more: Mapping[str, str]) -> None:
    assert not Config.load({**PLAIN, **more}).s3.complete


def test_a_file_of_the_sdk_may_name_a_region(tmp_path: Path) -> None:
    (tmp_path / ".aws").mkdir()
    (tmp_path / ".aws" / "config").write_text("[default]\nregion = eu-west-1\n")
    at_home = {**PLAIN, "HOME": str(tmp_path)}
    assert Config.load(at_home).s3.region is None
    assert Config.load({**at_home, "AWS_CONFIG_FILE": "/nowhere/config"}).s3.complete
    assert Config.load({**at_home, "AWS_REGION": "eu-west-2"}).s3.complete


def test_anonymous_access_and_a_key_of_a_caller_take_its_place() -> None:
    s3 = Config.load(PLAIN).s3
    assert (replace(s3, anonymous=True).complete, replace(s3, anonymous=True).key) == (True, None)
    assert replace(s3, access_key="OTHER", secret_key="S").key == Key("OTHER", "S", None)
    assert replace(s3, profile="work").key is None


def test_a_listing_without_the_sdk_imports_none_of_it(tmp_path: Path) -> None:
    program = """
import sys
from modelcache.cache import ModelCache
from modelcache.errors import OriginUnreachable
with ModelCache(sys.argv[1]) as cache:
    try:
        cache.ensure("s3://bucket/model")
    except OriginUnreachable:
        pass
print(sorted({"botocore", "awscrt", "boto3", "torch", "fsspec"} & sys.modules.keys()))
"""
    ran = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "store")],
        env={**PLAIN, "HOME": str(tmp_path), "MODELCACHE_RETRY_DEADLINE_S": "1"},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert ran.stdout.strip() == "[]"
