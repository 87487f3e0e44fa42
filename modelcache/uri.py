"""Storage URIs: one grammar, one canonical form. (Interface; the grammar follows.)"""

from __future__ import annotations

from dataclasses import dataclass

from modelcache.digest import Digest


@dataclass(frozen=True, slots=True)
class StorageUri:
    """A place that holds a model, in canonical form; equal places are equal values and print alike.

    Attributes:
        scheme: lower case, `file`, `http`, `https`, `s3`, `gs`, `hf`, `pvc`, … or any fsspec scheme.
        authority: bucket, `host[:port]`, claim, `owner/model` of `hf`; empty for `file`. No userinfo.
        path: what follows, decoded, without leading or trailing slash (of `file`: absolute, with the leading slash).
        query: of `http(s)` and fsspec schemes what is left once signing parameters are out, as written; else empty.
        revision: commit, tag, branch (`hf`, default `main`), or version id; None where the scheme has none.
        include, exclude: patterns over relative paths, sorted, fnmatch syntax as KServe's STORAGE_ALLOW_PATTERNS.
        digest: expected sha256 of a single file.
    """

    scheme: str
    authority: str
    path: str
    query: str = ""
    revision: str | None = None
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    digest: Digest | None = None
