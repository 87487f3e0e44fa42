"""Make the Python of every .proto in this repository, with its types: `python -m tools.protos`. A test compares."""

from __future__ import annotations

import sys
from pathlib import Path

from grpc_tools import protoc

PROTOS = (Path("modelcache/agent/v1/agent.proto"),)


PROGRAMS = Path(sys.executable).parent
"""Where the plugins that write types are."""


def generate(out: Path) -> None:
    """Write the modules below `out`, in the places that their packages have. Raises RuntimeError: a file is no protocol."""
    for proto in PROTOS:
        (out / proto.parent).mkdir(parents=True, exist_ok=True)
        plugins = [f"--plugin={PROGRAMS / name}" for name in ("protoc-gen-mypy", "protoc-gen-mypy_grpc")]
        outputs = [f"--{kind}_out={out}" for kind in ("python", "grpc_python", "mypy", "mypy_grpc")]
        if protoc.main(["protoc", "-I.", *plugins, *outputs, str(proto)]) != 0:
            raise RuntimeError(f"{proto} can't be compiled")


if __name__ == "__main__":
    generate(Path())
    sys.stdout.write("".join(f"made of {proto}\n" for proto in PROTOS))
