"""What `doctor --bundle` writes: all that somebody who helps from afar would ask for, without secrets. Imported by `lazy` alone."""

from __future__ import annotations

import io
import json
import os
import platform
import re
import tarfile
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from modelcache import __version__
from modelcache.cli import lazy
from modelcache.cli.config import document_of as document_of_setting
from modelcache.cli.findings import Finding
from modelcache.cli.top import document_of as document_of_frame
from modelcache.cli.top import look
from modelcache.config import Settings
from modelcache.errors import BadConfig, ModelCacheError
from modelcache.redaction import HIDDEN, redact
from modelcache.units import MIB

PART_BYTES = 2 * MIB
"""Each file in a bundle is at most so large: of a list the first half is kept until it fits, of the log the last."""
DIRECTORY = "modelcache-bundle"
SECRET_KEY = re.compile(r"(?i)authorization|cookie|secret|password|passwd|api.?key|access.?key$|^token$")


@dataclass(frozen=True)
class Gathered:
    """What goes into a bundle. `settings`: None: they make no sense, as `findings` says."""

    findings: Sequence[Finding]
    settings: Settings | None
    environ: Mapping[str, str]


def write_bundle(path: Path, gathered: Gathered) -> int:
    """Write it, readable by its owner alone, in place of what was there; its size in bytes.

    Raises:
        BadConfig: it can't be written there.
    """
    parts = _parts(gathered)
    try:
        fd, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)  # 0600
        try:
            with os.fdopen(fd, "wb") as file, tarfile.open(fileobj=file, mode="w:gz") as archive:
                for name, content in parts.items():
                    entry = tarfile.TarInfo(f"{DIRECTORY}/{name}")
                    entry.size, entry.mode, entry.mtime = len(content), 0o600, int(time.time())
                    archive.addfile(entry, io.BytesIO(content))
            os.replace(temporary, path)
        except BaseException:
            os.unlink(temporary)
            raise
        return path.stat().st_size
    except OSError as error:
        hint = "name a file in a directory that is there and that this user may write to"
        raise BadConfig(f"the bundle can't be written: {error.strerror}", address=str(path), hint=hint) from None


def _parts(gathered: Gathered) -> dict[str, bytes]:
    settings = gathered.settings
    agent, log = ({"error": "the settings make no sense"}, []) if settings is None else _of_agent(settings)
    documents: dict[str, dict[str, object]] = {
        "findings.json": {"findings": [each.as_dict() for each in gathered.findings]},
        "settings.json": {"settings": [] if settings is None else [document_of_setting(one) for one in settings.values]},
        "versions.json": _versions(),
        "agent.json": agent,
    }
    parts = {name: _fitting(_shown(document, gathered.environ)) for name, document in documents.items()}
    return parts | {"log.jsonl": _last([_json(_shown(line, gathered.environ)) for line in log])}


def _of_agent(settings: Settings) -> tuple[dict[str, object], Sequence[dict[str, object]]]:
    """What the node's agent says of itself, and the last lines of its log."""
    try:
        with lazy.named_agent(settings) as agent:
            return document_of_frame(look(agent, None)), [entry.as_dict() for entry in agent.client.recent()]
    except ModelCacheError as error:
        return {"error": error.as_dict()}, []


def _versions() -> dict[str, object]:
    distributions: dict[str, str | None] = {}
    for requirement in metadata.requires("modelcache") or ():
        found = re.match(r"[\w.-]+", requirement)
        if found is not None and found[0] != "modelcache":
            distributions[found[0]] = _version(found[0])
    uname = platform.uname()
    return {
        "modelcache": __version__,
        "python": platform.python_version(),
        "system": {"name": uname.system, "release": uname.release, "version": uname.version, "machine": uname.machine},
        "distributions": dict(sorted(distributions.items())),
        "made_at_s": round(time.time(), 3),
    }


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _shown(value: object, environ: Mapping[str, str], key: str = "") -> object:
    """Every text in it without secrets."""
    if isinstance(value, Mapping):
        return {str(name): _shown(inner, environ, str(name)) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_shown(inner, environ, key) for inner in value]
    if isinstance(value, str) and value:
        return HIDDEN if SECRET_KEY.search(key) else redact(value, environ)
    return value


def _fitting(document: object) -> bytes:
    content = _json(document)
    while len(content) > PART_BYTES and isinstance(document, dict):
        lists = {name: value for name, value in document.items() if isinstance(value, list) and value}
        if not lists:
            return _json({"left_out": f"{len(content)} bytes"})
        longest = max(lists, key=lambda name: len(_json(lists[name])))
        document = {**document, longest: lists[longest][: len(lists[longest]) // 2], f"{longest}_cut": True}
        content = _json(document)
    return content


def _last(lines: Sequence[bytes]) -> bytes:
    kept: list[bytes] = []
    left = PART_BYTES
    for line in reversed(lines):
        left -= len(line)
        if left < 0:
            break
        kept.append(line)
    return b"".join(reversed(kept))


def _json(document: object) -> bytes:
    return json.dumps(document, ensure_ascii=False).encode() + b"\n"
