"""A double of WebHDFS: a directory behind a name node and a data node, as Apache Hadoop's WebHDFS REST API documentation has them.

https://hadoop.apache.org/docs/stable/hadoop-project-dist/hadoop-hdfs/WebHDFS.html. Written from that document: no package of PyPI
carries a server. It serves GETFILESTATUS, LISTSTATUS and OPEN (with its redirect to a data node), users by `user.name` or basic
authentication, and errors as `RemoteException`.
"""

from __future__ import annotations

import base64
import json
import os
import stat
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

from modelcache.testing.servers.threaded import ThreadedServer

PREFIX = "/webhdfs/v1"
DATA_PREFIX = "/data/webhdfs/v1"

Answer = tuple[int, bytes]
"""Status and body."""


def refusal(exception: str, message: str = "no") -> bytes:
    """The body of an error."""
    told = {"exception": exception, "javaClassName": f"org.apache.hadoop.{exception}", "message": message}
    return json.dumps({"RemoteException": told}).encode()


@dataclass
class Books:
    """What was asked, and what the nodes answer instead of the truth, once each.

    Attributes:
        asked: operation, path and parameters of every request to the name node.
        instead: answers of the data node to its next requests.
        denied: paths below which the name node lets nobody read.
        standby: the name node serves nothing: another one is active.
    """

    asked: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    instead: deque[Answer] = field(default_factory=deque)
    denied: list[str] = field(default_factory=list)
    standby: bool = False
    basic: tuple[str, str] | None = None


class WebHdfs(ThreadedServer):
    """The server, running inside its `with` block; it serves `root`, and dies with this process."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.books = Books()
        super().__init__(_Handler)


class _Handler(BaseHTTPRequestHandler):
    server: WebHdfs
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # head and body are two writes: 40 ms between them otherwise

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(url.query).items()}
        if url.path.startswith(DATA_PREFIX):
            self._data(unquote(url.path.removeprefix(DATA_PREFIX)), query)
            return
        path = unquote(url.path.removeprefix(PREFIX)) or "/"
        books = self.server.books
        books.asked.append((query.get("op", ""), path, query))
        books.headers.append(dict(self.headers.items()))
        if books.basic is not None and self.headers.get("Authorization") != _basic(*books.basic):
            self._send(HTTPStatus.UNAUTHORIZED, b"<html>Authentication required</html>")
        elif books.standby:
            self._send(HTTPStatus.FORBIDDEN, refusal("StandbyException", "Operation category READ is not supported in state standby"))
        elif any(path.startswith(place) for place in books.denied):
            self._send(HTTPStatus.FORBIDDEN, refusal("AccessControlException", f"Permission denied: user=dr.who, path={path}"))
        else:
            self._answer(query.get("op", ""), path, url.query)

    def _answer(self, operation: str, path: str, query: str) -> None:
        place = Path(f"{self.server.root}{path}")
        answers: dict[str, Callable[[], object]] = {
            "GETFILESTATUS": lambda: {"FileStatus": _status(place, "")},
            "LISTSTATUS": lambda: {"FileStatuses": {"FileStatus": _listed(place)}},
        }
        try:
            if operation == "OPEN":
                os.stat(place)
                self._send(HTTPStatus.TEMPORARY_REDIRECT, b"", {"Location": self._data_node(path, query)})
            elif operation in answers:
                self._send(HTTPStatus.OK, json.dumps(answers[operation]()).encode())
            else:
                self._send(HTTPStatus.BAD_REQUEST, refusal("UnsupportedOperationException", operation))
        except (FileNotFoundError, NotADirectoryError):
            self._send(HTTPStatus.NOT_FOUND, refusal("FileNotFoundException", f"File does not exist: {path}"))

    def _data_node(self, path: str, query: str) -> str:
        return f"http://{self.server.authority}{DATA_PREFIX}{quote(path)}?{query}"

    def _data(self, path: str, query: dict[str, str]) -> None:
        books = self.server.books
        if books.instead:
            self._send(*books.instead.popleft())
            return
        try:
            with Path(f"{self.server.root}{path}").open("rb") as file:
                file.seek(int(query.get("offset", "0")))
                self._send(HTTPStatus.OK, file.read(int(query.get("length", "-1"))))
        except FileNotFoundError:
            self._send(HTTPStatus.NOT_FOUND, refusal("FileNotFoundException"))

    def _send(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  # its name in the standard library
        """Nothing."""


def _listed(place: Path) -> list[dict[str, object]]:
    if not place.is_dir():
        return [_status(place, "")]
    return [_status(each, each.name) for each in sorted(place.iterdir())]


def _status(place: Path, suffix: str) -> dict[str, object]:
    """`FileStatus`; times in milliseconds."""
    found = os.stat(place)
    directory = stat.S_ISDIR(found.st_mode)
    return {
        "accessTime": 0 if directory else found.st_atime_ns // 1_000_000,
        "blockSize": 0 if directory else 134_217_728,
        "group": "supergroup",
        "length": 0 if directory else found.st_size,
        "modificationTime": found.st_mtime_ns // 1_000_000,
        "owner": "dr.who",
        "pathSuffix": suffix,
        "permission": "755" if directory else "644",
        "replication": 0 if directory else 3,
        "type": "DIRECTORY" if directory else "FILE",
    }


def _basic(user: str, password: str) -> str:
    return f"Basic {base64.b64encode(f'{user}:{password}'.encode()).decode()}"
