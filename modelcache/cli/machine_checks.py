"""Checks of the machine: Python, hashing, optional packages, certificates, proxy, clock. None of them asks the network."""

from __future__ import annotations

import ctypes
import hashlib
import importlib.util
import os
import platform
import ssl
import sys
import time
from pathlib import Path

from modelcache.cli.findings import Finding, broken, doubtful, fine
from modelcache.config import Config
from modelcache.errors import BadConfig
from modelcache.transport import Proxies
from modelcache.transport.proxies import Proxy
from modelcache.transport.tls import Trust
from modelcache.units import GIB, MIB, format_rate

EXTRAS = {
    "s3": ("botocore", "awscrt"),
    "gcs": ("google.auth",),
    "fsspec": ("fsspec",),
    "azure": ("azure.storage.blob",),
    "hf": ("huggingface_hub",),
    "torch": ("torch", "safetensors"),
    "serve": ("transformers", "accelerate"),
    "agent": ("grpc", "grpc_health", "grpc_reflection", "prometheus_client"),
    "otel": ("opentelemetry.sdk", "opentelemetry.exporter.otlp.proto.http"),
}
"""Extra of the distribution → modules that it brings."""

PROBE_BYTES, PROBES = 8 * MIB, 4
SLOW_HASH_BYTES_PER_S = GIB
"""sha256 with the processor's instructions does 1.65 GiB/s a core and more, without them 0.3 to 0.5 GiB/s."""
STA_UNSYNC = 0x40
"""Source: adjtimex(2)."""
RELEASED_S = 1_767_225_600
"""2026-01-01: no clock that is right shows an earlier time."""


def check_python() -> list[Finding]:
    version = platform.python_version()
    if not (3, 11) <= sys.version_info[:2] <= (3, 13):
        return [doubtful("python", f"Python {version}, tested are 3.11 to 3.13", "install modelcache into an environment with one of them")]
    return [fine("python", f"Python {version} on {platform.system()} {platform.release()} ({platform.machine()})")]


def check_hashing() -> list[Finding]:
    """The best of short probes on one core; shows whether OpenSSL uses the processor's sha256 instructions."""
    rate = PROBE_BYTES / min(_hashing_s(bytes(PROBE_BYTES)) for _ in range(PROBES))
    cores = len(os.sched_getaffinity(0))
    said = f"sha256 at {format_rate(rate)} a core, {cores} usable; the processor {'has' if _has_sha() else 'lacks'} instructions for it"
    if rate < SLOW_HASH_BYTES_PER_S:
        return [doubtful("hashing", said, "verifying bounds a pull: expect this rate per file, or use a newer processor")]
    return [fine("hashing", said)]


def _hashing_s(data: bytes) -> float:
    started_s = time.perf_counter()
    hashlib.sha256(data)
    return time.perf_counter() - started_s


def _has_sha() -> bool:
    """x86's `sha_ni`, ARM's `sha2`, from /proc/cpuinfo."""
    words = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").split()
    return not {"sha_ni", "sha2"}.isdisjoint(words)


def check_extras() -> list[Finding]:
    """Looked for, not imported: importing torch takes seconds."""
    found = []
    for extra, modules in EXTRAS.items():
        missing = [module for module in modules if not _is_installed(module)]
        install = f"pip install 'modelcache[{extra}]'"
        if not missing:
            found.append(fine(f"extra {extra}", f"{', '.join(modules)} installed"))
        elif len(missing) < len(modules):
            found.append(doubtful(f"extra {extra}", f"{', '.join(missing)} missing beside the rest of it", install))
        else:
            found.append(fine(f"extra {extra}", f"not installed; `{install}` adds it"))
    return found


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # not even the package that it would be in
        return False


def check_authorities(config: Config) -> list[Finding]:
    found = []
    if not config.s3.verify_tls:
        hint = "name the CA that vouches for it in `s3.ca_file` (MODELCACHE_S3_CA_FILE), and unset S3_VERIFY_SSL"
        found.append(doubtful("certificates", "S3's certificate is not verified: whoever is on the way can read and answer", hint))
    for name, path in (
        ("S3", config.s3.ca_file),
        ("GCS", config.gs.ca_file),
        ("the Hub", config.hf.ca_file),
        ("http", config.http.ca_file),
    ):
        if path is not None:
            found.append(_check_bundle(name, path))
    paths = ssl.get_default_verify_paths()
    place: str | None = paths.cafile or paths.capath
    if place is None:
        hint = "install the package `ca-certificates`, or name a PEM file in SSL_CERT_FILE"
        found.append(broken("certificates", f"the system has no CA certificates where OpenSSL looks: {paths.openssl_cafile}", hint))
    else:
        found.append(fine("certificates", f"the system's CAs: {place}"))
    return found


def _check_bundle(name: str, path: Path) -> Finding:
    try:
        Trust(path).context()
    except BadConfig as error:
        return broken("certificates", f"for {name}: {error.message}: {path}", "name a PEM file that this user can read")
    return fine("certificates", f"CAs for {name}: {path}")


def check_proxies(proxies: Proxies) -> list[Finding]:
    """Proxies are shown without their credentials."""
    found = []
    for scheme, url in (("http", proxies.http), ("https", proxies.https)):
        if url is None:
            continue
        try:
            found.append(fine("proxy", f"{scheme}:// through {Proxy.parse(url)}"))
        except BadConfig as error:
            found.append(broken("proxy", f"{scheme}://: {error}", f"correct the variable {scheme.upper()}_PROXY"))
    if found and proxies.no_proxy:
        found.append(fine("proxy", f"spoken to directly: {proxies.no_proxy}"))
    return found or [fine("proxy", "none set")]


def check_clock() -> list[Finding]:
    now_s = time.time()
    shown = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(now_s))
    hint = "start a time service (systemd-timesyncd, chrony): S3 refuses signatures that are 15 minutes off"
    if now_s < RELEASED_S:
        return [broken("clock", f"the clock is wrong: {shown}", hint)]
    synchronized = _is_synchronized()
    if synchronized is None:
        return [fine("clock", f"{shown}; the kernel doesn't tell whether it is synchronized")]
    if not synchronized:
        return [doubtful("clock", f"{shown}; the kernel's clock is not synchronized", hint)]
    return [fine("clock", f"{shown}, synchronized")]


def _is_synchronized() -> bool | None:
    """What adjtimex(2) says of the kernel's clock; None where it may not be asked."""
    words = (ctypes.c_long * 64)()  # struct timex is 208 bytes; `modes` (0: only read) is its first word
    try:
        state = ctypes.CDLL(None, use_errno=True).adjtimex(ctypes.byref(words))
    except AttributeError:
        return None
    if state < 0:
        return None
    status = ctypes.c_int.from_buffer(words, _STATUS_OFFSET).value
    return not status & STA_UNSYNC


_STATUS_OFFSET = 5 * ctypes.sizeof(ctypes.c_long)
"""`struct timex`: modes (padded to a long), offset, freq, maxerror, esterror, status. Source: adjtimex(2), linux/timex.h."""
