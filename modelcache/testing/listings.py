"""Listings as tests ask for them."""

from __future__ import annotations

from modelcache.abc.source import Listing, Source
from modelcache.patience import Cancellation
from modelcache.uri import StorageUri, parse_uri


def listing_of(source: Source, uri: str | StorageUri) -> Listing:
    """What the source lists under a URI, as it is written or parsed."""
    return source.list(parse_uri(uri)[0] if isinstance(uri, str) else uri, Cancellation())
