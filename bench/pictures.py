"""Pictures of results, beside their lines.

python -m bench.pictures                    of every file in bench/results that is newer than its picture, or has none
python -m bench.pictures FILE.jsonl …
"""

from __future__ import annotations

import argparse
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

from bench.contenders import install

HERE = Path(__file__).parent
RESULTS = HERE / "results"
TIMEOUT_S = 120
WITHOUT = "agent"
"""Its line is a single figure each."""


def drawn(cache: Path, lines: Path) -> Path:
    """Draw a file of lines; matplotlib has an environment of its own in `cache`. Returns: the picture, beside the lines."""
    install(cache, ["plot"])
    picture = lines.with_suffix(".svg")
    python = cache / "venv-plot" / "bin" / "python"
    subprocess.run([str(python), str(HERE / "plot.py"), str(lines), str(picture)], check=True, timeout=TIMEOUT_S)
    return picture


def undrawn(results: Path) -> Iterator[Path]:
    """Files of lines without a picture, or with one that is older than they are."""
    for lines in sorted(results.glob("*.jsonl")):
        picture = lines.with_suffix(".svg")
        if lines.name.startswith(WITHOUT) or (picture.exists() and picture.stat().st_mtime_ns >= lines.stat().st_mtime_ns):
            continue
        yield lines


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.pictures", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", nargs="*", type=Path, metavar="FILE.jsonl", help="default: those in bench/results that need one")
    parser.add_argument("--cache", type=Path, default=Path(".cache/bench"), help="for matplotlib's environment: %(default)s")
    options = parser.parse_args(arguments)
    options.cache.mkdir(parents=True, exist_ok=True)
    for lines in options.files or list(undrawn(RESULTS)):
        print(drawn(options.cache, lines))


if __name__ == "__main__":
    main()
