"""How an https origin's certificate is verified: against the system's CAs or a named file, unless a person said not to."""

from __future__ import annotations

import hashlib
import ssl
import threading
from pathlib import Path

from modelcache.errors import BadConfig


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
        try:
            context = ssl.create_default_context(cafile=None if self._ca_file is None else str(self._ca_file))
        except OSError as error:
            reason = error.strerror or "no PEM certificate in it"
            raise BadConfig(f"the CA file can't be used ({reason})", address=str(self._ca_file)) from None
        context.set_alpn_protocols(["http/1.1"])
        return context


def _unverifying() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["http/1.1"])
    return context


def ca_sha256(ca_file: Path | None) -> str | None:
    """Hex sha256 of a custom CA file's bytes, for `Origin.ca_sha256`; None for the system's CAs. Raises BadConfig."""
    if ca_file is None:
        return None
    try:
        return hashlib.sha256(ca_file.read_bytes()).hexdigest()
    except OSError as error:
        raise BadConfig(f"the CA file can't be read ({error.strerror})", address=str(ca_file)) from None
