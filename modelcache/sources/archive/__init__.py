"""Archives: the members of a tar, a tar.gz or a zip as files of a source, read from the archive's own bytes."""

from modelcache.sources.archive.limits import DEFAULT_LIMITS, ArchiveLimits
from modelcache.sources.archive.source import MEMBER, ArchiveSource, is_archive_name, look_for_archive, plain

__all__ = ["DEFAULT_LIMITS", "MEMBER", "ArchiveLimits", "ArchiveSource", "is_archive_name", "look_for_archive", "plain"]
