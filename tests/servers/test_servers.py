"""The servers that other tests stand on: ready when entered, gone when left, and gone when their owner is killed."""

from __future__ import annotations

import http.client
import os
import secrets
import signal
import socket
import ssl
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from botocore.exceptions import ClientError

from modelcache.testing.servers import Certificate, Nginx, NginxOptions, SeaweedFS, ServerFailed
from modelcache.testing.servers.ports import LOOPBACK
from modelcache.testing.servers.process import TRIES, OwnedProcess, program, started
from modelcache.testing.small_filesystem import Kind, small_filesystem
from modelcache.units import MIB


def fetch(port: int, target: str, **headers: str) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection(LOOPBACK, port, timeout=10)
    try:
        connection.request("GET", target, headers={name.replace("_", "-"): value for name, value in headers.items()})
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


# -- processes ------------------------------------------------------------------------------------------------------


def test_a_stopped_program_leaves_no_process_and_no_leftover(tmp_path: Path) -> None:
    leftover = tmp_path / "left.sock"
    leftover.touch()
    script = "sleep 600 & echo started; sleep 600"
    process = OwnedProcess([program("sh"), "-c", script], log=tmp_path / "log", leftovers=[str(leftover), str(tmp_path / "never-made")])
    process = started(lambda: process, lambda: "started" in process.log_tail(), deadline_s=30)
    pids = process.pids()
    assert len(pids) >= 2
    process.stop()
    process.stop()
    assert not any(psutil.pid_exists(pid) for pid in pids)
    assert not leftover.exists()


def test_servers_die_with_an_owner_that_is_killed(tmp_path: Path) -> None:
    """The owner starts the server in a thread that ends, and is then killed in a way that runs none of its code."""
    script = f"""
import os, signal, threading
from pathlib import Path
from modelcache.testing.servers import Nginx, NginxOptions
server = Nginx(Path({str(tmp_path)!r}), NginxOptions(workers=2))
thread = threading.Thread(target=server.__enter__)
thread.start()
thread.join()
assert server._ready()
print(*server.pids(), server._process._keeper.pid, server._own, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.returncode == -signal.SIGKILL, done.stderr
    *pids, own = done.stdout.split()
    assert len(pids) == 4  # a master, two workers, their keeper
    left = []
    for pid in pids:
        with suppress(psutil.NoSuchProcess):  # it has ended by now
            left.append(psutil.Process(int(pid)))
    _, alive = psutil.wait_procs(left, timeout=30)
    assert not alive
    assert not Path(own).exists()


def test_a_program_that_ends_by_itself_is_tried_again_and_then_reported(tmp_path: Path) -> None:
    launches = []

    def launch() -> OwnedProcess:
        launches.append(1)
        return OwnedProcess([program("sh"), "-c", "echo port is taken; exit 3"], log=tmp_path / "log")

    with pytest.raises(ServerFailed, match=r"(?s)port is taken.*exit status 3"):
        started(launch, lambda: False, deadline_s=60)
    assert len(launches) == TRIES


def test_a_program_that_never_gets_ready_is_ended(tmp_path: Path) -> None:
    processes = []

    def launch() -> OwnedProcess:
        processes.append(OwnedProcess([program("sleep"), "600"], log=tmp_path / "log"))
        return processes[-1]

    with pytest.raises(ServerFailed, match="not ready within"):
        started(launch, lambda: False, deadline_s=0.1)
    assert not processes[0].alive


# -- SeaweedFS ------------------------------------------------------------------------------------------------------


def test_seaweedfs_listens_on_loopback_alone(seaweedfs: SeaweedFS) -> None:
    [pid] = seaweedfs.pids()
    listening = {each.laddr for each in psutil.Process(pid).net_connections("tcp") if each.status == psutil.CONN_LISTEN}
    assert {address.ip for address in listening} == {LOOPBACK}
    assert seaweedfs.port in {address.port for address in listening}


def test_seaweedfs_reports_to_nobody(seaweedfs: SeaweedFS) -> None:
    [pid] = seaweedfs.pids()
    assert "-master.telemetry=false" in psutil.Process(pid).cmdline()


def test_seaweedfs_secrets_are_in_no_argument_and_no_open_file_mode(seaweedfs: SeaweedFS) -> None:
    [pid] = seaweedfs.pids()
    for who in (seaweedfs.admin, seaweedfs.reader, seaweedfs.lister):
        assert who.secret_key not in repr(who)
        assert not any(who.secret_key in argument for argument in psutil.Process(pid).cmdline())
    assert (seaweedfs.directory / "s3.json").stat().st_mode & 0o077 == 0


def test_seaweedfs_rights_differ(seaweedfs: SeaweedFS, bucket: str) -> None:
    put = seaweedfs.put(bucket, "a key", b"content")
    assert seaweedfs.client(seaweedfs.reader).get_object(Bucket=bucket, Key="a key")["ETag"] == put.etag
    with pytest.raises(ClientError, match="AccessDenied"):
        seaweedfs.client(seaweedfs.reader).put_object(Bucket=bucket, Key="other", Body=b"")
    assert seaweedfs.client(seaweedfs.lister).list_objects_v2(Bucket=bucket)["KeyCount"] == 1
    with pytest.raises(ClientError, match="AccessDenied"):
        seaweedfs.client(seaweedfs.lister).get_object(Bucket=bucket, Key="a key")
    status, _ = fetch(seaweedfs.port, f"/{bucket}/a%20key")
    assert status == 403
    seaweedfs.delete(bucket, "a key")
    assert seaweedfs.client().list_objects_v2(Bucket=bucket)["KeyCount"] == 0


def test_seaweedfs_serves_a_used_directory_again(tmp_path: Path) -> None:
    with SeaweedFS(tmp_path / "s3") as server:
        server.make_bucket("kept-bucket")
        put = server.put("kept-bucket", "key", b"kept")
        old_keys = server.admin
    with SeaweedFS(tmp_path / "s3") as server:
        assert server.admin == old_keys
        answer = server.client().get_object(Bucket="kept-bucket", Key="key")
        assert (answer["ETag"], answer["Body"].read()) == (put.etag, b"kept")
        answer["Body"].close()


def test_seaweedfs_takes_files_and_trees(seaweedfs: SeaweedFS, bucket: str, tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "big").write_bytes(os.urandom(11 * MIB))
    (tmp_path / "small").write_bytes(b"")
    seaweedfs.put_tree(bucket, "model/", tmp_path)
    listed = {each["Key"]: each["Size"] for each in seaweedfs.client().list_objects_v2(Bucket=bucket)["Contents"]}
    assert listed == {"model/deep/big": 11 * MIB, "model/small": 0}
    in_parts = seaweedfs.put_file(bucket, "parts", tmp_path / "deep" / "big", part_bytes=5 * MIB)
    assert in_parts.etag.endswith('-3"')
    answer = seaweedfs.client().get_object(Bucket=bucket, Key="parts")
    with answer["Body"] as body:
        assert body.read() == (tmp_path / "deep" / "big").read_bytes()


# -- nginx ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def file_name(nginx: Nginx) -> str:
    name = f"file {secrets.token_hex(4)}"
    (nginx.directory / name).write_bytes(bytes(range(256)))
    return name.replace(" ", "%20")


def test_nginx_serves_ranges_with_preconditions_and_counts_them(nginx: Nginx, file_name: str) -> None:
    nginx.requests()
    assert fetch(nginx.port, f"/{file_name}", Range="bytes=1-2") == (206, b"\x01\x02")
    assert fetch(nginx.port, f"/{file_name}", Range="bytes=1-2", If_Match='"other"')[0] == 412
    assert fetch(nginx.port, "/missing?a=b", Authorization="Bearer x")[0] == 404
    seen = [(each.method, each.target, each.status, each.range, each.authorized) for each in nginx.requests()]
    assert seen == [
        ("GET", f"/{file_name}", 206, "bytes=1-2", False),
        ("GET", f"/{file_name}", 412, "bytes=1-2", False),
        ("GET", "/missing?a=b", 404, "", True),
    ]
    assert nginx.requests() == []


def test_nginx_asks_for_a_password(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"content")
    with Nginx(tmp_path, NginxOptions(user="user", password="secret")) as server:
        assert fetch(server.port, "/file")[0] == 401
        assert fetch(server.port, "/file", Authorization="Basic dXNlcjpzZWNyZXQ=") == (200, b"content")
        assert [each.authorized for each in server.requests()] == [False, True]
    assert "secret" not in repr(server.options)


def test_nginx_stands_before_another_server_with_tls(nginx: Nginx, file_name: str, certificate: Certificate, tmp_path: Path) -> None:
    with Nginx(tmp_path, NginxOptions(upstream=nginx.endpoint, certificate=certificate)) as proxy:
        context = ssl.create_default_context(cafile=str(certificate.ca))
        connection = http.client.HTTPSConnection("localhost", proxy.port, timeout=10, context=context)
        connection.request("GET", f"/{file_name}", headers={"Range": "bytes=4-5"})
        answer = connection.getresponse()
        assert (answer.status, answer.read()) == (206, b"\x04\x05")
        connection.close()
        with socket.create_connection((LOOPBACK, proxy.port), timeout=10) as plain, pytest.raises(ssl.SSLCertVerificationError):
            ssl.create_default_context().wrap_socket(plain, server_hostname="localhost")


def test_nginx_leaves_nothing(tmp_path: Path) -> None:
    with Nginx(tmp_path) as server:
        own, pids = server._own, server.pids()
        assert pids
    assert not own.exists()
    assert not any(psutil.pid_exists(pid) for pid in pids)


# -- a small disk ---------------------------------------------------------------------------------------------------


@pytest.mark.root
@pytest.mark.parametrize("kind", [Kind.EXT4, Kind.TMPFS])
def test_a_small_disk_gets_full_and_goes_away(kind: Kind, tmp_path: Path) -> None:
    with small_filesystem(tmp_path / "disk", size_bytes=32 * MIB, kind=kind) as mount:
        assert mount.is_mount()
        with pytest.raises(OSError, match="No space left"):
            (mount / "file").write_bytes(b"x" * 33 * MIB)
    assert list((tmp_path / "disk").iterdir()) == []
