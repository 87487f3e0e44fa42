"""What is selected below a prefix, and what no store may list."""

from __future__ import annotations

import pytest

from modelcache.errors import AccessDenied, ModelCacheError, NotFound, ProtocolViolation, UnsafePath
from modelcache.sources.prefixes import Listed, prefix_of, selected_below
from modelcache.uri import parse_uri

DOUBT = AccessDenied("this object may be there")


def below(uri: str, *names: str, doubt: ModelCacheError | None = None) -> dict[str, int]:
    listing = [Listed(name, name.endswith("/"), number) for number, name in enumerate(names)]
    return selected_below(parse_uri(uri)[0], listing, doubt)


def test_paths_are_below_the_uri_and_in_the_listing_s_order() -> None:
    assert list(below("s3://b/m", "m/", "m/z", "m/a/b", "m/a/").items()) == [("z", 1), ("a/b", 2)]
    assert below("s3://b", "m/z") == {"m/z": 0}
    assert below("s3://b/m#include=*.bin", "m/z", "m/a.bin", doubt=DOUBT) == {"a.bin": 1}
    assert prefix_of(parse_uri("s3://b")[0]) == ""


@pytest.mark.parametrize(
    ("uri", "names", "error", "said"),
    [
        ("s3://b/m", ["m/z", "model/z"], ProtocolViolation, "outside of the prefix"),
        ("s3://b/m", ["m/z", "m/z"], ProtocolViolation, "an object twice"),
        ("s3://b/m", ["m/z", "m/../z"], UnsafePath, "z"),
        ("s3://b/m", ["m/" + "z" * 2000, "model/z"], UnsafePath, "over the limit"),  # before it is kept: the listing isn't read to its end
        ("s3://b/m", ["m/"], NotFound, "none below it"),
        ("s3://b/m#include=x", ["m/z"], NotFound, "patterns select"),
    ],
)
def test_what_is_refused(uri: str, names: list[str], error: type[ModelCacheError], said: str) -> None:
    with pytest.raises(error, match=said):
        below(uri, *names)


def test_a_doubt_counts_where_nothing_is_below() -> None:
    with pytest.raises(AccessDenied):
        below("s3://b/m", "m/", doubt=DOUBT)
    with pytest.raises(NotFound):
        below("s3://b/m#include=x", "m/z", doubt=DOUBT)
