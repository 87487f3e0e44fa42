"""A cache in a process that forks: parent and child both go on, each with threads and connections of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from modelcache.testing.fault_server import FaultServer
from modelcache.testing.store_filling import content

PROGRAM = """
import os, sys
from modelcache import Config, ModelCache
from modelcache.abc.store import Limits
root, endpoint = sys.argv[1:]
limits = Limits(max_bytes=None, high_watermark=1.0, low_watermark=1.0)
cache = ModelCache(root, config=Config.load({}, limits=limits, root=root))
cache.ensure(f"{endpoint}/before")  # its connection is kept, its workers wait for more
child = os.fork()
for name in ("child", "both") if child == 0 else ("parent", "both"):
    snapshot = cache.ensure(f"{endpoint}/{name}")
    print(name, snapshot.path.joinpath(name).stat().st_size, flush=True)
cache.close()
if child:
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_parent_and_child_go_on(tmp_path: Path) -> None:
    names = ("before", "child", "parent", "both")
    with FaultServer() as server:
        for number, name in enumerate(names):
            server.put(f"/{name}", content(1000 + number, number))
        command = [sys.executable, "-c", PROGRAM, str(tmp_path / "root"), server.endpoint]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
        assert sorted(done.stdout.splitlines()) == ["both 1003", "both 1003", "child 1001", "parent 1002"]
        assert server.connections == 2
