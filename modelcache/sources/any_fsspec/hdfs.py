"""HDFS as KServe's secrets describe it: name nodes, and how to speak to them, in files of one directory or in what a caller brings."""

from __future__ import annotations

import hashlib
import json
import os
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from modelcache.errors import BadConfig

HDFS_SCHEMES = ("hdfs", "webhdfs")
MAX_FILE_BYTES = 64 << 10
TEXTS = ("HDFS_NAMENODE", "HDFS_ROOTPATH", "USER_PROXY", "TLS_SKIP_VERIFY", "HEADERS")
CERTIFICATES = ("TLS_CERT", "TLS_KEY", "TLS_CA")
KERBEROS = ("KERBEROS_PRINCIPAL", "KERBEROS_KEYTAB")
"""What KServe's secrets hold besides `N_THREADS`, which is about its own client (`kserve_storage.py`, `_load_hdfs_configuration`)."""


@dataclass(frozen=True, slots=True)
class HdfsSecret:
    """What the files say.

    Attributes:
        nodes: arguments of fsspec's `WebHDFS`, one set for each name node, in the order in which they are to be asked.
        root: what paths begin in; ends without a slash.
        headers: of every request. Secrets.
        places: what tells one such place from another: no secret in it.
        ca_sha256, verified: as of `modelcache.abc.source.Origin`.
    """

    nodes: tuple[Mapping[str, Any], ...] = field(repr=False)
    root: str
    headers: Mapping[str, str] = field(repr=False)
    places: Mapping[str, Any]
    ca_sha256: str | None = None
    verified: bool = True


@dataclass(frozen=True, slots=True)
class HdfsKeys:
    """What a caller brings by KServe's names, as texts. Secrets.

    Raises BadConfig: it can't be used. Names what, and never a value.
    """

    texts: Mapping[str, str] = field(repr=False)

    def __post_init__(self) -> None:
        _secret_of(self.texts, dict.fromkeys(name for name in CERTIFICATES if self.texts.get(name)), _unusable_text)

    @property
    def headers(self) -> Mapping[str, str]:
        """Of every request."""
        return _headers(self.texts.get("HEADERS", ""), _unusable_text)

    def secret(self) -> HdfsSecret:
        """With its certificates in memory, under names that are good for as long as what is returned is kept."""
        kept = {name: _Memory(self.texts[name].encode()) for name in CERTIFICATES if self.texts.get(name)}
        found = _secret_of(self.texts, {name: memory.path for name, memory in kept.items()}, _unusable_text)
        return _KeptSecret(found.nodes, found.root, found.headers, found.places, found.ca_sha256, found.verified, tuple(kept.values()))


class _Memory:
    """A file without a disk, for what takes certificates from files alone. Gone with the object."""

    def __init__(self, data: bytes) -> None:
        fd = os.memfd_create("modelcache-tls", os.MFD_CLOEXEC)
        weakref.finalize(self, os.close, fd)
        os.write(fd, data)
        self.path = f"/proc/self/fd/{fd}"


@dataclass(frozen=True, slots=True)
class _KeptSecret(HdfsSecret):
    kept: tuple[_Memory, ...] = field(default=(), repr=False)


def read_secret(directory: Path) -> HdfsSecret:
    """Raises BadConfig: a file is missing or says what can't be used. Names the file, never what is in it."""

    def unusable(name: str, why: str) -> BadConfig:
        return _unusable(directory / name, why)

    told = {name: _text(directory / name) for name in (*TEXTS, "TLS_CA")}
    told |= dict.fromkeys((name for name in KERBEROS if (directory / name).exists()), "given")
    return _secret_of(told, {name: str(directory / name) for name in CERTIFICATES if (directory / name).exists()}, unusable)


def _secret_of(told: Mapping[str, str], files: Mapping[str, str | None], unusable: Callable[[str, str], BadConfig]) -> HdfsSecret:
    """`files`: where the certificates are that are given."""
    texts = {name: told.get(name, "").strip() for name in TEXTS}
    if not texts["HDFS_NAMENODE"]:
        raise unusable("HDFS_NAMENODE", "it names no name node")
    if kerberos := [name for name in KERBEROS if told.get(name)]:
        raise unusable(kerberos[0], "Kerberos by a keytab is not supported")
    if "TLS_CERT" in files and "TLS_KEY" not in files:
        raise unusable("TLS_KEY", "it is missing, and TLS_CERT is given")
    verified = texts["TLS_SKIP_VERIFY"].lower() != "true"
    common: dict[str, Any] = {"session_verify": files.get("TLS_CA", True) if verified else False}
    if "TLS_CERT" in files:
        common["session_cert"] = (files["TLS_CERT"], files["TLS_KEY"])
    if texts["USER_PROXY"]:
        common["proxy_to"] = texts["USER_PROXY"]
    nodes = tuple(_node(text.strip(), unusable) | common for text in texts["HDFS_NAMENODE"].split(";") if text.strip())
    root = "/" + texts["HDFS_ROOTPATH"].strip("/") if texts["HDFS_ROOTPATH"].strip("/") else ""
    places = {"nodes": sorted(f"{node['host']}:{node['port']}" for node in nodes), "root": root, "user": texts["USER_PROXY"]}
    ca = hashlib.sha256(told["TLS_CA"].encode()).hexdigest() if verified and "TLS_CA" in files else None
    return HdfsSecret(nodes, root, _headers(texts["HEADERS"], unusable), places, ca, verified)


def _text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except FileNotFoundError:
        return ""
    except OSError as error:
        raise _unusable(path, f"it can't be read ({error.strerror})") from None
    if len(data) > MAX_FILE_BYTES:
        raise _unusable(path, f"it has more than {MAX_FILE_BYTES} bytes")
    try:
        return data.decode().strip()
    except UnicodeDecodeError:
        raise _unusable(path, "it is no text") from None


def _node(text: str, unusable: Callable[[str, str], BadConfig]) -> dict[str, Any]:
    try:
        url = urlsplit(text)
        port = url.port
    except ValueError:
        url, port = urlsplit(""), None
    if url.scheme not in ("http", "https") or not url.hostname or port is None:
        raise unusable("HDFS_NAMENODE", "it is not `https://HOST:PORT`, or several with `;` between")
    host = f"[{url.hostname}]" if ":" in url.hostname else url.hostname
    return {"host": host, "port": port, "use_https": url.scheme == "https"}


def _headers(text: str, unusable: Callable[[str, str], BadConfig]) -> dict[str, str]:
    try:
        found = json.loads(text or "{}")
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict) or not all(isinstance(value, str) for value in found.values()):
        raise unusable("HEADERS", "it is no JSON object of texts")
    return found


def _unusable(path: Path, why: str) -> BadConfig:
    return BadConfig(f"KServe's secret of HDFS can't be used: {why}", address=str(path))


def _unusable_text(name: str, why: str) -> BadConfig:
    return BadConfig(f"`{name}` of a secret of HDFS can't be used: {why}")
