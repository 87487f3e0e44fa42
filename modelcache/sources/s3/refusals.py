"""What a store's error answers and botocore's own errors mean: what was refused, where, and what to do; no key, signature or token."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from modelcache.errors import (
    AccessDenied,
    BadConfig,
    InvalidUri,
    ModelCacheError,
    NotFound,
    OriginBusy,
    OriginUnreachable,
)
from modelcache.transport import error_of_status, retry_after_s

if TYPE_CHECKING:
    from botocore.exceptions import BotoCoreError, ClientError

MISSING = {
    "NoSuchBucket": "the bucket does not exist",
    "NoSuchKey": "the object does not exist",
    "NoSuchVersion": "this version of the object does not exist",
    "MethodNotAllowed": "this version is a delete marker",
}
DENIED = {
    "AccessDenied": ("the store denies access", "check the credential's right to list the bucket and to read its objects"),
    "SignatureDoesNotMatch": ("the signature is wrong", "check the secret key; else a proxy alters requests on their way"),
    "InvalidAccessKeyId": ("the access key is unknown at this endpoint", "check the access key and the endpoint"),
    "ExpiredToken": ("the session token has expired", "get a new one: sign in again, or renew the role's session"),
    "InvalidToken": ("the session token is invalid", "check the session token; it belongs to one access key"),
    "RequestTimeTooSkewed": ("the clocks of this machine and of the store differ by too much", "set this machine's clock: `timedatectl`"),
    "AuthorizationHeaderMalformed": ("the request is signed for another region", "set the region of the bucket"),
    "IllegalLocationConstraintException": ("the bucket is in another region", "set the region of the bucket"),
    "PermanentRedirect": ("the bucket is in another region", "set the region or the endpoint of the bucket"),
    "InvalidObjectState": ("the object is archived and not restored", "restore it first: `aws s3api restore-object --help`"),
}
BUSY = frozenset(
    {"SlowDown", "ServiceUnavailable", "InternalError", "RequestTimeout", "Throttling", "ThrottlingException", "RequestLimitExceeded"}
)
SAID_BYTES = 400
UNSIGNED = "nothing was signed, as the settings say: take anonymous access (`s3.anonymous`) out of them, and give a credential"

_SIGNATURE = re.compile(r"\b[0-9A-Fa-f]{40,}\b|\b(?:AKIA|ASIA)[A-Z0-9]{12,}\b")


@dataclass(frozen=True, slots=True)
class Refusal:
    """An error answer.

    Attributes:
        operation: of the API, as it is called there.
        code: the store's own; the status where it gave none.
        said: its words.
    """

    operation: str
    status: int
    headers: Mapping[str, str] = field(repr=False)
    code: str
    said: str = field(repr=False)

    def error(self, *, address: str, secrets: Iterable[str], signed: bool) -> ModelCacheError:
        """What it means; `signed`: the request was made in somebody's name."""
        found = self._error(address, secrets)
        if isinstance(found, AccessDenied) and not signed:
            found.hint = UNSIGNED
        return found

    def _error(self, address: str, secrets: Iterable[str]) -> ModelCacheError:
        text = f"{self.operation}: {self.status or 'no status'}, {self.code}"
        if self.code in MISSING:
            return NotFound(f"{MISSING[self.code]} ({text})", address=address)
        if self.code in DENIED:
            sentence, hint = DENIED[self.code]
            detail = f": {redacted(self.said, secrets).rstrip('.')}" if self.code == "AccessDenied" and self.said else ""
            return AccessDenied(f"{sentence} ({text}){detail}", address=address, hint=hint)
        if self.operation.startswith(("AssumeRole", "GetRoleCredentials", "GetSessionToken")) and self.status < 500:
            return AccessDenied(
                f"no credential was given ({text})", address=address, hint="check the role, its trust policy and the identity token"
            )
        if self.code in BUSY:
            return OriginBusy(f"the store is busy ({text})", address=address, retry_after_s=retry_after_s(self.headers))
        code = None if self.code == str(self.status) else self.code
        return error_of_status(self.status or 400, self.headers, address=address, listed=False, code=code)


def error_of_client(error: ClientError, *, address: str, secrets: Iterable[str], signed: bool) -> ModelCacheError:
    """What an error answer of the store (or of STS) means, as botocore raises it."""
    answer: Mapping[str, object] = error.response
    code, said = _code_and_message(answer)
    status, headers = _status(answer)
    return Refusal(error.operation_name, status, headers, code, said).error(address=address, secrets=secrets, signed=signed)


def error_of_sdk(error: BotoCoreError, *, address: str) -> ModelCacheError:
    """What a failure inside botocore means; a failure of the credential chain for the most part."""
    from botocore import exceptions as sdk

    kind = type(error).__name__
    if isinstance(error, (sdk.NoCredentialsError, sdk.PartialCredentialsError)):
        hint = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or a profile, or ask for anonymous access"
        return AccessDenied(f"no S3 credential was found ({kind})", address=address, hint=hint)
    if isinstance(error, (sdk.CredentialRetrievalError, sdk.TokenRetrievalError, sdk.MetadataRetrievalError, sdk.SSOError, sdk.LoginError)):
        hint = "sign in again, or check the role: `aws sts get-caller-identity`"
        return AccessDenied(f"the S3 credential could not be had ({kind})", address=address, hint=hint)
    if isinstance(error, (sdk.HTTPClientError, sdk.ConnectionError)):
        return OriginUnreachable(f"the service that gives out S3 credentials could not be reached ({kind})", address=address)
    if isinstance(error, sdk.ParamValidationError):
        return InvalidUri(f"the store's rules forbid such a name ({kind})", address=address)
    return unusable_settings(error, address=address)


def unusable_settings(error: Exception, *, address: str) -> BadConfig:
    """What the SDK can't work with. Its own text can quote the files it read, so only its kind is told, and a profile's name."""
    kind = type(error).__name__
    if kind == "ProfileNotFound":
        name = ascii(getattr(error, "kwargs", {}).get("profile"))[:80]
        hint = "`aws configure list-profiles` names those that there are; AWS_CONFIG_FILE says where they are, if not in `~/.aws`"
        return BadConfig(f"there is no AWS profile {name} ({kind})", address=address, got=name, hint=hint)
    hint = "check `~/.aws/config`, the AWS_* variables, region, profile and endpoint"
    return BadConfig(f"the AWS SDK can't work with its settings ({kind})", address=address, hint=hint)


def redacted(text: str, secrets: Iterable[str]) -> str:
    """A store's own words without our secrets and without anything that looks like a key or a signature; one line, bounded."""
    for secret in secrets:
        text = text.replace(secret, "***")
    text = _SIGNATURE.sub("***", " ".join(text.split()))
    return text.encode("ascii", "backslashreplace").decode()[:SAID_BYTES]


def clean_code(text: str) -> str:
    """A code of the store's as far as it is one."""
    return re.sub(r"[^A-Za-z0-9._-]", "?", text)[:64]


def _code_and_message(answer: Mapping[str, object]) -> tuple[str, str]:
    fields = answer.get("Error")
    if not isinstance(fields, Mapping):
        return "no code", ""
    return clean_code(str(fields.get("Code", "no code"))), str(fields.get("Message", ""))


def _status(answer: Mapping[str, object]) -> tuple[int, Mapping[str, str]]:
    fields = answer.get("ResponseMetadata")
    if not isinstance(fields, Mapping):
        return 0, {}
    return int(fields.get("HTTPStatusCode", 0)), fields.get("HTTPHeaders", {})
