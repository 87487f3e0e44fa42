"""HDFS as KServe's secrets describe it: name nodes, and how to speak to them, in files of one directory."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from modelcache.errors import BadConfig

HDFS_SCHEMES = ("hdfs", "webhdfs")
MAX_FILE_BYTES = 64 << 10


@dataclass(frozen=True, slots=True)
class HdfsSecret:
    """What the files say (`kserve_storage.py`, `_load_hdfs_configuration`).

    Attributes:
        nodes: arguments of fsspec's `WebHDFS`, one set for each name node, in the order in which they are to be asked.
        root: what paths begin in; ends without a slash.
        headers: of every request. Secrets.
        places: what tells one such place from another: no secret in it.
    """

    nodes: tuple[Mapping[str, Any], ...] = field(repr=False)
    root: str
    headers: Mapping[str, str] = field(repr=False)
    places: Mapping[str, Any]


def read_secret(directory: Path) -> HdfsSecret:
    """Raises BadConfig: a file is missing or says what can't be used. Names the file, never what is in it."""
    told = {name: _text(directory / name) for name in ("HDFS_NAMENODE", "HDFS_ROOTPATH", "USER_PROXY", "TLS_SKIP_VERIFY", "HEADERS")}
    if not told["HDFS_NAMENODE"]:
        raise _unusable(directory / "HDFS_NAMENODE", "it names no name node")
    if (directory / "KERBEROS_PRINCIPAL").exists():
        raise _unusable(directory / "KERBEROS_PRINCIPAL", "Kerberos by a keytab is not supported")
    common: dict[str, Any] = {"session_verify": _verify(directory, told["TLS_SKIP_VERIFY"])}
    if (directory / "TLS_CERT").exists():
        common["session_cert"] = (str(directory / "TLS_CERT"), str(directory / "TLS_KEY"))
    if told["USER_PROXY"]:
        common["proxy_to"] = told["USER_PROXY"]
    nodes = tuple(_node(directory, text.strip()) | common for text in told["HDFS_NAMENODE"].split(";") if text.strip())
    root = "/" + told["HDFS_ROOTPATH"].strip("/") if told["HDFS_ROOTPATH"].strip("/") else ""
    places = {"nodes": sorted(f"{node['host']}:{node['port']}" for node in nodes), "root": root, "user": told["USER_PROXY"]}
    return HdfsSecret(nodes, root, _headers(directory, told["HEADERS"]), places)


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


def _node(directory: Path, text: str) -> dict[str, Any]:
    try:
        url = urlsplit(text)
        port = url.port
    except ValueError:
        url, port = urlsplit(""), None
    if url.scheme not in ("http", "https") or not url.hostname or port is None:
        raise _unusable(directory / "HDFS_NAMENODE", "it is not `https://HOST:PORT`, or several with `;` between")
    return {"host": url.hostname, "port": port, "use_https": url.scheme == "https"}


def _verify(directory: Path, skip: str) -> bool | str:
    if skip.lower() == "true":
        return False
    return str(directory / "TLS_CA") if (directory / "TLS_CA").exists() else True


def _headers(directory: Path, text: str) -> dict[str, str]:
    try:
        found = json.loads(text or "{}")
    except ValueError:
        found = None
    if not isinstance(found, dict) or not all(isinstance(value, str) for value in found.values()):
        raise _unusable(directory / "HEADERS", "it is no JSON object of texts")
    return found


def _unusable(path: Path, why: str) -> BadConfig:
    return BadConfig(f"KServe's secret of HDFS can't be used: {why}", address=str(path))
