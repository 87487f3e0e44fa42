"""A real FTP server: pyftpdlib, for one user, a directory for reading."""

from __future__ import annotations

import ftplib
import sys
from pathlib import Path

from modelcache.testing.servers.launched import DirectoryServer
from modelcache.testing.servers.ports import LOOPBACK, free_ports
from modelcache.testing.servers.process import OwnedProcess

PROGRAM = Path(__file__).with_name("ftp_program.py")


class FtpServer(DirectoryServer):
    """The server, running inside its `with` block; what it serves is for reading."""

    def _launch(self) -> OwnedProcess:
        [self.port] = free_ports(1)
        environ = {"FTP_USER": self.user, "FTP_PASSWORD": self.password}
        command = [sys.executable, str(PROGRAM), str(self.port), str(self.root)]
        return OwnedProcess(command, log=self.directory / "ftp.log", environ=environ)

    def _ready(self) -> bool:
        try:
            with ftplib.FTP(timeout=5) as client:
                client.connect(LOOPBACK, self.port)
                client.login(self.user, self.password)
        except (OSError, EOFError):
            return False
        return True
