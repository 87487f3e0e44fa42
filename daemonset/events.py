"""What happens to what is kept, told in the log under the names of docs/agent.md."""

from __future__ import annotations

import logging

from modelcache.abc.store import Damage, Evicted
from modelcache.upkeep.repair import MendedSnapshot, RepairedBlob, Unrepaired

logger = logging.getLogger(__name__)


def tell_evicted(evicted: Evicted) -> None:
    model = evicted.uris[0] if evicted.uris else None
    fields = {"freed_bytes": evicted.freed_bytes, "digest": str(evicted.digest)}
    logger.info("evicted on request: %s", evicted.digest, extra={"event": "evicted", "model": model, "fields": fields})


def tell_damaged(damage: Damage) -> None:
    fields = {
        "path": str(damage.path),
        "reason": damage.reason,
        "chunks": len(damage.chunks),
        "withdrawn": len(damage.withdrawn),
        "held": len(damage.still_held),
    }
    logger.warning("damaged: `%s`: %s", damage.path, damage.reason, extra={"event": "damaged", "fields": fields})


def tell_repaired(blob: RepairedBlob) -> None:
    logger.warning("repaired: %s", blob.digest, extra={"event": "repaired", "model": blob.uri, "fields": {"digest": str(blob.digest)}})


def tell_mended(mended: MendedSnapshot) -> None:
    fields = {"digest": str(mended.digest), "files": len(mended.files), "holders": ", ".join(mended.holders)}
    said = "%s was repaired while it was held: who has its old files open reads those"
    logger.warning(said, mended.digest, extra={"event": "mended", "fields": fields})


def tell_unrepaired(left: Unrepaired) -> None:
    model = left.uris[0] if left.uris else None
    fields = {"digest": str(left.digest)}
    logger.error("not repaired: %s: %s", left.digest, left.why, extra={"event": "unrepaired", "model": model, "fields": fields})
