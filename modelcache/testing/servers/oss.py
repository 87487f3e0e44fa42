"""A double of Alibaba Cloud's object store (OSS): a directory per bucket, as its API reference has it.

https://www.alibabacloud.com/help/en/oss/developer-reference/ (GetBucket, HeadObject, GetObject, error responses). Nothing real exists
outside of that cloud. Of a signature only the access key id is looked at.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field
from email.utils import formatdate, parsedate_to_datetime
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit
from xml.sax.saxutils import escape

from modelcache.testing.servers.threaded import ThreadedServer

_RANGE = re.compile(r"bytes=(\d+)-(\d+)")
_SIGNED = re.compile(r"OSS ([^:]*):")


@dataclass
class Rights:
    """Attributes: key_id: the only one that is let in; denied: prefixes of keys that nobody may list or read."""

    key_id: str
    denied: list[str] = field(default_factory=list)


class Oss(ThreadedServer):
    """The server, running inside its `with` block; its buckets are the directories of `root`."""

    def __init__(self, root: Path, key_id: str) -> None:
        self.root = root
        self.rights = Rights(key_id)
        super().__init__(_Handler)

    @property
    def endpoint(self) -> str:
        return f"http://{self.authority}"


class _Handler(BaseHTTPRequestHandler):
    server: Oss
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        bucket, _, key = unquote(url.path).lstrip("/").partition("/")
        query = {name: values[0] for name, values in parse_qs(url.query, keep_blank_values=True).items()}
        signed = _SIGNED.match(self.headers.get("Authorization", ""))
        if signed is None or signed[1] != self.server.rights.key_id:
            self._refuse(HTTPStatus.FORBIDDEN, "InvalidAccessKeyId")
        elif not (self.server.root / bucket).is_dir():
            self._refuse(HTTPStatus.NOT_FOUND, "NoSuchBucket")
        elif any((key or query.get("prefix", "")).startswith(prefix) for prefix in self.server.rights.denied):
            self._refuse(HTTPStatus.FORBIDDEN, "AccessDenied")
        elif key:
            self._object(self.server.root / bucket / key)
        else:
            self._list(bucket, query)

    def do_HEAD(self) -> None:
        self.do_GET()

    def _list(self, bucket: str, query: dict[str, str]) -> None:
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
        top = self.server.root / bucket
        keys = sorted(str(path.relative_to(top)) for path in top.rglob("*") if path.is_file())
        contents, prefixes = [], set()
        for key in keys:
            rest = key.removeprefix(prefix)
            if not key.startswith(prefix):
                continue
            if delimiter and delimiter in rest:
                prefixes.add(prefix + rest.partition(delimiter)[0] + delimiter)
            else:
                contents.append(_content(top / key, key))
        common = "".join(f"<CommonPrefixes><Prefix>{quote(each)}</Prefix></CommonPrefixes>" for each in sorted(prefixes))
        head = f"<Name>{bucket}</Name><Prefix>{quote(prefix)}</Prefix><EncodingType>url</EncodingType><IsTruncated>false</IsTruncated>"
        self._send(HTTPStatus.OK, f"<ListBucketResult>{head}{''.join(contents)}{common}</ListBucketResult>".encode(), {})

    def _object(self, path: Path) -> None:
        if not path.is_file():
            self._refuse(HTTPStatus.NOT_FOUND, "NoSuchKey")
            return
        data = path.read_bytes()
        headers = {
            "ETag": f'"{_etag(data)}"',
            "Last-Modified": formatdate(path.stat().st_mtime, usegmt=True),
            "x-oss-object-type": "Normal",
        }
        wanted = _RANGE.fullmatch(self.headers.get("Range", ""))
        if wanted is None:
            self._send(HTTPStatus.OK, data, headers)
            return
        start, stop = int(wanted[1]), min(int(wanted[2]) + 1, len(data))
        self._send(HTTPStatus.PARTIAL_CONTENT, data[start:stop], headers | {"Content-Range": f"bytes {start}-{stop - 1}/{len(data)}"})

    def _refuse(self, status: int, code: str) -> None:
        self._send(status, f"<Error><Code>{code}</Code><Message>no</Message></Error>".encode(), {})

    def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("x-oss-request-id", "0")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  # its name in the standard library
        """Nothing."""


def _etag(data: bytes) -> str:
    return hashlib.md5(data, usedforsecurity=False).hexdigest().upper()


def _content(path: Path, key: str) -> str:
    data = path.read_bytes()
    told = {
        "Key": quote(key),
        "LastModified": _iso(formatdate(path.stat().st_mtime, usegmt=True)),
        "ETag": escape(f'"{_etag(data)}"'),
        "Type": "Normal",
        "Size": len(data),
        "StorageClass": "Standard",
    }
    return f"<Contents>{''.join(f'<{name}>{value}</{name}>' for name, value in told.items())}</Contents>"


def _iso(when: str) -> str:
    return parsedate_to_datetime(when).strftime("%Y-%m-%dT%H:%M:%S.000Z")
