"""A pod's container without a cluster: what its manifest says, run by runc as containerd would, in a network of its own."""

from __future__ import annotations

import json
import re
import secrets
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from modelcache.patience import Deadline
from tests.cluster.image import seccomp

ADDRESS = "127.0.0.1"
"""Its pod's: nothing but the loopback is in its network."""
DEADLINE_S = 100.0
ACCOUNT = "service-account"
NAMESPACES = ("pid", "ipc", "uts", "mount")
KERNELS = (
    ("/proc", "proc", ()),
    ("/dev", "tmpfs", ("nosuid", "mode=755", "size=65536k")),
    ("/dev/shm", "tmpfs", ("nosuid", "noexec", "nodev", "mode=1777", "size=65536k")),
    ("/sys", "sysfs", ("nosuid", "noexec", "nodev", "ro")),
)
"""File systems that every container has."""


class Refused(Exception):
    """A command in the container failed; the message is what it said."""


class Container:
    """The first container of a pod, running for the block; killed at its end.

    Args:
        rootfs: the image's files.
        pod: its `spec`.
        host: stands for `/` of the host, where the pod's hostPath volumes are.
        config: `data` of ConfigMaps by name.
        command: in place of the manifest's, which then has its arguments, too.
        account: what kubelet mounts of a service account: `token`, `ca.crt`, `namespace`.
        environ: what kubelet adds, such as where the API server is.
        shares_network: it has the network of the test, as with `hostNetwork`.
    """

    def __init__(
        self,
        rootfs: Path,
        pod: Mapping[str, Any],
        host: Path,
        *,
        config: Mapping[str, Mapping[str, str]] = {},
        account: Mapping[str, str] = {},
        environ: Mapping[str, str] = {},
        command: Sequence[str] = (),
        shares_network: bool = False,
    ) -> None:
        self._id = f"modelcache-test-{secrets.token_hex(4)}"
        self._directory = host.parent / self._id
        self._state = self._directory / "state"
        self._host = host
        self._config = config
        self._environ = environ
        (self._directory / "volumes").mkdir(parents=True)
        if account:
            pod = _with_account(pod)
            self._config = {**config, ACCOUNT: account}
        self.log = self._directory / "log"
        bundle = self._bundle(rootfs, pod, command, shares_network)
        (self._directory / "config.json").write_text(json.dumps(bundle), encoding="utf-8")

    def __enter__(self) -> Self:
        with self.log.open("wb") as log:
            command = [*self._runc(), "run", "--bundle", str(self._directory), self._id]
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        subprocess.run([*self._runc(), "delete", "--force", self._id], capture_output=True, check=False)
        try:
            self._process.wait(DEADLINE_S)
        finally:
            self._process.kill()
            self._process.wait()

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    def volume(self, name: str) -> Path:
        """Where a volume is that has nothing of the host: an emptyDir."""
        return self._directory / "volumes" / name

    def do(self, *command: str) -> str:
        """What a further command in the container prints. Raises Refused."""
        done = subprocess.run(
            [*self._runc(), "exec", self._id, *command],
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=DEADLINE_S,
            check=False,
        )
        if done.returncode != 0:
            raise Refused(f"{done.stdout}{done.stderr}{self.log.read_text(errors='replace')[-3000:]}")
        return done.stdout

    def wait_for(self, *command: str) -> str:
        """What a command prints as soon as it succeeds; starting it takes a while each time, so this doesn't spin."""
        deadline = Deadline.after(DEADLINE_S)
        while True:
            try:
                return self.do(*command)
            except Refused:
                if deadline.passed or not self.running:
                    raise

    def terminate(self, grace_s: float) -> int:
        """Its exit status after SIGTERM. Raises subprocess.TimeoutExpired: it would have had to be killed."""
        subprocess.run([*self._runc(), "kill", self._id, "TERM"], check=True, capture_output=True)
        return self._process.wait(grace_s)

    def wait(self) -> int:
        """Its exit status."""
        return self._process.wait(DEADLINE_S)

    def _runc(self) -> list[str]:
        return ["runc", "--root", str(self._state)]

    def _bundle(self, rootfs: Path, pod: Mapping[str, Any], command: Sequence[str], shares_network: bool) -> dict[str, Any]:
        container = pod["containers"][0]
        security = {**pod.get("securityContext", {}), **container["securityContext"]}
        assert security["capabilities"] == {"drop": ["ALL"]}
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}
        environ = {"PATH": "/opt/modelcache/bin:/usr/local/bin:/usr/bin:/bin", "PYTHONDONTWRITEBYTECODE": "1", "PYTHONUNBUFFERED": "1"}
        environ |= self._environ
        environ |= {each["name"]: _value(each) for each in container.get("env", [])}
        arguments = list(command) or [*container["command"], *container["args"]]
        volumes = {each["name"]: each for each in pod.get("volumes", [])}
        return {
            "ociVersion": "1.0.2",
            "process": {
                "args": [re.sub(r"\$\((\w+)\)", lambda found: environ[found[1]], text) for text in arguments],
                "env": [f"{name}={value}" for name, value in environ.items()],
                "cwd": "/",
                "user": {"uid": security["runAsUser"], "gid": security["runAsGroup"]},
                "capabilities": {kind: [] for kind in ("bounding", "effective", "permitted", "inheritable", "ambient")},
                "noNewPrivileges": not security["allowPrivilegeEscalation"],
            },
            "root": {"path": str(rootfs), "readonly": security["readOnlyRootFilesystem"]},
            "hostname": "agent",
            "mounts": [
                *({"destination": at, "type": kind, "source": kind, "options": list(how)} for at, kind, how in KERNELS),
                *(self._mount(each, volumes[each["name"]]) for each in container.get("volumeMounts", [])),
            ],
            "linux": {
                "namespaces": [{"type": kind} for kind in (*NAMESPACES, *(() if shares_network else ("network",)))],
                "seccomp": seccomp.without_capabilities(),
            },
        }

    def _mount(self, mount: Mapping[str, Any], volume: Mapping[str, Any]) -> dict[str, Any]:
        source = self.volume(volume["name"])
        if "hostPath" in volume:
            source = self._host / volume["hostPath"]["path"].lstrip("/")
            if volume["hostPath"]["type"] == "DirectoryOrCreate":
                source.mkdir(parents=True, exist_ok=True)
        else:
            source.mkdir()
        for name, text in self._config.get(volume.get("configMap", {}).get("name", ""), {}).items():
            (source / name).write_text(text, encoding="utf-8")
        if "emptyDir" in volume:
            source.chmod(0o777)
        options = [
            "rbind",
            "ro" if mount.get("readOnly") else "rw",
            {"HostToContainer": "rslave"}.get(mount.get("mountPropagation", ""), "rprivate"),
        ]
        return {"destination": mount["mountPath"], "type": "bind", "source": str(source), "options": options}


def _with_account(pod: Mapping[str, Any]) -> Mapping[str, Any]:
    """As the admission of service accounts adds it."""
    assert pod["automountServiceAccountToken"]
    mount = {"name": ACCOUNT, "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount", "readOnly": True}
    first, *others = pod["containers"]
    containers = [{**first, "volumeMounts": [*first["volumeMounts"], mount]}, *others]
    return {**pod, "containers": containers, "volumes": [*pod["volumes"], {"name": ACCOUNT, "configMap": {"name": ACCOUNT}}]}


def _value(variable: Mapping[str, Any]) -> str:
    if "value" in variable:
        return str(variable["value"])
    fields = {"status.podIP": ADDRESS, "spec.nodeName": "node-1", "metadata.namespace": "modelcache-system"}
    return fields[variable["valueFrom"]["fieldRef"]["fieldPath"]]
