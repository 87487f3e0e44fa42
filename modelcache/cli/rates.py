"""`modelcache rates`: how fast the node's agent may fetch, now."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from modelcache.cli import lazy
from modelcache.cli.arguments import size_of
from modelcache.cli.exit_codes import ExitCode
from modelcache.cli.session import Session
from modelcache.errors import BadConfig
from modelcache.units import format_rate

if TYPE_CHECKING:
    from modelcache.sources.throttled import RateLimits

NO_BOUND = "none"
Total = Annotated[str | None, typer.Argument(metavar="RATE", help="Bytes a second of all origins together, as 200MiB; `none`: no bound.")]
Of = Annotated[
    list[str] | None,
    typer.Option("--of", metavar="HOST=RATE", help="Of one origin, by host or host:port; again for each; `none`: no bound."),
]


def rates(session: Session, total: Total = None, of: Of = None) -> ExitCode:
    """Show how many bytes a second the node's agent may take from origins, or change that while it runs.

    What is not named stays as it is. It holds for what is under way, too, until the agent ends; the settings say what it begins with.
    """
    changed = None if total is None else _rate("RATE", total)
    hosts = dict(map(_host_and_rate, of or ()))
    with lazy.named_agent(session.settings()) as agent:
        now = agent.client.status(brief=True).rates
        if total is not None or hosts:
            now = lazy.rate_limits(changed if total is not None else now.total, {**now.of, **hosts})
            agent.client.set_rates(now)
    session.finish(total=now.total, of=[{"host": host, "bytes_per_s": rate} for host, rate in sorted(now.of.items())])
    for line in _lines(now):
        session.output.line(line)
    return ExitCode.OK


def _lines(now: RateLimits) -> list[str]:
    total = "no bound" if now.total is None else format_rate(now.total)
    return [f"all origins: {total}", *(f"{host}: {format_rate(rate)}" for host, rate in sorted(now.of.items()))]


def _rate(what: str, text: str) -> int | None:
    rate = None if text == NO_BOUND else size_of(what, text)
    if rate == 0:
        raise BadConfig(f"{what}: a rate is at least one byte a second", got=text, hint=f"`{NO_BOUND}` is no bound")
    return rate


def _host_and_rate(text: str) -> tuple[str, int | None]:
    host, given, rate = text.rpartition("=")
    if not given or not host:
        raise BadConfig("`--of` names a host and its rate", got=text, hint="as `--of huggingface.co=50MiB`")
    return host.lower(), _rate(f"--of {host}", rate)
