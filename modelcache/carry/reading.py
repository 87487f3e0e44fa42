"""An export, member by member, from a file that nobody vouches for."""

from __future__ import annotations

from collections.abc import Iterator

from modelcache.abc.snapshot import Ref
from modelcache.carry.contents import (
    FORMAT,
    MARKER_NAME,
    MAX_MARKER_BYTES,
    MAX_RECORD_BYTES,
    MAX_RECORDS_BYTES,
    Blob,
    Contents,
    manifest_name,
    ref_name,
)
from modelcache.carry.file import ReadInto
from modelcache.carry.tar import BLOCK_BYTES, END, header, is_extended, padding, read_header
from modelcache.chunks import ChunkTable
from modelcache.digest import Digest
from modelcache.errors import DamagedExport, DamagedRecord, InvalidUri
from modelcache.fetch.buffers import Buffer
from modelcache.manifest import Manifest
from modelcache.store.blobs import EMPTY
from modelcache.store.refs import decode_ref, encode_ref
from modelcache.uri import parse_uri

MAX_TRAILING_BYTES = 10_240
"""Zeros behind the end, as tools that copy in tape records add."""


class ExportReader:
    """Reads an export from its start to its end. Every method raises DamagedExport at the first byte that doesn't belong.

    Attributes:
        read_bytes: how far it has come.
    """

    def __init__(self, readinto: ReadInto, address: str) -> None:
        self._readinto = readinto
        self._address = address
        self._buffer = Buffer()
        self._ahead: tuple[str, int] | None = None
        self._end_left = len(END)
        self.read_bytes = 0

    def contents(self) -> Contents:
        """What it says it holds: marker, manifests and refs, each checked for itself and against the others."""
        marker = self._marker()
        manifests: list[Manifest] = []
        refs: list[Ref] = []
        left = MAX_RECORDS_BYTES
        last = ""
        while (found := self._peek()) is not None and found[0].startswith(("manifests/", "refs/")):
            name, size_bytes = found
            left -= size_bytes + BLOCK_BYTES
            if size_bytes > MAX_RECORD_BYTES or left < 0:
                limits = f"at most {MAX_RECORD_BYTES} bytes, and {MAX_RECORDS_BYTES} in all records"
                raise self._damaged(f"`{name}` is larger than a record may be", limits, f"{size_bytes} bytes")
            if name <= last:
                raise self._damaged(f"`{name}` stands twice, or in the wrong place")
            last = name
            data = self._small(name, size_bytes)
            if name.startswith("manifests/"):
                manifests.append(self._manifest(name, data))
            else:
                refs.append(self._ref(name, data))
        if not manifests:
            raise self._damaged("it holds no manifest")
        contents = Contents.of(manifests, refs)
        self._check(contents)
        if contents.marker != marker:
            raise self._damaged("its manifests and refs are not those that were exported")
        return contents

    def blob(self, blob: Blob) -> Iterator[memoryview]:
        """The bytes of the blob that comes next, a chunk at a time; each view is good until the next."""
        self._expect(blob.name, blob.size_bytes)
        left = blob.size_bytes
        while left:
            view = self._buffer.view[: min(left, self._buffer.view.nbytes)]
            self._fill(view)
            yield view
            left -= view.nbytes
        self._zeros(len(padding(blob.size_bytes)))

    def table(self, blob: Blob) -> ChunkTable:
        """The chunk table that comes next."""
        self._expect(blob.table_name, blob.table_bytes)
        data = self._body(blob.table_bytes)
        try:
            table = ChunkTable.decode(data)
        except DamagedRecord as error:
            raise self._damaged(f"`{blob.table_name}`: {error.message}") from error
        if table.size_bytes != blob.size_bytes:
            raise self._damaged(f"`{blob.table_name}` is of another size than its blob", str(blob.size_bytes), str(table.size_bytes))
        return table

    def end(self) -> None:
        """The end mark, and nothing behind it but zeros."""
        if self._ahead is not None:
            raise self._damaged(f"`{self._ahead[0]}` doesn't belong into it")
        self._zeros(self._end_left)
        view = self._buffer.view
        trailing = 0
        while got := self._readinto(view):
            trailing += got
            if any(view[:got]) or trailing > MAX_TRAILING_BYTES:
                raise self._damaged("something stands behind its end")

    # -- records ----------------------------------------------------------------------------------------------------

    def _marker(self) -> bytes:
        try:
            name, size_bytes = self._peek() or ("", 0)
        except DamagedExport as error:
            raise self._foreign() from error
        if name != MARKER_NAME or size_bytes > MAX_MARKER_BYTES:
            raise self._foreign()
        data = self._small(name, size_bytes)
        if not data.startswith(FORMAT):
            raise DamagedExport(
                "this is an export of a format that this version doesn't know",
                address=self._address,
                expected=FORMAT.decode().strip(),
                got=ascii(data.split(b"\n")[0].decode("latin-1")),
                hint="a newer version of modelcache wrote it: import it with that one",
            )
        return data

    def _foreign(self) -> DamagedExport:
        hint = "`modelcache export` writes what `modelcache import` reads"
        return DamagedExport("this is no export of modelcache, or not the start of one", address=self._address, hint=hint)

    def _manifest(self, name: str, data: bytes) -> Manifest:
        try:
            manifest = Manifest.decode(data)
        except DamagedRecord as error:
            raise self._damaged(f"`{name}`: {error.message}") from error
        if manifest_name(manifest.digest) != name:
            raise self._damaged(f"`{name}` is not named by its sha256", name, manifest_name(manifest.digest))
        return manifest

    def _ref(self, name: str, data: bytes) -> Ref:
        try:
            ref = decode_ref(data, self._address)
        except DamagedRecord as error:
            raise self._damaged(f"`{name}`: {error.message}") from error
        if encode_ref(ref) != data or ref_name(ref) != name:
            raise self._damaged(f"`{name}` is not in canonical form, or not under its own name")
        if not _is_canonical(ref.key.uri):
            raise self._damaged(f"`{name}` is of something that is no storage URI")
        return ref

    def _check(self, contents: Contents) -> None:
        """What no record says for itself."""
        sizes: dict[Digest, int] = {EMPTY: 0}
        for digest, manifest in contents.manifests.items():
            if not manifest.files:
                raise self._damaged(f"`{manifest_name(digest)}` names no file")
            if manifest.compartment:
                raise self._damaged(f"`{manifest_name(digest)}` is in a namespace's own part of a store, which no export has")
            for item in manifest.files:
                if sizes.setdefault(item.sha256, item.size_bytes) != item.size_bytes:
                    raise self._damaged(f"`{manifest_name(digest)}` gives one content two sizes")
        for ref in contents.refs:
            named = contents.manifests.get(ref.manifest)
            shown = sorted((file.path, file.size_bytes, file.sha256) for file in ref.files)
            if named is None or ref.key.compartment or shown != sorted((item.path, item.size_bytes, item.sha256) for item in named.files):
                raise self._damaged(f"`{ref_name(ref)}` doesn't fit a manifest of the export")

    # -- members ----------------------------------------------------------------------------------------------------

    def _peek(self) -> tuple[str, int] | None:
        """Name and size of the next member; None at the end mark, of which one block is read then."""
        if self._ahead is None:
            block = self._body(BLOCK_BYTES, padded=False)
            if not any(block):
                self._end_left = len(END) - BLOCK_BYTES
                return None
            if is_extended(block):
                block += self._body(2 * BLOCK_BYTES, padded=False)
            try:
                self._ahead = read_header(block)
            except (ValueError, UnicodeDecodeError):
                raise self._damaged("a member is not as an export has it") from None
        return self._ahead

    def _expect(self, name: str, size_bytes: int) -> None:
        """The next header is this one. Raises DamagedExport."""
        if self._ahead is None and self._end_left == len(END):
            proper = header(name, size_bytes)
            found = self._body(BLOCK_BYTES, padded=False)
            if is_extended(found) and len(proper) > BLOCK_BYTES:
                found += self._body(2 * BLOCK_BYTES, padded=False)
            if found != proper:
                raise self._damaged(f"`{name}` is missing, or not as an export has it")
        elif self._ahead != (name, size_bytes):
            found_name, found_bytes = self._ahead or ("the end", 0)
            raise self._damaged(f"`{name}` of {size_bytes} bytes is missing", name, f"{found_name} of {found_bytes} bytes")
        self._ahead = None

    def _small(self, name: str, size_bytes: int) -> bytes:
        self._expect(name, size_bytes)
        return self._body(size_bytes)

    def _body(self, size_bytes: int, *, padded: bool = True) -> bytes:
        data = bytearray(size_bytes)
        self._fill(memoryview(data))
        if padded:
            self._zeros(len(padding(size_bytes)))
        return bytes(data)

    def _zeros(self, count: int) -> None:
        data = bytearray(count)
        self._fill(memoryview(data))
        if any(data):
            raise self._damaged("where only zeros belong something else stands")

    def _fill(self, view: memoryview) -> None:
        left = view
        while left.nbytes:
            got = self._readinto(left)
            if got == 0:
                raise self._damaged("it is cut off", got=f"{self.read_bytes} bytes")
            self.read_bytes += got
            left = left[got:]

    def _damaged(self, why: str, expected: str | None = None, got: str | None = None) -> DamagedExport:
        message = f"the export can't be believed at byte {self.read_bytes}: {why}"
        return DamagedExport(message, address=self._address, expected=expected, got=got)


def _is_canonical(uri: str) -> bool:
    """Whether a ref of this store could have this URI; one with a secret in it could not."""
    try:
        parsed, secrets = parse_uri(uri)
    except InvalidUri:
        return False
    return str(parsed) == uri and not secrets
