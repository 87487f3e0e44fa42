"""Errors of speaking with a node's agent."""

from __future__ import annotations

from modelcache.errors.code import ErrorCode
from modelcache.errors.origin import Unavailable


class AgentUnreachable(Unavailable):
    """Nobody answers at the agent's socket, or the agent ended in the middle of a call."""

    code = ErrorCode.AGENT_UNREACHABLE
    default_hint = "see whether the agent runs on this node and who may open its socket"


class AgentDraining(Unavailable):
    """The agent ends and takes no new work."""

    code = ErrorCode.AGENT_DRAINING
    default_hint = "ask again when its successor runs"


class AgentBusy(Unavailable):
    """As many calls as the agent serves at once wait for models already."""

    code = ErrorCode.AGENT_BUSY
    default_hint = "ask again in a while; `modelcache top` shows what moves"
