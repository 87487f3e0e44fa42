"""What is stated of files before they are fetched: the expected digest of a URI, and every sha256 where somebody else brought the bytes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from modelcache.abc.ingest import IncomingFile
from modelcache.abc.source import Listing, RemoteFile
from modelcache.digest import Algorithm, Digest
from modelcache.errors import DigestMismatch, InvalidUri


def pinned(listing: Listing, digest: Digest) -> Listing:
    """The listing of a single file, with this sha256 among what is stated of it.

    Raises:
        InvalidUri: it is of several files.
        DigestMismatch: the origin states another one.
    """
    uri = listing.uri
    if len(listing.files) != 1:
        raise InvalidUri(
            f"`{uri}` names a digest, which fits a single file, but {len(listing.files)} files are there",
            address=str(uri),
            got=str(digest),
        )
    only = listing.files[0]
    stated = next((item for item in only.digests if item.algorithm is Algorithm.SHA256), None)
    if stated is not None and stated != digest:
        raise DigestMismatch(
            f"the origin states another digest of `{uri}` than was asked for: expected {digest}, got {stated}",
            address=str(uri),
            expected=str(digest),
            got=str(stated),
            hint="the object was replaced, or the expected digest is wrong",
        )
    if stated is not None:
        return listing
    return replace(listing, files=(replace(only, digests=(*only.digests, digest)),), expected=True)


def compared_with(item: RemoteFile, known: Digest | None) -> RemoteFile:
    """A file with the digest that an earlier fetch of this very version defined among those it is compared with (semantics, Integrity)."""
    return item if known is None or known in item.digests else replace(item, digests=(*item.digests, known))


def expect_stated(listing: Listing, files: Sequence[IncomingFile]) -> None:
    """Compare complete files with the sha256 that this listing states of them.

    What came over the network for this listing was compared with every digest of it. A file that another fetch of the same version
    brought was compared with what that one was told, which need not be this: another expected digest, or none. Its sha256 is known, so
    that is compared here. Other checksums are the origin's of this very version, and whoever fetched it compared them.

    Raises:
        DigestMismatch: a file has another sha256.
    """
    for item, file in zip(listing.files, files, strict=True):
        for stated in item.digests:
            if stated.algorithm is Algorithm.SHA256 and file.sha256 != stated:
                raise DigestMismatch(
                    f"`{item.path}` of `{listing.uri}` is here with another digest than is stated of it: "
                    f"expected {stated}, got {file.sha256}",
                    address=str(listing.uri),
                    expected=str(stated),
                    got=str(file.sha256),
                    hint="an earlier fetch of this very version brought those bytes: the expected digest is wrong, or the origin sent "
                    "other bytes then; `modelcache gc` removes what nobody finished",
                )
