"""`modelcache doctor`: what is wrong with the machine or the store, and what to do."""

from __future__ import annotations

from modelcache.cli import lazy
from modelcache.cli.exit_codes import ExitCode
from modelcache.cli.findings import Finding, Level, broken
from modelcache.cli.output import BOLD_RED, GREEN, YELLOW
from modelcache.cli.session import Session
from modelcache.errors import BadConfig

COLORS = {Level.OK: GREEN, Level.WARN: YELLOW, Level.FAIL: BOLD_RED}


def doctor(session: Session) -> ExitCode:
    """Look for what keeps models from coming in: agent, store, disk, packages, certificates, proxy, clock.

    Asks no network. Exits with 8 if something has to be repaired first.
    """
    findings = _findings(session)
    healthy = all(finding.level is not Level.FAIL for finding in findings)
    session.finish(ok=healthy, findings=[finding.as_dict() for finding in findings])
    width = max(len(finding.check) for finding in findings)
    for finding in findings:
        session.output.line(f"{finding.check:<{width}}  {finding.message}", label=f"{finding.level:<4}", color=COLORS[finding.level])
        if finding.hint is not None:
            session.output.line(f"{'':<{width + 6}}  next: {finding.hint}")
    return ExitCode.OK if healthy else ExitCode.STORE


def _findings(session: Session) -> list[Finding]:
    try:
        settings = session.settings()
        config = settings.config()
    except BadConfig as error:
        return [broken("settings", str(error), error.hint or "correct it there, or leave it out")]
    return [*lazy.check_settings(session.environ, settings), *lazy.check_agent(settings), *lazy.examine(session.environ, config)]
