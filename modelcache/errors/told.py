"""Errors that another process told."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from modelcache.errors.base import ModelCacheError

_FIELDS = frozenset({"address", "expected", "got", "hint", "retry_after_s"})
_SAID_BY_THE_CLASS = frozenset({"code", "message", "retryable"})


def error_of(told: Mapping[str, Any]) -> ModelCacheError | None:
    """The error of `ModelCacheError.as_dict`; None: this version has none of that code."""
    kind = dict(_kinds(ModelCacheError)).get(told["code"])
    if kind is None:
        return None
    error = kind.__new__(kind, told["message"])
    ModelCacheError.__init__(error, told["message"], **{name: told[name] for name in _FIELDS & told.keys()})
    for name in told.keys() - _FIELDS - _SAID_BY_THE_CLASS:
        setattr(error, name, told[name])
    return error


def _kinds(kind: type[ModelCacheError]) -> Iterator[tuple[str, type[ModelCacheError]]]:
    if "code" in vars(kind):
        yield str(kind.code), kind
    for below in kind.__subclasses__():
        yield from _kinds(below)
