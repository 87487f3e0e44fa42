"""What `ls`, `df` and `gc --dry-run` say, against sums over a plain picture of the store; and that no memory grows with the blobs."""

from __future__ import annotations

import json
import os
import tempfile
import tracemalloc
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from modelcache.abc.store import Limits
from modelcache.digest import sha256
from modelcache.store import extents
from modelcache.store.blobs import EMPTY
from modelcache.store.store import LocalStore
from modelcache.testing.store_fixtures import NO_LIMITS

LIMIT_BYTES_PER_BLOB = 64
"""As in `bench.store`: a packed link is 20, a Python object with a digest in it 150 and more."""
CAP_BYTES = 1 << 40
CONTENTS = [f"{prefix}{str(number) * 62}" for prefix in ("00", "ab") for number in range(3)]
"""Digests of no bytes in particular: nobody here reads them. Several in one directory of the store."""
Tree = dict[str, int]


@dataclass(frozen=True)
class Picture:
    """A store to be made.

    Attributes:
        inodes: of each content that is here, how many, and its size.
        trees: of each snapshot, contents (also such as are not here) → names.
        readable: whether its manifest is; else nobody knows what it shows.
        holds: of each snapshot: "", "lease" or "pin".
        outside, doomed: names of contents in other places, and in the trash.
    """

    inodes: dict[str, tuple[int, int]]
    trees: list[Tree]
    readable: list[bool]
    used_at_s: list[int]
    holds: list[str]
    outside: Tree
    doomed: Tree


@st.composite
def pictures(draw: st.DrawFn) -> Picture:
    content = st.sampled_from(CONTENTS)
    trees = draw(st.lists(st.dictionaries(st.sampled_from([*CONTENTS, EMPTY.hex]), st.integers(1, 3), max_size=5), max_size=5))
    count = len(trees)
    return Picture(
        inodes=draw(st.dictionaries(content, st.tuples(st.integers(1, 2), st.integers(1, 20_000)))),
        trees=trees,
        readable=draw(st.lists(st.sampled_from([True, True, True, False]), min_size=count, max_size=count)),
        used_at_s=draw(st.lists(st.integers(0, 3), min_size=count, max_size=count)),
        holds=draw(st.lists(st.sampled_from(["", "", "lease", "pin"]), min_size=count, max_size=count)),
        outside=draw(st.dictionaries(content, st.integers(1, 2), max_size=2)),
        doomed=draw(st.dictionaries(content, st.integers(1, 2), max_size=3)),
    )


def name(number: int) -> str:
    return f"{number:064x}"


class Made:
    """The store of a picture."""

    def __init__(self, picture: Picture, root: Path) -> None:
        self.picture = picture
        self.store = LocalStore(root, Limits(max_bytes=CAP_BYTES, high_watermark=1.0, low_watermark=1.0))
        self.names: Counter[str] = Counter()
        """Of every content, beside the blob's own."""
        self.blocks: dict[str, int] = {}
        for digits, (inodes, size_bytes) in picture.inodes.items():
            paths = [blob(root, digits, number) for number in range(inodes)]
            for path in paths:
                path.parent.mkdir(exist_ok=True)
                path.write_bytes(b"x" * size_bytes)
            self.blocks[digits] = sum(path.stat().st_blocks * 512 for path in paths)
        for number, tree in enumerate(picture.trees):
            self._publish(number, tree)
        for place, links in ((root.parent, picture.outside), (root / "trash", picture.doomed)):
            self._link(place, links)
        for number, hold in enumerate(picture.holds):
            if hold == "lease":
                self.store.lease(sha256(name(number)), holder="pod", ttl_s=60)
            if hold == "pin":
                self.store.pin(sha256(name(number)), holder="me")
            os.utime(root / "manifests" / f"{name(number)}.json", (0, picture.used_at_s[number]))

    def _publish(self, number: int, tree: Tree) -> None:
        root = self.store.root
        directory = root / "snapshots" / name(number)
        directory.mkdir()
        self._link(directory, tree)
        for index in range(tree.get(EMPTY.hex, 0)):
            (directory / f"empty.{index}").touch()
        sizes = {digits: size_bytes for digits, (_, size_bytes) in self.picture.inodes.items()} | {EMPTY.hex: 0}
        files = [{"sha256": digits, "size_bytes": sizes.get(digits, 7)} for digits, count in tree.items() for _ in range(count)]
        readable = self.picture.readable[number]
        (root / "manifests" / f"{name(number)}.json").write_text(json.dumps({"files": files}) if readable else "{")

    def _link(self, directory: Path, links: Tree) -> None:
        """Names of a content go round its inodes."""
        for digits, count in links.items():
            inodes, _ = self.picture.inodes.get(digits, (0, 0))
            for index in range(count if inodes else 0):
                os.link(blob(self.store.root, digits, index % inodes), directory / f"{digits}.{index}")
                self.names[digits] += 1

    # -- the same sums, over plain dictionaries ---------------------------------------------------------------------

    @property
    def numbers(self) -> range:
        return range(len(self.picture.trees))

    def size_bytes(self, digits: str) -> int:
        return self.picture.inodes[digits][1]

    def shown(self, number: int) -> Tree:
        """What a snapshot is known to show of what is here."""
        if not self.picture.readable[number]:
            return {}
        return {digits: count for digits, count in self.picture.trees[number].items() if digits in self.picture.inodes}

    def own(self, number: int) -> list[str]:
        return [digits for digits, count in self.shown(number).items() if count == self.names[digits]]

    def held(self, *kinds: str) -> list[int]:
        return [number for number in self.numbers if self.picture.holds[number] in kinds]

    def blocks_of(self, numbers: list[int]) -> int:
        return sum(self.blocks[digits] for digits in {digits for number in numbers for digits in self.shown(number)})

    def freed(self, need_bytes: int, names: Tree) -> list[tuple[int, int]]:
        """Snapshots that would be evicted for so much, and what goes with each."""
        left, gone, chosen, total = dict(names), set(), [], 0
        for number in sorted(
            set(self.numbers) - set(self.held("lease", "pin")), key=lambda number: (self.picture.used_at_s[number], number)
        ):
            if total >= need_bytes:
                break
            here = 0
            for digits, count in self.shown(number).items():
                left[digits] -= count
                if left[digits] == 0:
                    here += self.blocks[digits]
                    gone.add(digits)
            chosen.append((number, here))
            total += here
        return [(number, here) for number, here in chosen if here or not gone.isdisjoint(self.shown(number))]


def blob(root: Path, digits: str, number: int = 0) -> Path:
    return root / "blobs" / "sha256" / digits[:2] / (digits if number == 0 else f"{digits}.{number}")


@settings(max_examples=120, suppress_health_check=[HealthCheck.too_slow])
@given(pictures(), st.integers(0, 200_000))
def test_every_figure_is_the_sum_that_it_says(picture: Picture, need_bytes: int) -> None:
    with tempfile.TemporaryDirectory() as directory:
        made = Made(picture, Path(directory) / "root")
        _check_list(made)
        _check_usage(made)
        _check_collect(made, need_bytes)


def _check_list(made: Made) -> None:
    for info in made.store.list():
        number, sizes = int(info.digest.hex, 16), made.size_bytes
        own, shown = made.own(number), made.shown(number)
        expected = sum(map(sizes, own)), sum(map(sizes, shown)) - sum(map(sizes, own)), sum(made.blocks[digits] for digits in own)
        assert (info.own_bytes, info.shared_bytes, info.freed_bytes) == expected
        assert made.store.info(info.digest) == info
        if not info.leases:
            assert made.store.evict(info.digest, dry_run=True).freed_bytes == info.freed_bytes
    assert sorted(int(info.digest.hex, 16) for info in made.store.list()) == list(made.numbers)


def _check_usage(made: Made) -> None:
    usage, sizes = made.store.usage(), made.size_bytes
    showing = Counter(digits for number in made.numbers for digits in made.shown(number))
    assert usage.content_bytes == sum(map(sizes, made.blocks))
    assert usage.blobs_bytes == sum(made.blocks.values())
    assert usage.own_bytes == sum(sizes(digits) for number in made.numbers for digits in made.own(number))
    assert usage.shared_bytes == sum(sizes(digits) for digits, count in showing.items() if count > 1)
    assert usage.leased_bytes == made.blocks_of(made.held("lease", "pin"))
    assert usage.pinned_bytes == made.blocks_of(made.held("pin"))
    assert usage.evictable_bytes == sum(here for _, here in made.freed(CAP_BYTES, made.names))
    capped = LocalStore(made.store.root, Limits(max_bytes=usage.blobs_bytes + 1000, high_watermark=1.0, low_watermark=1.0))
    assert capped.usage().available_bytes == 1000, "each inode weighs once, whatever names it has"


def _check_collect(made: Made, need_bytes: int) -> None:
    """With so little room that `need_bytes` must be evicted, beyond what nobody names."""
    names = {digits: made.names[digits] - made.picture.doomed.get(digits, 0) for digits in made.blocks}
    unnamed = [digits for digits in made.blocks if _inode_unnamed(made, digits)]
    freed_bytes = sum(_inode_unnamed(made, digits) for digits in unnamed)
    cap = Limits(max_bytes=made.store.usage().blobs_bytes - freed_bytes, high_watermark=1.0, low_watermark=1.0)
    report = LocalStore(made.store.root, cap).collect(need_bytes=need_bytes, dry_run=True)
    expected = made.freed(need_bytes, names) if need_bytes <= sum(here for _, here in made.freed(CAP_BYTES, names)) else []
    assert report.blobs_removed == len(unnamed)
    assert [(int(item.digest.hex, 16), item.freed_bytes) for item in report.evicted] == (expected if need_bytes else [])
    assert report.freed_bytes == freed_bytes + sum(item.freed_bytes for item in report.evicted)


def _inode_unnamed(made: Made, digits: str) -> int:
    """Blocks of the inodes of a content that only the trash names."""
    root, (inodes, _) = made.store.root, made.picture.inodes[digits]
    found = [blob(root, digits, number).stat() for number in range(inodes)]
    doomed = Counter(path.stat().st_ino for path in (root / "trash").iterdir())
    return sum(item.st_blocks * 512 for item in found if item.st_nlink - 1 == doomed[item.st_ino])


# -- memory -----------------------------------------------------------------------------------------------------------


def synthetic(root: Path, models: int, files: int, *, unnamed: int = 0) -> LocalStore:
    """Models of small files of their own, written without the store: it would take minutes."""
    store = LocalStore(root, NO_LIMITS)
    for number in range(256):
        (root / "blobs" / "sha256" / f"{number:02x}").mkdir()
    for model in range(models):
        directory = root / "snapshots" / name(model)
        directory.mkdir()
        digests = [_spread(model * files + file) for file in range(files)]
        for digits in digests:
            blob(root, digits).touch()
            os.link(blob(root, digits), directory / digits)
        manifest = {"files": [{"path": digits, "sha256": digits, "size_bytes": 0} for digits in digests]}
        (root / "manifests" / f"{name(model)}.json").write_text(json.dumps(manifest))
    for number in range(unnamed):
        blob(root, _spread(models * files + number)).touch()
    return store


def _spread(number: int) -> str:
    """As digests are: over all directories, different from the beginning."""
    return f"{number * 0x9E3779B97F4A7C15 % 2**64:016x}" * 4


def peak_bytes(ask: Callable[[], object]) -> int:
    ask()  # What is kept between calls is kept now.
    tracemalloc.start()
    try:
        ask()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def asked(store: LocalStore) -> dict[str, int]:
    """Peak memory of each question, and of the same under a cap, which makes the store weigh itself."""
    capped = LocalStore(store.root, Limits(max_bytes=1, high_watermark=1.0, low_watermark=1.0))
    return {
        "ls": peak_bytes(store.list),
        "df": peak_bytes(capped.usage),
        "gc": peak_bytes(lambda: store.collect(dry_run=True)),
        "gc --need": peak_bytes(lambda: capped.collect(need_bytes=2, dry_run=True)),
    }


@pytest.mark.parametrize(("models", "unnamed"), [((10, 60), (0, 0)), ((0, 0), (1000, 6000))], ids=["named", "garbage"])
def test_memory_does_not_grow_with_the_blobs(tmp_path: Path, models: tuple[int, int], unnamed: tuple[int, int]) -> None:
    small, large = (synthetic(tmp_path / str(index), models[index], 100, unnamed=unnamed[index]) for index in range(2))
    few, many = asked(small), asked(large)
    growth = {question: (many[question] - few[question]) / 5000 for question in few}
    assert {question: count for question, count in growth.items() if count > LIMIT_BYTES_PER_BLOB} == {}


# -- blocks that files share ------------------------------------------------------------------------------------------


@given(st.lists(st.lists(st.tuples(st.integers(0, 40), st.integers(1, 25)), max_size=4), max_size=4))
def test_doubly_used_blocks_wherever_the_disk_is_cut(files: list[list[tuple[int, int]]]) -> None:
    """Runs of blocks by begin and length, against a count block by block; regions of 8."""
    runs = {
        index: [extents.Extent(0, first, size, extents.FIEMAP_EXTENT_SHARED) for first, size in file] for index, file in enumerate(files)
    }
    used = Counter(block for file in files for first, size in file for block in range(first, first + size))
    with tempfile.TemporaryDirectory() as directory, pytest.MonkeyPatch.context() as patch:
        paths = [Path(directory) / str(index) for index in runs]
        for path in paths:
            path.touch()
        told = iter(runs.values())
        patch.setattr(extents, "REGION_BYTES", 8)
        patch.setattr(extents, "extents", lambda fd, offset, size_bytes: iter(next(told)))
        assert extents.doubly_used_bytes(iter(paths)) == sum(count - 1 for count in used.values())
