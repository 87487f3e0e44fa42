"""A Hub and its CDN, as cheap as servers get: nginx answers what huggingface_hub asks for a model, from files made beforehand."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.origins import PREFIX, RemoteObject, Served, trusting
from modelcache.testing.servers import Certificate, Nginx, NginxOptions

REPO = "bench/model"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass(frozen=True, slots=True)
class Repository:
    """A model repository with one commit; all its files are kept in LFS.

    Attributes:
        place: of its files below the servers' root.
        digests: hex sha256 by file name: what LFS names the files by.
    """

    name: str
    commit: str
    place: str
    digests: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Hub:
    """A hub and its CDN, running."""

    front: Nginx
    cdn: Nginx

    @property
    def environ(self) -> dict[str, str]:
        """What makes a client use it, over plain HTTP."""
        return {"HF_ENDPOINT": self.front.endpoint, "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}

    @property
    def cdn_url(self) -> str:
        return _cdn_url(self.cdn)

    def pids(self) -> list[int]:
        return [*self.front.pids(), *self.cdn.pids()]


@contextmanager
def hub_of(
    root: Path, repositories: Sequence[Repository], certificate: Certificate | None = None, *, log_requests: bool = False
) -> Iterator[Hub]:
    """Repositories on a hub that redirects to a CDN of another name."""
    with ExitStack() as running:
        cdn = running.enter_context(Nginx(root, NginxOptions(certificate=certificate, log_requests=log_requests)))
        lines = [line for number, each in enumerate(repositories) for line in _answers(root, number, each, _cdn_url(cdn))]
        options = NginxOptions(certificate=certificate, log_requests=log_requests, more="\n    ".join(lines))
        yield Hub(running.enter_context(Nginx(root, options)), cdn)


@contextmanager
def hub_with(root: Path, bucket: str, digests: Mapping[str, str], certificate: Certificate | None = None) -> Iterator[Served]:
    """`root/bucket/model/` as a model repository."""
    place = f"{bucket}/{PREFIX}"
    paths = sorted((root / place).iterdir())
    with hub_of(root, [Repository(REPO, COMMIT, place, digests)], certificate) as hub:
        objects = tuple(RemoteObject(path.name, path.stat().st_size, f"{hub.cdn_url}/{place}/{path.name}") for path in paths)
        name = "hub" if certificate is None else "hub-tls"
        yield Served(name, f"hf://{REPO}", REPO, objects, hub.environ | trusting(certificate), tuple(paths), hub.pids)


def _cdn_url(cdn: Nginx) -> str:
    return cdn.endpoint.replace("127.0.0.1", "localhost")


def _answers(root: Path, number: int, repository: Repository, cdn_url: str) -> Iterator[str]:
    """Directives of the hub: the commit, its tree, and a redirect for every file."""
    name, commit = repository.name, repository.commit
    sizes = {file: (root / repository.place / file).stat().st_size for file in sorted(repository.digests)}
    info = {"_id": "0" * 24, "id": name, "modelId": name, "sha": commit, "private": False, "gated": False, "disabled": False, "tags": []}
    info |= {"downloads": 0, "likes": 0, "siblings": [{"rfilename": file} for file in sizes]}
    tree = [
        {
            "type": "file",
            "oid": hashlib.sha1(file.encode()).hexdigest(),
            "size": size_bytes,
            "path": file,
            "lfs": {"oid": repository.digests[file], "size": size_bytes, "pointerSize": 134},
        }
        for file, size_bytes in sizes.items()
    ]
    models = f"/api/models/{name}"
    described = dict.fromkeys((models, f"{models}/revision/main", f"{models}/revision/{commit}"), json.dumps(info))
    described[f"{models}/tree/{commit}"] = json.dumps(tree)
    for at, (place, answer) in enumerate(described.items()):
        kept = root / f"hub-{number}-{at}.json"
        kept.write_text(answer)
        yield f'location = {place} {{ default_type application/json; alias "{kept.resolve()}"; }}'
    for file, size_bytes in sizes.items():
        digest = repository.digests[file]
        headers = {"X-Repo-Commit": commit, "X-Linked-Size": size_bytes, "X-Linked-Etag": f'"{digest}"', "ETag": f'"{digest}"'}
        added = " ".join(f"add_header {header} '{value}' always;" for header, value in headers.items())
        yield f"location = /{name}/resolve/{commit}/{file} {{ {added} return 302 {cdn_url}/{repository.place}/{file}; }}"
