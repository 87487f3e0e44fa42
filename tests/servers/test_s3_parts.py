"""The pure parts of the S3 source: headers, names, errors, settings, patience."""

from __future__ import annotations

import base64
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from botocore import exceptions as sdk
from hypothesis import given
from hypothesis import strategies as st

from modelcache.digest import Algorithm, Digest
from modelcache.errors import (
    AccessDenied,
    BadConfig,
    Cancelled,
    InvalidUri,
    ModelCacheError,
    NotFound,
    OriginBusy,
    OriginStalled,
    OriginUnreachable,
    ProtocolViolation,
)
from modelcache.patience import Cancellation
from modelcache.sources.attempts import ATTEMPTS, MAX_PAUSE_S, attempted
from modelcache.sources.s3 import S3Options
from modelcache.sources.s3.heads import CHECKSUMS, object_head
from modelcache.sources.s3.locator import ObjectName
from modelcache.sources.s3.refusals import error_of_client, error_of_sdk, redacted

NAME = ObjectName("bucket", "m/f")

# -- names ----------------------------------------------------------------------------------------------------------


@given(
    bucket=st.from_regex(r"[a-z0-9][a-z0-9.-]{1,60}[a-z0-9]", fullmatch=True),
    key=st.text(st.characters(codec="utf-8"), min_size=1),
    version_id=st.none() | st.text(st.characters(codec="utf-8"), min_size=1),
)
def test_a_locator_is_one_ascii_line_and_reads_back(bucket: str, key: str, version_id: str | None) -> None:
    name = ObjectName(bucket, key, version_id)
    assert ObjectName.of_locator(name.locator) == name
    assert name.locator.isascii()
    assert name.locator.isprintable()
    assert " " not in name.locator


# -- headers --------------------------------------------------------------------------------------------------------


@given(st.sampled_from(sorted(CHECKSUMS.items())), st.data())
def test_whole_checksums_are_kept_and_composite_ones_are_not(pair: tuple[str, Algorithm], data: st.DataObject) -> None:
    header, algorithm = pair
    size = {"sha256": 32, "sha1": 20, "crc32": 4, "crc32c": 4, "crc64nvme": 8}[algorithm]
    value = data.draw(st.binary(min_size=size, max_size=size))
    text = base64.b64encode(value).decode()
    plain = {"content-length": "7", header: text}
    assert object_head(plain, NAME).digests == (Digest(algorithm, value.hex()),)
    assert object_head(plain | {"x-amz-checksum-type": "FULL_OBJECT"}, NAME).digests == (Digest(algorithm, value.hex()),)
    assert object_head(plain | {"x-amz-checksum-type": "COMPOSITE"}, NAME).digests == ()
    assert object_head(plain | {header: f"{text}-12"}, NAME).digests == ()


@pytest.mark.parametrize(
    ("etag", "validator"),
    [
        ('"9a0364b9e99bb480dd25e1f0284c8555-3"', '"9a0364b9e99bb480dd25e1f0284c8555-3"'),
        ('W/"weak"', ""),
        ('"\xe9"', ""),
        ("unquoted", ""),
        ("", ""),
    ],
)
def test_only_a_strong_etag_is_a_validator(etag: str, validator: str) -> None:
    assert object_head({"content-length": "1", "etag": etag}, NAME).etag == validator


@pytest.mark.parametrize("headers", [{}, {"content-length": "-1"}, {"content-length": "1e3"}, {"content-length": "٣"}])
def test_an_object_without_a_size_is_refused(headers: dict[str, str]) -> None:
    with pytest.raises(ProtocolViolation, match="no size"):
        object_head(headers, NAME)


def test_a_checksum_that_can_not_be_read_is_refused() -> None:
    with pytest.raises(ProtocolViolation, match="checksum"):
        object_head({"content-length": "1", "x-amz-checksum-crc32": "AAA="}, NAME)


def test_a_null_version_is_no_version() -> None:
    assert object_head({"content-length": "1", "x-amz-version-id": "null"}, NAME).version_id is None
    assert object_head({"content-length": "1", "x-amz-version-id": "abc"}, NAME).version_id == "abc"
    assert object_head({"content-length": "1", "x-amz-version-id": "a" * 1025, "etag": f'"{"e" * 1025}"'}, NAME) == object_head(
        {"content-length": "1", "x-amz-version-id": ""}, NAME
    )


def test_a_marker_of_a_folder_is_empty_and_says_so() -> None:
    folder = {"content-length": "0", "content-type": "application/x-directory; charset=UTF-8"}
    assert object_head(folder, NAME).directory_marker
    assert not object_head(folder | {"content-length": "1"}, NAME).directory_marker
    assert not object_head({"content-length": "0"}, NAME).directory_marker


@pytest.mark.parametrize(
    ("headers", "state"),
    [
        ({"x-amz-storage-class": "GLACIER"}, "not restored"),
        ({"x-amz-storage-class": "DEEP_ARCHIVE", "x-amz-restore": 'ongoing-request="true"'}, "still being restored"),
        ({"x-amz-storage-class": "INTELLIGENT_TIERING", "x-amz-archive-status": "ARCHIVE_ACCESS"}, "not restored"),
        ({"x-amz-storage-class": "GLACIER", "x-amz-restore": 'ongoing-request="false", expiry-date="Fri, 21 Dec 2029 00:00:00 GMT"'}, None),
        ({"x-amz-storage-class": "GLACIER_IR"}, None),
        ({"x-amz-storage-class": "STANDARD_IA"}, None),
    ],
)
def test_archived_objects_are_refused_before_anything_is_fetched(headers: dict[str, str], state: str | None) -> None:
    headers = {"content-length": "1"} | headers
    if state is None:
        assert object_head(headers, NAME).size_bytes == 1
        return
    with pytest.raises(AccessDenied, match=state) as caught:
        object_head(headers, NAME)
    assert caught.value.address == "s3://bucket/m/f"


# -- errors ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("operation", "code", "status", "error"),
    [
        ("ListObjectsV2", "NoSuchBucket", 404, NotFound),
        ("HeadObject", "404", 404, NotFound),
        ("HeadObject", "MethodNotAllowed", 405, NotFound),
        ("ListObjectsV2", "AccessDenied", 403, AccessDenied),
        ("ListObjectsV2", "SignatureDoesNotMatch", 403, AccessDenied),
        ("ListObjectsV2", "ExpiredToken", 400, AccessDenied),
        ("ListObjectsV2", "PermanentRedirect", 301, AccessDenied),
        ("HeadObject", "403", 403, AccessDenied),
        ("AssumeRoleWithWebIdentity", "InvalidIdentityToken", 400, AccessDenied),
        ("AssumeRoleWithWebIdentity", "IDPCommunicationError", 500, OriginBusy),
        ("ListObjectsV2", "SlowDown", 503, OriginBusy),
        ("ListObjectsV2", "Throttling", 400, OriginBusy),
        ("ListObjectsV2", "RequestTimeout", 400, OriginBusy),
        ("ListObjectsV2", "Unheard", 500, OriginBusy),
        ("ListObjectsV2", "Unheard", 418, ProtocolViolation),
    ],
)
def test_refusals(operation: str, code: str, status: int, error: type[ModelCacheError]) -> None:
    answer = {
        "Error": {"Code": code, "Message": "said"},
        "ResponseMetadata": {"HTTPStatusCode": status, "HTTPHeaders": {"retry-after": "7"}},
    }
    ours = error_of_client(sdk.ClientError(answer, operation), address="s3://bucket/m", secrets=(), signed=True)  # type: ignore[arg-type]
    assert type(ours) is error
    assert ours.address == "s3://bucket/m"
    assert code in str(ours) or code.isdigit()
    if error is not ProtocolViolation:
        assert ours.hint is not None or ours.retryable


def test_a_busy_store_s_wish_is_kept() -> None:
    for code in ("SlowDown", "503"):
        answer = {"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": 503, "HTTPHeaders": {"retry-after": "7"}}}
        ours = error_of_client(sdk.ClientError(answer, "ListObjectsV2"), address="s3://b", secrets=(), signed=True)  # type: ignore[arg-type]
        assert ours.retry_after_s == 7.0


@pytest.mark.parametrize(
    ("theirs", "error"),
    [
        (sdk.NoCredentialsError(), AccessDenied),
        (sdk.PartialCredentialsError(provider="env", cred_var="x"), AccessDenied),
        (sdk.CredentialRetrievalError(provider="custom-process", error_msg="secret words"), AccessDenied),
        (sdk.UnauthorizedSSOTokenError(), AccessDenied),
        (sdk.EndpointConnectionError(endpoint_url="https://sts"), OriginUnreachable),
        (sdk.ReadTimeoutError(endpoint_url="https://sts"), OriginUnreachable),
        (sdk.ParamValidationError(report="secret words"), InvalidUri),
        (sdk.ProfileNotFound(profile="x"), BadConfig),
        (sdk.ConfigParseError(path="x"), BadConfig),
    ],
)
def test_failures_inside_the_sdk(theirs: sdk.BotoCoreError, error: type[ModelCacheError]) -> None:
    ours = error_of_sdk(theirs, address="s3://bucket/m")
    assert type(ours) is error
    assert type(theirs).__name__ in str(ours)
    assert "secret words" not in str(ours.as_dict())
    assert ("'x'" in str(ours)) is isinstance(theirs, sdk.ProfileNotFound)


def test_a_store_s_words_are_bounded_and_redacted() -> None:
    text = f"key KEY\n signature {'ab' * 32} id AKIAIOSFODNN7EXAMPLE 模型 {'long ' * 200}"
    said = redacted(text, ["KEY"])
    assert said.startswith("key *** signature *** id *** \\u6a21\\u578b long")
    assert len(said) <= 400


# -- settings -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [
        {"access_key": "a"},
        {"secret_key": "s"},
        {"session_token": "t"},
        {"anonymous": True, "access_key": "a", "secret_key": "s"},
        {"endpoint": "store.example:9000"},
        {"endpoint": "ftp://store.example"},
        {"endpoint": "https://user:secret-word@store.example"},
        {"endpoint": "https://store.example/?a=secret-word"},
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, object]) -> None:
    with pytest.raises(BadConfig) as caught:
        S3Options(**settings)  # type: ignore[arg-type]
    assert "secret-word" not in str(caught.value.as_dict())


def test_settings_show_no_secret() -> None:
    shown = repr(S3Options(access_key="access-word", secret_key="secret-word", session_token="token-word"))
    assert "word" not in shown


# -- patience -------------------------------------------------------------------------------------------------------


@dataclass
class Pauses(Cancellation):
    """Counts pauses instead of making them."""

    seconds: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()

    def wait(self, seconds: float) -> None:
        self.seconds.append(seconds)


def failing(*errors: ModelCacheError) -> Callable[[], str]:
    left = list(errors)

    def action() -> str:
        if left:
            raise left.pop(0)
        return "done"

    return action


def never() -> bool:
    raise AssertionError("nothing to renew")


def test_what_is_busy_is_asked_again_after_a_pause() -> None:
    cancel = Pauses()
    assert attempted(failing(OriginBusy("busy"), OriginBusy("busy", retry_after_s=3)), never, cancel) == "done"
    assert 0 < cancel.seconds[0] < 1
    assert cancel.seconds[1] == 3
    cancel = Pauses()
    with pytest.raises(OriginBusy):
        attempted(failing(*[OriginBusy("busy", retry_after_s=1000)] * ATTEMPTS), never, cancel)
    assert cancel.seconds == [MAX_PAUSE_S] * (ATTEMPTS - 1)


def test_what_stalled_is_not_asked_again() -> None:
    cancel = Pauses()
    with pytest.raises(OriginStalled):
        attempted(failing(OriginStalled("stalled")), never, cancel)
    assert cancel.seconds == []


def test_what_was_denied_is_asked_once_more_if_the_credential_changed() -> None:
    assert attempted(failing(AccessDenied("no")), lambda: True, Pauses()) == "done"
    with pytest.raises(AccessDenied):
        attempted(failing(AccessDenied("no")), lambda: False, Pauses())
    with pytest.raises(AccessDenied):
        attempted(failing(AccessDenied("no"), AccessDenied("no")), lambda: True, Pauses())


def test_nothing_is_asked_after_a_cancel() -> None:
    cancel = Cancellation()
    cancel.cancel()
    with pytest.raises(Cancelled):
        attempted(never, never, cancel)
