"""Headers: the `safetensors` package's verdict, or a stricter one with a reason; the same tensors of every file that is accepted."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from modelcache.errors import BadCheckpoint
from modelcache.loader.header import MAX_HEADER_BYTES, Dtype
from tests.fuzz.verdicts import expect_like_the_package, file_of, ours, tensor

GOOD = file_of(
    {
        "__metadata__": {"format": "pt"},
        "b": tensor("F32", [2], 3, 11),
        "a": tensor("U8", [3], 0, 3),
        "none": tensor("BF16", [4, 0], 3, 3),
        "one": tensor("F64", [], 11, 19),
        "half": tensor("F4", [2, 2], 19, 21),
    },
    bytes(range(21)),
)


def test_every_tensor_and_where_it_lies() -> None:
    header = ours(GOOD)
    assert [(each.name, each.dtype, each.shape) for each in header.tensors] == [
        ("a", Dtype.U8, (3,)),
        ("none", Dtype.BF16, (4, 0)),
        ("b", Dtype.F32, (2,)),
        ("one", Dtype.F64, ()),
        ("half", Dtype.F4, (2, 2)),
    ]
    assert GOOD[header.tensors[2].span.start : header.tensors[2].span.stop] == bytes(range(3, 11))
    assert (header.metadata, header.file_bytes) == ({"format": "pt"}, len(GOOD))


BAD = {
    "no bytes": (b"", "too short"),
    "seven bytes": (b"1234567", "too short"),
    "length 0": (struct.pack("<Q", 0), "too short to be JSON"),
    "length 2^63": (struct.pack("<Q", 2**63) + b"{}", "longer than the format allows"),
    "length over the limit": (struct.pack("<Q", MAX_HEADER_BYTES + 1) + b"{}", "longer than the format allows"),
    "Git LFS": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "no safetensors file"),
    "a page": (b"<!DOCTYPE html>", "no safetensors file"),
    "length past the end": (struct.pack("<Q", 10) + b"{}", "beyond the file's end"),
    "a list": (file_of(b"[]"), "doesn't begin"),
    "a space first": (file_of(b" {}"), "doesn't begin"),
    "not UTF-8": (file_of(b'{"\xff":1}'), "not UTF-8"),
    "half a surrogate": (file_of(b'{"\\ud800":' + json.dumps(tensor("U8", [1], 0, 1)).encode() + b"}", b"x"), "surrogate"),
    "half a surrogate in an unknown field": (
        file_of(b'{"a":{"x":"\\ud800","dtype":"U8","shape":[1],"data_offsets":[0,1]}}', b"x"),
        "surrogate",
    ),
    "no JSON": (file_of(b"{,}"), "its JSON is not one"),
    "more behind the JSON": (file_of(b"{}\0\0"), "its JSON is not one"),
    "NaN": (file_of(b'{"a":NaN}'), "NaN"),
    "a million digits": (file_of(b'{"a":' + b"9" * 10**6 + b"}"), "its JSON is not one"),
    "deep": (file_of(b'{"a":' + b"[" * 10**5 + b"]" * 10**5 + b"}"), "deep"),
    "a tensor twice": (file_of(b'{"a":1,"a":1}'), "twice"),
    "a field twice": (file_of(b'{"a":{"dtype":"U8","dtype":"U8","shape":[1],"data_offsets":[0,1]}}', b"x"), "twice"),
    "no object": (file_of({"a": 1}), "is not an object with"),
    "a field missing": (file_of({"a": {"dtype": "U8", "shape": [1]}}, b"x"), "is not an object with"),
    "unknown dtype": (file_of({"a": tensor("F128", [1], 0, 16)}, bytes(16)), "dtype that is not known"),
    "dtype of no text": (file_of({"a": tensor("U8", [1], 0, 1) | {"dtype": 3}}, b"x"), "dtype that is not known"),
    "dtype as a variant": (file_of({"a": tensor("U8", [1], 0, 1) | {"dtype": {"U8": None}}}, b"x"), "is an object, and no string"),
    "negative shape": (file_of({"a": tensor("U8", [-1], 0, 1)}, b"x"), "whole numbers"),
    "a fraction": (file_of({"a": tensor("U8", [1.0], 0, 1)}, b"x"), "whole numbers"),
    "true": (file_of({"a": tensor("U8", [True], 0, 1)}, b"x"), "whole numbers"),
    "2^64": (file_of({"a": tensor("U8", [2**64], 0, 1)}, b"x"), "whole numbers"),
    "negative offset": (file_of({"a": tensor("U8", [1], -1, 0)}, b"x"), "whole numbers"),
    "three offsets": (file_of({"a": tensor("U8", [1], 0, 1) | {"data_offsets": [0, 1, 2]}}, b"x"), "whole numbers"),
    "backwards": (file_of({"a": tensor("U8", [1], 1, 0)}, b"x"), "ends before it begins"),
    "overflow": (file_of({"a": tensor("U8", [2**63, 4], 0, 1)}, b"x"), "beyond 64 bits"),
    "overflow and then nothing": (file_of({"a": tensor("U8", [2**63, 4, 0], 0, 0)}), "beyond 64 bits"),
    "shape of other bytes": (file_of({"a": tensor("F32", [2], 0, 4)}, bytes(4)), "don't make its bytes"),
    "half a byte": (file_of({"a": tensor("F4", [3], 0, 2)}, bytes(2)), "ends within a byte"),
    "overlap": (file_of({"a": tensor("U8", [2], 0, 2), "b": tensor("U8", [2], 1, 3)}, bytes(3)), "overlaps"),
    "gap": (file_of({"a": tensor("U8", [1], 0, 1), "b": tensor("U8", [1], 2, 3)}, bytes(3)), "leaves a gap"),
    "gap at the start": (file_of({"a": tensor("U8", [1], 1, 2)}, bytes(2)), "leaves a gap"),
    "past the end": (file_of({"a": tensor("U8", [9], 0, 9)}, b"x"), "don't end where the file does"),
    "more bytes behind": (file_of({"a": tensor("U8", [1], 0, 1)}, b"xy"), "don't end where the file does"),
    "metadata of numbers": (file_of({"__metadata__": {"a": 1}}), "__metadata__"),
    "metadata of a list": (file_of({"__metadata__": []}), "__metadata__"),
}


@pytest.mark.parametrize(("data", "said"), BAD.values(), ids=BAD)
def test_what_is_no_header_is_refused_with_what_is_wrong(data: bytes, said: str) -> None:
    with pytest.raises(BadCheckpoint, match="safetensors") as caught:
        ours(data)
    assert said in caught.value.message
    assert caught.value.address == "m.safetensors"
    expect_like_the_package(data)


numbers = st.one_of(st.integers(0, 9), st.sampled_from([-1, 2**63, 2**64 - 1, 2**64, 1.0, True, None, "1"]))
dtypes = st.one_of(st.sampled_from([each.label for each in Dtype]), st.sampled_from(["F128", "", 3, None]))
tensors = st.fixed_dictionaries(
    {"dtype": dtypes, "shape": st.lists(numbers, max_size=3), "data_offsets": st.lists(numbers, min_size=1, max_size=3)},
    optional={"more": st.one_of(st.integers(), st.text(max_size=2), st.lists(st.integers(), max_size=2))},
)
sane_tensors = st.tuples(st.sampled_from(list(Dtype)), st.lists(st.integers(0, 5), max_size=3))


@st.composite
def whole_files(draw: st.DrawFn) -> bytes:
    """A good file, sometimes spoilt by one byte, one cut or one number."""
    at = 0
    header: dict[str, Any] = {}
    for name, (dtype, shape) in draw(st.dictionaries(st.text(max_size=3), sane_tensors, max_size=4)).items():
        bits = dtype.bits
        for each in shape:
            bits *= each
        header[name] = tensor(dtype.label, shape, at, at + bits // 8)
        at += bits // 8
    if header and draw(st.sampled_from([True, False])):
        header[draw(st.sampled_from(sorted(header)))] = draw(tensors)
    text = json.dumps(header, ensure_ascii=draw(st.booleans())).encode("utf-8", "surrogatepass") + b" " * draw(st.integers(0, 7))
    data = bytearray(file_of(text, draw(st.binary(min_size=at, max_size=at))))
    if draw(st.booleans()):
        data[draw(st.integers(0, len(data) - 1))] = draw(st.integers(0, 255))
    return bytes(data[: len(data) - draw(st.sampled_from([0, 0, 0, 1]))])


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(whole_files())
@example(GOOD)
@example(file_of(b'{"a":{"dtype":"U8","shape":[-0],"data_offsets":[0,0]}}'))
@example(file_of({"a": tensor("U8", [1], 0, 1, more=[[[]]])}, b"x"))
def test_the_packages_verdict_or_a_stricter_one_and_the_same_tensors(data: bytes) -> None:
    expect_like_the_package(data)


@settings(max_examples=300, deadline=None)
@given(st.one_of(st.binary(max_size=200), st.binary(max_size=60).map(lambda text: file_of(b"{" + text))))
def test_any_bytes_get_a_verdict(data: bytes) -> None:
    expect_like_the_package(data)


def test_a_header_of_100_mb_is_read_and_one_more_byte_is_not(tmp_path: Path) -> None:
    text = b"{}".ljust(MAX_HEADER_BYTES)
    assert ours(file_of(text)).tensors == ()
    with pytest.raises(BadCheckpoint, match="longer than the format allows"):
        ours(file_of(text + b" "))
