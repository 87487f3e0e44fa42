"""The seccomp profile that `RuntimeDefault` stands for, as the containers' projects ship it, in the OCI runtime's own format."""

from __future__ import annotations

import json
import platform
from pathlib import Path
from typing import Any

SHIPPED = Path("/usr/share/containers/seccomp.json")
"""Of Debian's package golang-github-containers-common, which buildah depends on."""
ARCHES = {"x86_64": "amd64", "aarch64": "arm64"}


def without_capabilities() -> dict[str, Any]:
    """What a container of no capability may call; `linux.seccomp` of a bundle's config.json."""
    shipped = json.loads(SHIPPED.read_text(encoding="utf-8"))
    arch = ARCHES[platform.machine()]
    own = f"SCMP_ARCH_{'X86_64' if arch == 'amd64' else 'AARCH64'}"
    (of_arch,) = [each for each in shipped["archMap"] if each["architecture"] == own]
    return {
        "defaultAction": shipped["defaultAction"],
        "defaultErrnoRet": shipped["defaultErrnoRet"],
        "architectures": [of_arch["architecture"], *of_arch["subArchitectures"]],
        "syscalls": [_rule(each) for each in shipped["syscalls"] if _counts(each, arch)],
    }


def _counts(rule: dict[str, Any], arch: str) -> bool:
    included, excluded = rule.get("includes") or {}, rule.get("excludes") or {}
    if "caps" in included or arch not in included.get("arches", [arch]):
        return False
    return arch not in excluded.get("arches", [])


def _rule(rule: dict[str, Any]) -> dict[str, Any]:
    return {name: rule[name] for name in ("names", "action", "args", "errnoRet") if rule.get(name) is not None}
