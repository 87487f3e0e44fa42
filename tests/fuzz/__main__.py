"""Coverage-guided fuzzing with atheris: every target for some seconds, from the corpus on.

    python -m tests.fuzz                        all targets, 60 seconds each
    python -m tests.fuzz header --seconds 600   one of them
    python -m tests.fuzz --keep                 fold what was found new into the corpus
    python -m tests.fuzz header --input FILE    what failed, once more

New inputs are gathered in `.cache/fuzz`, and so is one that fails.
"""

from __future__ import annotations

import argparse
import importlib.util
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any, TypeAlias

from tests.fuzz import corpus

NAMES = ("header", "file", "index", "plan")
WORK = Path(__file__).parents[2] / ".cache" / "fuzz"
LOADER = "modelcache/loader/"
Step: TypeAlias = tuple[str, int, int]
MAX_BYTES = 2048
HANGS_AFTER_S = 20
WORDS = (
    *('"dtype"', '"shape"', '"data_offsets"', '"__metadata__"', '"weight_map"', '"metadata"', '"a"', '"b"', '"c"'),
    *('"one.safetensors"', '"two.safetensors"', '"U8"', '"F32"', '"BF16"', '"F4"', '"F8_E4M3"', "[0,1]", "[1]", "NaN", "-0", "1e3"),
    *("18446744073709551616", "9223372036854775808", r'"\ud800"', "{}", "[[", "]]", "null", "true"),
)
"""What mutations put in: libFuzzer doesn't see the words that Python compares."""


def main() -> None:
    options = _options()
    for name in options.targets or NAMES:
        if options.input is not None:
            _targets()[name](options.input.read_bytes())
        elif options.one is not None:
            _fuzz(name, options.one)
        elif options.keep:
            _keep(name)
        else:
            _started(name, options.seconds)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("targets", nargs="*", choices=[*NAMES, []], metavar="TARGET", help=", ".join(NAMES))
    parser.add_argument("--seconds", type=int, default=60, help="for each target")
    parser.add_argument("--keep", action="store_true")
    parser.add_argument("--input", type=Path, metavar="FILE")
    parser.add_argument("--one", nargs="+", help=argparse.SUPPRESS)  # libFuzzer's own arguments, in a process of its own: it ends it
    return parser.parse_args()


def _started(name: str, seconds: int) -> None:
    """Stops at the first failure, with what repeats it."""
    if importlib.util.find_spec("atheris") is None:
        sys.exit("atheris is not installed: `make fuzz` does it, where there are wheels (x86_64)")
    found = WORK / name
    corpus.unpack(corpus.read(name), found)
    before = len(list(found.iterdir()))
    words = WORK / "words.txt"
    words.write_text("".join(f'"{_escaped(word)}"\n' for word in WORDS), encoding="ascii")
    failed = WORK / f"{name}-failed-"
    limits = [f"-max_total_time={seconds}", f"-max_len={MAX_BYTES}", f"-timeout={HANGS_AFTER_S}", "-rss_limit_mb=4096"]
    done = _libfuzzer(name, str(found), *limits, f"-dict={words}", f"-artifact_prefix={failed}", "-print_final_stats=1")
    if done.returncode != 0:
        inputs = ", ".join(str(path) for path in sorted(WORK.glob(f"{failed.name}*"))) or "none kept"
        sys.exit(f"{done.stderr[-4000:]}\n{name}: failed on {inputs}; again: python -m tests.fuzz {name} --input FILE")
    runs = next((line.split()[-1] for line in done.stderr.splitlines() if "number_of_executed_units" in line), "0")
    print(f"{name}: {int(runs):,} runs in {seconds} s, {len(list(found.iterdir())) - before} new inputs")


def _keep(name: str) -> None:
    """Add to the corpus what goes a way through the loader that nothing in it goes; of those that do, the shortest."""
    kept = corpus.read(name)
    known = {step for data in kept for step in _steps(name, data)}
    for data in sorted((path.read_bytes() for path in (WORK / name).iterdir()), key=lambda data: (len(data), data)):
        steps = _steps(name, data)
        if not steps <= known:
            kept.append(data)
            known |= steps
    corpus.write(name, kept)
    print(f"{name}: {len(kept)} inputs")


def _steps(name: str, data: bytes) -> set[Step]:
    """From which line to which line of the loader a run goes."""
    steps: set[Step] = set()

    def entered(frame: FrameType, event: str, argument: object) -> Callable[..., Any] | None:
        if LOADER not in frame.f_code.co_filename:
            return None
        at = -1

        def moved(frame: FrameType, event: str, argument: object) -> Callable[..., Any]:
            nonlocal at
            steps.add((frame.f_code.co_filename, at, frame.f_lineno))
            at = frame.f_lineno
            return moved

        return moved

    sys.settrace(entered)
    try:
        _targets()[name](data)
    finally:
        sys.settrace(None)
    return steps


def _libfuzzer(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tests.fuzz", name, "--one", *(f" {each}" for each in arguments)]  # a space: no option of ours
    return subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False)


def _fuzz(name: str, arguments: list[str]) -> None:
    import atheris

    with atheris.instrument_imports(include=["modelcache.loader"]):
        target = _targets()[name]
    atheris.Setup([name, *(each.strip() for each in arguments)], target)
    atheris.Fuzz()


def _targets() -> dict[str, Callable[[bytes], None]]:
    from tests.fuzz.targets import TARGETS  # below, so that what it imports can be instrumented

    return dict(TARGETS)


def _escaped(word: str) -> str:
    return word.replace("\\", r"\\").replace('"', r"\"")


if __name__ == "__main__":
    main()
