"""`modelcache doctor`: what is wrong with the machine or the store, and what to do."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from modelcache.cli import lazy
from modelcache.cli.exit_codes import ExitCode
from modelcache.cli.findings import Finding, Level, broken
from modelcache.cli.output import BOLD_RED, GREEN, YELLOW
from modelcache.cli.session import Session
from modelcache.errors import BadConfig
from modelcache.units import format_bytes

if TYPE_CHECKING:
    from modelcache.config import Settings

COLORS = {Level.OK: GREEN, Level.WARN: YELLOW, Level.FAIL: BOLD_RED}


Bundle = Annotated[
    Path | None,
    typer.Option("--bundle", metavar="FILE", help="And write that, settings, versions, and the agent's state and log into a .tar.gz."),
]


def doctor(session: Session, bundle: Bundle = None) -> ExitCode:
    """Look for what keeps models from coming in: agent, store, disk, packages, certificates, proxy, clock.

    Asks no network. Exits with 8 if something has to be repaired first. What it writes with --bundle holds no secrets, but names of models.
    """
    settings, findings = _findings(session)
    size_bytes = None if bundle is None else lazy.write_bundle(bundle, settings, findings, session.environ)
    healthy = all(finding.level is not Level.FAIL for finding in findings)
    session.finish(ok=healthy, findings=[finding.as_dict() for finding in findings], bundle=None if bundle is None else str(bundle))
    width = max(len(finding.check) for finding in findings)
    for finding in findings:
        session.output.line(f"{finding.check:<{width}}  {finding.message}", label=f"{finding.level:<4}", color=COLORS[finding.level])
        if finding.hint is not None:
            session.output.line(f"{'':<{width + 6}}  next: {finding.hint}")
    if size_bytes is not None:
        session.output.line(f"bundle: {bundle} ({format_bytes(size_bytes)}, secrets hidden, names of models are in it)")
    return ExitCode.OK if healthy else ExitCode.STORE


def _findings(session: Session) -> tuple[Settings | None, list[Finding]]:
    try:
        settings = session.settings()
        config = settings.config()
    except BadConfig as error:
        return None, [broken("settings", str(error), error.hint or "correct it there, or leave it out")]
    return settings, [
        *lazy.check_settings(session.environ, settings),
        *lazy.check_agent(settings),
        *lazy.examine(session.environ, config),
    ]
