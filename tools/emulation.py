"""Programs of arm64, run here by QEMU: a command in namespaces of its own, in which the kernel knows them.

    python -m tools.emulation .cache/image/qemu chroot DIRECTORY /bin/uname -m

As root, on Linux 6.7 or later: since then a user namespace has handlers of binary formats of its own, so that none is registered for the
whole machine, and none is left. All users of the host are in it; what it may not is what a kernel allows to the first one alone, such as
making device nodes. The command has no standard input, and everything that it started ends with it.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

MAGIC = rb"\x7f\x45\x4c\x46\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00"
MASK = rb"\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff"
"""Of a 64-bit little-endian ELF program or library (elf(5): e_ident, e_type) for EM_AARCH64, 183."""
FORMATS = "/proc/sys/fs/binfmt_misc"
EVERYBODY = "0 0 4294967295"
"""All ids, each as itself (user_namespaces(7))."""
MAPPED = 'read -r _ && exec unshare --pid --fork --kill-child --mount-proc "$0" "$@" </dev/null'
"""It waits for its users first. A `proc` of one's own takes a namespace of processes."""
REGISTERED = f'mount --make-rprivate / && mount -t binfmt_misc none {FORMATS} && cat "$0" > {FORMATS}/register && exec "$@"'


def emulated(qemu: Path, command: Sequence[str]) -> list[str]:
    """The command that runs this one so. `qemu`: a statically linked qemu-aarch64."""
    return [sys.executable, "-m", "tools.emulation", str(qemu), *command]


def run(qemu: Path, command: Sequence[str]) -> int:
    """The exit status of a command."""
    rule = b":".join((b"", b"arm64", b"M", b"", MAGIC, MASK, bytes(qemu.absolute()), b"F"))  # F: opened now, found from any root
    mapped, tell = os.pipe()
    rules, write = os.pipe()
    os.write(write, rule)
    os.close(write)
    begun = ["unshare", "--user", "--mount", "sh", "-c", MAPPED, "sh", "-c", REGISTERED, f"/dev/fd/{rules}", *command]
    process = subprocess.Popen(begun, stdin=mapped, pass_fds=(rules,))
    try:
        own = Path("/proc/self/ns/user").readlink()
        while process.poll() is None and not _is_apart(process.pid, own):
            os.sched_yield()  # it tells nobody when it has left ours
        if process.poll() is None:
            for name in ("uid_map", "gid_map"):
                Path(f"/proc/{process.pid}/{name}").write_text(EVERYBODY, encoding="ascii")
            os.write(tell, b"\n")
        return process.wait()
    finally:
        process.kill()
        process.wait()
        for fd in (mapped, tell, rules):
            os.close(fd)


def _is_apart(pid: int, own: Path) -> bool:
    try:
        return Path(f"/proc/{pid}/ns/user").readlink() != own
    except OSError:
        return True  # it has ended


if __name__ == "__main__":
    raise SystemExit(run(Path(sys.argv[1]), sys.argv[2:]))
