"""A real SFTP server: asyncssh, for one user, a directory. asyncssh has to be installed."""

from __future__ import annotations

import secrets
import socket
import sys
from pathlib import Path

from modelcache.testing.servers.launched import LaunchedServer
from modelcache.testing.servers.ports import LOOPBACK, free_ports
from modelcache.testing.servers.process import OwnedProcess

PROGRAM = Path(__file__).with_name("sftp_program.py")
START_DEADLINE_S = 30.0


class SftpServer(LaunchedServer):
    """The server, running inside its `with` block; it serves `root`, and its log lies beside that in `directory`.

    Attributes:
        known_hosts: a file that names its key.
    """

    user = "reader"

    def __init__(self, directory: Path) -> None:
        super().__init__(directory, start_deadline_s=START_DEADLINE_S)
        self.root = directory / "root"
        self.root.mkdir(parents=True)
        self.known_hosts = directory / "known_hosts"
        self.password = f"p@ss/{secrets.token_hex(8)}"

    @property
    def authority(self) -> str:
        return f"{LOOPBACK}:{self.port}"

    def _launch(self) -> OwnedProcess:
        [self.port] = free_ports(1)
        environ = {"SFTP_USER": self.user, "SFTP_PASSWORD": self.password}
        command = [sys.executable, str(PROGRAM), str(self.port), str(self.root), str(self.known_hosts)]
        return OwnedProcess(command, log=self.directory / "sftp.log", environ=environ)

    def _ready(self) -> bool:
        try:
            with socket.create_connection((LOOPBACK, self.port), timeout=5) as client:
                return client.recv(4) == b"SSH-"
        except OSError:
            return False
