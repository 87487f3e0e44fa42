"""Names of files inside a snapshot: which are safe to create under a directory of ours."""

from __future__ import annotations

import re
from collections.abc import Iterable

from modelcache.errors import UnsafePath

MAX_COMPONENT_BYTES = 255
"""NAME_MAX of ext4, XFS, btrfs and tmpfs."""
MAX_PATH_BYTES = 1024
"""S3's limit for a whole key; leaves room for ROOT under Linux' PATH_MAX of 4096."""


_NAMESPACE = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
"""A DNS label (RFC 1123), as Kubernetes names namespaces: safe as the name of a directory."""


def checked_compartment(name: object) -> str:
    """`name`, if a namespace can be called so that has a part of a store for itself. Raises ValueError."""
    if not isinstance(name, str) or not _NAMESPACE.fullmatch(name):
        raise ValueError(f"{str(name)[:80]!a} is no name of a namespace")
    return name


def checked_path(text: str, *, address: str | None = None) -> str:
    """`text`, if it is a relative POSIX path that can be created below any directory and can't leave it.

    Raises:
        UnsafePath: empty, absolute, an empty, `.` or `..` component, a control character, a name that is not
            UTF-8, a component over 255 bytes, or over 1024 bytes in all.
    """
    problem = _problem(text)
    if problem is not None:
        raise UnsafePath(f"unsafe file name {text[:80]!a}: {problem}", address=address, got=ascii(text[:300]))
    return text


def check_tree(paths: Iterable[str], *, address: str | None = None) -> None:
    """Check that these paths can all be files of one directory tree.

    Raises:
        UnsafePath: one is unsafe, occurs twice, or is both a file and the directory of another.
    """
    seen = set()
    for path in paths:
        checked_path(path, address=address)
        if path in seen:
            raise UnsafePath(f"file name {path!a} occurs twice", address=address, got=ascii(path))
        seen.add(path)
    for path in seen:
        parent = path
        while "/" in parent:
            parent = parent.rpartition("/")[0]
            if parent in seen:
                raise UnsafePath(f"{parent!a} is a file and also the directory of {path!a}", address=address, got=ascii(parent))


def _problem(text: str) -> str | None:
    if not text:
        return "it is empty"
    if text.startswith("/"):
        return "it is absolute"
    try:
        encoded = text.encode("utf-8")
    except UnicodeEncodeError:
        return "it is not UTF-8"
    if len(encoded) > MAX_PATH_BYTES:
        return f"{len(encoded)} bytes are over the limit of {MAX_PATH_BYTES}"
    if any(ord(char) < 0x20 or 0x7F <= ord(char) < 0xA0 for char in text):
        return "it holds a control character"
    for part in text.split("/"):
        if part in ("", ".", ".."):
            return f"{part!a} is no name for a file or directory"
        if len(part.encode("utf-8")) > MAX_COMPONENT_BYTES:
            return f"a component of {len(part.encode('utf-8'))} bytes is over the limit of {MAX_COMPONENT_BYTES}"
    return None
