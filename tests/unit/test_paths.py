"""Names of files: what is accepted can be created and stays inside; what can't is refused."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from modelcache.errors import UnsafePath
from modelcache.paths import MAX_COMPONENT_BYTES, MAX_PATH_BYTES, check_tree, checked_path

ORDINARY = st.text(st.characters(exclude_categories=["Cc", "Cs"], exclude_characters="/"), min_size=1, max_size=5)
ODD = st.sampled_from(["..", ".", "...", "-rf", "~", "*", "\\", "\ud800", "a" * 255, "é" * 127])
NAMES = ORDINARY | ORDINARY | ORDINARY | ODD
PATHS = st.lists(NAMES, min_size=1, max_size=4).map("/".join)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("trees")


@given(st.lists(PATHS, min_size=1, max_size=5, unique=True))
@example(["a" * MAX_COMPONENT_BYTES + "/" + "é" * 127])
@example(["/".join(["a" * 255] * 4)])
@example(["A", "a", "a.", " ", "a\\b", "con"])
def test_an_accepted_tree_can_be_created_and_stays_inside(root: Path, paths: list[str]) -> None:
    try:
        check_tree(paths)
    except UnsafePath:
        return
    with tempfile.TemporaryDirectory(dir=root) as name:
        inside = Path(name)
        for path in paths:
            target = inside / path
            target.parent.mkdir(parents=True, exist_ok=True)
            with target.open("x"):
                pass
            assert target.resolve().relative_to(inside.resolve()).as_posix() == path
        created = {found.relative_to(inside).as_posix() for found in inside.rglob("*") if found.is_file()}
        assert created == set(paths)


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("", "empty"),
        ("/", "absolute"),
        ("/etc/passwd", "absolute"),
        ("..", "'..'"),
        ("../a", "'..'"),
        ("a/../../b", "'..'"),
        ("a/..", "'..'"),
        (".", "'.'"),
        ("./a", "'.'"),
        ("a//b", "''"),
        ("a/", "''"),
        ("a\x00b", "control"),
        ("a\nb", "control"),
        ("a\x1b[31m", "control"),
        ("a\x7f", "control"),
        ("a\x9b31m", "control"),
        ("\udcff", "UTF-8"),
        ("a" * 256, "256 bytes"),
        ("é" * 128, "256 bytes"),
        ("/".join(["a" * 200] * 6), "1205 bytes"),
    ],
)
def test_refused_names(path: str, reason: str) -> None:
    with pytest.raises(UnsafePath, match=reason) as caught:
        checked_path(path, address="s3://b/m")
    assert caught.value.address == "s3://b/m"
    assert str(caught.value).isprintable()
    assert caught.value.got is not None
    assert caught.value.got.isprintable()


@pytest.mark.parametrize(
    "path", ["a", "a" * MAX_COMPONENT_BYTES, ".hidden", "...", "a/..b/c..", "ünï/\U0001f600", "a b", "~", "C:\\x", "a" * 255 + "/b"]
)
def test_names_that_are_fine(path: str) -> None:
    assert checked_path(path) == path


def test_the_limit_of_a_path_is_exact() -> None:
    longest = "/".join(["a" * 204] * 5)
    assert checked_path(longest + "b" * (MAX_PATH_BYTES - len(longest)))
    with pytest.raises(UnsafePath, match="1025 bytes"):
        checked_path(longest + "b" * (MAX_PATH_BYTES - len(longest) + 1))


@pytest.mark.parametrize(
    ("paths", "reason"),
    [
        (["a", "b", "a"], "occurs twice"),
        (["a", "a/b"], "also the directory"),
        (["a/b/c/d", "a/b"], "also the directory"),
        (["ok", "../bad"], "unsafe file name"),
    ],
)
def test_paths_that_form_no_tree(paths: list[str], reason: str) -> None:
    with pytest.raises(UnsafePath, match=reason):
        check_tree(paths)


def test_siblings_that_look_alike_form_a_tree() -> None:
    check_tree(["a/b", "a.b", "a/c", "ab/b", "A/b"])
