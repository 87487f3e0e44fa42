"""What a URI of a bucket stands for, whoever keeps the bucket. Subclassed once per kind of server."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest

from modelcache.abc.source import Source
from modelcache.errors import NotFound
from modelcache.testing.listings import listing_of
from modelcache.testing.source_contract import read


class BucketContract:
    """Needs the fixtures `bucket` (a new one's name), `source` (reads it), and `server`, which a subclass has: what `put`s objects there.

    Attributes:
        schemes: the bucket's own, and its other spellings.
    """

    schemes: ClassVar[tuple[str, ...]]

    def test_a_prefix_is_everything_below_it(self, source: Source, server: Any, bucket: str) -> None:
        for name in ("m/config.json", "m/deep/er/weights", "m-other/file", "mm", "m.json"):
            server.put(bucket, name, name.encode())
        for uri in (*(f"{scheme}://{bucket}/m" for scheme in self.schemes), f"{self.schemes[0]}://{bucket}/m/"):
            found = listing_of(source, uri)
            assert [(file.path, file.size_bytes) for file in found.files] == [("config.json", 13), ("deep/er/weights", 17)]
            assert [read(source, file) for file in found.files] == [b"m/config.json", b"m/deep/er/weights"]
            assert not found.immutable
        assert found.origin.endpoint == server.endpoint

    def test_markers_of_folders_are_left_out_and_empty_files_are_kept(self, source: Source, server: Any, bucket: str) -> None:
        for name, body in (("m/", b""), ("m/sub/", b""), ("m/empty", b""), ("m/sub/full", b"x")):
            server.put(bucket, name, body)
        found = listing_of(source, f"{self.schemes[0]}://{bucket}/m")
        assert [(file.path, file.size_bytes) for file in found.files] == [("empty", 0), ("sub/full", 1)]

    def test_patterns_select(self, source: Source, server: Any, bucket: str) -> None:
        for name in ("m/a.safetensors", "m/a.bin", "m/sub/b.safetensors"):
            server.put(bucket, name, b"x")
        place = f"{self.schemes[0]}://{bucket}/m"
        found = listing_of(source, f"{place}#include=*.safetensors&exclude=sub/*")
        assert [file.path for file in found.files] == ["a.safetensors"]
        for uri in (f"{place}#include=*.gguf", f"{place}/a.bin#exclude=*.bin"):
            with pytest.raises(NotFound, match="patterns select"):
                listing_of(source, uri)
