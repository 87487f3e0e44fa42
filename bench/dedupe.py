"""How often is a byte fetched and stored, in a family of checkpoints? Ours, huggingface_hub's cache, and a copy per name.

python -m bench.dedupe                     shards of 64 MiB
python -m bench.dedupe --shard 4MiB

Every contender reads from the same Hub, in this order: a base model of 4 shards; the same weights under two other names; a fine-tune
whose last two shards differ (in one of them every second MiB is frozen); the base's next revision, with one changed shard.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from bench import machine
from bench.contenders import DRIVERS, install
from bench.lines import add_options, facts, file_for, record
from bench.measure import sha256
from bench.model import make_model
from bench.origins_hub import Hub, Repository, hub_of
from modelcache.testing.servers.process import program
from modelcache.units import MIB, parse_bytes

SHARDS = 4
TIMEOUT_S = 900
BLOCK_BYTES = 512
"""Of `st_blocks` (stat(2))."""
HEADINGS = ("contender", "step", "model MiB", "fetched MiB", "stored MiB", "× one copy of each content")
Fetch = Callable[[str, Path, Hub], None]


def main(arguments: Sequence[str] | None = None) -> None:
    options = _parser().parse_args(arguments)
    out = file_for("dedupe", options.out)
    options.cache.mkdir(parents=True, exist_ok=True)
    install(options.cache, ["huggingface_hub"])
    where = machine.facts(options.cache)
    print(f"| {' | '.join(HEADINGS)} |\n|{'---|' * len(HEADINGS)}")
    lines = []
    for name, fetch in contenders(options.cache).items():
        for line in measure(name, fetch, options.cache, options.shard):
            lines.append(line | facts("dedupe", where))
            record(lines[-1], out)
            shown = [f"{line[key] / MIB:.0f}" for key in ("model_bytes", "fetched_bytes", "stored_bytes")]
            print(f"| {name} | {line['step']} | {' | '.join(shown)} | {line['stored_bytes'] / line['unique_bytes']:.2f} |", flush=True)
    print("\n".join(verdicts(lines)))
    print(out)


def measure(name: str, fetch: Fetch, cache: Path, shard_bytes: int) -> Iterator[dict[str, Any]]:
    """One contender through the whole family; what each step brought over the network, and what lies on disk after it."""
    root = cache / f"dedupe-{shard_bytes}"
    scratch = cache / "bench-scratch"
    shutil.rmtree(scratch, ignore_errors=True)
    unique: dict[str, int] = {}
    try:
        for step, repository in family(root, shard_bytes).items():
            sizes = {file: (root / repository.place / file).stat().st_size for file in repository.digests}
            unique |= {repository.digests[file]: size_bytes for file, size_bytes in sizes.items()}
            with hub_of(root, [repository], log_requests=True) as hub:
                fetch(repository.name, scratch, hub)
                fetched_bytes = sum(each.body_bytes for each in hub.cdn.requests())
            yield {
                "contender": name,
                "step": step,
                "model_bytes": sum(sizes.values()),
                "unique_bytes": sum(unique.values()),
                "fetched_bytes": fetched_bytes,
                "stored_bytes": stored_bytes(scratch),
            }
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def family(root: Path, shard_bytes: int) -> dict[str, Repository]:
    """The steps and what each reads; made once and kept in `root`."""
    base, tuned, revised = root / "base", root / "tuned", root / "revised"
    make_model(base, SHARDS * shard_bytes, SHARDS)
    names = sorted(path.name for path in base.iterdir())
    _changed(base, tuned, {names[-1]: 1, names[-2]: 2})
    _changed(base, revised, {names[0]: 1})
    digests = {place.name: {path.name: sha256(path) for path in sorted(place.iterdir())} for place in (base, tuned, revised)}
    return {
        "base": Repository("family/base", "1" * 40, "base", digests["base"]),
        "the same weights, second name": Repository("family/second", "2" * 40, "base", digests["base"]),
        "the same weights, third name": Repository("family/third", "3" * 40, "base", digests["base"]),
        "fine-tune, two of four shards differ": Repository("family/tuned", "4" * 40, "tuned", digests["tuned"]),
        "next revision, one of four shards differs": Repository("family/base", "5" * 40, "revised", digests["revised"]),
    }


def _changed(source: Path, target: Path, strides: dict[str, int]) -> None:
    """A copy of a model in which of some files every n-th MiB (by their stride) is another; the headers stay."""
    if target.is_dir():
        return
    new = target.with_name(f"{target.name}.new")
    shutil.rmtree(new, ignore_errors=True)
    shutil.copytree(source, new)
    for name, stride in strides.items():
        path = new / name
        with path.open("r+b") as file:
            for at in range(MIB // 2, path.stat().st_size - MIB // 2, stride * MIB):
                file.seek(at)
                block = file.read(MIB // 4)
                file.seek(at)
                file.write(bytes(each ^ 0xFF for each in block))
    new.rename(target)


def stored_bytes(directory: Path) -> int:
    """Blocks on disk, every inode once."""
    seen: dict[int, int] = {}
    for parent, _, names in os.walk(directory):
        for name in names:
            status = os.lstat(os.path.join(parent, name))
            seen[status.st_ino] = status.st_blocks * BLOCK_BYTES
    return sum(seen.values())


# -- contenders -----------------------------------------------------------------------------------------------------


def contenders(cache: Path) -> dict[str, Fetch]:
    python = str(cache / "venv-huggingface_hub" / "bin" / "python")
    driver = str(DRIVERS / "with_huggingface_hub.py")

    def ours(repo: str, scratch: Path, hub: Hub) -> None:
        _run([program("modelcache"), "--root", str(scratch), "pull", f"hf://{repo}"], hub)

    def in_its_cache(repo: str, scratch: Path, hub: Hub) -> None:
        _run([python, driver, repo, str(scratch)], hub)

    def a_copy_per_name(repo: str, scratch: Path, hub: Hub) -> None:
        copies = len(list(scratch.iterdir())) if scratch.is_dir() else 0
        _run([python, driver, repo, str(scratch / f"copy-{copies}")], hub)

    return {"modelcache": ours, "huggingface_hub": in_its_cache, "a copy per name": a_copy_per_name}


def _run(argv: list[str], hub: Hub) -> None:
    environ = {"PATH": os.environ.get("PATH", os.defpath), "HOME": os.devnull, **machine.NO_WATERMARKS, **hub.environ}
    done = subprocess.run(argv, env=environ, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    if done.returncode != 0:
        raise SystemExit(f"error: {argv[0]} ended with {done.returncode}: {done.stderr}")


def verdicts(lines: Sequence[dict[str, Any]]) -> list[str]:
    """Ours against one copy, and one fetch, of each content."""
    last = [line for line in lines if line["contender"] == "modelcache"]
    if not last:
        return []
    fetched = sum(line["fetched_bytes"] for line in last) / last[-1]["unique_bytes"]
    stored = last[-1]["stored_bytes"] / last[-1]["unique_bytes"]
    return [
        f"{'reached' if fetched < 1.01 else 'MISSED '}  modelcache fetched {fetched:.3f} × the family's different bytes (to reach: 1)",
        f"{'reached' if stored < 1.01 else 'MISSED '}  modelcache stores {stored:.3f} × the family's different bytes (to reach: 1)",
    ]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench.dedupe", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shard", type=parse_bytes, default=64 * MIB, help=f"size of each of {SHARDS}; default: 64MiB")
    add_options(parser, "dedupe", cache="models and environments")
    return parser


if __name__ == "__main__":
    main()
