"""What set-up says and does on machines that lack something; nothing is installed here."""

from __future__ import annotations

import hashlib
import importlib.util
import lzma
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def environment() -> ModuleType:
    spec = importlib.util.spec_from_file_location("environment", ROOT / "tools/environment.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Commands:
    """Stands for `attempt`: remembers commands, and fails those that hold one of some words."""

    def __init__(self, *failing: str) -> None:
        self.failing = failing
        self.run: list[list[str]] = []

    def __call__(self, command: list[str], environ: dict[str, str] | None = None) -> tuple[bool, str]:
        self.run.append(command)
        return not any(word in command for word in self.failing), "its output"


@pytest.fixture
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with constraints and a virtual environment's bare bones; nothing of TORCH in the environment."""
    (tmp_path / "constraints.txt").write_text("# pins\ntorch==2.13.0\nnumpy==2.4.6\n")
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    (tmp_path / ".venv" / "lib" / version / "site-packages").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TORCH", raising=False)
    return tmp_path / ".venv"


def test_a_missing_program_is_named_with_the_command_that_installs_it(
    environment: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    commands = Commands()
    monkeypatch.setattr(environment, "attempt", commands)
    monkeypatch.setattr(environment.os, "geteuid", lambda: 1000)
    monkeypatch.setattr(environment.shutil, "which", lambda name, path=None: None if name in ("nginx", "mkfs.ext4") else f"/bin/{name}")

    with pytest.raises(SystemExit) as ended:
        environment.system()

    assert ended.value.code == 1
    assert "sudo apt-get install -y --no-install-recommends e2fsprogs nginx-light" in capsys.readouterr().err
    assert commands.run == []


def test_root_installs_and_fetches_package_lists_only_when_the_first_try_fails(
    environment: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    policy = tmp_path / "policy-rc.d"
    seen: list[tuple[list[str], bool]] = []

    def attempt(command: list[str], environ: dict[str, str] | None = None) -> tuple[bool, str]:
        seen.append((command, policy.exists()))
        return len(seen) > 1, ""

    monkeypatch.setattr(environment, "attempt", attempt)
    monkeypatch.setattr(environment, "SERVICE_POLICY", policy)
    monkeypatch.setattr(environment.os, "geteuid", lambda: 0)
    monkeypatch.setattr(environment.shutil, "which", lambda name, path=None: None if name == "nginx" else f"/bin/{name}")

    environment.system()

    assert [command[:2] for command, _ in seen] == [["apt-get", "install"], ["apt-get", "update"], ["apt-get", "install"]]
    assert all(held_back for _, held_back in seen)  # no service starts
    assert not policy.exists()


def test_nothing_is_done_when_every_program_is_here(environment: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    commands = Commands()
    monkeypatch.setattr(environment, "attempt", commands)
    monkeypatch.setattr(environment.shutil, "which", lambda name, path=None: f"/bin/{name}")

    environment.system()

    assert commands.run == []


@pytest.mark.parametrize("version", [(3, 10, 14), (3, 14, 0), (2, 7, 18)])
def test_another_python_is_refused_with_what_to_do(
    environment: ModuleType, monkeypatch: pytest.MonkeyPatch, clone: Path, capsys: pytest.CaptureFixture[str], version: tuple[int, ...]
) -> None:
    monkeypatch.setattr(environment.sys, "version_info", version)

    with pytest.raises(SystemExit):
        environment.make_venv(clone)

    said = capsys.readouterr().err
    assert "3.11 to 3.13" in said
    assert f"{version[0]}.{version[1]}" in said
    assert "make PYTHON=" in said


@pytest.mark.parametrize(("exactly", "theirs", "kept"), [(True, "3.12", False), (True, "3.13", True), (False, "3.12", True)])
def test_who_names_another_python_gets_an_environment_of_it(
    environment: ModuleType, monkeypatch: pytest.MonkeyPatch, clone: Path, exactly: bool, theirs: str, kept: bool
) -> None:
    ran: list[list[str]] = []

    def attempt(command: list[str]) -> tuple[bool, str]:
        ran.append(command)
        return True, f"pip 26.3 from /somewhere (python {theirs})"

    monkeypatch.setattr(environment, "attempt", attempt)
    monkeypatch.setattr(environment.sys, "version_info", (3, 13, 0))
    (clone / "bin").mkdir()
    (clone / "bin" / "python").touch()

    environment.make_venv(clone, exactly)

    assert [command[1:4] for command in ran if "venv" in command] == ([] if kept else [["-m", "venv", "--clear"]])


def test_a_debian_without_venv_is_told_which_package_has_it(
    environment: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(environment.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(environment.os, "geteuid", lambda: 1000)
    monkeypatch.setattr(environment.shutil, "which", lambda name, path=None: f"/bin/{name}")

    with pytest.raises(SystemExit):
        environment.make_venv(tmp_path / ".venv")

    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    assert f"sudo apt-get install -y --no-install-recommends python{version}-venv" in capsys.readouterr().err
    assert not (tmp_path / ".venv").exists()


def test_the_users_own_torch_is_used_and_no_other_is_asked_for(
    environment: ModuleType, monkeypatch: pytest.MonkeyPatch, clone: Path
) -> None:
    commands = Commands()
    monkeypatch.setattr(environment, "attempt", commands)
    monkeypatch.setattr(environment, "users_packages", lambda venv: Path("/elsewhere/site-packages"))

    environment.torch(clone, "")

    assert commands.run == []
    assert environment.link_to_users(clone).read_text() == "/elsewhere/site-packages\n"
    assert environment.constraints(clone).read_text() == "# pins\nnumpy==2.4.6\n"


def test_a_named_torch_wins_over_the_users_and_over_the_pin(environment: ModuleType, monkeypatch: pytest.MonkeyPatch, clone: Path) -> None:
    commands = Commands()
    monkeypatch.setattr(environment, "attempt", commands)
    monkeypatch.setattr(environment, "users_packages", lambda venv: Path("/elsewhere/site-packages"))
    monkeypatch.setattr(environment, "has_nvidia", lambda: True)
    monkeypatch.setenv("TORCH", "torch==2.9.1")

    environment.torch(clone, "torch==2.9.1")

    assert [command[-1] for command in commands.run] == ["torch==2.9.1"]
    assert "torch" not in environment.constraints(clone).read_text()


def test_without_a_gpu_the_cpu_build_comes_first_and_the_default_one_last(
    environment: ModuleType, monkeypatch: pytest.MonkeyPatch, clone: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    commands = Commands("torch==2.13.0+cpu", "--torch-backend")
    monkeypatch.setattr(environment, "attempt", commands)
    monkeypatch.setattr(environment, "users_packages", lambda venv: None)
    monkeypatch.setattr(environment, "has_nvidia", lambda: False)

    environment.torch(clone, "")

    assert [command[-1] for command in commands.run] == ["torch==2.13.0+cpu", "uv", "torch==2.13.0", "torch==2.13.0"]
    assert "--torch-backend" in commands.run[2]
    assert "several gigabytes" in capsys.readouterr().err


def test_with_a_gpu_the_default_build_is_taken(environment: ModuleType, monkeypatch: pytest.MonkeyPatch, clone: Path) -> None:
    commands = Commands()
    monkeypatch.setattr(environment, "attempt", commands)
    monkeypatch.setattr(environment, "users_packages", lambda venv: None)
    monkeypatch.setattr(environment, "has_nvidia", lambda: True)

    environment.torch(clone, "")

    assert [command[-1] for command in commands.run] == ["torch==2.13.0"]


def test_what_pip_could_not_install_stops_with_its_words(
    environment: ModuleType, monkeypatch: pytest.MonkeyPatch, clone: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(environment, "attempt", Commands("pip"))

    with pytest.raises(SystemExit) as ended:
        environment.install(clone, "modelcache[dev]", "-e", ".[dev]")

    assert ended.value.code == 1
    assert "its output" in capsys.readouterr().err


def test_vllm_goes_beside_with_exactly_what_it_was_frozen_with(
    environment: ModuleType, monkeypatch: pytest.MonkeyPatch, clone: Path
) -> None:
    commands = Commands()
    monkeypatch.setattr(environment, "attempt", commands)
    monkeypatch.setattr(environment.platform, "machine", lambda: "x86_64")

    environment.vllm(clone.parent / ".cache" / "vllm")

    installs = [command for command in commands.run if "--no-deps" in command]
    assert [command[-2:] for command in installs] == [["-r", "tests/integrations/requirements-vllm.txt"], ["-e", "."]]
    assert [command[-1] for command in commands.run[:-2] if "install" in command] == ["torch==2.13.0+cpu"]


def test_vllm_on_another_processor_is_refused(
    environment: ModuleType, monkeypatch: pytest.MonkeyPatch, clone: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(environment.platform, "machine", lambda: "aarch64")
    with pytest.raises(SystemExit):
        environment.vllm(clone.parent / ".cache" / "vllm")
    assert "aarch64" in capsys.readouterr().err


def test_a_packed_api_server_is_compared_and_unpacked_and_its_absence_told(
    environment: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KUBEBUILDER_ASSETS", "bin")
    monkeypatch.setattr(environment.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(environment.shutil, "which", lambda name, path=None: "/usr/bin/etcd" if name == "etcd" else None)

    with pytest.raises(SystemExit) as ended:
        environment.cluster()
    assert ended.value.code == 3
    assert "no kube-apiserver on PATH, and none for this machine in bin, shared/kube, ../shared/kube" in capsys.readouterr().err

    packed = tmp_path / "bin" / "kube-apiserver.xz"
    packed.parent.mkdir()
    packed.write_bytes(lzma.compress(b"#!/bin/true"))
    packed.with_name("SHA256SUMS").write_text(f"{'0' * 64}  kube-apiserver.xz\n")
    with pytest.raises(SystemExit) as ended:
        environment.cluster()
    assert ended.value.code == 1
    assert not (tmp_path / ".cache").exists()

    packed.with_name("SHA256SUMS").write_text(f"{hashlib.sha256(packed.read_bytes()).hexdigest()}  kube-apiserver.xz\n")
    environment.cluster()
    unpacked = tmp_path / ".cache/kube/kube-apiserver"
    assert unpacked.read_bytes() == b"#!/bin/true"
    assert unpacked.stat().st_mode & 0o777 == 0o755


def test_who_is_not_root_is_told_that_the_image_is_left_out(
    environment: ModuleType, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    with pytest.raises(SystemExit) as ended:
        environment.image()
    assert ended.value.code == 3
    assert "left out: all tests of the image" in capsys.readouterr().err
