"""How an https origin's certificate is verified: against the system's CAs or a named file, unless a person said not to."""

from __future__ import annotations

import hashlib
import os
import ssl
import stat
import threading
from pathlib import Path

from modelcache.errors import BadConfig
from modelcache.units import MIB

MAX_CA_BYTES = MIB
"""The bundles of all public CAs (Mozilla's, with comments) have 220 to 290 KiB."""


class Trust:
    """The CAs that vouch for https origins. Loaded at the first https connection: the system's bundle takes tens of ms."""

    def __init__(self, ca_file: Path | None, *, verify: bool = True) -> None:
        """`verify` False: any certificate will do, so that whoever is on the way can read and answer."""
        self._ca_file = ca_file
        self._verify = verify
        self._lock = threading.Lock()
        self._context: ssl.SSLContext | None = None

    def context(self) -> ssl.SSLContext:
        """TLS 1.2 or later; certificate and host name are checked unless told otherwise. Raises BadConfig if the CA file is unusable."""
        with self._lock:
            if self._context is None:
                self._context = self._load()
            return self._context

    def _load(self) -> ssl.SSLContext:
        if not self._verify:
            return _unverifying()
        context = ssl.create_default_context() if self._ca_file is None else _vouched_by(_read(self._ca_file), self._ca_file)
        context.set_alpn_protocols(["http/1.1"])
        return context


def _unverifying() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["http/1.1"])
    return context


def _vouched_by(pem: bytes, ca_file: Path) -> ssl.SSLContext:
    text = pem.decode("ascii", "ignore")  # bundles have names in other scripts between their certificates
    try:
        return ssl.create_default_context(cadata=text)
    except (ssl.SSLError, ValueError):
        raise BadConfig("the CA file can't be used (no PEM certificate in it)", address=str(ca_file)) from None


def ca_sha256(ca_file: Path | None) -> str | None:
    """Hex sha256 of a custom CA file's bytes, for `Origin.ca_sha256`; None for the system's CAs. Raises BadConfig."""
    return None if ca_file is None else hashlib.sha256(_read(ca_file)).hexdigest()


def _read(ca_file: Path) -> bytes:
    """Raises BadConfig: it is no regular file (a pipe would be waited for, and a device has no end), too large, or can't be read."""
    try:
        fd = os.open(ca_file, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
        try:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise BadConfig("the CA file can't be used (not a regular file)", address=str(ca_file))
            with open(fd, "rb", closefd=False) as file:
                pem = file.read(MAX_CA_BYTES + 1)
        finally:
            os.close(fd)
    except OSError as error:
        raise BadConfig(f"the CA file can't be read ({error.strerror})", address=str(ca_file)) from None
    if len(pem) > MAX_CA_BYTES:
        raise BadConfig("the CA file can't be used (too large)", address=str(ca_file), expected=f"at most {MAX_CA_BYTES} bytes")
    return pem
