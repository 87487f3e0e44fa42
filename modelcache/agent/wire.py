"""Values of the library as messages, and back. Both sides of the wire speak the library's own words."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields
from enum import StrEnum
from pathlib import Path
from typing import Any, TypeVar

from modelcache.abc.snapshot import Ref, RefFile, RefHead, RefKey, Snapshot
from modelcache.abc.store import Damage, Evicted, Lease, LeaseKind, Limits, OutOfService, SnapshotInfo, Usage, VerifyReport
from modelcache.agent.failures import error_message, error_of
from modelcache.agent.log import LogEntry
from modelcache.agent.v1 import agent_pb2 as pb
from modelcache.agent.watermarks import Watermarks
from modelcache.digest import Digest, sha256
from modelcache.errors import BadConfig
from modelcache.fetch.plan import Priority
from modelcache.fetch.progress import Phase, Progress
from modelcache.prewarm import PrewarmOutcome, PrewarmReport
from modelcache.refresh import Refresh
from modelcache.sources.throttled import RateLimits

T = TypeVar("T")
E = TypeVar("E", bound=StrEnum)
PRIORITIES = {
    pb.PRIORITY_UNSPECIFIED: Priority.WAITING,
    pb.PRIORITY_WAITING: Priority.WAITING,
    pb.PRIORITY_PREWARM: Priority.PREWARM,
    pb.PRIORITY_REPAIR: Priority.REPAIR,
}
REFRESHES = {
    pb.REFRESH_UNSPECIFIED: Refresh.AUTO,
    pb.REFRESH_AUTO: Refresh.AUTO,
    pb.REFRESH_ALWAYS: Refresh.ALWAYS,
    pb.REFRESH_NEVER: Refresh.NEVER,
}
PRIORITY_NUMBERS = {priority: number for number, priority in PRIORITIES.items()}
REFRESH_NUMBERS = {refresh: number for number, refresh in REFRESHES.items()}
_USAGE = tuple(field.name for field in fields(Usage) if field.name != "limits")
_PROGRESS = tuple(field.name for field in fields(Progress))
_LIMITS = tuple(field.name for field in fields(Limits))


def priority_of(number: int) -> Priority:
    """Raises BadConfig: it is none that this version knows."""
    return _known(PRIORITIES, number, "priority")


def refresh_of(number: int) -> Refresh:
    """Raises BadConfig: it is none that this version knows."""
    return _known(REFRESHES, number, "refresh")


def _known(values: Mapping[Any, T], number: int, name: str) -> T:
    if number not in values:
        hint = "upgrade the agent of this node, or ask with a client of its version"
        raise BadConfig(f"this version knows no such {name}", got=str(number), hint=hint)
    return values[number]


def _known_or(nearest: E, text: str) -> E:
    """A newer agent may have further words; what it says of them is still worth showing."""
    try:
        return type(nearest)(text)
    except ValueError:
        return nearest


def digest_of(text: str) -> Digest:
    """Of `sha256:…`."""
    return sha256(text.removeprefix("sha256:"))


def _given(value: Any, names: tuple[str, ...]) -> dict[str, Any]:
    return {name: given for name in names if (given := getattr(value, name)) is not None}


def _told(message: Any, names: tuple[str, ...], *absent: str) -> dict[str, Any]:
    """The fields of a message; None for those of `absent` that it lacks."""
    return {name: None if name in absent and not message.HasField(name) else getattr(message, name) for name in names}


def progress_message(progress: Progress) -> pb.Progress:
    return pb.Progress(**_given(progress, _PROGRESS))


def progress_of(message: pb.Progress) -> Progress:
    told = _told(message, _PROGRESS, "eta_s", "waiting")
    return Progress(**(told | {"phase": _known_or(Phase.FETCHING, message.phase)}))


def lease_message(lease: Lease) -> pb.LeaseInfo:
    return pb.LeaseInfo(
        id=lease.id,
        digest=str(lease.manifest),
        holder=lease.holder,
        kind=lease.kind.value,
        created_at_s=lease.created_at_s,
        expires_at_s=lease.expires_at_s,
    )


def lease_of(message: pb.LeaseInfo) -> Lease:
    return Lease(
        id=message.id,
        manifest=digest_of(message.digest),
        holder=message.holder,
        kind=_known_or(LeaseKind.LEASE, message.kind),
        created_at_s=message.created_at_s,
        expires_at_s=message.expires_at_s if message.HasField("expires_at_s") else None,
    )


def snapshot_of(message: pb.Ensured) -> Snapshot:
    return Snapshot(digest_of(message.digest), Path(message.path), stale=message.stale)


def _ref_message(ref: RefHead) -> pb.RefInfo:
    return pb.RefInfo(
        uri=ref.key.uri,
        origin=ref.key.origin,
        revision=ref.revision,
        immutable=ref.immutable,
        digest=str(ref.manifest),
        size_bytes=ref.size_bytes,
        file_count=ref.file_count,
        created_at_s=ref.created_at_s,
        checked_at_s=ref.checked_at_s,
        compartment=ref.key.compartment,
    )


def _ref_of(message: pb.RefInfo) -> RefHead:
    return RefHead(
        key=RefKey(message.uri, message.origin, message.compartment),
        revision=message.revision,
        immutable=message.immutable,
        manifest=digest_of(message.digest),
        size_bytes=message.size_bytes,
        file_count=message.file_count,
        created_at_s=message.created_at_s,
        checked_at_s=message.checked_at_s,
    )


def ref_message(ref: Ref) -> pb.RefDetails:
    files = (
        pb.RefFile(
            path=item.path,
            size_bytes=item.size_bytes,
            validator=item.validator,
            sha256=str(item.sha256),
            stated=map(str, item.stated),
            claimed=item.claimed,
        )
        for item in ref.files
    )
    return pb.RefDetails(ref=_ref_message(ref.head), files=files)


def ref_of(message: pb.RefDetails) -> Ref:
    head = _ref_of(message.ref)
    files = (
        RefFile(item.path, item.size_bytes, item.validator, digest_of(item.sha256), tuple(map(Digest.parse, item.stated)), item.claimed)
        for item in message.files
    )
    return Ref(head.key, head.revision, head.immutable, head.manifest, tuple(files), head.created_at_s, head.checked_at_s)


def prewarm_message(report: PrewarmReport) -> pb.PrewarmReport:
    return pb.PrewarmReport(outcomes=map(outcome_message, report.outcomes), elapsed_s=report.elapsed_s)


def prewarmed_message(number: int, what: Progress | PrewarmOutcome) -> pb.PrewarmReply:
    """A look at one of them, or what came of it."""
    if isinstance(what, Progress):
        return pb.PrewarmReply(look=pb.PrewarmReply.Look(number=number, progress=progress_message(what)))
    return pb.PrewarmReply(ended=pb.PrewarmReply.Ended(number=number, outcome=outcome_message(what)))


def prewarm_of(message: pb.PrewarmReport) -> PrewarmReport:
    return PrewarmReport(tuple(map(outcome_of, message.outcomes)), message.elapsed_s)


def outcome_message(outcome: PrewarmOutcome) -> pb.PrewarmReport.Outcome:
    snapshot = outcome.snapshot
    return pb.PrewarmReport.Outcome(
        uri=outcome.uri,
        digest="" if snapshot is None else str(snapshot.digest),
        path="" if snapshot is None else str(snapshot.path),
        stale=snapshot is not None and snapshot.stale,
        progress=None if outcome.progress is None else progress_message(outcome.progress),
        error=None if outcome.error is None else error_message(outcome.error),
    )


def outcome_of(message: pb.PrewarmReport.Outcome) -> PrewarmOutcome:
    return PrewarmOutcome(
        uri=message.uri,
        snapshot=Snapshot(digest_of(message.digest), Path(message.path), stale=message.stale) if message.digest else None,
        progress=progress_of(message.progress) if message.HasField("progress") else None,
        error=error_of(message.error) if message.HasField("error") else None,
    )


def info_message(info: SnapshotInfo) -> pb.SnapshotInfo:
    return pb.SnapshotInfo(
        digest=str(info.digest),
        path=str(info.path),
        size_bytes=info.size_bytes,
        own_bytes=info.own_bytes,
        shared_bytes=info.shared_bytes,
        freed_bytes=info.freed_bytes,
        file_count=info.file_count,
        refs=map(_ref_message, info.refs),
        leases=map(lease_message, info.leases),
        last_used_at_s=info.last_used_at_s,
    )


def info_of(message: pb.SnapshotInfo) -> SnapshotInfo:
    return SnapshotInfo(
        digest=digest_of(message.digest),
        path=Path(message.path),
        size_bytes=message.size_bytes,
        own_bytes=message.own_bytes,
        shared_bytes=message.shared_bytes,
        freed_bytes=message.freed_bytes,
        file_count=message.file_count,
        refs=tuple(map(_ref_of, message.refs)),
        leases=tuple(map(lease_of, message.leases)),
        last_used_at_s=message.last_used_at_s,
    )


def evicted_of(message: pb.EvictReply) -> Evicted:
    return Evicted(digest_of(message.digest), tuple(message.uris), message.freed_bytes)


def rates_message(rates: RateLimits) -> pb.Rates:
    return pb.Rates(total=rates.total, of=rates.of)


def rates_of(message: pb.Rates) -> RateLimits:
    return RateLimits(message.total if message.HasField("total") else None, dict(message.of))


def watermarks_message(watermarks: Watermarks | None) -> pb.Watermarks | None:
    if watermarks is None:
        return None
    return pb.Watermarks(source=watermarks.source, thresholds=watermarks.thresholds, high=watermarks.high, why=watermarks.why)


def watermarks_of(message: pb.Watermarks) -> Watermarks:
    return Watermarks(message.source, tuple(message.thresholds), message.high, message.why if message.HasField("why") else None)


def usage_message(usage: Usage) -> pb.Usage:
    return pb.Usage(**_given(usage, _USAGE), **_given(usage.limits, _LIMITS))


def usage_of(message: pb.Usage) -> Usage:
    return Usage(**_told(message, _USAGE), limits=Limits(**_told(message, _LIMITS, "max_bytes")))


def report_message(report: VerifyReport) -> pb.VerifyReport:
    return pb.VerifyReport(
        snapshots=report.snapshots,
        blobs=report.blobs,
        bytes_read=report.bytes_read,
        damages=map(_damage_message, report.damages),
        out_of_service=(pb.OutOfService(digest=str(item.digest), uris=item.uris) for item in report.out_of_service),
    )


def report_of(message: pb.VerifyReport) -> VerifyReport:
    gone = tuple(OutOfService(digest_of(item.digest), tuple(item.uris)) for item in message.out_of_service)
    return VerifyReport(message.snapshots, message.blobs, message.bytes_read, tuple(map(_damage_of, message.damages)), gone)


def _damage_message(damage: Damage) -> pb.Damage:
    return pb.Damage(
        path=str(damage.path),
        digest=None if damage.digest is None else str(damage.digest),
        reason=damage.reason,
        chunks=damage.chunks,
        withdrawn=map(str, damage.withdrawn),
        still_held=map(str, damage.still_held),
    )


def _damage_of(message: pb.Damage) -> Damage:
    return Damage(
        path=Path(message.path),
        digest=digest_of(message.digest) if message.HasField("digest") else None,
        reason=message.reason,
        chunks=tuple(message.chunks),
        withdrawn=tuple(map(digest_of, message.withdrawn)),
        still_held=tuple(map(digest_of, message.still_held)),
    )


def entry_message(entry: LogEntry) -> pb.LogEntry:
    return pb.LogEntry(
        time_s=entry.time_s,
        level=entry.level,
        logger=entry.logger,
        message=entry.message,
        event=entry.event,
        model=entry.model,
        request=entry.request,
        error=entry.error,
        fields_json=json.dumps(dict(entry.fields)),
        traceback=entry.traceback,
    )


def entry_of(message: pb.LogEntry) -> LogEntry:
    return LogEntry(
        message.time_s,
        message.level,
        message.logger,
        message.message,
        event=message.event or None,
        model=message.model or None,
        request=message.request or None,
        error=message.error or None,
        fields=json.loads(message.fields_json or "{}"),
        traceback=message.traceback or None,
    )
