from __future__ import annotations

import dataclasses
import os
import pwd
import string
from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import given

import modelcache.config
from modelcache.abc.ingest import Route
from modelcache.abc.store import Limits
from modelcache.config import DEFAULT_ENGINE, DEFAULT_LIMITS, Config
from modelcache.errors import BadConfig
from modelcache.sources.huggingface import HubOptions
from modelcache.units import GIB

HOME = {"HOME": "/home/you"}


@pytest.fixture(autouse=True)
def no_node_store(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Whatever is on the machine of whoever runs the tests."""
    monkeypatch.setattr(modelcache.config, "NODE_ROOT", tmp_path_factory.getbasetemp() / "no-store")


def test_defaults() -> None:
    config = Config.load(HOME)
    token_file = Path("/home/you/.cache/huggingface/token")
    assert config == Config(root=Path("/home/you/.cache/modelcache"), hf=HubOptions(token_file=token_file))
    assert config.limits == DEFAULT_LIMITS
    assert config.engine == DEFAULT_ENGINE
    assert config.write_route is None
    engine = DEFAULT_ENGINE
    assert (engine.concurrency.most + engine.spare_buffers) * (4 << 20) <= 128 << 20  # what the comment beside it promises


def test_every_setting_of_ours() -> None:
    config = Config.load(
        {
            "MODELCACHE_ROOT": "/srv/cache",
            "MODELCACHE_MAX_BYTES": "200Gi",
            "MODELCACHE_HIGH_WATERMARK": "85%",
            "MODELCACHE_LOW_WATERMARK": "0.5",
            "MODELCACHE_REQUESTS": "3",
            "MODELCACHE_REFRESH_S": "0",
            "MODELCACHE_CONNECT_TIMEOUT_S": "2.5",
            "MODELCACHE_STALL_TIMEOUT_S": "7",
            "MODELCACHE_RETRY_DEADLINE_S": "11",
            "MODELCACHE_WRITE_ROUTE": "direct",
            "MODELCACHE_HTTP_CA_FILE": "/etc/ca-http.pem",
            "MODELCACHE_S3_ENDPOINT": "https://s3.example.org:9000",
            "MODELCACHE_S3_REGION": "eu-west-1",
            "MODELCACHE_S3_PROFILE": "work",
            "MODELCACHE_S3_CA_FILE": "/etc/ca-s3.pem",
            "MODELCACHE_S3_PATH_STYLE": "no",
            "MODELCACHE_S3_ANONYMOUS": "yes",
        }
    )
    assert config.root == Path("/srv/cache")
    assert config.limits == Limits(max_bytes=200 * GIB, high_watermark=0.85, low_watermark=0.5)
    bounds = config.engine.concurrency
    assert (bounds.start, bounds.least, bounds.most) == (3, 1, 3)
    assert config.refresh_s == 0
    assert (config.timeouts.connect_s, config.timeouts.stall_s, config.retry.deadline_s) == (2.5, 7, 11)
    assert config.write_route is Route.DIRECT
    assert config.http.ca_file == Path("/etc/ca-http.pem")
    s3 = config.s3
    assert (s3.endpoint, s3.region, s3.profile) == ("https://s3.example.org:9000", "eu-west-1", "work")
    assert (s3.ca_file, s3.path_style, s3.anonymous) == (Path("/etc/ca-s3.pem"), False, True)


def test_an_empty_variable_is_one_that_is_not_set() -> None:
    assert Config.load(HOME | dict.fromkeys(VARIABLES, "")) == Config.load(HOME)


def test_the_root(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert Config.load(HOME | {"XDG_CACHE_HOME": "/big/cache"}).root == Path("/big/cache/modelcache")
    assert Config.load(HOME | {"XDG_CACHE_HOME": "not/absolute"}).root == Path("/home/you/.cache/modelcache")
    monkeypatch.setattr(modelcache.config, "NODE_ROOT", tmp_path)
    assert Config.load(HOME).root == Path("/home/you/.cache/modelcache")  # no store there
    (tmp_path / "format").write_text("modelcache 1")
    assert Config.load(HOME).root == tmp_path
    monkeypatch.setattr(os, "getuid", lambda: tmp_path.stat().st_uid + 1)
    assert Config.load(HOME).root == Path("/home/you/.cache/modelcache")  # somebody else's
    assert Config.load(HOME | {"MODELCACHE_ROOT": "/srv"}).root == Path("/srv")


def test_a_user_id_without_a_home(monkeypatch: pytest.MonkeyPatch) -> None:
    """As containers give to programs: no HOME, and no entry in the table of users."""
    monkeypatch.setattr(modelcache.config, "NODE_ROOT", Path("/nowhere"))
    monkeypatch.setenv("HOME", "")  # an empty one is none
    assert Config.load({"HOME": ""}).root == Path(pwd.getpwuid(os.getuid()).pw_dir) / ".cache" / "modelcache"
    monkeypatch.setattr(os, "getuid", lambda: 4_000_000_000)
    assert Config.load({}).root == Config.load({"HOME": ""}).root == modelcache.config.NODE_ROOT
    assert Config.load({"MODELCACHE_ROOT": "/srv"}).root == Path("/srv")


@pytest.mark.parametrize(
    ("environ", "endpoint"),
    [
        ({"S3_ENDPOINT": "minio.kubeflow:9000", "S3_USE_HTTPS": "0"}, "http://minio.kubeflow:9000"),
        ({"S3_ENDPOINT": "minio.kubeflow:9000"}, "https://minio.kubeflow:9000"),
        ({"S3_ENDPOINT": "http://minio.kubeflow:9000", "S3_USE_HTTPS": "1"}, "http://minio.kubeflow:9000"),
        ({"S3_ENDPOINT": "low", "AWS_ENDPOINT_URL": "https://higher"}, "https://higher"),
        ({"AWS_ENDPOINT_URL": "https://low", "AWS_ENDPOINT_URL_S3": "https://higher"}, "https://higher"),
        ({"AWS_ENDPOINT_URL_S3": "https://low", "MODELCACHE_S3_ENDPOINT": "https://ours"}, "https://ours"),
        ({}, None),
    ],
)
def test_the_endpoint_ours_first_then_the_sdks_then_kserves(environ: dict[str, str], endpoint: str | None) -> None:
    assert Config.load(HOME | environ).s3.endpoint == endpoint


def test_kserves_flags() -> None:
    """`s3_secret.go` writes `true` and `false` and `1` and `0`; `false` for the virtual bucket leaves the style to the SDK."""
    assert Config.load(HOME | {"S3_USER_VIRTUAL_BUCKET": "true"}).s3.path_style is False
    assert Config.load(HOME | {"S3_USER_VIRTUAL_BUCKET": "false"}).s3.path_style is None
    assert Config.load(HOME | {"S3_USER_VIRTUAL_BUCKET": "true", "MODELCACHE_S3_PATH_STYLE": "1"}).s3.path_style is True
    assert Config.load(HOME | {"awsAnonymousCredential": "True"}).s3.anonymous is True
    assert Config.load(HOME | {"awsAnonymousCredential": "true", "MODELCACHE_S3_ANONYMOUS": "0"}).s3.anonymous is False


def test_kserves_headers_go_to_their_host_alone() -> None:
    """`https_secret.go` names the variable after the host; ours says all of it."""
    kserves = {"models.example.org-headers": '{"X-Key": "hunter2"}', "other:8443-headers": '{"Authorization": "Bearer x"}'}
    both = {"models.example.org": {"X-Key": "hunter2"}, "other:8443": {"Authorization": "Bearer x"}}
    assert Config.load(HOME | kserves).http.headers == both
    ours = {"MODELCACHE_HTTP_HEADERS": '{"elsewhere": {"X-Key": "1"}}'}
    assert Config.load(HOME | kserves | ours).http.headers == {"elsewhere": {"X-Key": "1"}}
    assert Config.load(HOME | {"host-headers": ""}).http.headers == {}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("host-headers", "X-Key: hunter2"),
        ("host-headers", '{"X-Key": "hunter2\\r\\nHost: other"}'),
        ("host-headers", '{"X Key": "hunter2"}'),
        ("host-headers", '["hunter2"]'),
        ("host-headers", '{"X-Key": ["hunter2"]}'),
        ("no/host-headers", '{"X-Key": "hunter2"}'),
        ("MODELCACHE_HTTP_HEADERS", '{"https://host": {"X-Key": "hunter2"}}'),
        ("MODELCACHE_HTTP_HEADERS", '{"host": "hunter2"}'),
        *(("MODELCACHE_HTTP_HEADERS", f'{{"host": {{"{header}": "hunter2"}}}}') for header in ("Host", "range", "If-Match", "Connection")),
        *(("host-headers", f'{{"{header}": "hunter2"}}') for header in ("Content-Length", "Transfer-Encoding")),
    ],
)
def test_headers_that_cannot_be_sent_are_told_without_their_values(name: str, text: str) -> None:
    with pytest.raises(BadConfig) as caught:
        Config.load(HOME | {name: text})
    assert name in caught.value.message
    assert "hunter2" not in f"{caught.value.as_dict()} {caught.value.__cause__} {caught.value.__context__}"


def test_proxies_in_either_case_the_lower_one_first() -> None:
    upper = {"HTTP_PROXY": "http://upper:1", "HTTPS_PROXY": "http://upper:2", "NO_PROXY": "upper"}
    lower = {"http_proxy": "http://lower:1", "https_proxy": "http://lower:2", "no_proxy": "lower"}
    for environ in (HOME | upper | lower, HOME | lower | upper):
        proxies = Config.load(environ).proxies
        assert (proxies.http, proxies.https, proxies.no_proxy) == ("http://lower:1", "http://lower:2", "lower")
    proxies = Config.load(HOME | upper | {"http_proxy": ""}).proxies
    assert (proxies.http, proxies.https, proxies.no_proxy) == ("http://upper:1", "http://upper:2", "upper")
    in_cgi = Config.load(HOME | upper | {"REQUEST_METHOD": "GET"}).proxies
    assert (in_cgi.http, in_cgi.https) == (None, "http://upper:2")


def test_the_process_environment_is_read_when_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODELCACHE_ROOT", "/from/the/environment")
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy:3128")
    config = Config.load()
    assert config.root == Path("/from/the/environment")
    assert config.proxies.https == "http://proxy:3128"


def test_what_is_given_by_name_wins() -> None:
    config = Config.load(HOME | {"MODELCACHE_ROOT": "/low", "MODELCACHE_REFRESH_S": "5"}, root=Path("/high"))
    assert (config.root, config.refresh_s) == (Path("/high"), 5)
    with pytest.raises(BadConfig, match="no such setting: roots"):
        Config.load(HOME, roots=Path("/high"))


def test_a_lower_high_watermark_takes_the_low_one_with_it() -> None:
    limits = Config.load(HOME | {"MODELCACHE_HIGH_WATERMARK": "0.7"}).limits
    assert (limits.high_watermark, limits.low_watermark) == (0.7, 0.7)
    with pytest.raises(BadConfig, match="watermark"):
        Config.load(HOME | {"MODELCACHE_HIGH_WATERMARK": "0.7", "MODELCACHE_LOW_WATERMARK": "0.8"})
    with pytest.raises(BadConfig, match="watermark"):
        Config.load(HOME, limits=Limits(None, high_watermark=1.5, low_watermark=0.5))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("MODELCACHE_MAX_BYTES", "lots"),
        ("MODELCACHE_MAX_BYTES", "-1"),
        ("MODELCACHE_MAX_BYTES", "9" * 400),
        ("MODELCACHE_HIGH_WATERMARK", "0"),
        ("MODELCACHE_HIGH_WATERMARK", "101%"),
        ("MODELCACHE_LOW_WATERMARK", "nan"),
        ("MODELCACHE_REQUESTS", "0"),
        ("MODELCACHE_REQUESTS", "257"),
        ("MODELCACHE_REQUESTS", "2.5"),
        ("MODELCACHE_REFRESH_S", "-1"),
        ("MODELCACHE_REFRESH_S", "soon"),
        ("MODELCACHE_STALL_TIMEOUT_S", "0"),
        ("MODELCACHE_CONNECT_TIMEOUT_S", "86400"),
        ("MODELCACHE_RETRY_DEADLINE_S", "inf"),
        ("MODELCACHE_WRITE_ROUTE", "sideways"),
        ("MODELCACHE_S3_PATH_STYLE", "perhaps"),
        ("MODELCACHE_S3_ANONYMOUS", "2"),
        ("awsAnonymousCredential", "maybe"),
        ("MODELCACHE_S3_ENDPOINT", "ftp://host"),
        ("AWS_ENDPOINT_URL", "nowhere"),
    ],
)
def test_a_value_that_makes_no_sense_is_told_with_the_variables_name(name: str, text: str) -> None:
    with pytest.raises(BadConfig, match=f"^{name}: ") as error:
        Config.load(HOME | {name: text})
    assert not error.value.retryable


def test_a_hint_is_not_lost() -> None:
    with pytest.raises(BadConfig) as error:
        Config.load(HOME | {"MODELCACHE_MAX_BYTES": "lots"})
    assert "200GiB" in (error.value.hint or "")


def test_no_secret_is_shown() -> None:
    """Proxies and endpoints are where people write passwords."""
    environ = HOME | {"HTTPS_PROXY": "http://me:hunter2@proxy:3128"}
    assert "hunter2" not in repr(Config.load(environ))
    with pytest.raises(BadConfig) as error:
        Config.load(environ | {"AWS_ENDPOINT_URL": "https://me:hunter2@s3.example.org"})
    assert "hunter2" not in f"{error.value} {error.value.as_dict()} {error.value.__cause__}"


VARIABLES = [
    *(f"MODELCACHE_{name}" for name in ("ROOT", "MAX_BYTES", "HIGH_WATERMARK", "LOW_WATERMARK", "REQUESTS", "REFRESH_S")),
    *(f"MODELCACHE_{name}" for name in ("CONNECT_TIMEOUT_S", "STALL_TIMEOUT_S", "RETRY_DEADLINE_S", "WRITE_ROUTE", "HTTP_CA_FILE")),
    *(f"MODELCACHE_S3_{name}" for name in ("ENDPOINT", "REGION", "PROFILE", "CA_FILE", "PATH_STYLE", "ANONYMOUS")),
    *("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_REGION", "AWS_DEFAULT_REGION", "AWS_PROFILE", "AWS_CA_BUNDLE"),
    *("S3_ENDPOINT", "S3_USE_HTTPS", "S3_USER_VIRTUAL_BUCKET", "awsAnonymousCredential", "XDG_CACHE_HOME", "https_proxy", "NO_PROXY"),
]
TEXTS = st.one_of(st.text(max_size=12), st.text(alphabet=string.digits + ".-%eGiBnaf", max_size=12), st.floats().map(str))


@given(st.dictionaries(st.sampled_from(VARIABLES), TEXTS))
def test_whatever_is_set_is_a_config_or_a_bad_config(environ: dict[str, str]) -> None:
    try:
        config = Config.load(HOME | environ)
    except BadConfig:
        return
    assert 0 < config.limits.low_watermark <= config.limits.high_watermark <= 1
    assert config.refresh_s >= 0
    assert dataclasses.is_dataclass(config)
