"""The small records of format 1, judged by their bytes: `format`, refs, leases. Written from the format's description alone."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import xxhash

_FORMAT = re.compile(rb"modelcache 1\nowner (0|[1-9][0-9]*)\nstore [0-9a-f]{32}\n")
_HEX64 = re.compile(r"[0-9a-f]{64}")
_REF = {"uri", "origin", "revision", "immutable", "manifest", "size_bytes", "file_count", "created_at_s", "checked_at_s"}
_REF |= {"files_sha256", "check", "version"}
_REF_FILE = {"path", "size_bytes", "validator", "sha256", "stated"}
_GRANT = {
    "namespace",
    "service_account",
    "credential",
    "uri",
    "origin",
    "revision",
    "manifest",
    "blobs",
    "created_at_s",
    "expires_at_s",
    "version",
}
_LEASE = {"id", "manifest", "holder", "kind", "created_at_s", "expires_at_s", "version"}


def check_format(data: bytes) -> bool:
    return _FORMAT.fullmatch(data) is not None


def check_ref(data: bytes, name: str) -> str | None:
    """What is wrong with the ref of this name (without `.json`), if anything."""
    line, _, second = data.partition(b"\n")
    record = _canonical(line + b"\n")
    if record is None or record.keys() - {"compartment"} != _REF:
        return "is not a ref: no head in canonical form"
    without = {key: value for key, value in record.items() if key != "check"}
    if record["check"] != xxhash.xxh3_128_hexdigest(_text(without).encode("utf-8")):
        return "is not a ref: another check than its head's"
    if record["files_sha256"] != hashlib.sha256(second).hexdigest():
        return "is not a ref: other files than its head says"
    files = json.loads(second)
    if _text(files).encode("utf-8") != second or any(file.keys() - {"claimed"} != _REF_FILE for file in files):
        return "is not a ref: no files in canonical form"
    if (record["size_bytes"], record["file_count"]) != (sum(file["size_bytes"] for file in files), len(files)):
        return "is not a ref: its head sums up other files"
    where = "\0".join(filter(None, (record["origin"], record.get("compartment"))))
    if name != _half(record["uri"]) + _half(where):
        return f"is filed under another name than that of {record['uri']} at {record['origin']}"
    if not all(_HEX64.fullmatch(digits) for digits in (record["manifest"], *(file["sha256"] for file in files))):
        return "a digest in it is none"
    if not all(file.get("claimed", True) is True for file in files):
        return "`claimed` is written only where it is true"
    return None


def check_lease(data: bytes, name: str) -> str | None:
    """What is wrong with the lease of this name (without `.json`), if anything."""
    record = _canonical(data)
    if record is None or record.keys() != _LEASE or not _HEX64.fullmatch(record["manifest"]):
        return "is not a lease in canonical form"
    if record["id"] != name or name.partition("-")[0] != record["kind"]:
        return f"is filed under another name than `{record['id']}`, a {record['kind']}"
    if (record["expires_at_s"] is None) != (record["kind"] in ("pin", "process")):
        return f"a {record['kind']} that expires at {record['expires_at_s']}"
    return None


def check_grant(data: bytes, name: str) -> str | None:
    """What is wrong with the grant of this name (without `.json`), if anything."""
    record = _canonical(data)
    if record is None or record.keys() - {"compartment"} != _GRANT:
        return "is not a grant in canonical form"
    if not all(_HEX64.fullmatch(digits) for digits in (record["credential"], record["manifest"], *record["blobs"])):
        return "a digest in it is none"
    if record["blobs"] != sorted(set(record["blobs"])):
        return "its blobs are not sorted, each once"
    rest = (record[field] for field in ("service_account", "credential", "uri", "origin", "revision", "manifest"))
    if name != _half(record["namespace"]) + _half("\0".join(rest)):
        return f"is filed under another name than that of {record['namespace']}"
    return None


def check_node_key(data: bytes) -> bool:
    return re.fullmatch(rb"[0-9a-f]{64}\n", data) is not None


def check_verified(data: bytes) -> bool:
    """Magic line, sorted records of a digest and a time, xxh3-64 of all that."""
    magic = b"modelcache verified 1\n"
    body = data[:-8]
    digests = [body[at : at + 32] for at in range(len(magic), len(body), 40)]
    whole = body.startswith(magic) and (len(body) - len(magic)) % 40 == 0 and digests == sorted(set(digests))
    return whole and data[-8:] == xxhash.xxh3_64_digest(body)


def named_manifest(data: bytes) -> str:
    """Hex digits of the snapshot that a ref or a lease names."""
    return str(json.loads(data.partition(b"\n")[0])["manifest"])


def awaits_repair(data: bytes, homes: Mapping[str, Path]) -> bool:
    """Whether something that a ref shows is in quarantine: then it is kept though its snapshot is gone. `homes`: by compartment."""
    head, files = data.splitlines()
    home = homes.get(json.loads(head).get("compartment", ""))
    return home is not None and any(any((home / "quarantine").glob(f"{file['sha256']}.*")) for file in json.loads(files))


def _canonical(data: bytes) -> dict[str, Any] | None:
    """The record, if these are the only bytes that can stand for it."""
    try:
        record = json.loads(data)
    except ValueError:
        return None
    if not isinstance(record, dict) or record.get("version") != 1:
        return None
    return record if _text(record).encode("utf-8") == data else None


def _text(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":")) + "\n"


def _half(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]
