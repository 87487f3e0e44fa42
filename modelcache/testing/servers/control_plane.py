"""A real Kubernetes control plane without nodes: etcd and kube-apiserver, RBAC on, loopback only, gone when its owner is.

    with ControlPlane(directory) as plane:
        plane.ask("POST", "/api/v1/namespaces", {"metadata": {"name": "a"}})        # as the administrator
        token = plane.service_account("a", "agent")                                 # may do nothing until a binding says so
        status, answer = plane.try_ask("GET", "/api/v1/namespaces/a/secrets/s", token=token)

`plane.url`, `plane.ca_file` and a bearer token are what a program under test needs. Objects are JSON: dicts and lists. `apply` sends
YAML or JSON text by server-side apply, as `kubectl apply --server-side` does. Tests take the fixture `control_plane` of
tests/cluster/conftest.py, one for the session, are marked `cluster`, and keep to namespaces and names of their own.

Where the programs come from: the directory that KUBEBUILDER_ASSETS names, as for other projects' tests; else beside this interpreter or
on PATH. No registry and no Debian package has kube-apiserver; `make test-cluster` (tools/environment.py) unpacks one that lies in
`shared/kube` of the checkout or beside it, and installs Debian's etcd.

There is no controller manager: nothing collects garbage, makes service accounts' default secrets, or ends a namespace.
"""

from __future__ import annotations

import json
import os
import secrets
import ssl
import urllib.error
import urllib.request
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from modelcache.testing.servers.certificates import Certificate
from modelcache.testing.servers.launched import LaunchedServer
from modelcache.testing.servers.ports import LOOPBACK, free_ports
from modelcache.testing.servers.process import OwnedProcess, ServerFailed, program, started

ASSETS = "KUBEBUILDER_ASSETS"
START_DEADLINE_S = 100.0
"""It is ready in 8 s on 2 idle cores."""
CALL_S = 30.0
ISSUER = "https://kubernetes.default.svc"
APPLY = "application/apply-patch+yaml"
TABLE = "application/json;as=Table;v=v1;g=meta.k8s.io"
_FIELD_MANAGER = "tests"

Object = dict[str, Any]
Body = Object | Sequence[Object] | str


class ControlPlane:
    """The two servers, running inside the `with` block; data, keys and logs lie in `directory` and stay there.

    Attributes:
        url: of the API server; of this start.
        ca_file: what vouches for it.
        admin_token: bearer token of a member of `system:masters`.
    """

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        certificate = Certificate.make(directory / "pki", hosts=("localhost", LOOPBACK, "kubernetes.default.svc"))
        self.ca_file = certificate.ca
        self.admin_token = secrets.token_hex(16)
        tokens = directory / "tokens.csv"
        with os.fdopen(os.open(tokens, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            file.write(f'{self.admin_token},admin,admin,"system:masters"\n')
        self._etcd = _Etcd(directory)
        self._apiserver = _ApiServer(directory, self._etcd, certificate, tokens)

    def __enter__(self) -> ControlPlane:
        """Raises ServerFailed: a program is missing, or a server does not start."""
        self._etcd.__enter__()
        try:
            self._apiserver.__enter__()
        except BaseException:
            self._etcd.__exit__(None, None, None)
            raise
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._apiserver.__exit__(None, None, None)
        finally:
            self._etcd.__exit__(None, None, None)

    @property
    def url(self) -> str:
        return self._apiserver.url

    def stop_api_server(self) -> None:
        """Kill it; etcd and all objects stay."""
        self._apiserver.stop()

    def start_api_server(self) -> None:
        """Start it again, at the address it had."""
        self._apiserver.start_again()

    def table(self, path: str) -> tuple[list[str], list[list[Any]]]:
        """What `kubectl get -o wide` prints of a list: the columns' names, and the rows' cells."""
        answer = _accepted(*self._send("GET", path, None, None, "application/json", TABLE), f"GET {path}")
        return [each["name"] for each in answer["columnDefinitions"]], [each["cells"] for each in answer["rows"]]

    def ask(self, method: str, path: str, body: Body | None = None, *, token: str | None = None, content: str | None = None) -> Any:
        """The answer to a request that must succeed.

        Args:
            path: with its query.
            token: whose request it is; None: the administrator's.
            content: Content-Type; None: JSON, or for PATCH a JSON merge patch.
        Raises:
            AssertionError: refused; the message is the server's.
        """
        return _accepted(*self.try_ask(method, path, body, token=token, content=content), f"{method} {path}")

    def try_ask(
        self, method: str, path: str, body: Body | None = None, *, token: str | None = None, content: str | None = None
    ) -> tuple[int, Any]:
        """Status and answer, whatever they are."""
        kind = content or ("application/merge-patch+json" if method == "PATCH" else "application/json")
        return self._send(method, path, body, token, kind, "application/json")

    def _send(self, method: str, path: str, body: Body | None, token: str | None, kind: str, accept: str) -> tuple[int, Any]:
        data = None if body is None else (body if isinstance(body, str) else json.dumps(body)).encode()
        headers = {"Authorization": f"Bearer {token or self.admin_token}", "Content-Type": kind, "Accept": accept}
        request = urllib.request.Request(self.url + path, data=data, method=method, headers=headers)
        https = urllib.request.HTTPSHandler(context=ssl.create_default_context(cafile=str(self.ca_file)))
        opener = urllib.request.build_opener(https, urllib.request.ProxyHandler({}))
        try:
            with opener.open(request, timeout=CALL_S) as response:
                return response.status, _parsed(response.read())
        except urllib.error.HTTPError as error:
            with error:
                return error.code, _parsed(error.read())

    def apply(self, path: str, document: str | Object, *, dry_run: bool = False, token: str | None = None) -> Any:
        """Server-side apply of one object, given as YAML or JSON text or as what they say, at its own path (`…/NAME`)."""
        query = f"?fieldManager={_FIELD_MANAGER}&force=true" + ("&dryRun=All" if dry_run else "")
        return self.ask("PATCH", path + query, document, token=token, content=APPLY)

    def create(self, path: str, document: str | Object) -> Any:
        """Make one object, given as YAML or JSON text or as what they say. Fields that this server is too old for are dropped (apply
        would refuse them)."""
        return self.ask("POST", path, document, content="application/yaml")

    def namespace(self) -> str:
        """A new namespace."""
        name = f"ns-{secrets.token_hex(4)}"
        self.ask("POST", "/api/v1/namespaces", {"metadata": {"name": name}})
        return name

    def service_account(self, namespace: str, name: str, *, audiences: Iterable[str] = (ISSUER,)) -> str:
        """Make a service account, if it isn't there; a token of it, good for an hour."""
        path = f"/api/v1/namespaces/{namespace}/serviceaccounts"
        status, answer = self.try_ask("POST", path, {"metadata": {"name": name}})
        assert status in (201, 409), answer
        made = self.ask("POST", f"{path}/{name}/token", {"spec": {"audiences": list(audiences), "expirationSeconds": 3600}})
        return str(made["status"]["token"])

    def allow(self, token_of: str, rules: Iterable[Object]) -> None:
        """Bind a ClusterRole with `rules` to `system:serviceaccount:NAMESPACE:NAME`."""
        name = f"test-{secrets.token_hex(4)}"
        group = "rbac.authorization.k8s.io"
        self.ask("POST", f"/apis/{group}/v1/clusterroles", {"metadata": {"name": name}, "rules": list(rules)})
        binding = {
            "metadata": {"name": name},
            "roleRef": {"apiGroup": group, "kind": "ClusterRole", "name": name},
            "subjects": [{"apiGroup": group, "kind": "User", "name": token_of}],
        }
        self.ask("POST", f"/apis/{group}/v1/clusterrolebindings", binding)

    def pids(self) -> list[int]:
        """Of both servers."""
        return [*self._etcd.pids(), *self._apiserver.pids()]


class _Etcd(LaunchedServer):
    def __init__(self, directory: Path) -> None:
        super().__init__(directory, start_deadline_s=START_DEADLINE_S)

    @property
    def url(self) -> str:
        return f"http://{LOOPBACK}:{self.port}"

    def _launch(self) -> OwnedProcess:
        self.port, peers = free_ports(2)
        command = [
            _program("etcd"),
            f"--data-dir={self.directory / 'etcd'}",
            f"--listen-client-urls={self.url}",
            f"--advertise-client-urls={self.url}",
            f"--listen-peer-urls=http://{LOOPBACK}:{peers}",
            f"--initial-advertise-peer-urls=http://{LOOPBACK}:{peers}",
            f"--initial-cluster=default=http://{LOOPBACK}:{peers}",
            "--unsafe-no-fsync",
        ]
        return OwnedProcess(command, log=self.directory / "etcd.log")

    def _ready(self) -> bool:
        return _says(f"{self.url}/health", b'"health":"true"')


class _ApiServer(LaunchedServer):
    def __init__(self, directory: Path, etcd: _Etcd, certificate: Certificate, tokens: Path) -> None:
        super().__init__(directory, start_deadline_s=START_DEADLINE_S)
        self._etcd = etcd
        self._certificate = certificate
        self._tokens = tokens
        self._kept_port = 0

    @property
    def url(self) -> str:
        return f"https://{LOOPBACK}:{self.port}"

    def stop(self) -> None:
        assert self._process is not None
        self._process.stop()

    def start_again(self) -> None:
        self._kept_port = self.port
        self._process = started(self._launch, self._ready, deadline_s=self._start_deadline_s)

    def _launch(self) -> OwnedProcess:
        self.port = self._kept_port or free_ports(1)[0]
        pki = self._certificate
        command = [
            _program("kube-apiserver"),
            f"--etcd-servers={self._etcd.url}",
            f"--bind-address={LOOPBACK}",
            f"--advertise-address={LOOPBACK}",
            f"--secure-port={self.port}",
            f"--tls-cert-file={pki.chain}",
            f"--tls-private-key-file={pki.key}",
            f"--token-auth-file={self._tokens}",
            f"--service-account-key-file={pki.chain}",  # one pair of keys for both is enough for a test
            f"--service-account-signing-key-file={pki.key}",
            f"--service-account-issuer={ISSUER}",
            "--service-cluster-ip-range=10.96.0.0/24",
            "--authorization-mode=Node,RBAC",
            "--allow-privileged=true",
            "--disable-admission-plugins=ServiceAccount",  # without a controller manager no namespace has its default account
            "--enable-admission-plugins=NodeRestriction",
            "--feature-gates=CSIServiceAccountToken=true,CSIStorageCapacity=true",
            "--endpoint-reconciler-type=none",
            "--profiling=false",
            f"--cert-dir={self.directory}",
        ]
        return OwnedProcess(command, log=self.directory / "kube-apiserver.log")

    def _ready(self) -> bool:
        return _says(f"{self.url}/readyz", b"ok", self._certificate.ca)


def _program(name: str) -> str:
    """Path of one of the two. Raises ServerFailed, saying where it can be had."""
    assets = os.environ.get(ASSETS)
    if assets and os.access(Path(assets, name), os.X_OK):
        return str(Path(assets, name))
    try:
        return program(name)
    except ServerFailed as error:
        raise ServerFailed(f"{error}, nor is it in {ASSETS}={assets or ''}; `make test-cluster` says where it comes from") from None


def _says(url: str, what: bytes, ca_file: Path | None = None) -> bool:
    context = None if ca_file is None else ssl.create_default_context(cafile=str(ca_file))
    handlers = [urllib.request.ProxyHandler({})] + ([] if context is None else [urllib.request.HTTPSHandler(context=context)])
    try:
        with urllib.request.build_opener(*handlers).open(url, timeout=5) as response:
            return what in response.read()
    except OSError:
        return False


def _accepted(status: int, answer: Any, asked: str) -> Any:
    assert status < 300, f"{asked}: {status} {answer.get('message', answer)}"
    return answer


def _parsed(body: bytes) -> Any:
    try:
        return json.loads(body)
    except ValueError:
        return {"message": body.decode(errors="replace")}
