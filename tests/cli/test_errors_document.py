"""Every error has a place in the exit codes and in the documents."""

from __future__ import annotations

import re

import pytest

from modelcache import errors
from modelcache.cli.exit_codes import GROUPS, ExitCode, exit_code_of, group_of
from modelcache.errors import ErrorCode, ModelCacheError, NoDeviceMemory, NoSpace
from tests.cli.errors_table import concrete, documented, table
from tests.docs.documents import ROOT, between, rows


def test_the_table_of_errors_is_what_the_code_says() -> None:
    assert documented() == table(), "`python -m tests.cli.errors_table` writes it anew"


def test_every_error_code_has_one_class_and_every_class_a_meaning() -> None:
    kinds = list(concrete())

    assert sorted(kind.code for kind in kinds) == sorted(ErrorCode)
    assert [kind.__name__ for kind in kinds if not (kind.__doc__ or "").strip()] == []


@pytest.mark.parametrize("kind", list(concrete()), ids=lambda kind: kind.__name__)
def test_every_concrete_error_is_in_exactly_one_group_and_has_its_exit_code(kind: type[ModelCacheError]) -> None:
    bases = [base for base in GROUPS if issubclass(kind, base)]
    numbers = {
        NoSpace: {"needed_bytes": 1, "available_bytes": 1, "evictable_bytes": 1, "held_bytes": 1},
        NoDeviceMemory: {"needed_bytes": 1, "free_bytes": 1},
    }
    error = kind("what happened", **numbers.get(kind, {}))  # type: ignore[arg-type]

    assert len(bases) == 1
    assert exit_code_of(error) is GROUPS[bases[0]]
    assert exit_code_of(error) not in (ExitCode.OK, ExitCode.UNEXPECTED)


def test_what_is_no_error_of_ours_is_unexpected() -> None:
    class Unplaced(errors.ModelCacheError):
        code = ErrorCode.CANCELLED

    assert group_of(Unplaced) is None
    assert exit_code_of(Unplaced("x")) is ExitCode.UNEXPECTED
    assert exit_code_of(ValueError("x")) is ExitCode.UNEXPECTED
    assert exit_code_of(KeyboardInterrupt()) is ExitCode.CANCELLED


def test_the_table_of_exit_codes_is_what_the_code_says() -> None:
    text = (ROOT / "docs/cli.md").read_text(encoding="utf-8")
    shown = {int(code): names for code, names, _ in rows(between(text, "exit codes"))}
    actual = {int(code): "" for code in ExitCode}
    for code in ExitCode:
        actual[int(code)] = ", ".join(sorted(kind.__name__ for kind, mapped in GROUPS.items() if mapped is code))

    assert shown == actual


def test_the_groups_with_advice_are_the_groups() -> None:
    text = (ROOT / "docs/errors.md").read_text(encoding="utf-8")
    advised = re.findall(r"^\| (\w+) \|", text.partition("<!-- /errors -->")[2], re.MULTILINE)

    assert sorted(advised[1:]) == sorted(kind.__name__ for kind in GROUPS)
