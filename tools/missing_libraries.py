"""Libraries that others need and that are not there, made of functions which only say that they were called.

torch's build for GPUs needs a dozen of NVIDIA's libraries, 3 GB of them, to be imported at all: the loader looks for each by its name, for
each version that is named in it, and for each function. What tests of copies never call needs no more than that.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from tools.environment import attempt, stop

NVIDIAS = re.compile(r"lib(cu|nv|nccl)")
"""How names of NVIDIA's libraries begin; all others are this system's."""

EXPORTED = ("cu*", "nccl*", "nv*", "__cuda*", "simcuda*")
"""How names of their functions begin; simcuda_* are the simulation's own."""

SAYS_TEXT = re.compile(r"String|ErrorName|LastError$")
"""Functions whose answer is printed: cublasGetStatusString, ncclGetLastError and their like."""

NOT_SUPPORTED = 801
"""cudaErrorNotSupported and CUDA_ERROR_NOT_SUPPORTED; no library's status of success."""

HEAD = f"""#include <cstdio>
[[maybe_unused]] static void say(const char* name, bool& said) {{
  if (!said) fprintf(stderr, "simulated GPU: %s is not simulated, and was called\\n", name);
  said = true;
}}
#define REFUSES(name) extern "C" long name() {{ static bool said; say(#name, said); return {NOT_SUPPORTED}; }}
#define SAYS(name) extern "C" const char* name() {{ static bool said; say(#name, said); return #name " is not simulated"; }}
"""


@dataclass(frozen=True)
class Binary:
    """A shared library or an object file.

    Attributes:
        needs: names of libraries.
        versions: whose each version is, by its name.
        defines: functions and data that others may use.
        lacks: (function, version); an empty one: any library that is needed may have it.
    """

    needs: frozenset[str]
    versions: dict[str, str]
    defines: frozenset[str]
    lacks: frozenset[tuple[str, str]]


Lacking = dict[str, dict[str, set[str]]]
"""Library, version, functions. Those without a version have an empty one."""


def read(path: Path) -> Binary:
    """By binutils' readelf."""
    symbols = "--symbols" if path.suffix == ".o" else "--dyn-syms"
    done, text = attempt(["readelf", "--wide", "--dynamic", "--version-info", symbols, str(path)])
    if not done:
        stop(f"`readelf {path}` failed:\n{text}")
    return parsed(text)


def parsed(text: str) -> Binary:
    """What readelf says of one file: `Shared library: [NAME]`; `File: NAME` and below it `Name: VERSION` for each version that it needs;
    eight columns for each symbol, its section and its name the last."""
    versions, library = {}, ""
    for kind, name in re.findall(r"\b(File|Name): (\S+)", text):
        if kind == "File":
            library = name
        else:
            versions[name] = library
    needs = re.findall(r"\(NEEDED\)\s+Shared library: \[(.+?)\]", text)
    symbols = [line.split()[4:8] for line in text.splitlines() if re.match(r"\s*\d+: [0-9a-f]{8,}\s", line)]
    named = [(bind, section, name) for bind, _, section, name in (each for each in symbols if len(each) == 4)]
    defines = {name.partition("@")[0] for bind, section, name in named if section != "UND" and bind != "LOCAL"}
    lacks = [name.partition("@") for bind, section, name in named if section == "UND" and bind == "GLOBAL"]
    return Binary(frozenset(needs), versions, frozenset(defines), frozenset((name, version) for name, _, version in lacks))


def missing(present: Iterable[Binary]) -> Lacking:
    """NVIDIA's libraries that the present ones need, with the functions that each has to have.

    A function without a version may be in any of them, and is put in each that has none with one.
    """
    present = list(present)
    found: Lacking = {name: {} for each in present for name in each.needs if NVIDIAS.match(name)}
    defined = frozenset[str]().union(*(each.defines for each in present))
    for each in present:
        for version, library in each.versions.items():
            if library in found:
                functions = {name for name, its in each.lacks if its == version}
                found[library].setdefault(version, set()).update(functions)
    without_versions = {name for name, versions in found.items() if not versions}
    prefixes = tuple(each.rstrip("*") for each in EXPORTED)
    for each in present:
        wanted = {name for name, version in each.lacks if not version and name not in defined and name.startswith(prefixes)}
        for library in each.needs & without_versions:
            found[library].setdefault("", set()).update(wanted)
    return found


def source(functions: Iterable[str]) -> str:
    """C++ of a library that has them."""
    return HEAD + "".join(f"{'SAYS' if SAYS_TEXT.search(name) else 'REFUSES'}({name})\n" for name in sorted(functions))


def version_script(library: str, lacking: dict[str, set[str]]) -> str:
    """For the linker: which version each function has. All that nobody names has the first one."""
    nodes: list[str] = []
    for version, functions in sorted(lacking.items()) or [("", set[str]())]:
        names = [*sorted(functions), *(() if nodes else EXPORTED)]
        nodes.append(f"{version or library} {{ global: {'; '.join(names)};{'' if nodes else ' local: *;'} }};\n")
    return "".join(nodes)
