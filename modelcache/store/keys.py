"""The key of a ref, in every record that names one."""

from __future__ import annotations

from typing import Any

from modelcache.abc.snapshot import RefKey
from modelcache.paths import checked_compartment
from modelcache.store.records import field


def encode_key(key: RefKey) -> dict[str, str]:
    """The fields of a record that say which ref it is of: without a compartment, none is named."""
    return {"uri": key.uri, "origin": key.origin} | ({"compartment": key.compartment} if key.compartment else {})


def decode_key(record: Any) -> RefKey:
    """Raises KeyError, TypeError, ValueError."""
    compartment = checked_compartment(field(record, "compartment", str)) if "compartment" in record else ""
    return RefKey(field(record, "uri", str), field(record, "origin", str), compartment)
