"""S3 sources for tests: as an identity of a test server, and through a proxy that answers in its place."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from modelcache.sources.s3 import S3Options, S3Source
from modelcache.testing.servers import Identity, Nginx, NginxOptions, SeaweedFS
from modelcache.transport import Proxies, Timeouts

REGIONS = {"sdk": None, "fixed": "us-east-1"}
"""Without a region the SDK is asked for one; with it, endpoint and key, the source does without the SDK."""


def options_of(server: SeaweedFS, who: Identity | None = None, *, endpoint: str | None = None, region: str | None = None) -> S3Options:
    """Settings to read from the server (or from what stands before it) as `who`; by default, as its reader."""
    who = who or server.reader
    return S3Options(endpoint=endpoint or server.endpoint, region=region, access_key=who.access_key, secret_key=who.secret_key)


@contextmanager
def source_of(options: S3Options, *, timeouts: Timeouts | None = None, proxies: Proxies | None = None) -> Iterator[S3Source]:
    """A source that is closed after the block."""
    source = S3Source(options, timeouts, proxies=proxies)
    try:
        yield source
    finally:
        source.close()


@contextmanager
def proxied(server: SeaweedFS, more: str = "") -> Iterator[Nginx]:
    """nginx before the server, with further directives."""
    with Nginx(server.directory, NginxOptions(upstream=server.endpoint, more=more)) as proxy:
        yield proxy
