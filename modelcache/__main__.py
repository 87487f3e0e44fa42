"""`python -m modelcache`: the command line, where the environment's programs are not on the path."""

from __future__ import annotations

import sys

from modelcache.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
