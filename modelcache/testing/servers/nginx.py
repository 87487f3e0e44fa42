"""A real, cheap HTTP server: nginx, over a directory or before another server; TLS and a password if wanted."""

from __future__ import annotations

import json
import os
import secrets
import ssl
import tempfile
import time
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from pathlib import Path

from modelcache.patience import Deadline
from modelcache.testing.servers.certificates import Certificate
from modelcache.testing.servers.launched import LaunchedServer
from modelcache.testing.servers.ports import LOOPBACK, free_ports
from modelcache.testing.servers.process import POLL_S, OwnedProcess, ServerFailed, program

START_DEADLINE_S = 20.0
LOG_DEADLINE_S = 10.0


@dataclass(frozen=True, slots=True)
class NginxOptions:
    """What differs from a plain directory over http.

    Attributes:
        upstream: `http://host:port`; requests go there, unchanged, instead of to the directory.
        certificate: speak TLS with this.
        user, password: ask for basic authentication.
        workers: processes; with more than one, `requests` counts but doesn't order.
        log_requests: keep an access log for `requests`; off for measurements.
        more: further directives of the server block, verbatim.
    """

    upstream: str | None = None
    certificate: Certificate | None = None
    user: str = ""
    password: str = field(default="", repr=False)
    workers: int = 1
    log_requests: bool = True
    more: str = ""


@dataclass(frozen=True, slots=True)
class Request:
    """One answered request. `target` is as sent, query and all; `range` is the header or empty."""

    method: str
    target: str
    status: int
    range: str
    body_bytes: int
    authorized: bool
    """Whether an Authorization header came with it."""


class Nginx(LaunchedServer):
    """The server, running inside its `with` block: GET, HEAD, Range, strong ETag and If-Match over the files of `directory`."""

    def __init__(self, directory: Path, options: NginxOptions | None = None, *, start_deadline_s: float = START_DEADLINE_S) -> None:
        super().__init__(directory, start_deadline_s=start_deadline_s)
        self.options = options or NginxOptions()
        self._own = Path()
        self._seen = 0

    @property
    def endpoint(self) -> str:
        return f"{'http' if self.options.certificate is None else 'https'}://{LOOPBACK}:{self.port}"

    def requests(self) -> list[Request]:
        """What it answered since the last call, in order of completion.

        A request is logged after its last byte is sent, so a client may be ahead of the log: a marker is asked for, and the log
        read up to it.
        """
        marker = f"/.marker-{secrets.token_hex(8)}"
        self._ask(marker)
        deadline = Deadline.after(LOG_DEADLINE_S)
        while True:
            lines = (self._own / "access.log").read_text().splitlines()[self._seen :]
            records = [Request(**json.loads(line)) for line in lines if line.endswith("}")]
            if any(record.target == marker for record in records):
                break
            if deadline.passed:
                raise ServerFailed("nginx did not log a request")
            time.sleep(POLL_S)
        self._seen += len(records)
        return [record for record in records if not record.target.startswith("/.marker-")]

    # -- inside -----------------------------------------------------------------------------------------------------

    def _launch(self) -> OwnedProcess:
        [self.port] = free_ports(1)
        self._own = Path(tempfile.mkdtemp(prefix="nginx-"))  # its process's keeper removes it
        config = self._own / "nginx.conf"
        config.write_text(_config(self._own, self.directory, self.options, self.port))
        if self.options.user:
            with os.fdopen(os.open(self._own / "passwords", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
                file.write(f"{self.options.user}:{{PLAIN}}{self.options.password}\n")
        command = [program("nginx"), "-e", "stderr", "-p", str(self._own), "-c", str(config)]
        return OwnedProcess(command, log=self._own / "error.log", leftovers=[str(self._own)])

    def _ready(self) -> bool:
        try:
            self._ask(f"/.marker-{secrets.token_hex(8)}")
        except (OSError, HTTPException):
            return False
        return True

    def _ask(self, target: str) -> int:
        connection = self._connection()
        try:
            connection.request("HEAD", target)
            return connection.getresponse().status
        finally:
            connection.close()

    def _connection(self) -> HTTPConnection:
        certificate = self.options.certificate
        if certificate is None:
            return HTTPConnection(LOOPBACK, self.port, timeout=5)
        # The name may be any that the certificate has; that the CA vouches for it is what tells this server from another.
        context = ssl.create_default_context(cafile=str(certificate.ca))
        context.check_hostname = False
        return HTTPSConnection(LOOPBACK, self.port, timeout=5, context=context)


def _config(own: Path, directory: Path, options: NginxOptions, port: int) -> str:
    user = "user root root;" if os.geteuid() == 0 else ""
    temporary = " ".join(f"{kind}_temp_path {own}/tmp-{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
    log = f"access_log {own}/access.log requests;" if options.log_requests else "access_log off;"
    tls = ""
    if options.certificate is not None:
        tls = f"ssl_certificate {options.certificate.chain}; ssl_certificate_key {options.certificate.key}; ssl_protocols TLSv1.2 TLSv1.3;"
    password = f'auth_basic "test"; auth_basic_user_file {own}/passwords;' if options.user else ""
    place = f'root "{directory.resolve()}";'
    if options.upstream is not None:
        place = (
            f'proxy_pass {options.upstream}; proxy_http_version 1.1; proxy_set_header Connection "";'
            " proxy_set_header Host $http_host; proxy_buffering off; proxy_request_buffering off; client_max_body_size 0;"
        )
    return f"""
{user} daemon off; pid {own}/nginx.pid; error_log stderr warn; worker_processes {options.workers};
events {{ worker_connections 1024; }}
http {{
  {temporary}
  log_format requests escape=json '{{"method":"$request_method","target":"$request_uri","status":$status,"range":"$http_range",'
    '"body_bytes":$body_bytes_sent,"authorized":$authorized}}';
  map $http_authorization $authorized {{ default true; "" false; }}
  {log}
  types {{}} default_type application/octet-stream; server_tokens off;
  sendfile on; tcp_nopush on; keepalive_requests 1000000; keepalive_timeout 75s;
  server {{
    listen {LOOPBACK}:{port}{" ssl" if options.certificate is not None else ""};
    {tls}
    location /.marker- {{ auth_basic off; return 204; }}
    {options.more}
    location / {{ {password} {place} }}
  }}
}}
"""
