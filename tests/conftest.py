"""What every test may ask for: a clean environment, real servers of the session, a small disk."""

from __future__ import annotations

import os
import secrets
import signal
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Protocol

import pytest
from hypothesis import HealthCheck, settings

import modelcache.config.file
from modelcache.testing.servers import Certificate, FakeGcs, Nginx, SeaweedFS
from modelcache.testing.servers.hub import HubServer
from modelcache.testing.small_filesystem import Kind, small_filesystem
from tests import left_out

FOREIGN = (
    "AWS_", "S3_", "GOOGLE_", "GCE_", "CLOUDSDK_", "STORAGE_", "FSSPEC_",
    "HF_", "HUGGING_FACE_", "MODELCACHE_", "BOTO_", "SSL_CERT_",
)  # fmt: skip
FOREIGN_ENDS = ("_PROXY", "_CA_BUNDLE")

# No test of elapsed time: a busy machine must not fail an example.
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(left_out)


@pytest.fixture(scope="session", autouse=True)
def clean_environ(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No setting, credential or proxy of whoever runs the tests reaches them."""
    empty = tmp_path_factory.mktemp("environ") / "empty"
    empty.touch()
    with pytest.MonkeyPatch.context() as patch:
        for name in list(os.environ):
            if name.upper().startswith(FOREIGN) or name.upper().endswith(FOREIGN_ENDS):
                patch.delenv(name)
        patch.setenv("AWS_CONFIG_FILE", str(empty))
        patch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(empty))
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        patch.setenv("NO_GCE_CHECK", "true")
        patch.setenv("CLOUDSDK_CONFIG", str(empty.parent))
        patch.setenv("MODELCACHE_CONFIG", os.devnull)
        # what a test writes fits, however full the disk of whoever runs the tests is
        patch.setenv("MODELCACHE_HIGH_WATERMARK", "1")
        patch.setenv("MODELCACHE_LOW_WATERMARK", "1")
        patch.setattr(modelcache.config.file, "MACHINE_FILE", empty.with_name("no-file"))
        yield


@pytest.fixture(scope="session", autouse=True)
def ctrl_c_is_heard() -> Iterator[None]:
    """By programs that tests start, too: a shell's background job ignores it, and what it starts inherits that."""
    before = signal.getsignal(signal.SIGINT)
    if before is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="session")
def seaweedfs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SeaweedFS]:
    """The session's S3 server."""
    with SeaweedFS(tmp_path_factory.mktemp("seaweedfs")) as server:
        yield server


@pytest.fixture
def bucket(seaweedfs: SeaweedFS) -> str:
    """An empty bucket of this test alone."""
    return seaweedfs.make_bucket(f"bucket-{secrets.token_hex(6)}")


@pytest.fixture
def versioned_bucket(seaweedfs: SeaweedFS) -> str:
    """An empty bucket of this test alone that keeps old versions."""
    return seaweedfs.make_bucket(f"versioned-{secrets.token_hex(6)}", versioned=True)


@pytest.fixture(scope="session")
def fake_gcs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeGcs]:
    """The session's Google Cloud Storage."""
    with FakeGcs(tmp_path_factory.mktemp("fake-gcs")) as server:
        yield server


@pytest.fixture(scope="session")
def nginx(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nginx]:
    """The session's http server; a test puts its files under a name of its own in `nginx.directory`."""
    with Nginx(tmp_path_factory.mktemp("nginx")) as server:
        yield server


@pytest.fixture
def hub() -> Iterator[HubServer]:
    """A hub of this test alone, with nothing in it."""
    with HubServer() as server:
        yield server


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    """A CA of the session and its certificate for localhost and 127.0.0.1."""
    return Certificate.make(tmp_path_factory.mktemp("certificate"))


class SmallDisk(Protocol):
    def __call__(self, *, size_bytes: int, kind: Kind = Kind.EXT4) -> Path: ...


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[SmallDisk]:
    """Mounts a new file system of a size, gone after the test. Mark the test `root`: without root it fails and says so."""
    with ExitStack() as stack:

        def mount(*, size_bytes: int, kind: Kind = Kind.EXT4) -> Path:
            name = f"disk-{secrets.token_hex(4)}"
            return stack.enter_context(small_filesystem(tmp_path / name, size_bytes=size_bytes, kind=kind))

        yield mount


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print what share of the time each folder of tests took."""
    seconds: defaultdict[str, float] = defaultdict(float)
    for reports in terminalreporter.stats.values():
        for report in reports:
            if isinstance(report, pytest.TestReport):
                seconds["/".join(Path(report.nodeid.partition("::")[0]).parts[:2])] += report.duration
    total_s = sum(seconds.values())
    if total_s == 0:
        return
    terminalreporter.section("time per folder")
    for folder, spent_s in sorted(seconds.items(), key=lambda pair: -pair[1]):
        terminalreporter.write_line(f"{spent_s / total_s:6.1%}  {spent_s:7.2f} s  {folder}")
