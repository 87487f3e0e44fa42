"""A fake of the Hugging Face Hub with its CDN, for tests: the parts of it that reading a model needs, and its manners.

Only as faithful as is shown: huggingface_hub's own `snapshot_download` and `model_info` work against it (`tests/servers/test_hub.py`).
Shapes of answers: the Hub's OpenAPI document, huggingface_hub 2.4.0, and answers recorded in its issues.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
import secrets
import threading
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import ExitStack
from types import TracebackType
from typing import Self
from urllib.parse import parse_qs, quote, unquote, urlsplit

from modelcache.testing.fault_server import FaultServer, Received, Reply
from modelcache.testing.servers.certificates import Certificate
from modelcache.testing.servers.hub_repository import HubFile, HubRepository, tree_entries

_INFO = re.compile(r"/api/models/(?P<repo>[^/]+/[^/]+)(?:/revision/(?P<revision>[^/]+))?")
_TREE = re.compile(r"/api/models/(?P<repo>[^/]+/[^/]+)/tree/(?P<revision>[^/]+)(?:/(?P<path>.+))?")
_RESOLVE = re.compile(r"/(?P<repo>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)")
_CACHE = re.compile(r"/api/resolve-cache/models/(?P<repo>[^/]+/[^/]+)/(?P<revision>[^/]+)/(?P<path>.+)")
_KINDS = (("tree", _TREE), ("info", _INFO), ("cache", _CACHE), ("resolve", _RESOLVE))
_RANGE = re.compile(r"bytes=(\d+)-(\d*)")
NONE: Mapping[str, str] = {}


class HubServer:
    """The hub on 127.0.0.1 and its CDN, which clients know as `localhost`, both on free ports. Gone at the end of its `with` block.

    Attributes:
        tokens: those that the hub knows; any other is refused.
        page_entries: entries of one page of a tree.
        url_lifetime_s: of the CDN's signed URLs.
        moved: old name of a repository to its new one.
        prefix: path in front of all of the hub's own, as of a mirror behind a gateway.
    """

    def __init__(self, certificate: Certificate | None = None, *, page_entries: int = 1000) -> None:
        self.front = _Front(self, certificate)
        self.cdn = _Cdn(self, certificate)
        self.tokens: set[str] = set()
        self.page_entries = page_entries
        self.url_lifetime_s = 3600
        self.moved: dict[str, str] = {}
        self.prefix = ""
        self.repositories: dict[str, HubRepository] = {}
        self.lock = threading.RLock()
        self._seen = [0, 0]
        self._stack = ExitStack()

    @property
    def endpoint(self) -> str:
        return self.front.endpoint + self.prefix

    def repository(self, name: str = "org/model", files: Mapping[str, bytes] | None = None) -> HubRepository:
        """A new repository, with a first commit."""
        made = self.repositories[name] = HubRepository(name)
        made.commit(files or {})
        return made

    def token(self) -> str:
        """A new token that the hub knows; what it may read is up to each repository's `readers`."""
        made = f"hf_{secrets.token_hex(17)}"
        self.tokens.add(made)
        return made

    def expire_urls(self) -> None:
        """Make every signed URL that was given out a refused one."""
        self.cdn.key = secrets.token_bytes(16)

    def counts(self) -> Counter[str]:
        """Requests since the last look, by kind: info, tree, resolve, cache (small files behind `resolve`) and cdn."""
        front, cdn = self.front.received[self._seen[0] :], self.cdn.received[self._seen[1] :]
        self._seen[0] += len(front)
        self._seen[1] += len(cdn)
        return Counter([kind_of(each.target.removeprefix(self.prefix)) for each in front] + ["cdn"] * len(cdn))

    def __enter__(self) -> Self:
        self._stack.enter_context(self.front)
        self._stack.enter_context(self.cdn)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stack.close()


def kind_of(target: str) -> str:
    path = target.partition("?")[0]
    return next((kind for kind, pattern in _KINDS if pattern.fullmatch(path)), "other")


class _Front(FaultServer):
    """The hub itself."""

    def __init__(self, hub: HubServer, certificate: Certificate | None) -> None:
        super().__init__(certificate)
        self._hub = hub

    def reply_to(self, received: Received) -> Reply:
        path, _, query = received.target.removeprefix(self._hub.prefix).partition("?")
        kind = kind_of(path)
        match = dict(_KINDS).get(kind, _INFO).fullmatch(path)
        if match is None:
            return _refusal(404, "", "Sorry, we can't find the page you are looking for.")
        with self._hub.lock:
            name = match["repo"]
            if name in self._hub.moved:
                return Reply(307, {"Location": received.target.replace(name, self._hub.moved[name], 1)}, b"Temporary Redirect")
            token = received.headers.get("authorization", "").removeprefix("Bearer ")
            repository = self._hub.repositories.get(name)
            refused = self._refused(repository, token, reads=kind in ("resolve", "cache"))
            if refused is not None or repository is None:
                return refused or _refusal(404, "RepoNotFound", "Repository not found")
            found = repository.at(unquote(match["revision"] or "main"))
            if found is None:
                return _refusal(404, "RevisionNotFound", "Invalid rev id")
            if kind == "info":
                return self._info(repository, *found, parse_qs(query))
            if kind == "tree":
                return self._tree(found[1], unquote(match["path"] or ""), received.target)
            return self._file(received, kind, match["repo"], found, unquote(match["path"]))

    def _refused(self, repository: HubRepository | None, token: str, *, reads: bool) -> Reply | None:
        if token and token not in self._hub.tokens:
            return _refusal(401, "", "Invalid credentials in Authorization header")
        if repository is None or (repository.private and token not in repository.readers):
            if token:
                return _refusal(404, "RepoNotFound", "Repository not found")
            return _refusal(401, "RepoNotFound", "Invalid username or password.")
        if repository.disabled:
            return _refusal(403, "", "Access to this resource is disabled.")
        if reads and repository.gated and token not in repository.readers:
            return _refusal(403 if token else 401, "GatedRepo", f"Access to model {repository.name} is restricted.")
        return None

    def _info(self, repository: HubRepository, commit: str, files: Mapping[str, HubFile], query: Mapping[str, list[str]]) -> Reply:
        about: dict[str, object] = {"_id": "0" * 24, "id": repository.name, "sha": commit}
        if "expand" not in query:
            about |= {"modelId": repository.name, "private": repository.private, "disabled": repository.disabled, "tags": []}
            about |= {"gated": "manual" if repository.gated else False, "downloads": 0, "likes": 0}
            about["siblings"] = [{"rfilename": path} for path in sorted(files)]
        return _json(about)

    def _tree(self, files: Mapping[str, HubFile], folder: str, target: str) -> Reply:
        parts = urlsplit(target)
        query = parse_qs(parts.query)
        recursive = query.get("recursive", ["false"])[0].lower() == "true"
        entries = tree_entries(files, folder, recursive=recursive)
        if entries is None:
            return _refusal(404, "EntryNotFound", "The path does not exist on this revision")
        start = int(query.get("cursor", ["0"])[0])
        stop = start + self._hub.page_entries
        headers = {}
        if stop < len(entries):
            url = f"{self.endpoint}{parts.path}?recursive={str(recursive).lower()}&expand=false&cursor={stop}"
            headers["Link"] = f'<{url}>; rel="next"'
        return _json(entries[start:stop], headers)

    def _file(self, received: Received, kind: str, repo: str, found: tuple[str, Mapping[str, HubFile]], path: str) -> Reply:
        commit, files = found
        file = files.get(path)
        if file is None:
            return _refusal(404, "EntryNotFound", "Entry not found", {"X-Repo-Commit": commit})
        headers = {"X-Repo-Commit": commit, "ETag": f'"{file.etag}"', "Accept-Ranges": "bytes"}
        if kind == "cache":
            return ranged(file.data, headers, received)
        if not file.lfs:
            asked = quote(received.target, safe="")
            where = f"{self._hub.prefix}/api/resolve-cache/models/{repo}/{commit}/{quote(path)}?{asked}=&etag=%22{file.etag}%22"
            return Reply(307, headers | {"Location": where, "X-Linked-Size": str(len(file.data))}, b"Temporary Redirect.")
        linked = {"X-Linked-Size": str(len(file.data)), "X-Linked-Etag": f'"{file.sha256}"'}
        if file.xet:
            route = f"{self.endpoint}{self._hub.prefix}/api/models/{repo}/xet-read-token/{commit}"
            linked |= {"X-Xet-Hash": hashlib.sha256(b"xet" + file.data).hexdigest(), "Link": f'<{route}>; rel="xet-auth"'}
        return Reply(302, headers | linked | {"Location": self._hub.cdn.signed_url(repo, file.sha256)}, b"Found. Redirecting")


class _Cdn(FaultServer):
    """Where the hub redirects to for LFS files: knows no token, and refuses who sends one."""

    def __init__(self, hub: HubServer, certificate: Certificate | None) -> None:
        super().__init__(certificate)
        self._hub = hub
        self.key = secrets.token_bytes(16)

    def signed_url(self, repo: str, sha256: str) -> str:
        path = f"/repos/{repo}/{sha256}"
        expires = int(time.time()) + self._hub.url_lifetime_s
        signed = f"Expires={expires}&Signature={self._signature(path, expires)}&Key-Pair-Id=K0"
        return f"{self.at('localhost')}{path}?response-content-disposition=inline&{signed}"

    def reply_to(self, received: Received) -> Reply:
        parts = urlsplit(received.target)
        query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        if "authorization" in received.headers:
            return _xml(400, "InvalidArgument")
        expires = int(query.get("Expires", "0"))
        if not hmac.compare_digest(query.get("Signature", ""), self._signature(parts.path, expires)) or time.time() > expires:
            return _xml(403, "AccessDenied")
        repo, _, sha256 = parts.path.removeprefix("/repos/").rpartition("/")
        with self._hub.lock:
            data = self._hub.repositories[repo].lfs_object(sha256)
        if data is None:
            return _xml(404, "NoSuchKey")
        return ranged(data, {"ETag": f'"{hashlib.md5(data).hexdigest()}"', "Accept-Ranges": "bytes"}, received)

    def _signature(self, path: str, expires: int) -> str:
        return hmac.new(self.key, f"{path}{expires}".encode(), "sha256").hexdigest()


def ranged(data: bytes, headers: Mapping[str, str], received: Received) -> Reply:
    """The bytes, or the range of them that was asked for."""
    asked = _RANGE.fullmatch(received.headers.get("range", ""))
    if asked is None:
        return Reply(200, headers, data)
    first, last = int(asked[1]), min(int(asked[2] or len(data)), len(data) - 1)
    if first >= len(data):
        return Reply(416, {"Content-Range": f"bytes */{len(data)}"}, b"")
    return Reply(206, {**headers, "Content-Range": f"bytes {first}-{last}/{len(data)}"}, data[first : last + 1])


def _json(value: object, headers: Mapping[str, str] = NONE) -> Reply:
    return Reply(200, {"Content-Type": "application/json; charset=utf-8", **headers}, json.dumps(value).encode())


def _refusal(status: int, code: str, message: str, headers: Mapping[str, str] = NONE) -> Reply:
    told = {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {})
    return Reply(status, {"Content-Type": "application/json", **told, **headers}, json.dumps({"error": message}).encode())


def _xml(status: int, code: str) -> Reply:
    return Reply(status, {"Content-Type": "application/xml"}, f"<Error><Code>{code}</Code></Error>".encode())
