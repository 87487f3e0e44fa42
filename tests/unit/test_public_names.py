"""What `import modelcache` offers, and that it costs nothing before it is used."""

from __future__ import annotations

import inspect
import subprocess
import sys

import modelcache


def test_what_a_load_takes_a_stream_takes() -> None:
    one, other = (inspect.signature(call).parameters for call in (modelcache.load, modelcache.stream))
    assert list(one.values()) == list(other.values())


def test_public_names_come_when_they_are_used_and_torch_when_it_is() -> None:
    program = """
import sys, modelcache
print(sorted(name for name in sys.modules if name.startswith("modelcache")))
assert {name for name in modelcache.__all__ if not hasattr(modelcache, name)} == set()
assert issubclass(modelcache.errors.NotFound, modelcache.ModelCacheError)
print("torch" in sys.modules, modelcache.LoadReport.__module__)
"""
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert ran.stdout == "['modelcache']\nFalse modelcache.loader.report\n"
