"""Makes an environment whose GPUs are simulated: torch's real build for CUDA on tests/gpu/simulated instead of NVIDIA's libraries.

    python -m tools.simulated_gpu                 .cache/simulated-gpu/torch-2.11.0, with bin/python in it
    python -m tools.simulated_gpu --torch 2.15.0  another torch, in an environment of its own

1.2 GB each. What is there is kept; what changed is made again. Standard library only, as `tools.environment`.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tools import missing_libraries
from tools.environment import CONSTRAINTS, attempt, install, make_venv, say, stop, system

TORCH = "2.11.0"
"""No index or folder that this project knows has a CPU build of it: pip prefers one, and it has no CUDA in it."""

HEADERS = ("nvidia-cuda-runtime==13.0.96", "nvidia-cuda-crt==13.0.88")
"""What torch 2.11 is built with. Apart from the environment: the first has the real runtime beside its headers."""

FORMATTER = "clang-format==23.1.5"
"""Another version formats otherwise."""

RUNTIME, DRIVER = "libcudart.so.13", "libcuda.so.1"
PACKAGES = (  # what torch imports, what modelcache does, what tests/gpu does; versions: constraints.txt
    *("filelock", "fsspec", "jinja2", "networkx", "numpy", "setuptools", "sympy", "typing-extensions"),
    *("awscrt", "rich", "safetensors", "transformers", "typer", "xxhash"),
    *("hypothesis", "psutil", "pytest", "pytest-timeout"),
)
ALONE = ("accelerate",)
"""Packages that depend on torch, and by it on NVIDIA's libraries; what else they need is in PACKAGES."""

SOURCES = Path("tests/gpu/simulated")
CACHE = Path(".cache/simulated-gpu")
SYSTEM = {"g++": "g++", "readelf": "binutils"}
FLAGS = ("-std=c++17", "-O1", "-fPIC", "-Wall", "-Wextra", "-Werror")


def main() -> None:
    parser = argparse.ArgumentParser(description="Makes an environment whose GPUs are simulated.")
    parser.add_argument("--torch", default=TORCH, help="its version")
    torch = parser.parse_args().torch
    venv = CACHE / f"torch-{torch}"
    system(SYSTEM)
    pins = CONSTRAINTS.read_text(encoding="utf-8")
    once(venv / "packages", digest(torch, PACKAGES, ALONE, FORMATTER, pins, sys.version), lambda: packages(venv, torch))
    once(CACHE / "headers" / "made", digest(HEADERS), lambda: headers(venv))
    inputs = [*sorted(SOURCES.glob("*.cc")), *sorted(SOURCES.glob("*.h")), Path(__file__), Path(missing_libraries.__file__)]
    made = digest(HEADERS, *(path.read_bytes() for path in inputs), (venv / "packages").read_text(encoding="utf-8"))
    once(venv / "libraries", made, lambda: libraries(venv))


def digest(*of: object) -> str:
    return hashlib.sha256(repr(of).encode()).hexdigest()


def once(stamp: Path, of: str, make: Callable[[], None]) -> None:
    """Make, unless it was made of the same; what was broken off is made again."""
    if stamp.exists() and stamp.read_text(encoding="utf-8") == of:
        return
    stamp.unlink(missing_ok=True)
    make()
    stamp.write_text(of, encoding="utf-8")


def packages(venv: Path, torch: str) -> None:
    """torch from where pip finds it, without what it depends on, and the rest as constraints.txt has it."""
    make_venv(venv, exactly=True)
    say(f"installing torch {torch}, its build for CUDA, without NVIDIA's libraries: 530 MB …")
    fetch(venv, "--no-deps", f"torch=={torch}")
    if not (torch_of(venv) / "libtorch_cuda.so").exists():
        stop(f"pip found a build of torch {torch} without CUDA: name another version with --torch (make: SIMULATED_TORCH=…)")
    install(venv, "what the tests of GPUs need", *PACKAGES)
    install(venv, ", ".join(ALONE), "--no-deps", *ALONE)
    fetch(venv, "--no-deps", FORMATTER)


def headers(venv: Path) -> None:
    say("installing CUDA's headers …")
    fetch(venv, "--no-deps", "--upgrade", "--target", str(CACHE / "headers"), *HEADERS)


def fetch(venv: Path, *arguments: str) -> None:
    """pip install, without constraints.txt, which pins another torch."""
    environ = {**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_NO_INPUT": "1", "PIP_ROOT_USER_ACTION": "ignore"}
    done, output = attempt([str(venv / "bin" / "python"), "-m", "pip", "install", "--quiet", *arguments], environ)
    if not done:
        stop(f"`pip install {' '.join(arguments)}` failed:\n{output}")


def torch_of(venv: Path) -> Path:
    """Where torch's libraries look for others before the system's: beside themselves."""
    return venv / "lib" / "python{}.{}".format(*sys.version_info[:2]) / "site-packages" / "torch" / "lib"


def libraries(venv: Path) -> None:
    """The runtime, the driver, and every other library of NVIDIA's that torch needs, beside torch's own."""
    started = time.monotonic()
    say("compiling the simulated GPU …")
    beside = torch_of(venv)
    built = venv / "built"
    built.mkdir(exist_ok=True)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = dict(pool.map(lambda path: (path.stem, compiled(path, built / f"{path.stem}.o")), sorted(SOURCES.glob("*.cc"))))
        wanted = missing_libraries.missing(pool.map(missing_libraries.read, torchs_own(beside)))
    if not {RUNTIME, DRIVER} <= wanted.keys():
        stop(f"this torch is built for another CUDA: it needs {', '.join(sorted(wanted))}, and {RUNTIME} is what is simulated")
    driver = objects.pop("driver")
    link(beside, built, RUNTIME, wanted.pop(RUNTIME), list(objects.values()))
    link(beside, built, DRIVER, wanted.pop(DRIVER), [driver], "-L", str(beside), f"-l:{RUNTIME}")
    for library, lacking in sorted(wanted.items()):
        link(beside, built, library, lacking, [])
    check(venv)
    say(f"compiled it in {time.monotonic() - started:.0f} s")


def torchs_own(beside: Path) -> list[Path]:
    """Without what an earlier run put there."""
    return [path for path in sorted(beside.glob("*.so*")) if not missing_libraries.NVIDIAS.match(path.name)]


def compiled(path: Path, to: Path) -> Path:
    include = next((CACHE / "headers").rglob("cuda_runtime_api.h")).parent
    run("g++", *FLAGS, "-isystem", str(include), "-c", str(path), "-o", str(to))
    return to


def link(beside: Path, built: Path, library: str, lacking: dict[str, set[str]], objects: list[Path], *needs: str) -> None:
    """One library: what is simulated, and the rest of its functions."""
    simulated = frozenset[str]().union(*(missing_libraries.read(each).defines for each in objects))
    refused = set[str]().union(*lacking.values()) - simulated
    stubs, script = built / f"{library}.cc", built / f"{library}.map"
    stubs.write_text(missing_libraries.source(refused), encoding="utf-8")
    script.write_text(missing_libraries.version_script(library, lacking), encoding="utf-8")
    run(
        *("g++", *FLAGS, "-shared", f"-Wl,-soname,{library}", f"-Wl,--version-script={script}", "-Wl,-rpath,$ORIGIN"),
        *("-o", str(built / library), str(stubs), *map(str, objects), *needs, "-lpthread"),
    )
    (built / library).replace(beside / library)


def run(*command: str) -> None:
    done, output = attempt(list(command))
    if not done:
        stop(f"`{' '.join(command)}` failed:\n{output}")


def check(venv: Path) -> None:
    """torch takes it for CUDA."""
    asks = "import torch; print(torch.__version__, torch.cuda.get_device_properties(0).name, torch.ones(3, device='cuda').cpu().tolist())"
    done, output = attempt([str(venv / "bin" / "python"), "-c", asks])
    if not done or not output.endswith("simulated GPU [1.0, 1.0, 1.0]"):
        stop(f"torch doesn't run on the simulated GPU:\n{output}")
    say(output)


if __name__ == "__main__":
    main()
