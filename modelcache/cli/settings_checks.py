"""Checks of where settings come from. Imported by `lazy` alone."""

from __future__ import annotations

import difflib
import stat
from collections.abc import Mapping

from modelcache.cli.findings import Finding, doubtful, fine
from modelcache.config import Settings
from modelcache.config.file import VARIABLE, places
from modelcache.config.resolving import Place

OURS = "MODELCACHE_"


def check_settings(environ: Mapping[str, str], settings: Settings) -> list[Finding]:
    """The configuration file that counts, who may read secrets in it, and variables that no setting reads."""
    return [_check_file(environ, settings), *_check_secrets(settings), *_check_variables(environ, settings)]


def _check_file(environ: Mapping[str, str], settings: Settings) -> Finding:
    if settings.file is None:
        return fine("settings", f"no configuration file; looked for {', '.join(map(str, places(environ)))}")
    given = sum(one.place is Place.FILE for one in settings.values)
    return fine("settings", f"{given} from the configuration file: {settings.file}")


def _check_secrets(settings: Settings) -> list[Finding]:
    """What all may read was refused before."""
    secret = [one.setting.key for one in settings.values if one.place is Place.FILE and one.setting.kind.secret_in(one.value)]
    if settings.file is None or not secret or not settings.file.stat().st_mode & stat.S_IRGRP:
        return []
    said = f"`{secret[0]}` holds a secret, and the group of the file may read it: {settings.file}"
    return [doubtful("settings", said, "chmod 600 it, unless that group is meant to")]


def _check_variables(environ: Mapping[str, str], settings: Settings) -> list[Finding]:
    """A misspelt variable changes nothing and says nothing."""
    known = {VARIABLE} | {variable.name for one in settings.values for variable in one.setting.variables}
    beginnings = tuple(name.partition("<")[0] for name in known if "<" in name)
    found = []
    for name in sorted(environ):
        if name.startswith(OURS) and name not in known and not (beginnings and name.startswith(beginnings)):
            ours = {each.removeprefix(OURS): each for each in known if each.startswith(OURS)}  # what all have in common is no likeness
            close = difflib.get_close_matches(name.removeprefix(OURS), ours, n=1)
            hint = f"did you mean {ours[close[0]]}?" if close else "`modelcache config show --json` names those that there are"
            found.append(doubtful("settings", f"no setting reads the variable {name}", hint))
    return found
