"""What `doctor` finds, on real directories and with real settings."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from importlib.metadata import metadata
from pathlib import Path

import pytest

from modelcache.cli import machine_checks, store_checks
from modelcache.cli.examination import CHECKS, examine
from modelcache.cli.findings import Finding, Level
from modelcache.cli.mounts import Mount, mount_of
from modelcache.config import Config
from tests.cli.executable import Done, Executable
from tests.cli.test_commands import damage
from tests.conftest import SmallDisk
from tests.docs.documents import ROOT, between, rows


def of(findings: object, check: str) -> list[Finding]:
    assert isinstance(findings, list)
    return [finding for finding in findings if finding.check == check]


def config_of(root: Path, **environ: str) -> Config:
    return Config.load({"HOME": "/nowhere", **environ}, root=root)


def test_a_store_that_may_not_be_made_and_is_not_there_is_a_failure(tmp_path: Path) -> None:
    [finding] = store_checks.check_store(config_of(tmp_path, MODELCACHE_CREATE="0"))

    assert finding.level is Level.FAIL
    assert "mount the disk" in (finding.hint or "")


@pytest.mark.parametrize("name", ["blobs", "others.txt"])
def test_a_root_that_no_command_takes_is_a_failure(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()

    [finding] = store_checks.check_store(config_of(tmp_path))

    assert finding.level is Level.FAIL
    assert f"`{name}`" in finding.message
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_certificate_that_is_not_checked_is_told_with_the_setting_that_names_the_ca(tmp_path: Path) -> None:
    [warning] = [one for one in machine_checks.check_authorities(config_of(tmp_path, S3_VERIFY_SSL="0")) if one.level is not Level.OK]

    assert "not verified" in warning.message
    assert "MODELCACHE_S3_CA_FILE" in (warning.hint or "")
    assert all(one.level is Level.OK for one in machine_checks.check_authorities(config_of(tmp_path, S3_VERIFY_SSL="1")))


@pytest.mark.parametrize("setting", ["S3", "GS", "HF", "HTTP"])
def test_every_ca_file_that_is_named_is_tried(tmp_path: Path, setting: str) -> None:
    config = config_of(tmp_path, **{f"MODELCACHE_{setting}_CA_FILE": str(tmp_path / "absent.pem")})

    [failure] = [one for one in machine_checks.check_authorities(config) if one.level is not Level.OK]

    assert failure.level is Level.FAIL
    assert str(tmp_path / "absent.pem") in failure.message


def test_a_sound_machine_passes_and_nothing_is_made(cli: Executable) -> None:
    done = cli("doctor", "--json")
    checked = {finding["check"] for finding in done.document["findings"]}

    assert (done.code, done.document["ok"]) == (0, True)
    assert {"python", "root", "file system", "O_DIRECT", "reflink", "room", "store", "hashing", "certificates", "proxy", "clock"} <= checked
    assert {"extra s3", "extra gcs", "extra hf", "extra torch", "extra serve", "extra agent"} <= checked
    assert not cli.root.exists()


def test_every_finding_that_is_not_ok_has_a_next_step(cli: Executable, tmp_path: Path) -> None:
    bad = {
        "HTTPS_PROXY": "ftp://user:hunter2@proxy:1",
        "HTTP_PROXY": "http://p:1",
        "NO_PROXY": "a,.b",
        "MODELCACHE_S3_CA_FILE": str(tmp_path / "absent.pem"),
    }
    done = cli("doctor", "--json", **bad)
    findings = done.document["findings"]

    assert (done.code, done.document["ok"]) == (8, False)
    assert [finding["message"] for finding in findings if finding["level"] != "ok" and not finding["hint"]] == []
    assert {finding["check"] for finding in findings if finding["level"] == "fail"} == {"proxy", "certificates"}
    assert "spoken to directly: a,.b" in {finding["message"] for finding in findings}
    assert "hunter2" not in done.out


def test_an_agent_that_is_named_and_silent_is_a_failure_as_it_is_to_every_other_command(cli: Executable, tmp_path: Path) -> None:
    done = cli("doctor", "--json", MODELCACHE_AGENT=str(tmp_path / "a.sock"))
    [finding] = [one for one in done.document["findings"] if one["check"] == "agent"]

    assert (done.code, finding["level"]) == (8, "fail")
    assert str(tmp_path / "a.sock") in finding["message"]
    assert cli("ls", MODELCACHE_AGENT=str(tmp_path / "a.sock")).code == 5


def test_bad_settings_are_a_finding(cli: Executable) -> None:
    done = cli("doctor", MODELCACHE_REFRESH_S="soon")

    assert done.code == 8
    assert done.out.startswith("fail  settings  MODELCACHE_REFRESH_S: ")
    assert "next: " in done.out.splitlines()[1]


def test_damage_and_interrupted_fetches_are_found(cli: Executable, model: Path) -> None:
    cli("pull", "-q", model)
    before = cli("doctor").out
    damage(cli, model)
    cli("verify")
    after = cli("doctor")

    assert "leftovers     none" in before
    assert after.code == 0
    assert f"1 model out of service: file://{model}\n" in after.out
    assert "of damaged blobs in quarantine" in after.out
    assert str(cli.root / "quarantine") in after.out


@pytest.mark.parametrize("root", ["/mnt/models/cache", "/proc/modelcache"])
def test_no_place_for_a_store_fails(inside: Callable[..., Done], root: str) -> None:
    done = inside("doctor", "--json", "--root", root)
    failed = {finding["check"] for finding in done.document["findings"] if finding["level"] == "fail"}

    assert done.code == 8
    assert failed & {"root", "file system"}


def test_a_store_of_an_unknown_format_fails(tmp_path: Path) -> None:
    (tmp_path / "format").write_text("modelcache 99\n")

    (finding,) = of(examine({}, config_of(tmp_path)), "store")

    assert finding.level is Level.FAIL
    assert "99" in finding.message


def test_a_root_that_lets_others_in_is_doubtful(cli: Executable, model: Path) -> None:
    cli("pull", "-q", model)
    cli.root.chmod(0o755)

    (finding,) = of(store_checks.check_file_system(config_of(cli.root)), "root")

    assert finding.level is Level.WARN
    assert "0755" in finding.message


def test_a_root_inside_a_file_is_a_finding_and_no_crash(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    findings = examine({}, config_of(tmp_path / "file" / "root"))

    assert of(findings, "root")[0].level is Level.OK or of(findings, "root")[0].hint


def test_little_room_is_doubtful(tmp_path: Path) -> None:
    tight = store_checks.check_room(config_of(tmp_path, MODELCACHE_HIGH_WATERMARK="0.000001", MODELCACHE_LOW_WATERMARK="0.000001"))

    assert tight[0].level is Level.WARN
    assert "under the high watermark" in tight[0].message


def test_what_is_tried_on_a_disk_leaves_nothing(tmp_path: Path) -> None:
    findings = store_checks.check_file_system(config_of(tmp_path))

    assert len(of(findings, "O_DIRECT")) == len(of(findings, "reflink")) == 1
    assert os.listdir(tmp_path) == []


@pytest.mark.root
def test_a_disk_in_memory_is_doubtful(small_disk: SmallDisk) -> None:
    mounted = small_disk(size_bytes=32 << 20)
    shm = Path("/dev/shm")

    assert of(store_checks.check_file_system(config_of(mounted)), "file system")[0].message == f"ext4 on {mounted}"
    assert of(store_checks.check_file_system(config_of(shm / "modelcache")), "file system")[0].level is Level.WARN


def test_a_check_that_the_machine_refuses_is_a_finding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(config: Config, environ: object) -> list[Finding]:
        raise OSError(errno.EIO, "Input/output error", "/dev/disk")

    monkeypatch.setattr("modelcache.cli.examination.CHECKS", (("disk", refuse), *CHECKS[:1]))

    first, second = examine({}, config_of(tmp_path))

    assert (first.check, first.level) == ("disk", Level.FAIL)
    assert "Input/output error: /dev/disk" in first.message
    assert second.check == "python"


def test_extras_are_looked_for_and_not_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {"botocore": object(), "torch": object(), "safetensors": object()}
    monkeypatch.setattr("importlib.util.find_spec", found.get)

    findings = {finding.check: finding for finding in machine_checks.check_extras()}

    assert findings["extra s3"].level is Level.WARN
    assert "awscrt missing" in findings["extra s3"].message
    assert findings["extra torch"].level is Level.OK
    assert "modelcache[gcs]" in findings["extra gcs"].message


def test_every_extra_of_the_distribution_is_looked_for() -> None:
    of_makers = {"all", "demo", "demo-model", "dev", "fuzz"}
    assert machine_checks.EXTRAS.keys() == set(metadata("modelcache").get_all("Provides-Extra") or ()) - of_makers
    documented = rows(between((ROOT / "docs/operations.md").read_text(encoding="utf-8"), "extras"))
    assert [row[0].strip("`") for row in documented] == list(machine_checks.EXTRAS)


def test_the_kernel_s_word_on_the_clock_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    for synchronized, level in ((True, Level.OK), (False, Level.WARN), (None, Level.OK)):
        monkeypatch.setattr(machine_checks, "_is_synchronized", lambda said=synchronized: said)

        assert machine_checks.check_clock()[0].level is level
    monkeypatch.setattr("time.time", lambda: 0.0)
    assert machine_checks.check_clock()[0].level is Level.FAIL


def test_slow_hashing_is_doubtful(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine_checks, "_hashing_s", lambda data: len(data) / (300 * 1024 * 1024))

    (finding,) = machine_checks.check_hashing()

    assert finding.level is Level.WARN
    assert "300.0 MiB/s a core" in finding.message


TABLE = r"""22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/root rw
23 22 0:5 / /dev rw - devtmpfs udev rw
24 22 259:1 / /data rw - xfs /dev/nvme0n1 rw
25 24 0:40 / /data/my\040disk rw - btrfs /dev/sdb rw
26 22 0:41 / /data rw - nfs4 server:/x rw
"""


@pytest.mark.parametrize(
    ("path", "mount"),
    [
        ("/", Mount("/", "ext4")),
        ("/database", Mount("/", "ext4")),
        ("/dev/x", Mount("/dev", "devtmpfs")),
        ("/data", Mount("/data", "nfs4")),
        ("/data/my disk/x", Mount("/data/my disk", "btrfs")),
    ],
)
def test_the_mount_of_a_path(path: str, mount: Mount) -> None:
    assert mount_of(Path(path), TABLE) == mount


def test_flags_of_the_kernel_are_those_of_this_machine() -> None:
    """FICLONE's number against the way it is made (asm-generic/ioctl.h): write, 4 bytes, type 0x94, number 9."""
    assert store_checks.FICLONE == (1 << 30) | (4 << 16) | (0x94 << 8) | 9
