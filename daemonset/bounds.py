"""What callers of the agent may ask for: names of holders, times and rates. Each raises BadConfig."""

from __future__ import annotations

from daemonset.mounts import MOUNTS
from modelcache.config.headers import expect_host
from modelcache.errors import BadConfig
from modelcache.sources.throttled import RateLimits

MAX_TTL_S = 30 * 86_400.0
"""Of a lease; who needs a snapshot for longer pins it."""
MAX_DRAIN_S = 86_400.0


def expect_lease(holder: str, ttl_s: float) -> None:
    expect_ttl(ttl_s)
    if holder.startswith(MOUNTS):
        raise BadConfig(
            f"in the name of `{MOUNTS}…` the agent leases what it finds mounted, and ends it", got=holder, hint="lease it in another name"
        )


def expect_ttl(ttl_s: float) -> None:
    if not 0 < ttl_s <= MAX_TTL_S:
        raise BadConfig(f"a lease lasts over 0 and at most {MAX_TTL_S:.0f} seconds", got=f"{ttl_s:g}", hint="pin what is needed for longer")


def expect_rates(rates: RateLimits) -> None:
    for host in rates.of:
        expect_host(host)
    for rate in (rates.total, *rates.of.values()):
        if rate is not None and rate <= 0:
            raise BadConfig("a rate is at least one byte a second", got=str(rate), hint="leave it out: no bound")


def expect_drain(timeout_s: float) -> None:
    if not 0 <= timeout_s <= MAX_DRAIN_S:
        raise BadConfig(f"a drain takes at least 0 and at most {MAX_DRAIN_S:.0f} seconds", got=f"{timeout_s:g}")
