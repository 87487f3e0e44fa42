"""`modelcache path`: where a model is."""

from __future__ import annotations

from modelcache.cli.arguments import Name
from modelcache.cli.exit_codes import ExitCode
from modelcache.cli.session import Session


def path(session: Session, name: Name) -> ExitCode:
    """Print the directory of a model that is here, and nothing else. Asks no origin."""
    with session.open_cache(looks=True) as cache:
        info = cache.find(name)
    session.output.path(info.path)
    session.finish(digest=str(info.digest), path=str(info.path))
    return ExitCode.OK
