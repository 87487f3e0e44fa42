"""What a URI of a bucket selects among the objects below its path."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Generic, TypeVar

from modelcache.errors import InvalidUri, ModelCacheError, NotFound, ProtocolViolation
from modelcache.paths import check_tree, checked_path
from modelcache.uri import StorageUri

T = TypeVar("T")
MAX_OBJECTS = 100_000
"""Under one URI. The largest model repositories have some thousand files."""


@dataclass(frozen=True, slots=True)
class Listed(Generic[T]):
    """An object of a bucket's listing.

    Attributes:
        name: all of it.
        folder: it has no bytes, and only stands for a folder.
    """

    name: str
    folder: bool
    known: T


def prefix_of(uri: StorageUri) -> str:
    """What the names begin with of all objects that are meant where none has the URI's path for its name."""
    return f"{uri.path}/" if uri.path else ""


def selected_below(uri: StorageUri, listing: Iterable[Listed[T]], doubt: ModelCacheError | None) -> dict[str, T]:
    """What is known of the selected objects, by their paths below the URI's, in the listing's order.

    Args:
        doubt: why it could not be told whether there is an object of the URI's own path: the truth where none is below it.

    Raises:
        ProtocolViolation: the store lists what was not asked for, or an object twice.
        InvalidUri: they are too many. UnsafePath: they can't be the files of a directory.
        NotFound: none is selected.
    """
    address, prefix = str(uri), prefix_of(uri)
    selected: dict[str, T] = {}
    seen_any = False
    for each in listing:
        if not each.name.startswith(prefix):
            raise ProtocolViolation("the store lists an object outside of the prefix", address=address, got=ascii(each.name))
        if each.folder:
            continue
        seen_any = True
        path = each.name.removeprefix(prefix)
        if not uri.selects(path):
            continue
        checked_path(path, address=address)  # before it is kept: a listing may hold names of any length
        if path in selected:
            raise ProtocolViolation("the store lists an object twice", address=address, got=ascii(path))
        selected[path] = each.known
        if len(selected) > MAX_OBJECTS:
            hint = "name a folder further down, or add an include pattern"
            raise InvalidUri(f"over {MAX_OBJECTS:,} objects are under one URI", address=address, hint=hint)
    if not seen_any and doubt is not None:
        raise doubt
    if not seen_any:
        raise NotFound("the bucket has no object of this name, and none below it", address=address)
    if not selected:
        raise none_selected(uri)
    check_tree(selected, address=address)
    return selected


def none_selected(uri: StorageUri) -> NotFound:
    return NotFound("the bucket has no object that the patterns select", address=str(uri))
