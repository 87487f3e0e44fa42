"""What `--json` shows of each thing. Keys are part of the public interface, documented in `docs/cli.md`: none changes its meaning."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from modelcache.abc.snapshot import Ref, RefHead, Snapshot
    from modelcache.abc.store import CollectReport, Damage, Evicted, Lease, SnapshotInfo, Usage, VerifyReport
    from modelcache.carry.exporting import ExportReport
    from modelcache.carry.importing import ImportReport
    from modelcache.fetch.progress import Progress
    from modelcache.manifest import Manifest
    from modelcache.prewarm import PrewarmOutcome, PrewarmReport
    from modelcache.upkeep.repair import RepairReport


def pulled(snapshot: Snapshot, progress: Progress) -> dict[str, object]:
    return {
        "uri": progress.uri,
        "digest": str(snapshot.digest),
        "path": str(snapshot.path),
        "hit": progress.hit,
        "stale": progress.stale,
        "files": progress.files_total,
        "size_bytes": progress.bytes_total,
        "fetched_bytes": progress.bytes_fetched,
        "reused_bytes": progress.bytes_reused,
        "elapsed_s": round(progress.elapsed_s, 6),
        "rate_bytes_per_s": round(rate_of(progress)),
    }


def rate_of(progress: Progress) -> float:
    """Of a finished fetch: bytes over the network by all of its time."""
    return progress.bytes_fetched / progress.elapsed_s if progress.elapsed_s > 0 else 0.0


def of_prewarmed(report: PrewarmReport) -> dict[str, object]:
    return {
        "outcomes": [_of_outcome(outcome) for outcome in report.outcomes],
        "failed": len(report.failed),
        "fetched_bytes": report.fetched_bytes,
        "reused_bytes": report.reused_bytes,
        "elapsed_s": round(report.elapsed_s, 6),
    }


def _of_outcome(outcome: PrewarmOutcome) -> dict[str, object]:
    if outcome.snapshot is not None and outcome.progress is not None:
        return pulled(outcome.snapshot, outcome.progress)
    error = {} if outcome.error is None else outcome.error.as_dict() | {"message": str(outcome.error)}
    return {"uri": outcome.uri, "error": error}


def of_snapshot(info: SnapshotInfo) -> dict[str, object]:
    return {
        **_place_and_sizes(info),
        "files": info.file_count,
        "uris": [ref.key.uri for ref in info.refs],
        "last_used_at_s": info.last_used_at_s,
        "leases": [of_lease(lease) for lease in info.leases],
    }


def _place_and_sizes(info: SnapshotInfo) -> dict[str, object]:
    return {
        "digest": str(info.digest),
        "path": str(info.path),
        "size_bytes": info.size_bytes,
        "own_bytes": info.own_bytes,
        "shared_bytes": info.shared_bytes,
        "freed_bytes": info.freed_bytes,
    }


def of_details(info: SnapshotInfo, manifest: Manifest, refs: Sequence[Ref]) -> dict[str, object]:
    """A snapshot with its refs and files, as `show` tells."""
    stated = stated_digests(refs)
    return {
        **_place_and_sizes(info),
        "last_used_at_s": info.last_used_at_s,
        "refs": [of_ref(ref) for ref in info.refs],
        "leases": [of_lease(lease) for lease in info.leases],
        "files": [
            {
                "path": item.path,
                "size_bytes": item.size_bytes,
                "sha256": item.sha256.hex,
                "digest": "stated" if stated.get(item.path) else "computed",
                "stated": stated.get(item.path, []),
            }
            for item in manifest.files
        ],
    }


def stated_digests(refs: Sequence[Ref]) -> dict[str, list[str]]:
    """Path → the digests that origins stated and that were compared, over all refs of a snapshot."""
    stated: dict[str, set[str]] = {}
    for ref in refs:
        for item in ref.files:
            stated.setdefault(item.path, set()).update(str(digest) for digest in item.stated)
    return {path: sorted(found) for path, found in stated.items()}


def of_ref(ref: RefHead) -> dict[str, object]:
    return {
        "uri": ref.key.uri,
        "origin": ref.key.origin,
        "revision": ref.revision,
        "immutable": ref.immutable,
        "created_at_s": ref.created_at_s,
        "checked_at_s": ref.checked_at_s,
    } | ({"namespace": ref.key.compartment} if ref.key.compartment else {})


def of_lease(lease: Lease) -> dict[str, object]:
    return {
        "id": lease.id,
        "kind": str(lease.kind),
        "holder": lease.holder,
        "created_at_s": lease.created_at_s,
        "expires_at_s": lease.expires_at_s,
    }


def of_evicted(evicted: Evicted) -> dict[str, object]:
    return {"digest": str(evicted.digest), "uris": list(evicted.uris), "freed_bytes": evicted.freed_bytes}


def of_collected(report: CollectReport) -> dict[str, object]:
    return {
        "evicted": [of_evicted(evicted) for evicted in report.evicted],
        "ingests_removed": report.ingests_removed,
        "blobs_removed": report.blobs_removed,
        "freed_bytes": report.freed_bytes,
        "dry_run": report.dry_run,
    }


def of_verified(report: VerifyReport, elapsed_s: float) -> dict[str, object]:
    return {
        "snapshots": report.snapshots,
        "blobs": report.blobs,
        "bytes_read": report.bytes_read,
        "elapsed_s": round(elapsed_s, 3),
        "damages": [of_damage(damage) for damage in report.damages],
        "out_of_service": [{"digest": str(gone.digest), "uris": list(gone.uris)} for gone in report.out_of_service],
    }


def of_repaired(report: RepairReport, elapsed_s: float) -> dict[str, object]:
    return of_verified(report.verified, elapsed_s) | {
        "repaired": [{"digest": str(blob.digest), "size_bytes": blob.size_bytes, "uri": blob.uri} for blob in report.blobs],
        "kept_bytes": report.kept_bytes,
        "fetched_bytes": report.fetched_bytes,
        "restored": [str(digest) for digest in report.restored],
        "mended": [{"digest": str(item.digest), "files": list(item.files), "holders": list(item.holders)} for item in report.mended],
        "resolved": list(report.resolved),
        "unrepaired": [
            {"digest": str(item.digest), "uris": list(item.uris), "why": item.why, "advice": item.advice} for item in report.unrepaired
        ],
    }


def of_damage(damage: Damage) -> dict[str, object]:
    return {
        "path": str(damage.path),
        "digest": None if damage.digest is None else str(damage.digest),
        "reason": damage.reason,
        "chunks": list(damage.chunks),
        "withdrawn": [str(digest) for digest in damage.withdrawn],
        "still_held": [str(digest) for digest in damage.still_held],
    }


def of_exported(report: ExportReport) -> dict[str, object]:
    return {
        "snapshots": [str(digest) for digest in report.snapshots],
        "uris": list(report.uris),
        "files": report.files,
        "blobs": report.blobs,
        "blobs_bytes": report.blobs_bytes,
        "size_bytes": report.size_bytes,
        "elapsed_s": round(report.elapsed_s, 6),
    }


def of_imported(report: ImportReport) -> dict[str, object]:
    return {
        "snapshots": [
            {
                "digest": str(imported.snapshot.digest),
                "path": str(imported.snapshot.path),
                "uris": list(imported.uris),
                "superseded": list(imported.superseded),
                "files": imported.files,
                "size_bytes": imported.size_bytes,
                "hit": imported.hit,
            }
            for imported in report.snapshots
        ],
        "written_bytes": report.written_bytes,
        "reused_bytes": report.reused_bytes,
        "read_bytes": report.read_bytes,
        "elapsed_s": round(report.elapsed_s, 6),
    }


def of_usage(usage: Usage, root: Path) -> dict[str, object]:
    return {
        "root": str(root),
        "snapshots": usage.snapshots,
        "apart_bytes": usage.apart_bytes,
        "content_bytes": usage.content_bytes,
        "own_bytes": usage.own_bytes,
        "shared_bytes": usage.shared_bytes,
        "blobs_bytes": usage.blobs_bytes,
        "doubly_used_bytes": usage.doubly_used_bytes,
        "ingest_bytes": usage.ingest_bytes,
        "trash_bytes": usage.trash_bytes,
        "quarantine_bytes": usage.quarantine_bytes,
        "leased_bytes": usage.leased_bytes,
        "pinned_bytes": usage.pinned_bytes,
        "evictable_bytes": usage.evictable_bytes,
        "available_bytes": usage.available_bytes,
        "file_system_bytes": usage.file_system_bytes,
        "free_bytes": usage.free_bytes,
        "max_bytes": usage.limits.max_bytes,
        "high_watermark": usage.limits.high_watermark,
        "low_watermark": usage.limits.low_watermark,
    }
