"""Origins: every part of an endpoint that tells one tenant's place from another's."""

from __future__ import annotations

from contextlib import closing

import pytest

from modelcache.config import Config
from modelcache.sources.gcs import GcsOptions, GcsSource
from modelcache.sources.s3 import S3Options, S3Source

PLACES = [
    ("https://gate.example", "https://gate.example:443"),
    ("https://gate.example/", "https://gate.example:443"),
    ("https://gate.example:9/Team-A", "https://gate.example:9/Team-A"),
    ("https://gate.example:9/team/a/", "https://gate.example:9/team/a"),
]


@pytest.mark.parametrize(("endpoint", "origin"), PLACES)
def test_an_endpoint_s_path_is_part_of_its_origin(endpoint: str, origin: str) -> None:
    with closing(S3Source(S3Options(endpoint=endpoint))) as s3, closing(GcsSource(GcsOptions(endpoint=endpoint, anonymous=True))) as gs:
        assert str(s3.origin) == str(gs.origin) == origin
    with closing(S3Source(S3Options(endpoint=endpoint, verify_tls=False))) as unverified:
        assert str(unverified.origin) == f"{origin}#unverified"
    assert Config.load({"HOME": "/", "MODELCACHE_TRUSTED_ORIGINS": endpoint}).trust.origins == (origin,)
