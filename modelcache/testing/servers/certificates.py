"""A certificate authority of a test and a certificate that it vouches for, made by the `openssl` program."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from modelcache.testing.servers.ports import LOOPBACK
from modelcache.testing.servers.process import program


@dataclass(frozen=True, slots=True)
class Certificate:
    """PEM files: the CA to trust, the server's chain, and its private key."""

    ca: Path
    chain: Path
    key: Path

    @classmethod
    def make(cls, directory: Path, *, hosts: Sequence[str] = ("localhost", LOOPBACK)) -> Self:
        """A new CA (its key is removed at once) and a certificate for `hosts` (DNS names and IPv4 addresses), valid for two days."""
        directory.mkdir(parents=True, exist_ok=True)
        made = cls(directory / "ca.pem", directory / "server.pem", directory / "server.key")
        ca_key = directory / "ca.key"
        curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
        authority = ["-addext", "basicConstraints=critical,CA:TRUE", "-addext", "keyUsage=critical,keyCertSign,cRLSign"]
        _openssl("req", "-x509", *curve, "-subj", "/CN=test CA", "-keyout", str(ca_key), "-out", str(made.ca), *authority)
        server = ["-addext", f"subjectAltName={_alternatives(hosts)}", "-addext", "basicConstraints=critical,CA:FALSE"]
        signed = ["-CA", str(made.ca), "-CAkey", str(ca_key), *server, "-addext", "extendedKeyUsage=serverAuth"]
        _openssl("req", "-x509", *curve, "-subj", f"/CN={hosts[0]}", "-keyout", str(made.key), "-out", str(made.chain), *signed)
        ca_key.unlink()
        return made


def _alternatives(hosts: Sequence[str]) -> str:
    return ",".join(f"IP:{host}" if host.replace(".", "").isdigit() else f"DNS:{host}" for host in hosts)


def _openssl(*arguments: str) -> None:
    subprocess.run([program("openssl"), *arguments], check=True, capture_output=True, timeout=30)
