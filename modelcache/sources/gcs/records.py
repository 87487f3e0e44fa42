"""What the JSON API says about objects. Pure."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

from modelcache.digest import Algorithm, Digest
from modelcache.errors import AccessDenied, InvalidUri, ProtocolViolation

FIELDS = "name,size,generation,crc32c,md5Hash,contentEncoding,customerEncryption/keySha256"
"""Of an object: all that is read here."""
_NUMBER = re.compile(r"[0-9]{1,19}")


@dataclass(frozen=True, slots=True)
class ObjectRecord:
    """An object as the store describes it.

    Attributes:
        generation: names the version of its bytes (the metageneration, which counts changes of metadata, is left out).
        encoding: its Content-Encoding, empty for none.
        customer_key: its bytes can be read only with a key that their owner keeps.
        digests: over the bytes as they are stored.
    """

    name: str
    size_bytes: int
    generation: str
    encoding: str
    customer_key: bool
    digests: tuple[Digest, ...]

    @property
    def folder_marker(self) -> bool:
        """It only stands for a folder, as the console and gcsfuse make them."""
        return self.size_bytes == 0 and self.name.endswith("/")


@dataclass(frozen=True, slots=True)
class Page:
    """One page of a listing; `next_token` is empty on the last."""

    objects: tuple[ObjectRecord, ...]
    next_token: str


def object_record(body: bytes, *, address: str) -> ObjectRecord:
    """Raises ProtocolViolation: it is no object resource."""
    return _record(_fields(body, address), address)


def page(body: bytes, *, address: str) -> Page:
    """Raises ProtocolViolation: it is no listing."""
    fields = _fields(body, address)
    listed = fields.get("items", [])
    if not isinstance(listed, list):
        raise _unreadable("items", address)
    return Page(tuple(_record(each, address) for each in listed), _text(fields, "nextPageToken", address, default=""))


def check_servable(record: ObjectRecord, address: str) -> None:
    """Raises AccessDenied or ProtocolViolation if the object's bytes can't be had as they are stored."""
    if record.customer_key:
        hint = "copy it to an object under the bucket's own key: `gcloud storage cp --decryption-keys=KEY`"
        raise AccessDenied("the object is encrypted with its customer's own key, which we don't take", address=address, hint=hint)
    if record.encoding not in ("", "identity"):
        # The store unpacks gzip on its way out, then states neither size nor ranges; size and checksums are of the packed bytes.
        raise ProtocolViolation(
            "the object is stored with a Content-Encoding, so the store serves other bytes than it states the checksum of",
            address=address,
            expected="none",
            got=record.encoding[:40],
            hint="upload it without `-z`, `-Z` or `--gzip-local`, which cost more than they save for weights",
        )


def _fields(body: bytes, address: str) -> dict[str, Any]:
    try:
        fields = json.loads(body)
    except (ValueError, RecursionError):
        fields = None
    if not isinstance(fields, dict):
        raise ProtocolViolation("the store's answer is no answer of the Cloud Storage JSON API", address=address)
    return fields


def _record(fields: Any, address: str) -> ObjectRecord:
    if not isinstance(fields, dict):
        raise _unreadable("items", address)
    name, size, generation = (_text(fields, key, address) for key in ("name", "size", "generation"))
    for key, number in (("size", size), ("generation", generation)):
        if not _NUMBER.fullmatch(number):
            raise _unreadable(key, address)
    return ObjectRecord(
        name,
        int(size),
        generation,
        _text(fields, "contentEncoding", address, default="").strip().lower(),
        bool(fields.get("customerEncryption")),
        _digests(fields, address),
    )


def _digests(fields: dict[str, Any], address: str) -> tuple[Digest, ...]:
    """crc32c, which every object has; else md5, which composed objects lack and whose check costs twice what sha256 does."""
    for key, algorithm in (("crc32c", Algorithm.CRC32C), ("md5Hash", Algorithm.MD5)):
        text = _text(fields, key, address, default="")
        if text:
            try:
                return (Digest.of_base64(algorithm, text),)
            except InvalidUri as error:
                raise ProtocolViolation(f"the store's checksum can't be read: {error.message}", address=address) from None
    return ()


def _text(fields: dict[str, Any], key: str, address: str, *, default: str | None = None) -> str:
    value = fields.get(key, default)
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)  # the API writes 64-bit numbers as text, some emulators as numbers
    if not isinstance(value, str):
        raise _unreadable(key, address)
    return value


def _unreadable(key: str, address: str) -> ProtocolViolation:
    return ProtocolViolation(f"the store's answer has no usable `{key}`", address=address)
