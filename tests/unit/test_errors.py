"""The tree of errors: what scripts and people rely on."""

from __future__ import annotations

import copy
import inspect
import json
import pickle

import pytest

from modelcache import errors
from modelcache.errors import ErrorCode, ModelCacheError, NoDeviceMemory, NoSpace

CLASSES = [value for value in vars(errors).values() if inspect.isclass(value) and issubclass(value, ModelCacheError)]
CONCRETE = [found for found in CLASSES if "code" in vars(found)]
NUMBERS_OF: dict[type[ModelCacheError], dict[str, int]] = {
    NoSpace: {"needed_bytes": 40, "available_bytes": 30, "evictable_bytes": 20, "held_bytes": 10},
    NoDeviceMemory: {"needed_bytes": 40, "free_bytes": 30},
}


def made(found: type[ModelCacheError], **fields: str) -> ModelCacheError:
    return found("it failed", **fields, **NUMBERS_OF.get(found, {}))  # type: ignore[arg-type]


def test_every_class_that_can_be_raised_has_a_code_of_its_own() -> None:
    codes = [found.code for found in CONCRETE]
    assert sorted(codes) == sorted(ErrorCode), "a code without a class, or two classes with one code"
    groups = {base for found in CLASSES for base in found.__mro__[1:]}
    without = [found.__name__ for found in CLASSES if found not in CONCRETE and found not in groups]
    assert without == [], "a leaf of the tree without a code"


def test_codes_read_like_their_classes() -> None:
    for found in CONCRETE:
        assert found.code == "".join(f"-{letter.lower()}" if letter.isupper() else letter for letter in found.__name__).lstrip("-")
        assert found.__doc__


def test_missing_and_damaged_never_share_a_group() -> None:
    assert not {base for base in errors.Missing.__mro__ if base is not ModelCacheError} & set(errors.IntegrityError.__mro__) - {
        Exception,
        BaseException,
        object,
    }


@pytest.mark.parametrize("found", CONCRETE, ids=lambda found: found.__name__)
def test_an_error_says_what_it_is_about(found: type[ModelCacheError]) -> None:
    error = made(found, address="s3://b/m")
    assert str(error) == "it failed: s3://b/m"
    assert isinstance(error, Exception)
    assert not isinstance(error, OSError)
    fields = json.loads(json.dumps(error.as_dict()))
    assert (fields["code"], fields["message"], fields["retryable"]) == (str(found.code), "it failed", found.retryable)
    assert fields["address"] == "s3://b/m"
    assert fields.get("hint") == found.default_hint


def test_absent_fields_are_left_out_and_given_ones_kept() -> None:
    plain = errors.InvalidUri("bad `x`")
    assert str(plain) == "bad `x`"
    assert plain.as_dict() == {"code": "invalid-uri", "message": "bad `x`", "retryable": False}
    full = errors.OriginBusy("busy at s3://b", address="s3://b", expected="1", got="2", hint="wait", retry_after_s=0.0)
    assert str(full) == "busy at s3://b", "the address is not said twice"
    assert full.as_dict() == {
        "code": "origin-busy", "message": "busy at s3://b", "retryable": True,
        "address": "s3://b", "expected": "1", "got": "2", "hint": "wait", "retry_after_s": 0.0,
    }  # fmt: skip


@pytest.mark.parametrize("found", NUMBERS_OF)
def test_no_room_comes_with_its_numbers(found: type[ModelCacheError]) -> None:
    assert made(found).as_dict().items() >= NUMBERS_OF[found].items()


@pytest.mark.parametrize("found", CONCRETE, ids=lambda found: found.__name__)
def test_an_error_comes_whole_from_another_process(found: type[ModelCacheError]) -> None:
    error = made(found, address="s3://b/m", **({} if found in NUMBERS_OF else {"expected": "1", "hint": "wait"}))
    error.add_note("seen in a worker")
    for again in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert type(again) is found
        assert (str(again), again.args, vars(again), again.as_dict()) == (str(error), error.args, vars(error), error.as_dict())
