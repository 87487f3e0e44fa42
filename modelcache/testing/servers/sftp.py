"""A real SFTP server: asyncssh, for one user, a directory. asyncssh has to be installed."""

from __future__ import annotations

import socket
import sys
from pathlib import Path

from modelcache.testing.servers.launched import DirectoryServer
from modelcache.testing.servers.ports import LOOPBACK, free_ports
from modelcache.testing.servers.process import OwnedProcess

PROGRAM = Path(__file__).with_name("sftp_program.py")


class SftpServer(DirectoryServer):
    """The server, running inside its `with` block.

    Attributes:
        known_hosts: a file that names its key.
    """

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.known_hosts = directory / "known_hosts"

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
