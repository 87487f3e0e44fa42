"""The S3 source where the store, the credential or the network says no, and that no secret comes out."""

from __future__ import annotations

import json
import logging
import re
import secrets
import socket
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import botocore.auth
import botocore.crt.auth
import pytest
from botocore import compat

from modelcache.abc.source import Listing, RemoteFile
from modelcache.errors import (
    AccessDenied,
    BadConfig,
    Cancelled,
    ModelCacheError,
    NotFound,
    OriginBusy,
    OriginUnreachable,
    ProtocolViolation,
    SourceChanged,
)
from modelcache.patience import Cancellation
from modelcache.ranges import ByteRange
from modelcache.sources.s3 import S3Options, S3Source
from modelcache.testing.servers import PUBLIC_BUCKET, Certificate, Identity, Nginx, NginxOptions, SeaweedFS
from modelcache.testing.servers.ports import LOOPBACK, free_ports
from modelcache.transport import Proxies, Timeouts
from modelcache.uri import parse_uri

BODY = b"weights of a model"


def options(server: SeaweedFS, who: Identity | None = None, *, endpoint: str | None = None) -> S3Options:
    who = who or server.reader
    return S3Options(endpoint=endpoint or server.endpoint, access_key=who.access_key, secret_key=who.secret_key)


@contextmanager
def source_of(made: S3Options, **more: object) -> Iterator[S3Source]:
    source = S3Source(made, **more)  # type: ignore[arg-type]
    try:
        yield source
    finally:
        source.close()


@contextmanager
def proxied(server: SeaweedFS, more: str) -> Iterator[Nginx]:
    """nginx before the server, with further directives."""
    with Nginx(server.directory, NginxOptions(upstream=server.endpoint, more=more)) as proxy:
        yield proxy


def listing(source: S3Source, uri: str) -> Listing:
    return source.list(parse_uri(uri)[0], Cancellation())


def read(source: S3Source, file: RemoteFile) -> bytes:
    body = source.open(file, ByteRange(0, file.size_bytes), Cancellation())
    try:
        data = memoryview(bytearray(file.size_bytes))
        at = 0
        while count := body.readinto(data[at:]):
            at += count
        return bytes(data[:at])
    finally:
        body.close()


@pytest.fixture(scope="module")
def shared_bucket(seaweedfs: SeaweedFS) -> str:
    return seaweedfs.make_bucket(f"bucket-{secrets.token_hex(6)}")


@pytest.fixture
def filled(seaweedfs: SeaweedFS, shared_bucket: str) -> str:
    """URI of a prefix of this test alone, with one object, `f`."""
    prefix = f"{secrets.token_hex(6)}/m"
    seaweedfs.put(shared_bucket, f"{prefix}/f", BODY)
    return f"s3://{shared_bucket}/{prefix}"


# -- credentials ----------------------------------------------------------------------------------------------------


def test_a_wrong_secret_is_denied(seaweedfs: SeaweedFS, filled: str) -> None:
    wrong = replace(seaweedfs.reader, secret_key="wrong" * 8)
    with source_of(options(seaweedfs, wrong)) as source, pytest.raises(AccessDenied, match="SignatureDoesNotMatch") as caught:
        listing(source, filled)
    assert caught.value.hint is not None
    assert "secret key" in caught.value.hint


def test_an_unknown_access_key_is_denied(seaweedfs: SeaweedFS, filled: str) -> None:
    unknown = replace(seaweedfs.reader, access_key="AKIAUNKNOWN0")
    with source_of(options(seaweedfs, unknown)) as source, pytest.raises(AccessDenied, match="the access key is unknown"):
        listing(source, filled)


def test_bytes_are_denied_to_who_may_only_list(seaweedfs: SeaweedFS, filled: str) -> None:
    with source_of(options(seaweedfs)) as source:
        [file] = listing(source, filled).files
    for who in (seaweedfs.lister, replace(seaweedfs.reader, secret_key="wrong" * 8)):
        with source_of(options(seaweedfs, who)) as source, pytest.raises(AccessDenied) as caught:
            read(source, file)
        assert "/m/f" in str(caught.value)
        with source_of(options(seaweedfs, who)) as source, pytest.raises(AccessDenied):
            listing(source, filled)


def test_anonymous_reads_what_is_public_and_nothing_else(seaweedfs: SeaweedFS, filled: str) -> None:
    seaweedfs.make_public_bucket()
    seaweedfs.put(PUBLIC_BUCKET, "m/f g", BODY)
    with source_of(S3Options(endpoint=seaweedfs.endpoint, anonymous=True)) as source:
        [file] = listing(source, f"s3://{PUBLIC_BUCKET}/m").files
        assert read(source, file) == BODY
        with pytest.raises(AccessDenied, match="AccessDenied"):
            listing(source, filled)


def test_no_credential_at_all_says_what_to_set(seaweedfs: SeaweedFS, filled: str) -> None:
    with source_of(S3Options(endpoint=seaweedfs.endpoint)) as source, pytest.raises(AccessDenied, match="no S3 credential") as caught:
        listing(source, filled)
    assert "AWS_ACCESS_KEY_ID" in str(caught.value.hint)


def _write_profile(path: Path, who: Identity, name: str = "default") -> None:
    path.write_text(f"[{name}]\naws_access_key_id = {who.access_key}\naws_secret_access_key = {who.secret_key}\n")


def test_the_chain_finds_a_profile(seaweedfs: SeaweedFS, filled: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _write_profile(tmp_path / "credentials", seaweedfs.reader, "models")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    with source_of(S3Options(endpoint=seaweedfs.endpoint, profile="models")) as source:
        assert read(source, listing(source, filled).files[0]) == BODY
    with source_of(S3Options(endpoint=seaweedfs.endpoint, profile="absent")) as source, pytest.raises(BadConfig, match="ProfileNotFound"):
        listing(source, filled)


@pytest.mark.parametrize("asked", ["list", "open"])
def test_a_rotated_credential_is_read_again(
    seaweedfs: SeaweedFS, filled: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: str
) -> None:
    """The chain has run with a credential that the store refuses; the file behind it was replaced meanwhile."""
    with source_of(options(seaweedfs)) as source:
        [file] = listing(source, filled).files
    profile = tmp_path / "credentials"
    _write_profile(profile, replace(seaweedfs.reader, secret_key="old" * 10))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(profile))
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", seaweedfs.endpoint)
    with source_of(S3Options()) as source:
        assert source.origin.endpoint == seaweedfs.endpoint  # has run the chain
        _write_profile(profile, seaweedfs.reader)
        if asked == "list":
            assert listing(source, filled).files == (file,)
        else:
            assert read(source, file) == BODY


def test_a_credential_that_expires_is_renewed_by_the_chain(
    seaweedfs: SeaweedFS, filled: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Expiry is so near that the SDK asks for a new credential each time that one is needed: so does every signature."""
    expires = (datetime.now(UTC) + timedelta(seconds=120)).isoformat()
    answer = {"Version": 1, "Expiration": expires}
    answer |= {"AccessKeyId": seaweedfs.reader.access_key, "SecretAccessKey": seaweedfs.reader.secret_key}
    (tmp_path / "answer.json").write_text(json.dumps(answer))
    program = tmp_path / "give-credential"
    program.write_text(f"#!/bin/sh\necho run >> '{tmp_path}/runs'\ncat '{tmp_path}/answer.json'\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    (tmp_path / "config").write_text(f"[default]\ncredential_process = {program}\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))

    def runs() -> int:
        return len((tmp_path / "runs").read_text().splitlines())

    with source_of(S3Options(endpoint=seaweedfs.endpoint)) as source:
        [file] = listing(source, filled).files
        before = runs()
        assert read(source, file) == BODY
        assert runs() > before


def test_a_missing_identity_token_is_named(seaweedfs: SeaweedFS, filled: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """IRSA's variables, and no file where they point."""
    monkeypatch.setenv("AWS_ROLE_ARN", "arn:aws:iam::123456789012:role/models")
    monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", str(tmp_path / "token"))
    with source_of(S3Options(endpoint=seaweedfs.endpoint)) as source, pytest.raises(AccessDenied) as caught:
        listing(source, filled)
    assert str(tmp_path / "token") in str(caught.value)


def test_web_identity_goes_through_sts(seaweedfs: SeaweedFS, filled: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """IRSA: the role's keys come from STS (nginx answers for it) in exchange for the pod's token."""
    expires = (datetime.now(UTC) + timedelta(hours=1)).strftime("%Y-%m-%dT%H:%M:%SZ")
    who = seaweedfs.reader
    answer = (
        "<AssumeRoleWithWebIdentityResponse><AssumeRoleWithWebIdentityResult><Credentials>"
        f"<AccessKeyId>{who.access_key}</AccessKeyId><SecretAccessKey>{who.secret_key}</SecretAccessKey><SessionToken></SessionToken>"
        f"<Expiration>{expires}</Expiration></Credentials></AssumeRoleWithWebIdentityResult></AssumeRoleWithWebIdentityResponse>"
    )
    (tmp_path / "token").write_text("token-of-the-pod")
    with proxied(seaweedfs, f"location = / {{ default_type text/xml; return 200 '{answer}'; }}") as sts:
        monkeypatch.setenv("AWS_ROLE_ARN", "arn:aws:iam::123456789012:role/models")
        monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", str(tmp_path / "token"))
        monkeypatch.setenv("AWS_ENDPOINT_URL_STS", sts.endpoint)
        monkeypatch.setenv("AWS_REGION", "us-east-1")
        with source_of(S3Options(endpoint=seaweedfs.endpoint)) as source:
            assert read(source, listing(source, filled).files[0]) == BODY


def test_a_wrong_clock_is_named(seaweedfs: SeaweedFS, filled: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with source_of(options(seaweedfs)) as source:
        [file] = listing(source, filled).files

        def an_hour_ago(**how: bool) -> datetime:
            return compat.get_current_datetime(**how) - timedelta(hours=1)

        for signer in (botocore.auth, botocore.crt.auth):
            monkeypatch.setattr(signer, "get_current_datetime", an_hour_ago)
        with pytest.raises(AccessDenied, match="RequestTimeTooSkewed") as caught:
            listing(source, filled)
        assert "clock" in str(caught.value)
        with pytest.raises(AccessDenied, match="RequestTimeTooSkewed"):
            read(source, file)


# -- region, network ------------------------------------------------------------------------------------------------


def test_a_wrong_region_is_corrected_once(seaweedfs: SeaweedFS, filled: str) -> None:
    """nginx answers as S3 does to a request that is signed for another region than the bucket's; then SeaweedFS checks the signature."""
    refusal = "<Error><Code>AuthorizationHeaderMalformed</Code><Region>eu-central-1</Region></Error>"
    more = (
        "location ~ ^/bucket- { proxy_set_header Host $http_host;"
        ' if ($http_authorization !~ "/eu-central-1/s3/") { add_header x-amz-bucket-region eu-central-1 always;'
        f" return 400 '{refusal}'; }} proxy_pass {seaweedfs.endpoint}; }}"
    )
    with proxied(seaweedfs, more) as proxy, source_of(options(seaweedfs, endpoint=proxy.endpoint)) as source:
        [file] = listing(source, filled).files
        assert read(source, file) == BODY
        refused = [request for request in proxy.requests() if request.status == 400]
        assert len(refused) == 1
        [single] = listing(source, f"{filled}/f").files
        assert read(source, single) == BODY
        assert {request.status for request in proxy.requests()} <= {200, 206}


def test_a_region_that_can_not_be_corrected_is_an_error(seaweedfs: SeaweedFS, filled: str) -> None:
    more = "if ($http_authorization) { return 400 '<Error><Code>AuthorizationHeaderMalformed</Code><Region>eu-west-9</Region></Error>'; }"
    with proxied(seaweedfs, more) as proxy, source_of(options(seaweedfs, endpoint=proxy.endpoint)) as source:
        with pytest.raises(AccessDenied, match="another region"):
            listing(source, filled)
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
            listing(source, "s3://bucket/m/f")
        assert caught.value.address == asked


def test_a_gateway_may_have_a_path(seaweedfs: SeaweedFS) -> None:
    seaweedfs.make_public_bucket()
    seaweedfs.put(PUBLIC_BUCKET, "gate/f g", BODY)
    with (
        proxied(seaweedfs, f"location /s3/ {{ proxy_pass {seaweedfs.endpoint}/; }}") as proxy,
        source_of(S3Options(endpoint=f"{proxy.endpoint}/s3/", anonymous=True)) as source,
    ):
        assert read(source, listing(source, f"s3://{PUBLIC_BUCKET}/gate").files[0]) == BODY
        assert {request.target.startswith("/s3/") for request in proxy.requests()} == {True}


def test_both_planes_go_through_a_proxy(seaweedfs: SeaweedFS, filled: str) -> None:
    """The endpoint's name can't be resolved: only the proxy knows the way."""
    with (
        proxied(seaweedfs, "") as proxy,
        source_of(options(seaweedfs, endpoint="http://store.invalid"), proxies=Proxies(http=proxy.endpoint)) as source,
    ):
        assert read(source, listing(source, filled).files[0]) == BODY
        assert {request.method for request in proxy.requests()} == {"GET", "HEAD"}


def test_tls_with_a_ca_of_one_s_own(seaweedfs: SeaweedFS, filled: str, certificate: Certificate) -> None:
    with Nginx(seaweedfs.directory, NginxOptions(upstream=seaweedfs.endpoint, certificate=certificate)) as proxy:
        endpoint = f"https://localhost:{proxy.port}"
        trusting = replace(options(seaweedfs, endpoint=endpoint), ca_file=certificate.ca)
        with source_of(trusting) as source:
            assert read(source, listing(source, filled).files[0]) == BODY
            assert (source.origin.endpoint, len(source.origin.ca_sha256 or "")) == (endpoint, 64)
        with source_of(options(seaweedfs, endpoint=endpoint)) as source, pytest.raises(OriginUnreachable):
            listing(source, filled)


def test_nobody_answers(seaweedfs: SeaweedFS, filled: str) -> None:
    [port] = free_ports(1)
    endpoint = f"http://{LOOPBACK}:{port}"
    with source_of(options(seaweedfs, endpoint=endpoint)) as source, pytest.raises(OriginUnreachable) as caught:
        listing(source, filled)
    assert f"{LOOPBACK}:{port}" in str(caught.value)


def test_listing_is_cancelled_while_it_waits(seaweedfs: SeaweedFS, filled: str) -> None:
    cancel = Cancellation()
    outcome: list[BaseException] = []
    with socket.create_server((LOOPBACK, 0)) as silent:
        endpoint = f"http://{LOOPBACK}:{silent.getsockname()[1]}"
        with source_of(options(seaweedfs, endpoint=endpoint), timeouts=Timeouts(stall_s=3600)) as source:

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
def test_answers_that_are_no_listing(seaweedfs: SeaweedFS, filled: str, more: str, error: type[ModelCacheError]) -> None:
    with proxied(seaweedfs, more) as proxy, source_of(options(seaweedfs, endpoint=proxy.endpoint)) as source:
        with pytest.raises(error):
            listing(source, filled)
        assert len(proxy.requests()) < 20


def test_one_key_is_readable_without_the_right_to_list(seaweedfs: SeaweedFS, filled: str) -> None:
    denied = "if ($args ~ list-type) { return 403 '<Error><Code>AccessDenied</Code></Error>'; }"
    with proxied(seaweedfs, denied) as proxy, source_of(options(seaweedfs, endpoint=proxy.endpoint)) as source:
        assert read(source, listing(source, f"{filled}/f").files[0]) == BODY
        with pytest.raises(AccessDenied):
            listing(source, filled)


def test_a_denied_head_of_the_prefix_itself_does_not_matter(seaweedfs: SeaweedFS, filled: str) -> None:
    """Without the right to list the prefix' own name, S3 denies a HEAD of what doesn't exist."""
    denied = "location ~ ^/[^/]+/[^/]+/m$ { return 403; }"
    with proxied(seaweedfs, denied) as proxy, source_of(options(seaweedfs, endpoint=proxy.endpoint)) as source:
        assert read(source, listing(source, filled).files[0]) == BODY
    nothing = denied + " if ($args ~ list-type) { return 200 '<ListBucketResult></ListBucketResult>'; }"
    with (
        proxied(seaweedfs, nothing) as proxy,
        source_of(options(seaweedfs, endpoint=proxy.endpoint)) as source,
        pytest.raises(AccessDenied),
    ):
        listing(source, filled)


# -- secrets --------------------------------------------------------------------------------------------------------


def _everything_said(error: BaseException | None) -> str:
    said = ""
    while error is not None:
        said += f"{error!r} {error} {vars(error)}"
        error = error.__cause__ or error.__context__
    return said


def test_no_secret_is_logged_or_told(seaweedfs: SeaweedFS, filled: str, caplog: pytest.LogCaptureFixture) -> None:
    """Everything that works and everything that fails, with every logger at its most talkative."""
    caplog.set_level(logging.DEBUG)
    token = "session-token-of-a-role"
    echo = "return 403 '<Error><Code>AccessDenied</Code><Message>$http_authorization $http_x_amz_security_token</Message></Error>';"
    wrong = replace(seaweedfs.reader, secret_key="a-secret-that-is-wrong")
    attempts: list[Callable[[], object]] = []
    with (
        proxied(seaweedfs, f"if ($args ~ list-type) {{ {echo} }}") as echoing,
        source_of(options(seaweedfs)) as good,
        source_of(options(seaweedfs, wrong)) as bad,
        source_of(replace(options(seaweedfs, endpoint=echoing.endpoint), session_token=token)) as told,
    ):
        [file] = listing(good, filled).files
        attempts += [lambda: listing(bad, filled), lambda: read(bad, file), lambda: listing(told, filled), lambda: read(told, file)]
        attempts += [lambda: listing(good, "s3://no-such-bucket/x"), lambda: read(good, replace(file, validator='"other"'))]
        said = repr([good, bad, told, good._options, good._sdk, good._signer.sign("GET", file.locator, {})])
        for attempt in attempts:
            with pytest.raises(ModelCacheError) as caught:
                attempt()
            said += _everything_said(caught.value) + json.dumps(caught.value.as_dict())
    said += caplog.text
    assert "modelcache" in caplog.text
    for secret in (seaweedfs.reader.secret_key, seaweedfs.reader.access_key, wrong.secret_key, token):
        assert secret not in said
    assert not re.search(r"\b[0-9a-f]{64}\b|Credential=AK", said)


def test_a_level_that_somebody_chose_for_the_sdk_stays(seaweedfs: SeaweedFS, filled: str) -> None:
    logger = logging.getLogger("botocore")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with source_of(options(seaweedfs)) as source:
            listing(source, filled)
        assert logger.level == logging.ERROR
    finally:
        logger.setLevel(before)


def test_a_missing_object_of_a_version_is_not_found(seaweedfs: SeaweedFS, filled: str) -> None:
    with source_of(options(seaweedfs)) as source, pytest.raises(NotFound):
        listing(source, f"{filled}/nothing?versionId=0123")
