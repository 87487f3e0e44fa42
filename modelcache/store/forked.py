"""What a process has locked is its own where it forks: a child closes what it inherits of that, and ends nothing of its parent's.

The lock of an open file is shared with whoever inherits it: without this a child would keep it when its parent is gone, and could let go
of it while its parent counts on it.
"""

from __future__ import annotations

import os
import weakref
from typing import Protocol


class Inherited(Protocol):
    """Something that keeps files locked for as long as its process lives, or has threads of it."""

    def forked(self) -> None:
        """In a child, just after the fork: close the files, which unlocks none of them, and be over, or begin anew. Called in its
        children, too."""
        ...


_locked: weakref.WeakSet[Inherited] = weakref.WeakSet()


def is_of_this_process(thing: Inherited) -> None:
    """Have `forked` called in every child."""
    _locked.add(thing)


def _after_fork() -> None:
    for thing in list(_locked):
        thing.forked()


os.register_at_fork(after_in_child=_after_fork)
