"""A fetch in progress, for those who take its bytes before all are here."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field

from modelcache.abc.ingest import Ingest
from modelcache.abc.source import Listing
from modelcache.fetch.fetch import Fetch

_numbers = itertools.count(1)


@dataclass(frozen=True, slots=True)
class Begun:
    """What is fetched, where it is written, who fetches it.

    Attributes:
        listing: its files are in the order of `ingest.files`.
        number: later ones have higher numbers, in one process.
    """

    listing: Listing
    ingest: Ingest
    fetch: Fetch
    number: int = field(default_factory=lambda: next(_numbers))


Tell = Callable[[Begun], None]
"""Called from any thread, with the same one more than once; must be quick."""
