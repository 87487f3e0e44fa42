"""What every error of modelcache has."""

from __future__ import annotations

from typing import ClassVar

from modelcache.errors.code import ErrorCode


class ModelCacheError(Exception):
    """Root of the tree.

    Attributes:
        code: stable name of the error.
        retryable: whether the same call can succeed later without anybody changing anything.
        message: one sentence that names the thing; no secret in it.
        address: canonical URI, URL without query, or path that the error is about.
        expected, got: both values where two were compared.
        hint: the next step for a person.
        retry_after_s: what the origin asked for (`Retry-After`), in seconds.
    """

    code: ClassVar[ErrorCode]
    retryable: ClassVar[bool] = False
    default_hint: ClassVar[str | None] = None

    def __init__(
        self,
        message: str,
        *,
        address: str | None = None,
        expected: str | None = None,
        got: str | None = None,
        hint: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.address = address
        self.expected = expected
        self.got = got
        self.hint = hint if hint is not None else self.default_hint
        self.retry_after_s = retry_after_s

    def __reduce__(self) -> tuple[object, ...]:
        """For pickle and copy: classes whose arguments go by name come back, too."""
        return _restored, (type(self), self.args, dict(self.__dict__))

    def __str__(self) -> str:
        text = self.message
        if self.address is not None and self.address not in text:
            text = f"{text}: {self.address}"
        return text

    def as_dict(self) -> dict[str, object]:
        """The error as plain values, for `--json`, logs and statuses; absent fields are left out."""
        fields: dict[str, object] = {"code": str(self.code), "message": self.message, "retryable": self.retryable}
        for name in ("address", "expected", "got", "hint", "retry_after_s"):
            value = getattr(self, name)
            if value is not None:
                fields[name] = value
        return fields


def _restored(kind: type[ModelCacheError], args: tuple[object, ...], fields: dict[str, object]) -> ModelCacheError:
    """The error of `ModelCacheError.__reduce__`, with every field as it was."""
    error = kind.__new__(kind, *args)
    error.__dict__.update(fields)
    return error
