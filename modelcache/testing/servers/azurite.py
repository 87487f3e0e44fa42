"""Azurite, Microsoft's own emulator of Azure Blob Storage (npm: azurite)."""

from __future__ import annotations

import secrets
from http.client import HTTPConnection
from pathlib import Path

from modelcache.testing.servers.launched import LaunchedServer
from modelcache.testing.servers.ports import LOOPBACK, free_ports
from modelcache.testing.servers.process import OwnedProcess

START_DEADLINE_S = 60.0


class Azurite(LaunchedServer):
    """The server, running inside its `with` block, with an account of its own."""

    def __init__(self, directory: Path, program: str) -> None:
        """Args: program: the path of `azurite-blob`."""
        super().__init__(directory, start_deadline_s=START_DEADLINE_S)
        self._program = program
        self.account = "tests" + secrets.token_hex(4)
        self.key = "A" * 43 + "="

    @property
    def connection_string(self) -> str:
        return self.connection_of(self.account, self.key)

    def connection_of(self, account: str, key: str) -> str:
        place = f"http://{LOOPBACK}:{self.port}/{account}"
        return f"DefaultEndpointsProtocol=http;AccountName={account};AccountKey={key};BlobEndpoint={place};"

    def _launch(self) -> OwnedProcess:
        [self.port] = free_ports(1)
        place = ["--blobHost", LOOPBACK, "--blobPort", str(self.port), "--location", str(self.directory / "data")]
        return OwnedProcess(
            [self._program, *place, "--silent", "--skipApiVersionCheck", "--disableTelemetry"],
            log=self.directory / "azurite.log",
            environ={"AZURITE_ACCOUNTS": f"{self.account}:{self.key};other:{self.key}"},
        )

    def _ready(self) -> bool:
        connection = HTTPConnection(LOOPBACK, self.port, timeout=5)
        try:
            connection.request("GET", f"/{self.account}?comp=list")
            return connection.getresponse().status == 403
        except OSError:
            return False
        finally:
            connection.close()
