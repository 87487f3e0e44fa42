"""The root of a store: made, recognised, or refused."""

from __future__ import annotations

import os
import re
import secrets
import stat
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from modelcache.errors import StoreFormat, StoreLocation, StoreOwner
from modelcache.store import durable
from modelcache.store.faults import elsewhere
from modelcache.store.filesystem import check_place
from modelcache.store.layout import FORMAT_VERSION, TEMP_PREFIX, Layout
from modelcache.store.lock import StoreLock
from modelcache.store.records import remove

LOCK_TIMEOUT_S = 30.0
"""The store lock is held for milliseconds; whoever waits this long waits for a process that hangs on its disk."""
ROOM_TIMEOUT_S = 300.0
"""A reservation may have to delete terabytes first (ext4: about 1 s per 100 GiB)."""

_FORMAT = re.compile(r"modelcache (?P<version>\d+)\n(?:owner (?P<owner>\d+)\nstore (?P<store>[0-9a-f]{32})\n)?.*", re.DOTALL)


@dataclass(frozen=True)
class Root:
    """An open store's place, locks and clock: what its parts share.

    Attributes:
        store_id: 32 hex digits, chosen when the store was made; tells one disk's store from another's.
        read_only: the directory can't be written; reading works, all else raises StoreReadOnly.
        clock: Unix time in seconds.
    """

    layout: Layout
    store_id: str
    read_only: bool
    lock: StoreLock
    clock: Callable[[], float]

    @property
    def address(self) -> str:
        return str(self.layout.root)


def open_root(
    path: Path,
    *,
    create: bool,
    allow_fuse: bool = False,
    clock: Callable[[], float] = time.time,
    lock_timeout_s: float = LOCK_TIMEOUT_S,
) -> Root:
    """Open the store at `path`, or make one in a new or empty directory.

    Raises:
        StoreLocation: no place for a store, or a directory that holds something else.
        StoreFormat: there is none and `create` is False, it lost its `format` file, or its format is not known.
        StoreOwner: it belongs to another user id.
        StoreReadOnly, StoreFault: the disk refuses.
    """
    root = Path(os.path.realpath(path))
    check_place(root, allow_fuse=allow_fuse)
    layout = Layout(root)
    if not _is_here(layout):
        _create(layout, create=create)
    store_id = _recognised(layout)
    read_only = not os.access(root, os.W_OK)
    if not read_only:
        _check_whole(layout)
        _complete(layout)
    return Root(layout, store_id, read_only, StoreLock(layout, timeout_s=lock_timeout_s, room_timeout_s=ROOM_TIMEOUT_S), clock)


def format_bytes_of(owner: int, store_id: str) -> bytes:
    """Content of the `format` file."""
    return f"modelcache {FORMAT_VERSION}\nowner {owner}\nstore {store_id}\n".encode()


def _is_here(layout: Layout) -> bool:
    """Whether there is a `format` file. Raises StoreOwner: the directory is closed to us, as a store of another user id is."""
    try:
        os.stat(layout.format)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except PermissionError as error:
        owner, us = os.stat(layout.root).st_uid, os.geteuid()
        if owner == us:
            raise
        raise StoreOwner("the store belongs to another user id", address=str(layout.root), expected=str(owner), got=str(us)) from error
    return True


def _create(layout: Layout, *, create: bool) -> None:
    found = _content(layout.root)
    if found and _is_here(layout):
        return  # Somebody has made one since we looked; of all its parts, `format` comes first.
    parts = {path.relative_to(layout.root).parts[0] for path in (*layout.directories, *layout.locks)}
    if found & parts:
        raise StoreFormat(
            f"the `format` file is gone, but `{min(found & parts)}` is here",
            address=str(layout.root),
            hint="is the disk that holds this store mounted? If the store was damaged, remove it and pull again",
        )
    if not create:
        raise StoreFormat("there is no store here", address=str(layout.root), hint="check the path, and that its disk is mounted")
    if found:
        raise StoreLocation(
            f"the directory is not empty and holds no store: `{min(found)}` is in it",
            address=str(layout.root),
            hint="name an empty or a new directory",
        )
    for parent in reversed(layout.root.parents):
        _make_directory(parent, 0o755)
    if not layout.root.exists():
        _make_directory(layout.root, 0o700)
    elif layout.root.stat().st_uid != os.geteuid():
        raise StoreOwner(
            "the directory belongs to another user id",
            address=str(layout.root),
            expected=str(os.geteuid()),
            got=str(layout.root.stat().st_uid),
        )
    durable.chmod(layout.root, 0o700)
    _write_format(layout)
    durable.fsync_directory(layout.root.parent)


def _content(root: Path) -> set[str]:
    """Names in a directory that mean something."""
    if not root.is_dir():
        if root.exists():
            raise StoreLocation("not a directory", address=str(root), hint="name a directory with --root or MODELCACHE_ROOT")
        return set()
    return {name for name in os.listdir(root) if not name.startswith(TEMP_PREFIX) and name != "lost+found"}


def _write_format(layout: Layout) -> None:
    """The file appears whole, and once: two processes that make one store at once get the same."""
    temporary = layout.temporary(layout.root)
    durable.write_new(temporary, format_bytes_of(os.geteuid(), secrets.token_hex(16)), sync=True, mode=0o400)
    try:
        durable.link(temporary, layout.format)
    except (FileExistsError, FileNotFoundError):
        pass  # Somebody else was first, and may have swept what we began.
    except PermissionError as error:
        raise StoreLocation("this file system has no hard links", address=str(layout.root), hint="use ext4, XFS or btrfs") from error
    finally:
        remove(temporary)
    durable.fsync_directory(layout.root)


def _recognised(layout: Layout) -> str:
    """The id of the store whose `format` file is here, if we may use it."""
    address = str(layout.root)
    try:
        text = layout.format.read_text("utf-8")
    except PermissionError as error:
        raise StoreOwner(f"user id {os.geteuid()} may not read this store", address=address) from error
    except UnicodeDecodeError as error:
        raise StoreFormat("the `format` file can't be read as one", address=address) from error
    match = _FORMAT.fullmatch(text)
    if match is None:
        raise StoreFormat("the `format` file can't be read as one", address=address, got=ascii(text[:80]))
    if int(match["version"]) != FORMAT_VERSION:
        raise StoreFormat(
            f"the store has format {match['version']}, this version of modelcache knows format {FORMAT_VERSION}",
            address=address,
            expected=str(FORMAT_VERSION),
            got=match["version"],
            hint="install a newer modelcache, or name another root",
        )
    if match["owner"] is None:
        raise StoreFormat("the `format` file names no owner and store", address=address, got=ascii(text[:80]))
    if int(match["owner"]) != os.geteuid():
        raise StoreOwner("the store belongs to another user id", address=address, expected=match["owner"], got=str(os.geteuid()))
    return match["store"]


def _check_whole(layout: Layout) -> None:
    """Raises StoreLocation if a directory of the store is on another file system: neither links nor renames lead there."""
    device = os.stat(layout.root).st_dev
    for directory in layout.directories:
        if directory.is_dir() and os.stat(directory).st_dev != device:
            raise elsewhere(str(directory))


def _complete(layout: Layout) -> None:
    """Make what a crash between two steps of making the store left out."""
    if stat.S_IMODE(layout.root.stat().st_mode) != 0o700:
        durable.chmod(layout.root, 0o700)
    made = False
    for directory in layout.directories:
        made |= _make_directory(directory, 0o700)
    for lock in layout.locks:
        made |= _make_file(lock)
    if made:
        durable.fsync_directory(layout.root)


def _make_directory(path: Path, mode: int) -> bool:
    if path.is_dir():
        return False
    try:
        durable.mkdir(path, mode)
    except FileExistsError:
        return False
    return True


def _make_file(path: Path) -> bool:
    if path.exists():
        return False
    try:
        os.close(durable.create(path))
    except FileExistsError:
        return False
    return True
