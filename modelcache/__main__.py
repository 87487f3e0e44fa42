"""The executable `modelcache`, and `python -m modelcache` where the environment's programs are not on the path."""

from __future__ import annotations

import signal
import sys


def main() -> int:
    """Run the command of the process's arguments; its exit code.

    Ctrl-C ends the process without a traceback from here on: while the command line is imported, and when its command has ended.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else somebody ignores it: that stays so
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from modelcache.cli.main import main as run

    return run()


if __name__ == "__main__":
    sys.exit(main())
