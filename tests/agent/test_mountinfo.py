"""Which snapshots a table of mounts shows, by its text."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

import pytest

from daemonset.mountinfo import Candidate, Mount, candidates, parse, same_file_system
from daemonset.mounts import Mounts, share_file_system
from modelcache.agent.volumes import Volume
from modelcache.errors import DamagedRecord

A, B = "a" * 64, "b" * 64
TABLE = rf"""22 27 0:21 / /proc rw,relatime shared:5 - proc proc rw
36 35 8:1 /var/store/snapshots/{A} /pods/a\040b\134c/mount ro,noatime master:1 shared:2 - ext4 /dev/sda1 rw
37 35 8:1 /var/store/snapshots/{B}/sub /pods/x ro - ext4 /dev/sda1 rw
38 35 8:1 /var/store/snapshots/{B}//deleted /pods/y ro - ext4 /dev/sda1 rw
39 35 8:1 /var/store/snapshots/{B}0 /pods/z ro - ext4 /dev/sda1 rw
40 36 0:40 / /pods/a\040b\134c rw - tmpfs tmpfs rw
""".encode()


def test_bind_mounts_of_snapshots_are_found_by_their_root() -> None:
    mounts = parse(TABLE)
    assert mounts[1] == Mount("8:1", f"/var/store/snapshots/{A}", PurePosixPath("/pods/a b\\c/mount"), "/dev/sda1")
    assert candidates(mounts) == [
        Candidate(mounts[1], A, whole=True, covered=True),  # by the tmpfs above its point
        Candidate(mounts[2], B, whole=False, covered=False),
    ]


@pytest.mark.parametrize(
    "table", [None, b"", b"no table\n", b"22 27 0:21 / /proc rw - proc proc rw\n"], ids=["missing", "empty", "other", "no pods"]
)
def test_who_sees_no_mounts_knows_nothing(tmp_path: Path, table: bytes | None) -> None:
    path = tmp_path / "mountinfo"
    if table is not None:
        path.write_bytes(table)
    with pytest.raises(DamagedRecord, match="nothing is removed"):
        Mounts(tmp_path, tmp_path / "pods", path).held()


def test_a_mount_below_the_pods_is_enough(tmp_path: Path) -> None:
    path = tmp_path / "mountinfo"
    path.write_bytes(TABLE)
    assert Mounts(tmp_path, Path("/pods"), path).look() == []


@pytest.mark.parametrize(
    ("one", "other", "shared"),
    [
        ("/var/lib/kubelet/pods", "/var/lib/modelcache", True),
        ("/var/lib/kubelet/pods", "/var/lib/modelcaches", False),  # no part of that name
        ("/var/lib/kubelet/pods", "/btrfs/store/x", True),  # subvolumes
        ("/tmp", "/run/x", False),  # two of what has no source
        ("/tmp", "/tmp/x", True),
        ("/mnt/a", "/var/lib/modelcache", False),  # covered by a later mount
    ],
)
def test_what_is_on_one_file_system(one: str, other: str, shared: bool) -> None:
    mounts = [
        Mount("8:2", "/", PurePosixPath("/"), "/dev/sda2"),
        Mount("0:50", "/@pods", PurePosixPath("/var/lib/kubelet/pods"), "/dev/sda1"),
        Mount("0:50", "/@store", PurePosixPath("/var/lib/modelcache"), "/dev/sda1"),
        Mount("0:51", "/@other", PurePosixPath("/btrfs/store"), "/dev/sda1"),
        Mount("0:60", "/", PurePosixPath("/tmp"), "tmpfs"),
        Mount("0:61", "/", PurePosixPath("/run"), "tmpfs"),
        Mount("0:50", "/@a", PurePosixPath("/mnt/a"), "/dev/sda1"),
        Mount("8:16", "/", PurePosixPath("/mnt/a"), "/dev/sdb"),
    ]
    assert same_file_system(mounts, PurePosixPath(one), PurePosixPath(other)) is shared
    assert same_file_system(mounts, PurePosixPath(other), PurePosixPath(one)) is shared


def test_who_can_t_see_takes_two_places_for_one_disk(tmp_path: Path) -> None:
    assert share_file_system(tmp_path, Path("/proc"), tmp_path / "nothing")
    assert share_file_system(tmp_path, tmp_path)
    assert not share_file_system(tmp_path, Path("/proc"))


@pytest.mark.parametrize("volume_id", ["csi-1", "a:b", ""])
def test_a_volume_s_lease_names_it(volume_id: str) -> None:
    volume = Volume(volume_id, Path("/pods/a:/b c/mount"))
    assert Volume.of(volume.holder) == volume
    for other in ("pod-1", "volume:x", "mount:/pods/x"):
        assert Volume.of(other) is None
