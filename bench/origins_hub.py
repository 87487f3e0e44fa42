"""A Hub and its CDN, as cheap as servers get: nginx answers what huggingface_hub asks for a model, from files made beforehand."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from bench.origins import PREFIX, RemoteObject, Served, trusting
from modelcache.testing.servers import Certificate, Nginx, NginxOptions

REPO = "bench/model"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@contextmanager
def hub_with(root: Path, bucket: str, digests: dict[str, str], certificate: Certificate | None = None) -> Iterator[Served]:
    """`root/bucket/model/` as a model repository whose files are all kept in LFS: the hub redirects to a CDN of another name.

    Args:
        digests: hex sha256 by file name: what LFS names the files by.
    """
    paths = sorted((root / bucket / PREFIX).iterdir())
    with ExitStack() as running:
        cdn = running.enter_context(Nginx(root, NginxOptions(certificate=certificate, log_requests=False)))
        cdn_url = cdn.endpoint.replace("127.0.0.1", "localhost")
        objects = tuple(RemoteObject(path.name, path.stat().st_size, f"{cdn_url}/{bucket}/{PREFIX}/{path.name}") for path in paths)
        options = NginxOptions(certificate=certificate, log_requests=False, more=_answers(root, bucket, objects, digests))
        hub = running.enter_context(Nginx(root, options))
        environ = {"HF_ENDPOINT": hub.endpoint, "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1"} | trusting(certificate)
        name = "hub" if certificate is None else "hub-tls"
        yield Served(name, f"hf://{REPO}", REPO, objects, environ, tuple(paths), lambda: [*hub.pids(), *cdn.pids()])


def _answers(root: Path, bucket: str, objects: tuple[RemoteObject, ...], digests: dict[str, str]) -> str:
    """Directives of the hub: the commit, its tree, and a redirect for every file."""
    info = {"_id": "0" * 24, "id": REPO, "modelId": REPO, "sha": COMMIT, "private": False, "gated": False, "disabled": False, "tags": []}
    info |= {"downloads": 0, "likes": 0, "siblings": [{"rfilename": each.name} for each in objects]}
    tree = [
        {
            "type": "file",
            "oid": hashlib.sha1(each.name.encode()).hexdigest(),
            "size": each.size_bytes,
            "path": each.name,
            "lfs": {"oid": digests[each.name], "size": each.size_bytes, "pointerSize": 134},
        }
        for each in objects
    ]
    described = {f"/api/models/{REPO}": info, f"/api/models/{REPO}/revision/main": info, f"/api/models/{REPO}/revision/{COMMIT}": info}
    lines = []
    for number, (place, answer) in enumerate([*described.items(), (f"/api/models/{REPO}/tree/{COMMIT}", tree)]):
        file = root / f"{bucket}-hub-{number}.json"
        file.write_text(json.dumps(answer))
        lines.append(f'location = {place} {{ default_type application/json; alias "{file.resolve()}"; }}')
    for each in objects:
        headers = {
            "X-Repo-Commit": COMMIT,
            "X-Linked-Size": str(each.size_bytes),
            "X-Linked-Etag": f'"{digests[each.name]}"',
            "ETag": f'"{digests[each.name]}"',
        }
        added = " ".join(f"add_header {name} '{value}' always;" for name, value in headers.items())
        lines.append(f"location = /{REPO}/resolve/{COMMIT}/{each.name} {{ {added} return 302 {each.url}; }}")
    return "\n    ".join(lines)
