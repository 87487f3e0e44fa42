"""What a checkpoint holds, from its headers alone: of a model that is here, or at its origin without fetching it."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field

from modelcache.abc.source import Listing, RemoteFile, Source
from modelcache.abc.store import SnapshotInfo
from modelcache.cache import ModelCache
from modelcache.digest import digits_of, nearly_digits
from modelcache.errors import BadCheckpoint, NotCached, NotFound
from modelcache.loader.checkpoint import NO_FILES_HINT, SUFFIX, open_checkpoint
from modelcache.loader.header import LENGTH_BYTES, Header, header_bytes, parse_header
from modelcache.patience import Cancellation
from modelcache.ranges import ByteRange
from modelcache.units import KIB
from modelcache.uri import parse_uri

FIRST_BYTES = 64 * KIB
"""Of a file, asked for at once: the whole header of most."""
REQUESTS = 8
"""Headers that are read at a time."""


@dataclass(frozen=True, slots=True)
class Inspected:
    """Headers of a model's safetensors files, by path in file-name order.

    Attributes:
        here: read from a snapshot of this store; else from the origin.
        read_bytes: that had to be fetched to know.
    """

    uri: str
    revision: str
    here: bool
    headers: Sequence[tuple[str, Header]] = field(repr=False)
    read_bytes: int


def inspect(cache: ModelCache, name: str, *, cancel: Cancellation | None = None) -> Inspected:
    """Tensors of a model's safetensors files: name, dtype, shape, place.

    Args:
        name: what `ModelCache.find` takes; a URI or path that isn't here is asked for at its origin, where only headers are read.

    Raises:
        NotFound: it has no safetensors files. BadCheckpoint: a header makes no sense.
        What `ModelCache.find` and the source raise.
    """
    try:
        info = cache.find(name)
    except NotCached as error:
        if digits_of(name) is not None:
            raise  # a digest is at no origin
        not_here = error
    else:
        return _here(cache, name, info)
    try:
        return cache.at_origin(name, lambda listing, source: _remote(listing, source, cancel or Cancellation()), cancel=cancel)
    except NotFound as error:
        if nearly_digits(name) is None or error.hint == NO_FILES_HINT:
            raise
        raise not_here from None  # the name of no path, then


def _here(cache: ModelCache, name: str, info: SnapshotInfo) -> Inspected:
    uri = name if digits_of(name) is not None else str(parse_uri(name)[0])
    revision = next((ref.revision for ref in info.refs if ref.key.uri == uri), info.refs[0].revision if info.refs else "")
    paths = sorted(file.path for file in cache.manifest(info.digest.hex).files if file.path.endswith(SUFFIX))
    if not paths:
        raise NotFound("there are no safetensors files", address=uri, hint=NO_FILES_HINT)
    return Inspected(uri, revision, True, [(path, open_checkpoint(info.path / path).shards[0].header) for path in paths], 0)


def _remote(listing: Listing, source: Source, cancel: Cancellation) -> Inspected:
    files = sorted((item for item in listing.files if item.path.endswith(SUFFIX)), key=lambda item: item.path)
    if not files:
        raise NotFound("there are no safetensors files", address=str(listing.uri), hint=NO_FILES_HINT)
    with ThreadPoolExecutor(min(REQUESTS, len(files)), thread_name_prefix="inspect") as threads:
        found = list(threads.map(lambda item: _header(source, item, cancel), files))
    headers = [(item.path, header) for item, (header, _) in zip(files, found, strict=True)]
    return Inspected(str(listing.uri), listing.revision, False, headers, sum(read_bytes for _, read_bytes in found))


def _header(source: Source, item: RemoteFile, cancel: Cancellation) -> tuple[Header, int]:
    """And how many bytes were read for it."""
    if item.size_bytes < LENGTH_BYTES:
        raise BadCheckpoint(
            "the file is too short for a safetensors header",
            address=item.path,
            expected=f"at least {LENGTH_BYTES} bytes",
            got=f"{item.size_bytes} bytes",
        )
    data = _read(source, item, 0, min(FIRST_BYTES, item.size_bytes), cancel)
    size_bytes = header_bytes(data[:LENGTH_BYTES], item.size_bytes, item.path)
    if size_bytes > len(data):
        data += _read(source, item, len(data), size_bytes, cancel)
    return parse_header(data[:size_bytes], item.size_bytes, item.path), len(data)


def _read(source: Source, item: RemoteFile, start: int, stop: int, cancel: Cancellation) -> bytes:
    """A range of a file; where the origin serves none, the file from its start, as far as it is needed."""
    span = ByteRange(start, stop) if item.resumable else ByteRange(0, item.size_bytes)
    buffer = bytearray(stop - span.start)
    with closing(source.open(item, span, cancel)) as body, memoryview(buffer) as view:
        got = 0
        while got < len(buffer):
            cancel.check()
            count = body.readinto(view[got:])
            if count == 0:
                break
            got += count
    return bytes(buffer[start - span.start : got])
