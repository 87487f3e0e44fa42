"""What needs a package that isn't installed says so, with what installs it, and is an ImportError, too."""

from __future__ import annotations

import json
import subprocess
import sys

IMPORTING = """
import importlib, json, sys, types
from modelcache.errors import ModelCacheError

def told(act, missing, *there):
    sys.modules.update({missing: None} | {name: types.ModuleType(name) for name in there})  # None: as if it weren't installed
    try:
        act()
    except ImportError as error:
        assert isinstance(error, ModelCacheError) and error.name.startswith(missing) and error.__cause__ is None, error
        return [str(error.code), error.message, error.hint]
    finally:
        for name in (missing, *there):
            del sys.modules[name]

def importing(name):
    return lambda: importlib.import_module(f"modelcache.{name}")

import modelcache
print(json.dumps([
    told(importing("integrations.transformers"), "torch"),
    told(importing("integrations.transformers"), "transformers", "torch"),
    told(importing("integrations.vllm"), "vllm", "torch"),
    told(importing("integrations.fsspec"), "fsspec"),
    told(importing("agent.client"), "grpc"),
    told(lambda: modelcache.load("/nowhere"), "torch"),
]))
"""


def test_what_needs_a_package_that_is_not_installed_says_what_installs_it() -> None:
    done = subprocess.run([sys.executable, "-c", IMPORTING], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [
        ["not-installed", f"{what} {package}, which is not installed", f"pip install '{install}'"]
        for what, package, install in (
            ("models of transformers need", "torch", "modelcache[serve]"),
            ("models of transformers need", "transformers", "modelcache[serve]"),
            ("the load format needs", "vllm", "vllm"),
            ("file systems need", "fsspec", "modelcache[fsspec]"),
            ("an agent takes", "grpc", "modelcache[agent]"),
            ("tensors need", "torch", "modelcache[torch]"),
        )
    ]
