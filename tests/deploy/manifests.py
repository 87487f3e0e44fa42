"""The objects of deploy/, as its kustomization puts them together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

PROJECT = Path(__file__).resolve().parents[2]
DEPLOY = PROJECT / "deploy"
Object = dict[str, Any]


def kustomization() -> Object:
    return dict(yaml.safe_load((DEPLOY / "kustomization.yaml").read_text(encoding="utf-8")))


def objects() -> Sequence[Object]:
    """In the kustomization's order."""
    return [each for name in kustomization()["resources"] for each in _documents(DEPLOY / name)]


def one(kind: str, name: str = "modelcache-agent") -> Object:
    """The object of this kind and name."""
    (found,) = [each for each in objects() if each["kind"] == kind and each["metadata"]["name"] == name]
    return found


def agents_pod() -> Object:
    """The `spec` of the agent's pods."""
    return dict(one("DaemonSet")["spec"]["template"]["spec"])


def _documents(path: Path) -> Iterator[Object]:
    return iter(yaml.safe_load_all(path.read_text(encoding="utf-8")))
