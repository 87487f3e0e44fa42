"""Prefixes of URIs that come from elsewhere: a pure mapping."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelcache.errors import BadConfig, NotFound
from modelcache.mirrors import Mirror, Mirrors
from modelcache.uri import parse_uri

HEX = "ab" * 32


def mapped(uri: str, *mirrors: Mirror) -> str | None:
    found = Mirrors(mirrors).find(parse_uri(uri)[0])
    return None if found is None else str(found[1])


@pytest.mark.parametrize(
    ("prefix", "target", "uri", "expected"),
    [
        ("hf://meta-llama/", "s3://models/hf/meta-llama/", "hf://meta-llama/Llama", "s3://models/hf/meta-llama/Llama"),
        ("hf://meta-llama", "s3://models/hf/", "hf://meta-llama/Llama/sub/f.bin", "s3://models/hf/Llama/sub/f.bin"),
        ("hf://meta-llama", "s3://models", "hf://meta-llama-2/Llama", None),
        ("hf://o/m", "s3://models/x", "hf://o/m2", None),
        ("hf://o/m", "s3://models/x", "hf://o/m/sub", "s3://models/x/sub"),
        ("HF://", "s3a://models", f"hf://o/m#include=*.json&sha256={HEX}", f"s3://models/o/m#include=*.json&sha256={HEX}"),
        ("hf://", "s3://models/{name}/{revision}/files", "hf://o/m:v1.0/sub", "s3://models/o/m/v1.0/files/sub"),
        ("hf://", "s3://models/{name}/{revision}", "hf://o/m", "s3://models/o/m/main"),
        ("hf://", "s3://models/{name}@{revision}", "hf://o/m:refs%2Fpr%2F3", "s3://models/o/m@refs/pr/3"),
        ("hf://", "hf://", "hf://o/m:v1/sub", "hf://o/m:v1/sub"),
        ("hf://", "modelscope://", "hf://o/m", "modelscope://o/m:master"),
        ("hf://", "pvc://claim/hub", "hf://o/m", "pvc://claim/hub/o/m"),
        ("hf://", "file:///srv/hub", "hf://o/m", "file:///srv/hub/o/m"),
        ("s3://", "s3://", "s3://b/k", "s3://b/k"),
        ("s3://public/models", "s3://inner/copy", "s3://public/models/a%20b/c?d?", "s3://inner/copy/a%20b/c?d?"),
        (
            "https://GitHub.com:443/o/",
            "https://art.example/gh/",
            "https://github.com/o/r/a%20b.zip?x=1",
            "https://art.example/gh/r/a%20b.zip?x=1",
        ),
        ("https://host", "s3://b", "https://host/a%20b", "s3://b/a b"),
        ("s3://b", "https://host/x", "s3://b/a b%20", "https://host/x/a%20b%2520"),
    ],
)
def test_what_stands_where(prefix: str, target: str, uri: str, expected: str | None) -> None:
    assert mapped(uri, Mirror(prefix, target)) == expected


def test_the_longest_prefix_wins() -> None:
    mirrors = [Mirror("hf://", "s3://all"), Mirror("hf://o/m", "s3://one"), Mirror("hf://o/", "s3://owner")]
    assert [mapped(uri, *mirrors) for uri in ("hf://o/m", "hf://o/other", "hf://p/m")] == ["s3://one", "s3://owner/other", "s3://all/p/m"]


@pytest.mark.parametrize(
    ("prefix", "target", "uri"),
    [
        ("hf://", "s3://models", "hf://o/m:v1"),
        ("s3://", "s3://", "s3://b/k?versionId=3"),
        ("https://host", "s3://b", "https://host/f?version=2"),
        ("https://host", "s3://b", "https://host/a%2Fb"),
    ],
)
def test_a_version_that_a_mirror_cannot_have_is_refused_or_comes_from_its_original_place(prefix: str, target: str, uri: str) -> None:
    with pytest.raises(NotFound, match="mirror"):
        mapped(uri, Mirror(prefix, target))
    assert mapped(uri, Mirror(prefix, target, fallback=True)) is None


@pytest.mark.parametrize(
    ("prefix", "target"),
    [
        ("hf", "s3://b"),
        ("hf://", "models"),
        ("hf://o/m:v1", "s3://b"),
        ("hf://", "s3://bu$ket"),
        ("hf://", "s3://key:secret@b"),
        ("hf://", "s3://b/../c"),
        ("hf://", "s3://b#include=x"),
        ("hf://{name}", "s3://b"),
        ("s3://b", "s3://c/{revision}"),
        ("hf://", "hf://{revision}"),
    ],
)
def test_what_can_be_no_mirror_is_refused(prefix: str, target: str) -> None:
    with pytest.raises(BadConfig) as caught:
        Mirror(prefix, target)
    assert "secret" not in str(caught.value) + str(caught.value.got)


def test_two_mirrors_of_one_prefix_are_refused() -> None:
    with pytest.raises(BadConfig, match="same `from`"):
        Mirrors([Mirror("hf://o/", "s3://a"), Mirror("hf://o", "s3://b")])


def test_a_target_that_makes_no_uri_is_told_with_what_was_asked() -> None:
    with pytest.raises(BadConfig, match="s3://b"):
        mapped("s3://b", Mirror("s3://", "hf://"))


NAME = st.text("abcXYZ019._-", min_size=1, max_size=6).filter(lambda name: name.strip(".-") == name and ".." not in name and name.isascii())


@given(st.lists(NAME, min_size=2, max_size=5), st.integers(0, 5))
def test_any_prefix_of_any_uri_moves_and_the_rest_stays(parts: list[str], cut: int) -> None:
    prefix, rest = parts[:cut], parts[cut:]
    expected = "/".join(["s3://bucket/at", *rest])
    assert mapped("hf://" + "/".join(parts), Mirror("hf://" + "/".join(prefix), "s3://bucket/at/")) == expected
    assert Path(expected).name == ([*prefix, *rest][-1] if rest else "at")
