"""The corpus once more: what `make fuzz` has found so far, in a second, without atheris."""

from __future__ import annotations

import pytest

from tests.fuzz import corpus
from tests.fuzz.__main__ import NAMES
from tests.fuzz.targets import TARGETS, file_from
from tests.fuzz.verdicts import expect_like_the_package


@pytest.mark.parametrize("name", TARGETS)
def test_every_input_of_the_corpus_passes(name: str) -> None:
    assert sorted(NAMES) == sorted(TARGETS)
    for data in corpus.read(name):
        TARGETS[name](data)


def test_the_corpus_holds_files_that_are_accepted_and_files_that_are_not() -> None:
    verdicts = [expect_like_the_package(file_from(data)) for data in corpus.read("header")]
    assert verdicts.count(True) > 10
    assert verdicts.count(False) > 10
