"""Which snapshots a table of mounts shows, by its text."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

import pytest

from daemonset.mountinfo import Candidate, Mount, candidates, parse
from daemonset.mounts import Mounts
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
    assert mounts[1] == Mount("8:1", f"/var/store/snapshots/{A}", PurePosixPath("/pods/a b\\c/mount"))
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


@pytest.mark.parametrize("volume_id", ["csi-1", "a:b", ""])
def test_a_volume_s_lease_names_it(volume_id: str) -> None:
    volume = Volume(volume_id, Path("/pods/a:/b c/mount"))
    assert Volume.of(volume.holder) == volume
    for other in ("pod-1", "volume:x", "mount:/pods/x"):
        assert Volume.of(other) is None
