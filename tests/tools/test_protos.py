"""What is generated is what the protocols say."""

from __future__ import annotations

from pathlib import Path

from tools.protos import PROTOS, generate


def test_the_modules_are_those_that_the_protocols_make(tmp_path: Path) -> None:
    generate(tmp_path)
    for proto in PROTOS:
        for name in (f"{proto.stem}_pb2.py", f"{proto.stem}_pb2.pyi", f"{proto.stem}_pb2_grpc.py", f"{proto.stem}_pb2_grpc.pyi"):
            made = tmp_path / proto.parent / name
            assert made.read_text(encoding="utf-8") == proto.with_name(name).read_text(encoding="utf-8"), (
                f"{name}: run python -m tools.protos"
            )
