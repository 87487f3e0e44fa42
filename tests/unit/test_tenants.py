"""What a tenant's secret may hold, and what comes of it."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from daemonset.credentials import values_of, values_of_storage
from daemonset.tenants import NAMES, config_of_secret
from modelcache.config import Config
from modelcache.errors import BadConfig
from modelcache.k8s.api import Object
from modelcache.permission import Caller, expect_own
from modelcache.sources.gcs import GcsOptions
from modelcache.sources.http import HttpOptions
from modelcache.sources.huggingface import HubOptions
from modelcache.sources.retrying import RetryLimits
from modelcache.sources.s3 import S3Options
from modelcache.transport import Proxies

NODE = Config(
    root=Path("/store"),
    retry=RetryLimits(attempts=2),
    s3=S3Options(endpoint="https://minio:9000", region="here-1", profile="node", ca_file=Path("/ca.pem"), path_style=False),
    gs=GcsOptions(credentials_file=Path("/gs.json")),
    hf=HubOptions(endpoint="https://hub.inside", token="hf_NODE", token_file=Path("/token")),
    http=HttpOptions(headers={"models": {"Authorization": "NODE"}}),
    proxies=Proxies(http="http://NODE:NODE@proxy"),
)
KEYS = {"AWS_ACCESS_KEY_ID": "AK", "AWS_SECRET_ACCESS_KEY": "SK"}


def test_keys_become_the_tenant_s_and_nothing_of_the_node_s_is_in_it() -> None:
    secret = KEYS | {"AWS_SESSION_TOKEN": "ST\n", "HF_TOKEN": "hf_T\n", "CLOUDSDK_AUTH_ACCESS_TOKEN": "ya29.T"}
    found = config_of_secret(secret | {"host-headers": '{"X-Key": "1"}', "https-host": "other:8443", "headers": '{"X-Key": "2"}'}, NODE)
    assert (found.s3.access_key, found.s3.secret_key, found.s3.session_token, found.s3.anonymous) == ("AK", "SK", "ST", False)
    assert (found.hf.token, found.gs.access_token) == ("hf_T", "ya29.T")
    assert found.http.headers == {"host": {"X-Key": "1"}, "other:8443": {"X-Key": "2"}}
    assert Caller("a", "x", b"", found).own_config.s3 == found.s3
    assert (found.proxies, found.mirrors, found.retry) == (Proxies(), (), NODE.retry)
    expect_own(found)


def test_an_empty_secret_is_nobody_at_the_node_s_places(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Neither the environment nor a file of this machine says anything."""
    (tmp_path / "c.toml").write_text('[hf]\ntoken = "hf_ADMIN"\n')
    for name, text in (
        KEYS | {"HF_TOKEN": "hf_ADMIN", "MODELCACHE_CONFIG": str(tmp_path / "c.toml"), "AWS_ENDPOINT_URL": "http://e"}
    ).items():
        monkeypatch.setenv(name, text)
    found = config_of_secret({"AWS_ACCESS_KEY_ID": ""}, NODE)
    expect_own(found)
    assert (found.s3.anonymous, found.gs.anonymous, found.hf.anonymous, found.http.headers) == (True, True, True, {})
    assert found.s3 == S3Options(endpoint="https://minio:9000", region="here-1", path_style=False, ca_file=Path("/ca.pem"), anonymous=True)
    assert (found.hf.endpoint, found.hf.token, found.hf.token_file) == ("https://hub.inside", None, None)


@pytest.mark.parametrize(
    ("secret", "endpoint", "region"),
    [
        ({"S3_ENDPOINT": "mine:9000"}, "https://mine:9000", "us-east-1"),
        ({"S3_ENDPOINT": "mine:9000", "S3_USE_HTTPS": "0", "AWS_DEFAULT_REGION": "x-1"}, "http://mine:9000", "x-1"),
        ({"S3_ENDPOINT": "mine", "AWS_ENDPOINT_URL": "http://two", "AWS_ENDPOINT_URL_S3": "http://one"}, "http://one", "us-east-1"),
    ],
)
def test_an_endpoint_of_the_tenant_s_has_nothing_of_the_node_s_but_its_ca(secret: dict[str, str], endpoint: str, region: str) -> None:
    found = config_of_secret(secret | KEYS, NODE).s3
    assert found == S3Options(endpoint=endpoint, region=region, access_key="AK", secret_key="SK", ca_file=Path("/ca.pem"))


def test_kserve_s_switches() -> None:
    found = config_of_secret(KEYS | {"S3_VERIFY_SSL": "0", "S3_USER_VIRTUAL_BUCKET": "true", "awsAnonymousCredential": "true"}, NODE).s3
    assert (found.verify_tls, found.path_style, found.anonymous, found.access_key) == (False, False, True, None)


@pytest.mark.parametrize(
    "name",
    ["MODELCACHE_CONFIG", "MODELCACHE_MIRRORS", "AWS_CA_BUNDLE", "MODELCACHE_S3_CA_FILE", "AWS_PROFILE", "HF_TOKEN_PATH", "HOME",
     "https_proxy", "GOOGLE_APPLICATION_CREDENTIALS", "gcloud-application-credentials.json", "MODELCACHE_FSSPEC_AZ", "NO_PROXY"],
)  # fmt: skip
def test_other_names_are_refused_by_name(name: str) -> None:
    with pytest.raises(BadConfig, match=name) as caught:
        config_of_secret(KEYS | {name: "/hunter2"}, NODE)
    assert "hunter2" not in json.dumps(caught.value.as_dict())


def secret(**data: str) -> Object:
    return {"metadata": {"name": "s"}, "data": {name: base64.b64encode(text.encode()).decode() for name, text in data.items()}}


WORKLOAD = {"AZURE_CLIENT_ID": "me", "AZURE_TENANT_ID": "t"}


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (KEYS | WORKLOAD, KEYS),
        (KEYS | {"TLS_CERT": "of a web server", "HEADERS": "x"}, KEYS),
        ({"HDFS_NAMENODE": "http://nn:1", "USER_PROXY": "u"}, {"HDFS_NAMENODE": "http://nn:1", "USER_PROXY": "u"}),
        ({"AZURE_STORAGE_ACCESS_KEY": "QUJD"}, {"AZURE_STORAGE_ACCESS_KEY": "QUJD"}),
        (WORKLOAD, None),
        ({"HDFS_NAMENODE": "http://nn:1", "KERBEROS_PRINCIPAL": "u"}, None),
        ({"MODELSCOPE_API_TOKEN": "x"}, None),
    ],
)
def test_of_a_service_account_s_secret_that_is_taken_which_says_who(data: dict[str, str], found: dict[str, str] | None) -> None:
    if found is not None:
        assert values_of(secret(**data), NODE) == found
        return
    with pytest.raises(BadConfig):
        values_of(secret(**data), NODE)


def test_an_entry_of_the_storage_secret_for_hdfs() -> None:
    told = {"type": "webhdfs", "HDFS_NAMENODE": "http://nn:1", "TLS_CA": base64.b64encode(b"PEM").decode(), "somebody-elses": "x"}
    found = values_of_storage(json.dumps(told), {"HDFS_ROOTPATH": "/m"}, "the entry")
    assert found == {"HDFS_NAMENODE": "http://nn:1", "TLS_CA": "PEM", "HDFS_ROOTPATH": "/m"}
    with pytest.raises(BadConfig, match="TLS_CA") as refused:
        values_of_storage(json.dumps(told | {"TLS_CA": "hunter2!"}), {}, "the entry")
    assert "hunter2" not in json.dumps(refused.value.as_dict())


@settings(max_examples=200, deadline=None)
@given(st.sampled_from([*NAMES, "host-headers", "b@d host-headers", "https-host", "headers"]), st.text(min_size=3))
def test_no_value_is_in_an_error_and_no_settings_lead_to_the_process(name: str, rest: str) -> None:
    """Whatever is in the secret."""
    pair = {"https-host": "headers", "headers": "https-host"}.get(name, name)
    try:
        expect_own(config_of_secret({name: f"hunter2{rest}", pair: "hunter2"}, NODE))
    except BadConfig as error:
        told = json.dumps(error.as_dict())
    else:
        told = ""
    assert "hunter2" not in told
