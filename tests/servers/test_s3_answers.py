"""The S3 source where the network or the store's answers are not as hoped for."""

from __future__ import annotations

import socket
import threading
from dataclasses import replace

import pytest

from modelcache.config import Config
from modelcache.errors import (
    AccessDenied,
    Cancelled,
    ModelCacheError,
    NotFound,
    OriginBusy,
    OriginUnreachable,
    ProtocolViolation,
    SourceChanged,
)
from modelcache.patience import Cancellation
from modelcache.sources.s3 import S3Options
from modelcache.testing.fault_server import FaultServer
from modelcache.testing.listings import listing_of
from modelcache.testing.s3_sources import REGIONS, options_of, proxied, source_of
from modelcache.testing.servers import PUBLIC_BUCKET, Certificate, Nginx, NginxOptions, SeaweedFS
from modelcache.testing.servers.ports import LOOPBACK, free_ports
from modelcache.testing.source_contract import read
from modelcache.transport import Proxies, Timeouts
from modelcache.uri import parse_uri

BODY = b"weights of a model"


@pytest.fixture(params=list(REGIONS.values()), ids=list(REGIONS))
def region(request: pytest.FixtureRequest) -> str | None:
    """Of the settings: it decides by whom the control plane is asked."""
    found: str | None = request.param
    return found


# -- region, network ------------------------------------------------------------------------------------------------


def test_a_wrong_region_is_corrected_once(region: str | None, seaweedfs: SeaweedFS, filled: str) -> None:
    """nginx answers as S3 does to a request that is signed for another region than the bucket's; then SeaweedFS checks the signature."""
    refusal = "<Error><Code>AuthorizationHeaderMalformed</Code><Region>eu-central-1</Region></Error>"
    more = (
        "location ~ ^/bucket- { proxy_set_header Host $http_host;"
        ' if ($http_authorization !~ "/eu-central-1/s3/") { add_header x-amz-bucket-region eu-central-1 always;'
        f" return 400 '{refusal}'; }} proxy_pass {seaweedfs.endpoint}; }}"
    )
    with proxied(seaweedfs, more) as proxy, source_of(options_of(seaweedfs, region=region, endpoint=proxy.endpoint)) as source:
        [file] = listing_of(source, filled).files
        assert read(source, file) == BODY
        refused = [request for request in proxy.requests() if request.status == 400]
        assert len(refused) == 1
        [single] = listing_of(source, f"{filled}/f").files
        assert read(source, single) == BODY
        assert {request.status for request in proxy.requests()} <= {200, 206}


def test_a_region_that_can_not_be_corrected_is_an_error(region: str | None, seaweedfs: SeaweedFS, filled: str) -> None:
    more = "if ($http_authorization) { return 400 '<Error><Code>AuthorizationHeaderMalformed</Code><Region>eu-west-9</Region></Error>'; }"
    with proxied(seaweedfs, more) as proxy, source_of(options_of(seaweedfs, region=region, endpoint=proxy.endpoint)) as source:
        with pytest.raises(AccessDenied, match="another region"):
            listing_of(source, filled)
        assert len(proxy.requests()) < 12


@pytest.mark.parametrize(
    ("made", "asked"),
    [
        (S3Options(region="eu-central-1"), "https://bucket.s3.eu-central-1.amazonaws.com:443"),
        (S3Options(region="eu-central-1", path_style=True), "https://s3.eu-central-1.amazonaws.com:443"),
        (S3Options(endpoint="https://store.example"), "https://store.example:443"),
        (S3Options(endpoint="https://store.example:9", path_style=False), "https://bucket.store.example:9"),
    ],
)
def test_the_bucket_is_addressed_as_asked(made: S3Options, asked: str) -> None:
    """Where the first request would go, were the proxy there; the origin never has the bucket in it."""
    [port] = free_ports(1)
    made = replace(made, access_key="AK", secret_key="SK")
    with source_of(made, proxies=Proxies(https=f"http://{LOOPBACK}:{port}")) as source:
        assert source.origin.endpoint == asked.replace("bucket.", "")
        with pytest.raises(OriginUnreachable) as caught:
            listing_of(source, "s3://bucket/m/f")
        assert caught.value.address == asked


def test_a_gateway_may_have_a_path(region: str | None, seaweedfs: SeaweedFS) -> None:
    seaweedfs.make_public_bucket()
    seaweedfs.put(PUBLIC_BUCKET, "gate/f g", BODY)
    with (
        proxied(seaweedfs, f"location /s3/ {{ proxy_pass {seaweedfs.endpoint}/; }}") as proxy,
        source_of(S3Options(endpoint=f"{proxy.endpoint}/s3/", region=region, anonymous=True)) as source,
    ):
        assert read(source, listing_of(source, f"s3://{PUBLIC_BUCKET}/gate").files[0]) == BODY
        assert {request.target.startswith("/s3/") for request in proxy.requests()} == {True}


def test_both_planes_go_through_a_proxy(region: str | None, seaweedfs: SeaweedFS, filled: str) -> None:
    """The endpoint's name can't be resolved: only the proxy knows the way."""
    with (
        proxied(seaweedfs, "") as proxy,
        source_of(options_of(seaweedfs, region=region, endpoint="http://store.invalid"), proxies=Proxies(http=proxy.endpoint)) as source,
    ):
        assert read(source, listing_of(source, filled).files[0]) == BODY
        assert {request.method for request in proxy.requests()} == {"GET", "HEAD"}


def test_tls_with_a_ca_of_one_s_own(region: str | None, seaweedfs: SeaweedFS, filled: str, certificate: Certificate) -> None:
    with Nginx(seaweedfs.directory, NginxOptions(upstream=seaweedfs.endpoint, certificate=certificate)) as proxy:
        endpoint = f"https://localhost:{proxy.port}"
        trusting = replace(options_of(seaweedfs, region=region, endpoint=endpoint), ca_file=certificate.ca)
        with source_of(trusting) as source:
            assert read(source, listing_of(source, filled).files[0]) == BODY
            assert (source.origin.endpoint, len(source.origin.ca_sha256 or "")) == (endpoint, 64)
        with source_of(replace(trusting, endpoint=seaweedfs.endpoint)) as source:
            assert str(source.origin) == seaweedfs.endpoint  # over plain http no CA vouches for anything
        with source_of(options_of(seaweedfs, region=region, endpoint=endpoint)) as source, pytest.raises(OriginUnreachable):
            listing_of(source, filled)
        kserves = Config.load({"HOME": "/nowhere", "S3_VERIFY_SSL": "0", "AWS_CA_BUNDLE": "/absent"}).s3
        believing = replace(options_of(seaweedfs, region=region, endpoint=endpoint), verify_tls=kserves.verify_tls, ca_file=kserves.ca_file)
        with source_of(believing) as source:
            assert read(source, listing_of(source, filled).files[0]) == BODY
            assert str(source.origin) == f"{endpoint}#unverified"  # its refs are not those of the endpoint that was verified


def test_nobody_answers(region: str | None, seaweedfs: SeaweedFS, filled: str) -> None:
    [port] = free_ports(1)
    endpoint = f"http://{LOOPBACK}:{port}"
    with source_of(options_of(seaweedfs, region=region, endpoint=endpoint)) as source, pytest.raises(OriginUnreachable) as caught:
        listing_of(source, filled)
    assert f"{LOOPBACK}:{port}" in str(caught.value)


def test_listing_is_cancelled_while_it_waits(region: str | None, seaweedfs: SeaweedFS, filled: str) -> None:
    cancel = Cancellation()
    outcome: list[BaseException] = []
    with socket.create_server((LOOPBACK, 0)) as silent:
        endpoint = f"http://{LOOPBACK}:{silent.getsockname()[1]}"
        with source_of(options_of(seaweedfs, region=region, endpoint=endpoint), timeouts=Timeouts(stall_s=3600)) as source:

            def run() -> None:
                try:
                    source.list(parse_uri(filled)[0], cancel)
                except BaseException as error:
                    outcome.append(error)

            thread = threading.Thread(target=run)
            thread.start()
            connection, _ = silent.accept()
            with connection:
                assert connection.recv(1)
                cancel.cancel()
                thread.join()
    assert isinstance(outcome[0], Cancelled)


# -- answers --------------------------------------------------------------------------------------------------------


def _list_answer(body: str, status: int = 200) -> str:
    return f"if ($args ~ list-type) {{ return {status} '{body}'; }}"


OTHER_KEY = "<ListBucketResult><Contents><Key>other</Key><Size>1</Size></Contents></ListBucketResult>"
NO_TOKEN = "<ListBucketResult><IsTruncated>true</IsTruncated></ListBucketResult>"
SAME_TOKEN = "<ListBucketResult><IsTruncated>true</IsTruncated><NextContinuationToken>t</NextContinuationToken></ListBucketResult>"


@pytest.mark.parametrize(
    ("more", "error"),
    [
        ("return 503 '<Error><Code>SlowDown</Code></Error>';", OriginBusy),
        ("return 500;", OriginBusy),
        ("if ($request_method = HEAD) { return 503; }", OriginBusy),
        ("if ($request_method = HEAD) { return 404; }", SourceChanged),
        (_list_answer("no xml at all"), ProtocolViolation),
        (_list_answer("<html><body>please sign in</body></html>"), ProtocolViolation),
        (_list_answer("<ListBucketResult><Contents>"), OriginBusy),
        (_list_answer("<Error><Code>InternalError</Code></Error>"), OriginBusy),
        (_list_answer(OTHER_KEY), ProtocolViolation),
        (_list_answer(NO_TOKEN), ProtocolViolation),
        (_list_answer(SAME_TOKEN), ProtocolViolation),
        (_list_answer("<Error><Code>AllAccessDisabled</Code></Error>", 403), AccessDenied),
        (_list_answer("<Error><Code>ExpiredToken</Code></Error>", 400), AccessDenied),
        (_list_answer("<Error><Code>InvalidRequest</Code></Error>", 400), ProtocolViolation),
        (_list_answer("http://other.invalid/", 307), ProtocolViolation),
    ],
)
def test_answers_that_are_no_listing(
    region: str | None, seaweedfs: SeaweedFS, filled: str, more: str, error: type[ModelCacheError]
) -> None:
    with proxied(seaweedfs, more) as proxy, source_of(options_of(seaweedfs, region=region, endpoint=proxy.endpoint)) as source:
        with pytest.raises(error):
            listing_of(source, filled)
        assert len(proxy.requests()) < 20


def test_one_key_is_readable_without_the_right_to_list(region: str | None, seaweedfs: SeaweedFS, filled: str) -> None:
    denied = "if ($args ~ list-type) { return 403 '<Error><Code>AccessDenied</Code></Error>'; }"
    with proxied(seaweedfs, denied) as proxy, source_of(options_of(seaweedfs, region=region, endpoint=proxy.endpoint)) as source:
        assert read(source, listing_of(source, f"{filled}/f").files[0]) == BODY
        with pytest.raises(AccessDenied):
            listing_of(source, filled)


def test_a_denied_head_of_the_prefix_itself_does_not_matter(region: str | None, seaweedfs: SeaweedFS, filled: str) -> None:
    """Without the right to list the prefix' own name, S3 denies a HEAD of what doesn't exist."""
    denied = "location ~ ^/[^/]+/[^/]+/m$ { return 403; }"
    with proxied(seaweedfs, denied) as proxy, source_of(options_of(seaweedfs, region=region, endpoint=proxy.endpoint)) as source:
        assert read(source, listing_of(source, filled).files[0]) == BODY
    nothing = denied + " if ($args ~ list-type) { return 200 '<ListBucketResult></ListBucketResult>'; }"
    with (
        proxied(seaweedfs, nothing) as proxy,
        source_of(options_of(seaweedfs, region=region, endpoint=proxy.endpoint)) as source,
        pytest.raises(AccessDenied),
    ):
        listing_of(source, filled)


def test_a_missing_object_of_a_version_is_not_found(region: str | None, seaweedfs: SeaweedFS, filled: str) -> None:
    with source_of(options_of(seaweedfs, region=region)) as source, pytest.raises(NotFound):
        listing_of(source, f"{filled}/nothing?versionId=0123")


# -- listings that no store should give ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fields",
    [
        "<Size>-5</Size>",
        f"<Size>{1 << 63}</Size>",
        f"<Size>{10**400}</Size>",
        "",
        "<Size>5</Size><LastModified>0001-01-01T00:00:00</LastModified>",
        "<Size>1e3</Size>",
        "<Size>5</Size><LastModified>soon</LastModified>",
    ],
)
def test_a_listed_size_or_time_that_nothing_has_is_refused(region: str | None, fields: str) -> None:
    """A size below nothing would be booked as room that comes free."""
    entries = f"<Contents><Key>m/a</Key><Size>3</Size></Contents><Contents><Key>m/b</Key>{fields}</Contents>"
    body = f"<ListBucketResult><IsTruncated>false</IsTruncated>{entries}</ListBucketResult>".encode()
    options = S3Options(region=region, access_key="key", secret_key="secret")
    with FaultServer() as server:
        server.put("/bucket", body)
        with (
            source_of(replace(options, endpoint=server.endpoint)) as source,
            pytest.raises(ProtocolViolation, match=r"lists an object|no S3 answer"),
        ):
            listing_of(source, "s3://bucket/m")
