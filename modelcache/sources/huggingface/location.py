"""Where a file of a repository is at the hub, as text."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Self
from urllib.parse import quote, unquote

_COMMIT = re.compile(r"[0-9a-f]{40}")
_LOCATOR = re.compile(r"(?P<repo>[^/]+/[^/]+)/resolve/(?P<commit>[0-9a-f]{40})/(?P<path>.+)")


def is_commit(text: str) -> bool:
    """Whether it is a whole commit id."""
    return _COMMIT.fullmatch(text) is not None


@dataclass(frozen=True, slots=True)
class FileLocation:
    """One file of one commit.

    Attributes:
        repo: `owner/model`.
        path: in the repository, as it is.
    """

    repo: str
    commit: str
    path: str

    @property
    def locator(self) -> str:
        """What follows the endpoint in the URL of its bytes, percent-encoded."""
        return f"{self.repo}/resolve/{self.commit}/{quote(self.path, errors='surrogatepass')}"

    @classmethod
    def of_locator(cls, locator: str) -> Self:
        match = _LOCATOR.fullmatch(locator)
        if match is None:
            raise ValueError(f"no locator of this source: {locator[:200]!a}")
        return cls(match["repo"], match["commit"], unquote(match["path"], errors="surrogatepass"))

    @property
    def address(self) -> str:
        """For errors."""
        return f"hf://{self.repo}:{self.commit}/{self.path}"
