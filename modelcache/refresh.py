"""When an origin is asked."""

from __future__ import annotations

from enum import StrEnum


class Refresh(StrEnum):
    """When a ref that is here is resolved at its origin again."""

    AUTO = "auto"
    """When it is older than `Config.refresh_s`; never if its URI names an exact version."""
    ALWAYS = "always"
    NEVER = "never"
    """Offline: what is here, or `NotCached`."""
