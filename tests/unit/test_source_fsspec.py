"""fsspec's schemes and what filesystems state: which are served, under which paths, and which facts name a version."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any
from unittest.mock import Mock

import fsspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelcache.errors import UnknownScheme
from modelcache.registry import NOT_FSSPECS
from modelcache.sources.any_fsspec import FsspecOptions
from modelcache.sources.any_fsspec.filesystems import REFUSED, home_of
from modelcache.sources.any_fsspec.pool import Pool
from modelcache.sources.any_fsspec.versions import SETTLED_S, stated
from modelcache.uri import StorageUri, UriSecrets, parse_uri

NOW_S = 1_700_000_000.0


# -- which schemes --------------------------------------------------------------------------------------------------


def test_every_scheme_that_would_hide_where_bytes_come_from_is_refused_by_name() -> None:
    for scheme, why in REFUSED.items():
        with pytest.raises(UnknownScheme) as caught:
            home_of(StorageUri(scheme, "x", "y"), UriSecrets(), FsspecOptions())
        assert why in str(caught.value)


def test_every_scheme_that_fsspec_knows_is_decided_about() -> None:
    """A new release may bring another layer: then it is to be refused, or listed here as a place."""
    places = (
        "abfs adl az box dbfs dropbox dvc ftp gdrive gist git github hdfs lakefs memory ocilake oss root sftp smb ssh tos tosfs wandb "
        "webdav webhdfs"
    )
    assert set(fsspec.available_protocols()) - set(REFUSED) - NOT_FSSPECS - {"shelf", "jfs", "abfss"} == set(places.split())


def test_a_missing_package_is_named() -> None:
    with pytest.raises(UnknownScheme, match="the package that serves `dropbox://` is not installed") as caught:
        home_of(*parse_uri("dropbox://folder/m"), FsspecOptions())
    assert "dropboxdrivefs" in str(caught.value.hint)
    with pytest.raises(UnknownScheme, match="fsspec knows none"):
        home_of(*parse_uri("nothing://serves/this"), FsspecOptions())


PATHS = [
    ("ftp://host/m/x", "/m/x", {"host": "host"}),
    ("ftp://me:p%40ss@host:2121", "/", {"host": "host", "port": 2121, "username": "me", "password": "p@ss"}),
    ("memory://m/a b?", "/m/a b", {}),
    ("memory://m/a?b", "/m/a?b", {}),
    ("memory://m/a?b?", "/m/a?b", {}),
    ("memory://m/what??", "/m/what?", {}),
    ("webhdfs://nn:9870/m", "/m", {"host": "nn", "port": 9870}),
    ("hdfs://me@nn:8020/m", "/m", {"host": "nn", "port": 8020, "user": "me"}),
    ("hdfs://nn", "/", {"host": "nn"}),
    ("github://org:repo@main/dir/f", "dir/f", {"org": "org", "repo": "repo", "sha": "main"}),
    ("github://org:repo@main", "", {"org": "org", "repo": "repo", "sha": "main"}),
]


@pytest.mark.parametrize(("text", "path", "arguments"), PATHS)
def test_a_uri_is_what_its_filesystem_understands(text: str, path: str, arguments: dict[str, Any]) -> None:
    uri, secrets = parse_uri(text)
    home = home_of(uri, secrets, FsspecOptions())
    assert (home.path(uri), dict(home.arguments)) == (path, arguments)


# -- instances --------------------------------------------------------------------------------------------------------


def test_a_close_ends_the_instances_of_before_and_keeps_later_ones() -> None:
    made = [Mock(async_impl=False) for _ in range(3)]
    pool = Pool(iter(made).__next__)
    idle, used = pool.take(), pool.take()
    pool.give(idle)
    pool.close()
    pool.give(used)
    assert [each.ftp.close.called for each in made] == [True, True, False]
    for _ in range(3):
        pool.give(pool.take())
    assert not made[2].ftp.close.called


# -- versions ---------------------------------------------------------------------------------------------------------

AT = datetime(2023, 11, 14, 22, 13, 20, tzinfo=UTC)  # NOW_S
STATED: list[tuple[dict[str, Any], bool]] = [
    ({"ETag": '"abc"'}, True),
    ({"etag": "0x8DC"}, True),
    ({"ETag": 'W/"abc"'}, False),
    ({"version_id": "null"}, False),
    ({"versionId": "1"}, True),
    ({"generation": 12}, True),
    ({"sha": "0f" * 20}, True),
    ({"content_md5": bytearray(b"\x01\x02")}, True),
    ({"mtime": NOW_S - SETTLED_S}, True),
    ({"mtime": NOW_S - SETTLED_S + 1}, False),
    ({"mtime": NOW_S - 0.5}, True),
    ({"modify": "20231114221200"}, True),
    ({"modify": "20231114221320"}, False),
    ({"modify": "20231114221320.250"}, True),
    ({"modify": "Nov 14 22:13"}, False),
    ({"modificationTime": int(NOW_S * 1000) - 250}, True),
    ({"modificationTime": int(NOW_S * 1000)}, False),
    ({"last_modified": AT.replace(year=2022)}, True),
    ({"LastModified": "2022-11-14T22:13:20+00:00"}, True),
    ({"last_modified": AT.replace(tzinfo=None, hour=12)}, False),
    ({"created": AT.replace(year=2022)}, False),
    ({"modify": "20231399999999"}, False),
    ({"mtime": 1e300}, False),
    ({"LastModified": "0001-01-01T00:00:00+23:59"}, False),
    ({}, False),
]


@pytest.mark.parametrize(("facts", "named"), STATED, ids=lambda value: str(value))
def test_only_what_names_one_version_is_a_validator(facts: dict[str, Any], named: bool) -> None:
    found = stated({"size": 5} | facts, None, NOW_S, address="x")
    assert bool(found.name) is named
    assert found.seen.endswith("5")


@given(first=st.datetimes(), second=st.datetimes())
def test_two_times_or_sizes_are_never_one_version(first: datetime, second: datetime) -> None:
    def seen(at: datetime, size_bytes: int) -> str:
        return stated({"size": size_bytes, "mtime": at.replace(tzinfo=UTC)}, None, NOW_S, address="x").seen

    assert (seen(first, 1) == seen(second, 1)) == (first == second)
    assert seen(first, 1) != seen(first, 2)
