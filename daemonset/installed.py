"""The packages of the extra `agent`, looked for. `__main__` imports this before anything that needs them: a sentence, and no traceback."""

from __future__ import annotations

import sys
from importlib.util import find_spec

for package in ("grpc", "grpc_health", "grpc_reflection", "prometheus_client"):
    if find_spec(package) is None:
        sys.exit(f"error: the agent needs {package}, which is not installed\nhint: pip install 'modelcache[agent]'")
