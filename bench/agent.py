"""What does the agent cost who asks it? On a store of 5,000 blobs: hits at a steady rate, a request that comes while the node prewarms,
and the memory that all that takes, with 8 fetches at once.

python -m bench.agent                  200 hits a second for 10 s; 20 models of 64 MiB ahead of a waiting one; each 3 times
python -m bench.agent --seconds 2 --models 4 --size 16MiB --times 1
"""

from __future__ import annotations

import argparse
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import psutil

from bench import machine
from bench.lines import add_options, facts, file_for, record
from bench.model import make_model
from bench.narrow_line import narrow_line
from bench.store import FILES, fill_store
from modelcache.agent.client import AgentClient
from modelcache.errors import Cancelled, NotCached
from modelcache.fetch.plan import Priority
from modelcache.fetch.progress import Progress
from modelcache.patience import Cancellation
from modelcache.testing.agents import RunningAgent, agent
from modelcache.testing.servers import Nginx
from modelcache.units import MIB, parse_bytes

RATE_PER_S = 200
CLIENTS = 8
AT_ONCE = 8
"""Fetches at once, when memory is looked at."""
P99_LIMIT_MS = 5.0
RSS_LIMIT_MIB = 300
FIRST_BYTE_LIMIT_S = 1.0
"""When a pod starts to wait, its model has the bandwidth within a second (DESIGN, promise 6)."""
NARROW_BYTES_PER_S = 10 * MIB
"""Of a line on which chunks of 4 MiB, several at once, take seconds."""


def main(arguments: Sequence[str] | None = None) -> None:
    options = _parser().parse_args(arguments)
    out = file_for("agent", options.out)
    line = facts("agent", machine.facts(options.cache)) | measure(options)
    record(line, out)
    print("| what | value |\n|---|---|")
    print("\n".join(f"| {name} | {value:.2f} |" for name, value in line.items() if isinstance(value, float)))
    print("\n".join(verdicts(line)))
    print(out)


def verdicts(line: dict[str, Any]) -> Iterator[str]:
    """Whether what was to be reached is reached."""
    bounds = (
        ("a hit at 200 a second, p99 ms", line["hit_p99_ms"], P99_LIMIT_MS),
        ("first byte of who waits while 20 models are prewarmed, s", line["busy_first_s"], FIRST_BYTE_LIMIT_S),
        ("how much later its last byte comes then, s, on a line of 10 MiB/s", line["narrow_late_s"], FIRST_BYTE_LIMIT_S),
        ("the agent's peak, MiB", line["agent_peak_rss_bytes"] / MIB, RSS_LIMIT_MIB),
    )
    for what, value, limit in bounds:
        yield f"{'reached ' if value < limit else 'MISSED  '} {what}: {value:.2f} (to stay under: {limit:g})"


def measure(options: argparse.Namespace) -> dict[str, Any]:
    place = options.cache.resolve() / "bench-agent"
    shutil.rmtree(place, ignore_errors=True)
    models = place / "origin"
    try:
        for number in range(options.models + 1):
            make_model(models / f"m{number}", options.size, 1)
        files = [next((models / f"m{number}").glob("*.safetensors")) for number in range(options.models + 1)]
        with Nginx(models) as origin:
            uris = [f"{origin.endpoint}/{file.relative_to(models)}" for file in files]
            fill_store(place / "a" / "store", options.blobs // FILES)
            with agent(place / "a", {"MODELCACHE_REFRESH_S": "86400"}) as running:
                taken = _hits(running, uris[-1], options)
                taken |= _waiting(running, uris, options.times)
                with narrow_line(origin.port, NARROW_BYTES_PER_S) as address:
                    narrow = [f"http://{address}/{file.relative_to(models)}" for file in files]
                    taken |= {f"narrow_{name}": value for name, value in _waiting(running, narrow, 1).items()}
                taken["narrow_late_s"] = taken["narrow_busy_last_s"] - taken["narrow_idle_last_s"]
                _at_once(running, uris[:AT_ONCE])
                [pid] = running.process.pids()
                taken["agent_peak_rss_bytes"] = _peak_bytes(pid)
    finally:
        shutil.rmtree(place, ignore_errors=True)
    return taken | {"model_bytes": options.size, "prewarmed": options.models, "blobs": options.blobs, "times": options.times}


# -- hits -----------------------------------------------------------------------------------------------------------


def _hits(running: RunningAgent, uri: str, options: argparse.Namespace) -> dict[str, Any]:
    """Clients that together ask RATE_PER_S times a second, each on its own beat, whether or not the last answer was late; medians.

    `late_p99_ms`: how late the same beats are when nothing is asked, which is this machine's and not the agent's.
    """
    [pid] = running.process.pids()
    taken: dict[str, list[float]] = {"late_p99_ms": [], "hit_p50_ms": [], "hit_p99_ms": [], "hits_per_s": [], "agent_cpu_share": []}
    with ExitStack() as stack, ThreadPoolExecutor(CLIENTS) as threads:
        clients = [stack.enter_context(AgentClient(running.admin)) for _ in range(CLIENTS)]
        for client in clients:
            client.ensure(uri)
        for _ in range(options.times):
            late_ms, _ = _beats(threads, [lambda: None] * CLIENTS, options.seconds / 2)
            before_s = _cpu_s(pid)
            hits_ms, took_s = _beats(threads, [partial(client.ensure, uri) for client in clients], options.seconds)
            taken["agent_cpu_share"].append((_cpu_s(pid) - before_s) / took_s)
            taken["hits_per_s"].append(len(hits_ms) / took_s)
            taken["hit_p50_ms"].append(median(hits_ms))
            taken["hit_p99_ms"].append(quantiles(hits_ms, n=100)[-1])
            taken["late_p99_ms"].append(quantiles(late_ms, n=100)[-1])
    return {name: median(values) for name, values in taken.items()} | {"hit_p99_ms_of_each": taken["hit_p99_ms"]}


def _beats(threads: ThreadPoolExecutor, asks: Sequence[Callable[[], object]], seconds: float) -> tuple[list[float], float]:
    """Milliseconds from when each was due to its answer, and seconds that all took."""
    started_s = time.monotonic()
    runs = list(threads.map(lambda number: _beat(asks[number], number, seconds), range(len(asks))))
    return [each for run in runs for each in run], time.monotonic() - started_s


def _beat(ask: Callable[[], object], number: int, seconds: float) -> list[float]:
    every_s = CLIENTS / RATE_PER_S
    taken_ms = []
    next_s = time.monotonic() + every_s * number / CLIENTS
    until_s = next_s + seconds
    while next_s < until_s:
        time.sleep(max(0.0, next_s - time.monotonic()))
        ask()
        taken_ms.append((time.monotonic() - next_s) * 1e3)  # from when it was due: a late answer delays nobody's question
        next_s += every_s
    return taken_ms


def _at_once(running: RunningAgent, uris: Sequence[str]) -> None:
    """Fetch all of these together, for memory's sake."""
    with AgentClient(running.admin) as client, ThreadPoolExecutor(len(uris)) as threads:
        for uri in uris:
            _forget(client, uri)
        list(threads.map(client.ensure, uris))
        client.list()
        client.status()


# -- who waits ------------------------------------------------------------------------------------------------------


def _waiting(running: RunningAgent, uris: Sequence[str], times: int) -> dict[str, Any]:
    """First and last byte of one model with nothing else to do, and while all others are prewarmed."""
    *others, wanted = uris
    taken: dict[str, list[float]] = {"idle_first_s": [], "idle_last_s": [], "busy_first_s": [], "busy_last_s": []}
    with AgentClient(running.admin) as client:
        for _ in range(times):
            for state, ahead in (("idle", ()), ("busy", others)):
                for uri in uris:
                    _forget(client, uri)
                with _prewarming(running, ahead):
                    first_s, last_s = _timed(client, wanted)
                taken[f"{state}_first_s"].append(first_s)
                taken[f"{state}_last_s"].append(last_s)
    return {name: median(values) for name, values in taken.items()}


def _timed(client: AgentClient, uri: str) -> tuple[float, float]:
    started_s = time.monotonic()
    first: list[float] = []

    def look(progress: Progress) -> None:
        if progress.bytes_fetched and not first:
            first.append(time.monotonic() - started_s)

    client.ensure(uri, progress=look)
    last_s = time.monotonic() - started_s
    return (first[0] if first else last_s), last_s


@contextmanager
def _prewarming(running: RunningAgent, uris: Sequence[str]) -> Iterator[None]:
    """All of them are on their way when the block begins; cancelled when it ends."""
    if not uris:
        yield
        return
    cancel = Cancellation()
    moving = threading.Event()

    def bring(uri: str) -> None:
        with AgentClient(running.admin) as client:
            try:
                client.ensure(
                    uri, priority=Priority.PREWARM, cancel=cancel, progress=lambda look: moving.set() if look.bytes_fetched else None
                )
            except Cancelled:
                return

    with ThreadPoolExecutor(len(uris)) as threads:
        for uri in uris:
            threads.submit(bring, uri)
        moving.wait(60)
        try:
            yield
        finally:
            cancel.cancel()


def _forget(client: AgentClient, uri: str) -> None:
    try:
        client.evict(uri)
    except NotCached:
        return


def _cpu_s(pid: int) -> float:
    times = psutil.Process(pid).cpu_times()
    return float(times.user + times.system)


def _peak_bytes(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench.agent", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=10.0, help="of hits; default: %(default)s")
    parser.add_argument("--models", type=int, default=20, help="to prewarm; default: %(default)s")
    parser.add_argument("--size", type=parse_bytes, default=64 * MIB, help="of each; default: 64MiB")
    parser.add_argument("--times", type=int, default=3, help="of each; default: %(default)s")
    parser.add_argument("--blobs", type=int, default=5000, help="that the store has before; default: %(default)s")
    add_options(parser, "agent", cache="models and the store")
    return parser


if __name__ == "__main__":
    main()
