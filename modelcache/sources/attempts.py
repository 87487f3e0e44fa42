"""Trying one control call of many again: what is busy, after a pause; what was refused, with a fresh credential.

`RetryingSource` is patient with a whole listing; but one of thousands of calls that fails now and then must not start it over.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import TypeVar

from modelcache.errors import AccessDenied, OriginStalled, Unavailable
from modelcache.patience import Cancellation

T = TypeVar("T")
ATTEMPTS = 3
"""As KServe's S3_MAX_ATTEMPTS."""
FIRST_PAUSE_S = 0.2
MAX_PAUSE_S = 5.0


def attempted(action: Callable[[], T], renew: Callable[[], bool], cancel: Cancellation) -> T:
    """Run `action` up to ATTEMPTS times while the origin is unavailable (not when it stalled: that has cost its time already),
    and once more after `renew()` gave another credential.

    Raises: what `action` raised last; Cancelled.
    """
    renewable = True
    failures = 0
    while True:
        cancel.check()
        try:
            return action()
        except AccessDenied:
            if not (renewable and renew()):
                raise
            renewable = False
        except Unavailable as error:
            failures += 1
            if failures == ATTEMPTS or not error.retryable or isinstance(error, OriginStalled):
                raise
            pause_s = FIRST_PAUSE_S * 2 ** (failures - 1) * random.uniform(0.5, 1)
            pause_s = min(error.retry_after_s or pause_s, MAX_PAUSE_S)
            with cancel.saying(error.message, pause_s):
                cancel.wait(pause_s)
