"""Which tests this run leaves out, and why: told in its summary, never silently.

A test that needs a file system that not every kernel has is marked `file_system("xfs")`. Where the kernel lacks it, the test is deselected
and named; a run whose environment says `MODELCACHE_TESTS_EXPECT=xfs,btrfs` ends before its first test instead. Tests marked `gpu` are
treated the same where torch sees no GPU; `MODELCACHE_TESTS_EXPECT=gpu` is for machines that must have one. Tests that need a program or a
package that `make` doesn't install are marked `beside("azurite")`: `BESIDE` says what there is and how a run gets it.

In a run of several processes each of them chooses, and the one that tells the summary has it from them.
"""

from __future__ import annotations

import os
from collections import Counter
from importlib.util import find_spec
from typing import Any

import pytest

from modelcache.testing.small_filesystem import Kind, kernel_has

EXPECT = "MODELCACHE_TESTS_EXPECT"
CHOSEN_BY_MARK = ("root", "gpu", "soak", "cluster", "image")
BY_NAME = 10
"""So many tests with one reason are named; more are counted."""

GPU = "gpu"
SIMULATED = "SIMCUDA_SEED" in os.environ
"""Whether the GPUs that torch sees are simulated ones (tests/gpu/simulated/README.md)."""
AZURITE = os.environ.get("MODELCACHE_TESTS_AZURITE", "")
"""The path of `azurite-blob`, read before tests run: they see a clean environment."""
BESIDE = {
    "azurite": "set MODELCACHE_TESTS_AZURITE to the path of `azurite-blob` (npm: azurite), and install adlfs",
    "ossfs": "install ossfs",
    "paramiko": "install paramiko and asyncssh",
    "simulated GPUs": "`make test-gpu-simulated` has some; real ones are not made to fail",
}
"""What some tests need beside what `make` installs, and how it is made known."""

OUTPUT = "left_out"
"""Of what a process of tests tells the one that started it."""

_reasons = pytest.StashKey[dict[str, str]]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_reasons] = {}
    names = [name.strip() for name in os.environ.get(EXPECT, "").split(",") if name.strip()]
    unknown = [name for name in names if name not in {*Kind, GPU}]
    if unknown:
        known = ", ".join((*Kind, GPU))
        raise pytest.UsageError(f"{EXPECT} names what is no file system of the tests: {', '.join(unknown)}; there are {known}")
    if missing := sorted(name for name in {*names} if not _is_here(name)):
        what = "this machine has no GPU that torch sees" if missing == [GPU] else "this kernel has no such file system"
        raise pytest.UsageError(f"{EXPECT} expects {', '.join(missing)}, and {what}")


@pytest.hookimpl(trylast=True)  # after -m and -k: what they leave out is theirs
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    needed = {name for item in items for name in _needs(item)}
    lacking = {name for name in needed if not _is_here(name)}
    left = [item for item in items if not lacking.isdisjoint(_needs(item))]
    for item in left:
        lacks = sorted(lacking.intersection(_needs(item)))
        if lacks[0] in BESIDE:
            config.stash[_reasons][item.nodeid] = f"{lacks[0]} is not here: {BESIDE[lacks[0]]}"
            continue
        who = "machine" if GPU in lacks else "kernel"
        config.stash[_reasons][item.nodeid] = f"this {who} has no {', '.join(lacks)} ({EXPECT}={','.join(lacks)} makes that a failure)"
    if left:
        items[:] = [item for item in items if item not in left]
        config.hook.pytest_deselected(items=left)


def pytest_deselected(items: list[pytest.Item]) -> None:
    for item in items:
        reasons = item.config.stash[_reasons]
        marks = [name for name in CHOSEN_BY_MARK if item.get_closest_marker(name) is not None]
        reasons.setdefault(item.nodeid, f"not selected, marked {', '.join(marks)}" if marks else "not selected")


def pytest_sessionfinish(session: pytest.Session) -> None:
    told: dict[str, Any] | None = getattr(session.config, "workeroutput", None)
    if told is not None:
        told[OUTPUT] = session.config.stash[_reasons]


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """A process of tests has ended; one that crashed has told nothing, and another had the same tests to choose from."""
    node.config.stash[_reasons].update(getattr(node, "workeroutput", {}).get(OUTPUT, {}))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    reasons = terminalreporter.config.stash[_reasons]
    if not reasons:
        return
    terminalreporter.section("tests left out")
    for reason, count in sorted(Counter(reasons.values()).items()):
        terminalreporter.write_line(f"{count:5d}  {reason}")
        for nodeid in [nodeid for nodeid, its in reasons.items() if its == reason and count <= BY_NAME]:
            terminalreporter.write_line(f"       {nodeid}")


def has_gpu() -> bool:
    """Whether torch sees one."""
    import torch

    return bool(torch.cuda.is_available())


def _is_here(name: str) -> bool:
    if name == "azurite":
        return bool(AZURITE)
    if name == "simulated GPUs":
        return SIMULATED
    if name in BESIDE:
        return find_spec(name) is not None
    return has_gpu() if name == GPU else kernel_has(Kind(name))


def _needs(item: pytest.Item) -> frozenset[str]:
    """File systems by their kind, `gpu`, and names of `BESIDE`."""
    kinds: set[str] = {Kind(str(name)) for mark in item.iter_markers("file_system") for name in mark.args}
    beside = {str(name) for mark in item.iter_markers("beside") for name in mark.args}
    return frozenset(kinds | beside | ({GPU} if item.get_closest_marker(GPU) is not None else set()))
