"""What torch's build for GPUs lacks where NVIDIA has installed nothing is read from its own libraries, and linked as they ask for it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools import simulated_gpu
from tools.missing_libraries import Binary, missing, parsed, source, version_script

ROOT = Path(__file__).resolve().parents[2]
READELF = """
Dynamic section at offset 0x1d0 contains 3 entries:
  Tag        Type                         Name/Value
 0x0000000000000001 (NEEDED)             Shared library: [libcudart.so.13]
 0x0000000000000001 (NEEDED)             Shared library: [libnvshmem_host.so.3]
 0x0000000000000001 (NEEDED)             Shared library: [libc.so.6]
 0x000000000000000e (SONAME)             Library soname: [libtorch_cuda.so]

Symbol table '.dynsym' contains 9 entries:
   Num:    Value          Size Type    Bind   Vis      Ndx Name
     0: 0000000000000000     0 NOTYPE  LOCAL  DEFAULT  UND
     1: 0000000000000000     0 FUNC    GLOBAL DEFAULT  UND cudaMalloc@libcudart.so.13 (2)
     2: 0000000000000000     0 FUNC    GLOBAL DEFAULT  UND nvshmem_init@NVSHMEM (3)
     3: 0000000000000000     0 FUNC    GLOBAL DEFAULT  UND memcpy@GLIBC_2.14 (4)
     4: 0000000000000000     0 NOTYPE  WEAK   DEFAULT  UND __gmon_start__
     5: 0000000000000000     0 NOTYPE  GLOBAL DEFAULT  UND ncclSend
     6: 0000000000001c90   110 FUNC    GLOBAL DEFAULT   12 cuda_of_torchs_own
     7: 0000000000001c90   110 FUNC    LOCAL  DEFAULT   12 hidden
     8: 0000000000004010     8 OBJECT  WEAK   DEFAULT   23 shown@@OURS

Version needs section '.gnu.version_r' contains 3 entries:
 Addr: 0x0000000000000600  Offset: 0x000600  Link: 5 (.dynstr)
  000000: Version: 1  File: libcudart.so.13  Cnt: 1
  0x0010:   Name: libcudart.so.13  Flags: none  Version: 2
  0x0020: Version: 1  File: libnvshmem_host.so.3  Cnt: 1
  0x0030:   Name: NVSHMEM  Flags: none  Version: 3
  0x0040: Version: 1  File: libc.so.6  Cnt: 1
  0x0050:   Name: GLIBC_2.14  Flags: none  Version: 4
"""


def test_a_binary_is_read_as_readelf_shows_it() -> None:
    found = parsed(READELF)
    assert found.needs == {"libcudart.so.13", "libnvshmem_host.so.3", "libc.so.6"}
    assert found.defines == {"cuda_of_torchs_own", "shown"}
    assert found.lacks == {
        ("cudaMalloc", "libcudart.so.13"),
        ("nvshmem_init", "NVSHMEM"),
        ("memcpy", "GLIBC_2.14"),
        ("ncclSend", ""),
    }
    assert found.versions["NVSHMEM"] == "libnvshmem_host.so.3"


def test_functions_go_to_the_library_of_their_version_and_those_without_to_libraries_without() -> None:
    first = parsed(READELF)
    second = Binary(
        needs=frozenset({"libnccl.so.2", "libcudart.so.13", "libz.so.1"}),
        versions={"libcudart.so.13": "libcudart.so.13"},
        defines=frozenset(),
        lacks=frozenset(
            {("cudaFree", "libcudart.so.13"), ("ncclRecv", ""), ("cuda_of_torchs_own", ""), ("PyList_New", ""), ("inflate", "")}
        ),
    )
    assert missing([first, second]) == {
        "libcudart.so.13": {"libcudart.so.13": {"cudaMalloc", "cudaFree"}},
        "libnvshmem_host.so.3": {"NVSHMEM": {"nvshmem_init"}},
        "libnccl.so.2": {"": {"ncclRecv"}},
    }


@pytest.mark.parametrize(
    ("lacking", "script"),
    [
        ({"NVSHMEM": {"nvshmem_init"}}, "NVSHMEM { global: nvshmem_init; cu*; nccl*; nv*; __cuda*; simcuda*; local: *; };\n"),
        ({}, "libx.so { global: cu*; nccl*; nv*; __cuda*; simcuda*; local: *; };\n"),
        (
            {"V1": {"cuA"}, "V2": {"cuC", "cuB"}},
            "V1 { global: cuA; cu*; nccl*; nv*; __cuda*; simcuda*; local: *; };\nV2 { global: cuB; cuC; };\n",
        ),
    ],
)
def test_the_linker_is_told_each_functions_version(lacking: dict[str, set[str]], script: str) -> None:
    assert version_script("libx.so", lacking) == script


def test_what_is_printed_is_text_and_all_else_is_a_status() -> None:
    lines = source({"ncclGetLastError", "cublasGetStatusString", "cublasCreate_v2"}).splitlines()
    assert lines[-3:] == ["REFUSES(cublasCreate_v2)", "SAYS(cublasGetStatusString)", "SAYS(ncclGetLastError)"]


def test_what_is_made_once_is_made_again_of_something_else_and_after_it_was_broken_off(tmp_path: Path) -> None:
    made: list[str] = []
    stamp = tmp_path / "stamp"
    for of in ("a", "a", "b"):
        simulated_gpu.once(stamp, of, lambda of=of: made.append(of))  # type: ignore[misc]
    assert made == ["a", "b"]
    with pytest.raises(SystemExit):
        simulated_gpu.once(stamp, "c", lambda: simulated_gpu.run("false"))
    simulated_gpu.once(stamp, "b", lambda: made.append("again"))
    assert made[-1] == "again"


def test_all_that_it_installs_is_pinned() -> None:
    pinned = [line.partition("==")[0] for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()]
    assert {*simulated_gpu.PACKAGES, *simulated_gpu.ALONE} <= {*pinned}
    assert all("==" in each for each in (*simulated_gpu.HEADERS, simulated_gpu.FORMATTER))
