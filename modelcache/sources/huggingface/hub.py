"""Requests to the hub itself, as one identity: its JSON answers and its HEADs. Redirects within it keep the token, others never see it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from urllib.parse import quote

from modelcache.errors import ModelCacheError, ProtocolViolation
from modelcache.patience import Cancellation
from modelcache.sources.huggingface.credential import Credential
from modelcache.sources.huggingface.location import FileLocation, is_commit
from modelcache.sources.huggingface.options import HubOptions
from modelcache.sources.huggingface.refusals import Asked, error_of
from modelcache.transport import MAX_REDIRECTS, RangeClient, Response, Target, redirected, safe_address
from modelcache.units import MIB

MAX_ANSWER_BYTES = 16 * MIB
"""A page of 1,000 entries with names of 1,024 bytes and their other fields is under 4 MiB."""
MAX_PAGES = 400
"""Twice 100,000 files, 1,000 entries a page (folders are entries, too)."""

_NEXT = re.compile(r'<([^<>]*)>\s*;[^,<]*\brel="?next"?')
"""RFC 8288, as far as the hub uses it."""


class Hub:
    """One endpoint. Safe for many threads."""

    def __init__(self, options: HubOptions, transport: RangeClient, credential: Credential) -> None:
        self.base_url = options.base_url
        self._base = options.base
        self._transport = transport
        self._credential = credential

    def commit(self, repo: str, revision: str, address: str, cancel: Cancellation) -> str:
        """The commit that a branch, tag, `refs/pr/N` or commit stands for now. Raises: as `Source.list`."""
        asked = self._asked(repo, revision, address, listed=False)
        answer = self._json(f"{self.base_url}/api/models/{repo}/revision/{quote(revision, safe='')}?expand=sha", asked, cancel)[0]
        commit = answer.get("sha") if isinstance(answer, dict) else None
        if not isinstance(commit, str) or not is_commit(commit):
            raise ProtocolViolation("the hub states no commit of the revision", address=address, expected="40 hex digits")
        return commit

    def tree(self, repo: str, commit: str, folder: str, *, recursive: bool, address: str, cancel: Cancellation) -> Iterator[object]:
        """Every entry of a folder (empty: the repository), page by page, as the hub gives it. Raises: as `Source.list`."""
        asked = self._asked(repo, commit, address, listed=False)
        below = f"/{quote(folder, safe='', errors='surrogatepass')}" if folder else ""
        url = f"{self.base_url}/api/models/{repo}/tree/{commit}{below}?recursive={str(recursive).lower()}&expand=false"
        for _ in range(MAX_PAGES):
            entries, answer = self._json(url, asked, cancel)
            if not isinstance(entries, list):
                raise ProtocolViolation("the hub's listing is no list", address=address)
            yield from entries
            following = self._next(answer, address)
            if following is None:
                return
            if following == url:
                raise ProtocolViolation("the hub's listing does not go on", address=address)
            url = following
        raise ProtocolViolation(f"the hub's listing has over {MAX_PAGES} pages", address=address)

    def head(self, location: FileLocation, cancel: Cancellation) -> Response:
        """HEAD of a file's URL, followed within the hub; the redirect that leads elsewhere is returned as it is.

        Raises: as `Source.open`.
        """
        asked = self._asked(location.repo, location.commit, location.address, listed=True)
        return self._ask("HEAD", f"{self.base_url}/{location.locator}", asked, cancel)

    # -- inside -----------------------------------------------------------------------------------------------------

    def _json(self, url: str, asked: Asked, cancel: Cancellation) -> tuple[object, Response]:
        answer = self._ask("GET", url, asked, cancel)
        if answer.status == 200:
            try:
                return json.loads(answer.body), answer
            except (ValueError, RecursionError):
                pass
        hint = "is the endpoint a hub? A proxy or a login page may answer in its place"
        raise ProtocolViolation(f"the hub's answer is no JSON ({answer.status})", address=safe_address(url), hint=hint)

    def _ask(self, method: str, url: str, asked: Asked, cancel: Cancellation) -> Response:
        """Ask, and once more with the token that somebody signed in with meanwhile. Only 2xx and 3xx answers are returned."""
        token = self._credential.token()
        answer = self._follow(method, url, cancel)
        if answer.status == 401 and self._credential.renew(token):
            answer = self._follow(method, url, cancel)
        if answer.status >= 400:
            raise error_of(answer, asked)
        return answer

    def _follow(self, method: str, url: str, cancel: Cancellation) -> Response:
        """Follow redirects that stay at the hub (a renamed repository, its cache of small files)."""
        target = Target.parse(url)
        for _ in range(MAX_REDIRECTS + 1):
            answer = self._transport.request(method, target.url, self._credential.headers(), cancel, MAX_ANSWER_BYTES, follow=False)
            there = redirected(target, answer.status, answer.headers)
            if there is None or not there.same_origin(self._base):
                return answer
            target = there
        raise ProtocolViolation(f"over {MAX_REDIRECTS} redirects", address=str(target))

    def _next(self, answer: Response, address: str) -> str | None:
        """The URL of the next page at this very endpoint: a mirror may pass on the Hub's own, and the token must not follow it."""
        match = _NEXT.search(answer.headers.get("link", ""))
        if match is None:
            return None
        try:
            there = Target.parse(answer.url).redirected(match.group(1))
        except ModelCacheError:
            raise ProtocolViolation("the hub's listing goes on at no usable URL", address=address) from None
        if there.same_origin(self._base):
            return there.url
        below = there.resource.removeprefix(self._base.resource.rstrip("/"))
        if not below.startswith("/api/"):
            raise ProtocolViolation("the hub's listing goes on elsewhere", address=address, got=safe_address(there.url))
        return f"{self.base_url}{below}"

    def _asked(self, repo: str, revision: str, address: str, *, listed: bool) -> Asked:
        return Asked(repo, revision, address, f"{self.base_url}/{repo}", self._credential.token() is not None, listed)
