"""What unit tests of fetching share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from modelcache.testing.fetching import small_chunks


@pytest.fixture
def chunk_bytes() -> Iterator[int]:
    """Chunks of `SMALL_CHUNK_BYTES`."""
    with small_chunks() as size_bytes:
        yield size_bytes
