"""Checks of the store and of the file system below it. What is written for them has no name and is gone when they end."""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import stat
import tempfile
import time
from pathlib import Path

from modelcache.cache import ModelCache
from modelcache.cli.findings import Finding, Level, broken, doubtful, fine
from modelcache.cli.mounts import mount_of
from modelcache.cli.tables import counted
from modelcache.config import Config
from modelcache.errors import ModelCacheError, StoreBusy, StoreLocation
from modelcache.store.filesystem import check_place
from modelcache.store.layout import TEMP_PREFIX, Layout
from modelcache.units import GIB, format_bytes

MEMORY = frozenset({"tmpfs", "ramfs"})
FICLONE = 0x4004_9409
"""Source: linux/fs.h, `_IOW(0x94, 9, int)`."""
BLOCK_BYTES = 4096
LEAST_ROOM_BYTES = GIB
CLOCK_SLACK_S = 120.0
NAMED = 3
"""Models in one finding."""
OTHER_ROOT = "name another root with --root or MODELCACHE_ROOT"


def check_file_system(config: Config) -> list[Finding]:
    """Kind of file system, and what it can do, tried on unnamed files."""
    root = config.root
    place = _existing(root)
    found = [_check_place(root, place), _check_kind(root, place, allow_fuse=config.allow_fuse)]
    if found[0].level is not Level.FAIL:
        found += [_check_direct(place), _check_reflink(place)]
    return found


def _existing(root: Path) -> Path:
    """The root, or the nearest directory above it that exists."""
    return next(path for path in (root, *root.parents) if path.is_dir())


def _check_place(root: Path, place: Path) -> Finding:
    status = place.stat()
    if place == root and status.st_uid != os.geteuid():
        return broken("root", f"belongs to uid {status.st_uid}, this is uid {os.geteuid()}: {root}", f"run as its owner, or {OTHER_ROOT}")
    try:
        with tempfile.TemporaryFile(dir=place) as file:
            file.write(b"x")
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        step = "`modelcache gc` makes room; or remove something else there" if full else "have the right granted or the disk repaired"
        what = "can't be written" if place == root else f"can't be made at `{root}`"
        return broken("root", f"{what} ({error.strerror}): {place}", f"{step}, or {OTHER_ROOT}")
    if place != root:
        return fine("root", f"not there yet; the first pull makes it: {root}")
    if Layout(root).format.exists() and status.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        return doubtful("root", f"mode {stat.S_IMODE(status.st_mode):04o} lets others in: {root}", f"chmod 0700 {root}")
    return fine("root", str(root))


def _check_kind(root: Path, place: Path, *, allow_fuse: bool) -> Finding:
    mount = mount_of(place)
    said = f"{mount.kind} on {mount.place}"
    try:
        check_place(Path(os.path.realpath(root)), allow_fuse=allow_fuse)
    except StoreLocation as error:
        return broken("file system", f"{said}: {error}", error.hint or OTHER_ROOT)
    if mount.kind in MEMORY:
        return doubtful("file system", f"{said}: models would fill the memory and not outlive a restart", f"use a disk: {OTHER_ROOT}")
    if mount.kind == "overlay":
        return doubtful("file system", f"{said}: it goes when the container does", f"mount a volume: {OTHER_ROOT}")
    return fine("file system", said)


def _unnamed(place: Path, flags: int = 0) -> int:
    return os.open(place, os.O_TMPFILE | os.O_RDWR | flags, 0o600)


def _check_direct(place: Path) -> Finding:
    slower = "prewarming goes through the page cache here; nothing else changes"
    try:
        file = _unnamed(place, os.O_DIRECT)
    except OSError as error:
        return doubtful("O_DIRECT", f"not served here ({errno.errorcode.get(error.errno or 0, error.errno)})", slower)
    try:
        with mmap.mmap(-1, BLOCK_BYTES) as block:
            os.pwrite(file, block, 0)
    except OSError as error:
        return doubtful("O_DIRECT", f"refused on write ({errno.errorcode.get(error.errno or 0, error.errno)})", slower)
    finally:
        os.close(file)
    return fine("O_DIRECT", "served")


def _check_reflink(place: Path) -> Finding:
    """A file system that can't share blocks is no fault: ext4 can't."""
    try:
        files = [_unnamed(place)]
    except OSError as error:
        return fine("reflink", f"not tried: no unnamed files here ({errno.errorcode.get(error.errno or 0, error.errno)})")
    try:
        files.append(_unnamed(place))
        os.pwrite(files[0], bytes(BLOCK_BYTES), 0)
        fcntl.ioctl(files[1], FICLONE, files[0])
    except OSError:
        return fine("reflink", "not served; only whole files are shared")
    finally:
        for file in files:
            os.close(file)
    return fine("reflink", "served")


def check_room(config: Config) -> list[Finding]:
    """Free space under the high watermark."""
    place = _existing(config.root)
    space = os.statvfs(place)
    size_bytes, free_bytes = space.f_blocks * space.f_frsize, space.f_bavail * space.f_frsize
    used = 1 - space.f_bfree / space.f_blocks if space.f_blocks else 1.0
    left_bytes = max(0, free_bytes - int(size_bytes * (1 - config.limits.high_watermark)))
    said = f"{format_bytes(free_bytes)} free of {format_bytes(size_bytes)}; {format_bytes(left_bytes)} under the high watermark"
    hint = "`modelcache gc` and `rm` make room; or use a larger disk, or raise MODELCACHE_HIGH_WATERMARK"
    if left_bytes < LEAST_ROOM_BYTES:
        return [doubtful("room", f"{said} ({used:.0%} used, watermark {config.limits.high_watermark:.0%})", hint)]
    return [fine("room", said)]


def check_store(config: Config) -> list[Finding]:
    """Opens a store that is there (never makes one) and looks for what was left lying."""
    if not Layout(config.root).format.exists() and not _holds_something(config.root):
        if not config.create:
            hint = f"mount the disk that holds it; or have one made once, without MODELCACHE_CREATE (`store.create`); or {OTHER_ROOT}"
            return [broken("store", f"none here, and none may be made: {config.root}", hint)]
        return [fine("store", "none yet")]
    try:
        with ModelCache(config=config) as cache:
            return _check_content(cache)
    except StoreBusy as error:
        return [doubtful("store", str(error), error.hint or "try again when the other process is done")]
    except ModelCacheError as error:
        return [broken("store", str(error), error.hint or OTHER_ROOT)]


def _holds_something(root: Path) -> bool:
    """Whether something else is in the way of a store, or the rest of one: opening it says what, and makes none."""
    return root.is_dir() and any(not path.name.startswith(TEMP_PREFIX) and path.name != "lost+found" for path in root.iterdir())


def _check_content(cache: ModelCache) -> list[Finding]:
    usage, infos = cache.usage(), cache.list()
    found = [fine("store", f"{counted(len(infos), 'model')} in {format_bytes(usage.blobs_bytes)}")]
    quarantine = Layout(cache.config.root).quarantine
    gone = [", ".join(each.uris) for each in cache.out_of_service()]
    if gone:
        more = f" and {len(gone) - NAMED} more" if len(gone) > NAMED else ""
        hint = "`modelcache verify --repair` brings them back, as a pull does; `modelcache rm` forgets them"
        found.append(doubtful("damage", f"{counted(len(gone), 'model')} out of service: {', '.join(gone[:NAMED])}{more}", hint))
    if usage.quarantine_bytes:
        hint = f"`modelcache verify --repair` uses what is sound of them; then remove what is in {quarantine}"
        found.append(doubtful("leftovers", f"{format_bytes(usage.quarantine_bytes)} of damaged blobs in quarantine", hint))
    if usage.trash_bytes:
        found.append(doubtful("leftovers", f"{format_bytes(usage.trash_bytes)} in the trash", "`modelcache gc` removes it"))
    if usage.ingest_bytes:
        found.append(fine("leftovers", f"{format_bytes(usage.ingest_bytes)} of fetches in progress or interrupted; pulls go on with them"))
    if not (usage.quarantine_bytes or usage.trash_bytes or usage.ingest_bytes):
        found.append(fine("leftovers", "none"))
    ahead_s = max((info.last_used_at_s for info in infos), default=0.0) - time.time()
    if ahead_s > CLOCK_SLACK_S:
        found.append(doubtful("clock", f"a model was used {ahead_s:.0f} s in the future", "the clock was set back: check it"))
    return found
