"""Our signature is the SDK's, byte for byte."""

from __future__ import annotations

import datetime
from typing import Any
from unittest.mock import patch
from urllib.parse import quote

from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import ReadOnlyCredentials
from hypothesis import given
from hypothesis import strategies as st

from modelcache.sources.s3.locator import KEY_SAFE
from modelcache.sources.s3.sigv4 import Key, signed_headers

TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=30)
VALUES = st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), min_size=1, max_size=30).map(str.strip).filter(bool)
HOSTS = st.sampled_from(["http://127.0.0.1:8333", "https://s3.example.org", "https://s3.example.org:443", "http://[::1]:9000/gateway"])


@given(
    st.sampled_from(["GET", "HEAD"]),
    HOSTS,
    TEXT,
    st.dictionaries(TEXT | st.sampled_from(["a", "a-b", "a.b"]), TEXT | st.just(""), max_size=4),
    st.dictionaries(st.sampled_from(["Range", "If-Match", "x-amz-checksum-mode"]), VALUES),
    st.builds(ReadOnlyCredentials, VALUES, VALUES, st.none() | VALUES),
    st.sampled_from(["us-east-1", "eu-central-1", "garage"]),
    st.datetimes(timezones=st.just(datetime.UTC)).filter(lambda at: at.year > 999),
)
def test_signatures_are_the_sdks(
    method: str,
    host: str,
    key: str,
    parameters: dict[str, str],
    headers: dict[str, str],
    credential: ReadOnlyCredentials,
    region: str,
    at: datetime.datetime,
) -> None:
    query = "&".join(f"{quote(name, safe='~')}={quote(value, safe='~')}" for name, value in parameters.items())
    url = f"{host}/bucket/{quote(key, safe=KEY_SAFE)}" + (f"?{query}" if query else "")
    key_of = Key(str(credential.access_key), str(credential.secret_key), credential.token)
    theirs: Any = AWSRequest(method, url, headers=dict(headers))
    with patch("botocore.auth.get_current_datetime", return_value=at.replace(tzinfo=None)):
        S3SigV4Auth(credential, "s3", region).add_auth(theirs)
    assert signed_headers(method, url, headers, key_of, region, at) == dict(theirs.headers.items())
