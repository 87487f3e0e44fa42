"""`python -m daemonset`: the agent in the foreground, until SIGTERM or SIGINT."""

from __future__ import annotations

import argparse
import gc
import logging
import resource
import signal
import sys
import threading
from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path

import daemonset.installed  # noqa: F401  first: it ends with a sentence where the extra isn't installed
from daemonset import kubelet, logs
from daemonset.cluster import Membership
from daemonset.reviews import DEADLINE_S, Admit, Reviews, by, nobody
from daemonset.scrubbing import DAY_S, ScrubBudget
from daemonset.server import Agent, Sockets, Volumes, Watching
from daemonset.spans import NO_SPANS, OtelSpans
from daemonset.volumes import GRACE_S as VOLUME_GRACE_S
from daemonset.watermarks import Kubelet
from modelcache.config import AGENT_SOCKET, Config
from modelcache.config.cluster import ACCOUNT, api_server_url
from modelcache.errors import BadConfig, ModelCacheError
from modelcache.k8s.api import WATCH_SILENCE_S, ApiPlace, ApiServer
from modelcache.transport import Target, Timeouts
from modelcache.units import format_bytes, parse_bytes

GRACE_S = 25.0
"""Under kubelet's default of 30 s between SIGTERM and SIGKILL."""
GARBAGE = 20_000
"""New containers after which it is looked for: a hit makes some 200 that go by themselves, and a look at the oldest took 2 ms."""
PROXY = "proxy"
REVIEW_TIMEOUTS = Timeouts(connect_s=DEADLINE_S / 2, stall_s=DEADLINE_S / 2)


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0 after an orderly end, 1 with a sentence on stderr if the agent can't run."""
    options = _parser().parse_args(arguments)
    with logs.logging_to(form=options.log, level=options.log_level) as recent:
        try:
            return _run(options, recent)
        except Exception:  # a traceback may hold what the log hides
            logging.getLogger("daemonset").exception("the agent has failed")
            return 1


def _run(options: argparse.Namespace, recent: logs.Recent) -> int:
    ending = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ending.set())
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]  # the usual soft limit of 1,024 is for who uses select(2)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        flags = {} if options.root is None else {"root": options.root}
        config = Config.load(file=options.config, **flags)
        if options.max_bytes is not None:
            config = replace(config, limits=replace(config.limits, max_bytes=options.max_bytes))
        admin = options.socket or config.agent_socket or AGENT_SOCKET
        sockets, volumes = Sockets(admin, options.driver_socket), Volumes(options.pods_dir, options.volume_grace)
        scrub = ScrubBudget(options.scrub_per_day, options.scrub_rate, options.scrub_every)
        with ExitStack() as stack:
            watching = _watching(options, recent, stack)
            agent = Agent(
                config,
                sockets,
                grace_s=options.grace,
                http=options.http,
                volumes=volumes,
                scrub=scrub,
                watching=watching,
                membership=_membership(options),
                kubelet=_kubelet(options, stack),
            )
            stack.enter_context(agent)
            _settle()
            logging.getLogger("daemonset").info("serving %s at %s", config.root, admin, extra={"event": "started"})
            ending.wait()
    except ModelCacheError as error:
        sys.stderr.write(f"error: {error}\n" + (f"hint: {error.hint}\n" if error.hint else ""))
        return 1
    return 0


def _settle() -> None:
    """All that is here by now stays: garbage is looked for in what comes after it, and not in the middle of every third call."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(GARBAGE)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m daemonset", description="The node's agent. Settings: docs/operations.md.")
    parser.add_argument("--root", type=_path, help="the store's directory; default: that of the settings")
    parser.add_argument("--config", type=_path, help="configuration file (TOML)")
    parser.add_argument("--max-bytes", type=_size, metavar="SIZE", help="cap over all that the store holds; default: that of the settings")
    parser.add_argument("--socket", type=_path, help="the administrator's; default: that of the settings (agent.socket)")
    parser.add_argument("--driver-socket", type=_path, help="the CSI driver's; default: none")
    parser.add_argument("--http", type=_address, metavar="ADDRESS:PORT", help="for health, metrics and the page; default: none")
    parser.add_argument("--grace", type=_grace, default=GRACE_S, metavar="SECONDS", help="to end what is under way; default: %(default)s")
    parser.add_argument("--pods-dir", type=_path, help="kubelet's directory of pods, such as /var/lib/kubelet/pods; default: no kubelet")
    parser.add_argument(
        "--volume-grace",
        type=_grace,
        default=VOLUME_GRACE_S,
        metavar="SECONDS",
        help="from a volume's lease to its mount; default: %(default)s",
    )
    for name, kind, default, what in (
        ("--scrub-per-day", _size, ScrubBudget.bytes_per_day, "read back from the disk and compared in a day; 0: nothing"),
        ("--scrub-rate", _rate, ScrubBudget.bytes_per_s, "in a second, while it does"),
    ):
        parser.add_argument(name, type=kind, default=default, metavar="SIZE", help=f"{what}; default: {format_bytes(default)}")
    parser.add_argument(
        "--scrub-every",
        type=_seconds,
        default=ScrubBudget.every_s,
        metavar="SECONDS",
        help="from one part of it to the next; default: %(default)s",
    )
    _add_kubelet(parser)
    _add_watching(parser)
    _add_membership(parser)
    return parser


def _add_kubelet(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--kubelet-eviction",
        metavar="SIGNAL=VALUE,…",
        help="kubelet's thresholds (nodefs.available, imagefs.available, imageGCHighThresholdPercent) where the store shares its disk",
    )
    parser.add_argument(
        "--kubelet-configz", metavar="proxy|URL", help="ask kubelet itself, through the API server or at https://HOST:10250; default: no"
    )
    parser.add_argument(
        "--images-dir",
        type=Path,
        help="the container runtime's directory, such as /var/lib/containerd, where imagefs is; default: by its size",
    )
    parser.add_argument(
        "--kubelet-ca", type=_path, metavar="FILE", help="what vouches for kubelet at a URL; default: as for the API server"
    )


def _add_watching(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--log", choices=logs.FORMATS, default=logs.JSON, help="a JSON object a line, or text; default: %(default)s")
    parser.add_argument("--log-level", choices=logs.LEVELS, default="info", help="default: %(default)s")
    parser.add_argument("--http-socket", type=_path, help="the same as --http for who may open this socket, without a token; default: none")
    parser.add_argument(
        "--otlp", metavar="URL", help="OpenTelemetry collector for spans, as http://localhost:4318/v1/traces; default: none"
    )


def _add_membership(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--node-name", metavar="NAME", help="follow the LocalModelNode of this name; default: no cluster is followed")
    parser.add_argument("--secrets-namespace", metavar="NAMESPACE", help="of the secrets that cluster caches name; default: they have none")
    parser.add_argument("--api-server", type=_url, metavar="URL", help="default: that of the pod this runs in")
    parser.add_argument("--api-ca", type=_path, metavar="FILE", help="what vouches for it; default: the pod's")
    parser.add_argument("--api-token", type=_path, metavar="FILE", help="of the bearer token, read anew each time; default: the pod's")
    parser.add_argument(
        "--watch-silence",
        type=_seconds,
        default=WATCH_SILENCE_S,
        metavar="SECONDS",
        help="without a byte, after which a watch is begun anew; default: %(default)s",
    )


def _api_place(options: argparse.Namespace) -> ApiPlace | None:
    """None: there is no cluster."""
    url = options.api_server or api_server_url()
    return None if url is None else ApiPlace(url, options.api_ca or ACCOUNT / "ca.crt", options.api_token or ACCOUNT / "token")


def _watching(options: argparse.Namespace, recent: logs.Recent, stack: ExitStack) -> Watching:
    """Who looks. What the stack holds is needed as long as the agent is."""
    admit: Admit = nobody
    place = _api_place(options)
    if place is not None and options.http is not None:
        admit = by(Reviews(stack.enter_context(closing(ApiServer(place, timeouts=REVIEW_TIMEOUTS)))))
    spans = (lambda: NO_SPANS) if options.otlp is None else (lambda: OtelSpans.to(options.otlp))
    return Watching(recent.entries, spans, admit, options.http_socket)


def _membership(options: argparse.Namespace) -> Membership | None:
    """Raises BadConfig: a cluster is to be followed, and nobody says which."""
    if options.node_name is None:
        return None
    place = _api_place(options)
    if place is None:
        raise BadConfig("--node-name follows a cluster, and this is no pod of one", hint="--api-server URL")
    return Membership(options.node_name, place, options.secrets_namespace, options.watch_silence)


def _kubelet(options: argparse.Namespace, stack: ExitStack) -> Kubelet:
    """What is known of it. What the stack holds is needed as long as the agent is. Raises BadConfig."""
    flags = () if options.kubelet_eviction is None else kubelet.parse(options.kubelet_eviction)
    told, images = options.kubelet_configz, options.images_dir
    if images is not None and (told is None or not images.is_dir()):
        why = "nothing is asked that depends on where images are" if told is None else "there is no such directory"
        raise BadConfig(f"--images-dir: {why}", got=str(images), hint="--kubelet-configz, and mount the directory into the agent")
    if told is None:
        return Kubelet(flags)
    place, below = _api_place(options), ""
    if told == PROXY:
        if options.node_name is None:
            raise BadConfig("kubelet is asked through the API server by the name of its node", hint="--node-name NAME")
        below = f"/api/v1/nodes/{options.node_name}/proxy"
    elif told.startswith("https://"):
        token = options.api_token or ACCOUNT / "token"
        place = ApiPlace(told, options.kubelet_ca or options.api_ca or ACCOUNT / "ca.crt", token)
    else:
        raise BadConfig("kubelet's configuration is asked for at an https URL, or through the API server", got=told, hint=PROXY)
    if place is None:
        raise BadConfig("kubelet is asked through the API server, and this is no pod of a cluster", hint="--api-server URL")
    server = stack.enter_context(closing(ApiServer(place)))
    return Kubelet(flags, lambda path, cancel: server.get(below + path, cancel), images)


def _size(text: str) -> int:
    try:
        return parse_bytes(text)
    except BadConfig as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _rate(text: str) -> int:
    size = _size(text)
    if size == 0:
        raise argparse.ArgumentTypeError("it is over 0")
    return size


def _path(text: str) -> Path:
    """Absolute: clients are told of it, wherever they are."""
    if not text:
        raise argparse.ArgumentTypeError("it names nothing")
    return Path(text).absolute()


def _url(text: str) -> str:
    try:
        Target.parse(text)
    except ModelCacheError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return text


def _seconds(text: str) -> float:
    seconds = _grace(text)
    if seconds == 0:
        raise argparse.ArgumentTypeError("it is over 0")
    return seconds


def _grace(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"`{text}` is no number of seconds") from None
    if not 0 <= seconds <= DAY_S:
        raise argparse.ArgumentTypeError("it is at least 0 and at most a day")
    return seconds


def _address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    address = host.strip("[]")
    if not address or not port.isdecimal() or int(port) > 65535:  # without an address it would be every network's
        raise argparse.ArgumentTypeError(f"`{text}` is no ADDRESS:PORT")
    return address, int(port)


if __name__ == "__main__":
    raise SystemExit(main())
