"""The S3 source and credentials: refused, missing, rotated, expiring; and that no secret comes out."""

from __future__ import annotations

import json
import logging
import re
import socket
import stat
import sys
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import botocore.auth
import botocore.crt.auth
import psutil
import pytest
from botocore import compat

from modelcache.errors import (
    AccessDenied,
    BadConfig,
    ModelCacheError,
    OriginUnreachable,
)
from modelcache.sources.s3 import S3Options, programs, sigv4
from modelcache.testing.listings import listing_of
from modelcache.testing.s3_sources import REGIONS, options_of, proxied, source_of
from modelcache.testing.servers import PUBLIC_BUCKET, Identity, SeaweedFS
from modelcache.testing.servers.ports import LOOPBACK
from modelcache.testing.source_contract import read
from modelcache.transport import Timeouts

BODY = b"weights of a model"


# -- credentials ----------------------------------------------------------------------------------------------------


def test_a_wrong_secret_is_denied(seaweedfs: SeaweedFS, filled: str) -> None:
    wrong = replace(seaweedfs.reader, secret_key="wrong" * 8)
    with source_of(options_of(seaweedfs, wrong)) as source, pytest.raises(AccessDenied, match="SignatureDoesNotMatch") as caught:
        listing_of(source, filled)
    assert caught.value.hint is not None
    assert "secret key" in caught.value.hint


def test_an_unknown_access_key_is_denied(seaweedfs: SeaweedFS, filled: str) -> None:
    unknown = replace(seaweedfs.reader, access_key="AKIAUNKNOWN0")
    with source_of(options_of(seaweedfs, unknown)) as source, pytest.raises(AccessDenied, match="the access key is unknown"):
        listing_of(source, filled)


def test_bytes_are_denied_to_who_may_only_list(seaweedfs: SeaweedFS, filled: str) -> None:
    with source_of(options_of(seaweedfs)) as source:
        [file] = listing_of(source, filled).files
    for who in (seaweedfs.lister, replace(seaweedfs.reader, secret_key="wrong" * 8)):
        with source_of(options_of(seaweedfs, who)) as source, pytest.raises(AccessDenied) as caught:
            read(source, file)
        assert "/m/f" in str(caught.value)
        with source_of(options_of(seaweedfs, who)) as source, pytest.raises(AccessDenied):
            listing_of(source, filled)


def test_anonymous_reads_what_is_public_and_nothing_else(seaweedfs: SeaweedFS, filled: str) -> None:
    seaweedfs.make_public_bucket()
    seaweedfs.put(PUBLIC_BUCKET, "m/f g", BODY)
    with source_of(S3Options(endpoint=seaweedfs.endpoint, anonymous=True)) as source:
        [file] = listing_of(source, f"s3://{PUBLIC_BUCKET}/m").files
        assert read(source, file) == BODY
        with pytest.raises(AccessDenied, match="AccessDenied") as caught:
            listing_of(source, filled)
    assert "s3.anonymous" in str(caught.value.hint)


def test_no_credential_at_all_says_what_to_set(seaweedfs: SeaweedFS, filled: str) -> None:
    with source_of(S3Options(endpoint=seaweedfs.endpoint)) as source, pytest.raises(AccessDenied, match="no S3 credential") as caught:
        listing_of(source, filled)
    assert "AWS_ACCESS_KEY_ID" in str(caught.value.hint)


def _write_profile(path: Path, who: Identity, name: str = "default") -> None:
    path.write_text(f"[{name}]\naws_access_key_id = {who.access_key}\naws_secret_access_key = {who.secret_key}\n")


def test_the_chain_finds_a_profile(seaweedfs: SeaweedFS, filled: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _write_profile(tmp_path / "credentials", seaweedfs.reader, "models")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    with source_of(S3Options(endpoint=seaweedfs.endpoint, profile="models")) as source:
        assert read(source, listing_of(source, filled).files[0]) == BODY
    with source_of(S3Options(endpoint=seaweedfs.endpoint, profile="absent")) as source, pytest.raises(BadConfig, match="ProfileNotFound"):
        listing_of(source, filled)


@pytest.mark.parametrize("asked", ["list", "open"])
def test_a_rotated_credential_is_read_again(
    seaweedfs: SeaweedFS, filled: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: str
) -> None:
    """The chain has run with a credential that the store refuses; the file behind it was replaced meanwhile."""
    with source_of(options_of(seaweedfs)) as source:
        [file] = listing_of(source, filled).files
    profile = tmp_path / "credentials"
    _write_profile(profile, replace(seaweedfs.reader, secret_key="old" * 10))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(profile))
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", seaweedfs.endpoint)
    with source_of(S3Options()) as source:
        assert source.origin.endpoint == seaweedfs.endpoint  # has run the chain
        _write_profile(profile, seaweedfs.reader)
        if asked == "list":
            assert listing_of(source, filled).files == (file,)
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
        [file] = listing_of(source, filled).files
        before = runs()
        assert read(source, file) == BODY
        assert runs() > before


@pytest.mark.parametrize(
    "profile", ["[default]", "[default]\nrole_arn = arn:aws:iam::123456789012:role/m\nsource_profile = of\n[profile of]"]
)
def test_a_program_that_gives_no_credential_is_ended(
    seaweedfs: SeaweedFS, filled: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, profile: str
) -> None:
    monkeypatch.setattr(programs, "PROGRAM_S", 0.2)
    (tmp_path / "config").write_text(f"{profile}\ncredential_process = {sys.executable} -c 'import time; time.sleep(1000)'\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    with source_of(S3Options(endpoint=seaweedfs.endpoint)) as source, pytest.raises(AccessDenied, match="CredentialRetrievalError"):
        listing_of(source, filled)
    assert [each for each in psutil.Process().children(recursive=True) if "time.sleep(1000)" in each.cmdline()] == []


def test_a_missing_identity_token_is_named(seaweedfs: SeaweedFS, filled: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """IRSA's variables, and no file where they point."""
    monkeypatch.setenv("AWS_ROLE_ARN", "arn:aws:iam::123456789012:role/models")
    monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", str(tmp_path / "token"))
    with source_of(S3Options(endpoint=seaweedfs.endpoint)) as source, pytest.raises(AccessDenied) as caught:
        listing_of(source, filled)
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
            assert read(source, listing_of(source, filled).files[0]) == BODY


def test_an_sts_that_never_answers_is_given_up(filled: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "token").write_text("token-of-the-pod")
    monkeypatch.setenv("AWS_ROLE_ARN", "arn:aws:iam::123456789012:role/models")
    monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", str(tmp_path / "token"))
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    with socket.create_server((LOOPBACK, 0)) as silent:
        monkeypatch.setenv("AWS_ENDPOINT_URL_STS", f"http://{LOOPBACK}:{silent.getsockname()[1]}")
        made = S3Options(endpoint="http://store.invalid")
        with source_of(made, timeouts=Timeouts(stall_s=0.2)) as source, pytest.raises(OriginUnreachable, match="gives out S3 credentials"):
            listing_of(source, filled)


def test_a_wrong_clock_is_named(seaweedfs: SeaweedFS, filled: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with source_of(options_of(seaweedfs)) as source:
        [file] = listing_of(source, filled).files

        def an_hour_ago(**how: bool) -> datetime:
            return compat.get_current_datetime(**how) - timedelta(hours=1)

        monkeypatch.setattr(sigv4, "utc_now", lambda: an_hour_ago(remove_tzinfo=False))
        for signer in (botocore.auth, botocore.crt.auth):
            monkeypatch.setattr(signer, "get_current_datetime", an_hour_ago)
        with pytest.raises(AccessDenied, match="RequestTimeTooSkewed") as caught:
            listing_of(source, filled)
        assert "clock" in str(caught.value)
        with pytest.raises(AccessDenied, match="RequestTimeTooSkewed"):
            read(source, file)


# -- secrets --------------------------------------------------------------------------------------------------------


def _everything_said(error: BaseException | None) -> str:
    said = ""
    while error is not None:
        said += f"{error!r} {error} {vars(error)}"
        error = error.__cause__ or error.__context__
    return said


@pytest.mark.parametrize("region", list(REGIONS.values()), ids=list(REGIONS))
def test_no_secret_is_logged_or_told(seaweedfs: SeaweedFS, filled: str, region: str | None, caplog: pytest.LogCaptureFixture) -> None:
    """Everything that works and everything that fails, with every logger at its most talkative."""
    caplog.set_level(logging.DEBUG)
    token = "session-token-of-a-role"
    echo = "return 403 '<Error><Code>AccessDenied</Code><Message>$http_authorization $http_x_amz_security_token</Message></Error>';"
    wrong = replace(seaweedfs.reader, secret_key="a-secret-that-is-wrong")
    attempts: list[Callable[[], object]] = []
    with (
        proxied(seaweedfs, f"if ($args ~ list-type) {{ {echo} }}") as echoing,
        source_of(options_of(seaweedfs, region=region)) as good,
        source_of(options_of(seaweedfs, wrong, region=region)) as bad,
        source_of(replace(options_of(seaweedfs, region=region, endpoint=echoing.endpoint), session_token=token)) as told,
    ):
        [file] = listing_of(good, filled).files
        attempts += [lambda: listing_of(bad, filled), lambda: read(bad, file), lambda: listing_of(told, filled), lambda: read(told, file)]
        attempts += [lambda: listing_of(good, "s3://no-such-bucket/x"), lambda: read(good, replace(file, validator='"other"'))]
        said = repr([good, bad, told, good._options, good._control, good._signer.sign("GET", file.locator, {})])
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
        with source_of(options_of(seaweedfs)) as source:
            listing_of(source, filled)
        assert logger.level == logging.ERROR
    finally:
        logger.setLevel(before)
