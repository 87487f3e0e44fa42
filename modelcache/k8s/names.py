"""The names that modelcache has, or meets, in a cluster."""

from __future__ import annotations

import re

from modelcache.errors import BadConfig

GROUP = "serving.kserve.io"
VERSION = "v1alpha1"
NODES = "localmodelnodes"
API = f"/apis/{GROUP}/{VERSION}"

AGENT = "modelcache-agent"
"""The agent's service account, and in whose name it applies status."""
SYSTEM_NAMESPACE = "modelcache-system"
STATUS_ANNOTATION = "modelcache.dev/status"
"""JSON of what a LocalModelNode's status has no room for where KServe's own schema is served."""

STORAGE_SECRET = "storage-config"  # noqa: S105 - a name
"""KServe's secret of storage entries (its `storage.key` names one)."""
S3_ANNOTATIONS = "serving.kserve.io/s3-"
"""KServe's annotations of a secret with S3 keys (`s3_secret.go`): `…endpoint`, `…region`, and so on."""

_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_SUBDOMAIN = re.compile(r"(?=.{1,253}\Z)[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")


def expect_label(what: str, name: str) -> str:
    """`name`, if a namespace can have it (RFC 1123 label). Raises BadConfig."""
    return _expect(_LABEL, what, name)


def expect_subdomain(what: str, name: str) -> str:
    """`name`, if a secret, a service account or a node can have it (RFC 1123 subdomain). Raises BadConfig."""
    return _expect(_SUBDOMAIN, what, name)


def _expect(pattern: re.Pattern[str], what: str, name: str) -> str:
    if not pattern.fullmatch(name):
        hint = "lower-case letters, digits and `-` (but for namespaces `.`, too), with a letter or digit at both ends"
        raise BadConfig(f"{name[:80]!a} is not a name that {what} can have", got=ascii(name[:80]), hint=hint)
    return name
