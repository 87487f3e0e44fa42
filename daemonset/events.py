"""What happens to what is kept, told in the log under the names of docs/agent.md."""

from __future__ import annotations

import logging

from daemonset.announcing import Announce, Announcement
from modelcache.abc.store import Damage, Evicted
from modelcache.upkeep.repair import MendedSnapshot, RepairedBlob, Unrepaired

logger = logging.getLogger(__name__)


def tell_evicted(evicted: Evicted) -> None:
    model = evicted.uris[0] if evicted.uris else None
    fields = {"freed_bytes": evicted.freed_bytes, "digest": str(evicted.digest)}
    logger.info("evicted on request: %s", evicted.digest, extra={"event": "evicted", "model": model, "fields": fields})


def tell_damaged(damage: Damage, announce: Announce) -> None:
    held, withdrawn = len(damage.still_held), len(damage.withdrawn)
    fields = {"path": str(damage.path), "reason": damage.reason, "chunks": len(damage.chunks), "withdrawn": withdrawn, "held": held}
    fields |= {} if damage.aside is None else {"aside": str(damage.aside)}
    logger.warning("damaged: `%s`: %s", damage.path, damage.reason, extra={"event": "damaged", "fields": fields})
    said = "a record of the store is damaged on the disk; the agent's log says which"
    if damage.digest is not None:
        of = f"{withdrawn} snapshots are out of service, {held} still show it"
        said = f"{damage.digest} is damaged on the disk: {damage.reason}; {of}"
    announce(Announcement("DamageFound", said, warning=True))
    if damage.aside is not None:
        announce(
            Announcement("Quarantined", f"{damage.digest} is out of use; the damaged file is kept aside: quarantine/{damage.aside.name}")
        )


def tell_repaired(blob: RepairedBlob, announce: Announce) -> None:
    fields = {"digest": str(blob.digest)}
    logger.warning("repaired: %s", blob.digest, extra={"event": "repaired", "model": blob.uri, "fields": fields})
    announce(Announcement("DamageRepaired", f"{blob.digest} is whole again"))


def tell_mended(mended: MendedSnapshot, announce: Announce) -> None:
    holders = ", ".join(mended.holders)
    fields = {"digest": str(mended.digest), "files": len(mended.files), "holders": holders}
    said = f"{mended.digest} was repaired while it was held: who has its old files open reads those"
    logger.warning(said, extra={"event": "mended", "fields": fields})
    announce(Announcement("ReplacedUnderHolders", f"{said}; held by {holders}", warning=True))


def tell_unrepaired(left: Unrepaired, announce: Announce) -> None:
    model = left.uris[0] if left.uris else None
    fields = {"digest": str(left.digest)}
    logger.error("not repaired: %s: %s", left.digest, left.why, extra={"event": "unrepaired", "model": model, "fields": fields})
    announce(
        Announcement("RepairFailed", f"{left.digest} can't be repaired, and is out of service; the agent's log says why", warning=True)
    )
