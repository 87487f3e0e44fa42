"""The check of the node's agent. Imported by `lazy` alone."""

from __future__ import annotations

import os

from modelcache.cli.findings import Finding, broken, doubtful, fine
from modelcache.cli.reaching import SOCKET, at_socket, is_named, of_this_root, setting
from modelcache.config import Settings
from modelcache.errors import AgentUnreachable, BadConfig, NotInstalled

OTHERWISE = "start the agent, or leave its socket out of the settings (`--agent none`): commands work on the store itself then"


def check_agent(settings: Settings) -> list[Finding]:
    """Whether the agent that commands ask answers. Without one that is named they ask the store, which is no fault."""
    place = setting(settings, SOCKET)
    if place.value is None:
        return [fine("agent", "commands ask the store itself, as the settings say")]
    try:
        with of_this_root(at_socket(settings), settings) as found:
            marks = found.greeting.watermarks
            said = f"{found.greeting.version} at {found.socket}" + (
                f"; {marks}" if marks is not None and (marks.thresholds or marks.why) else ""
            )
            if found.greeting.draining:
                return [doubtful("agent", f"ending: {said}", "ask again when its successor runs")]
            if marks is not None and marks.high == 0:
                return [doubtful("agent", f"it fetches nothing: {said}", "give the store a disk of its own")]
            return [fine("agent", said)]
    except (AgentUnreachable, BadConfig, NotInstalled) as error:
        if is_named(place):
            return [broken("agent", str(error), OTHERWISE if isinstance(error, AgentUnreachable) else error.hint or OTHERWISE)]
        if os.path.exists(place.value):
            return [fine("agent", f"commands ask the store itself: {error}")]
        return [fine("agent", f"none at {place.value}: commands ask the store itself")]
