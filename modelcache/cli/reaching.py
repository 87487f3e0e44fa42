"""Whether a command asks the node's agent, and why not. Imported by `lazy` alone."""

from __future__ import annotations

import os
import socket
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from modelcache.cli import lazy
from modelcache.cli.output import Output
from modelcache.config import Resolved, Settings
from modelcache.config.file import MACHINE_FILE
from modelcache.config.resolving import Place
from modelcache.errors import AgentUnreachable, BadConfig, ModelCacheError, NotInstalled

if TYPE_CHECKING:
    from modelcache.agent.remote import RemoteCache

SOCKET, ROOT = "agent.socket", "store.root"
CONNECT_S = 5.0
NOT_OF_FETCHES = (SOCKET, ROOT, "gpu.")
"""Settings that say nothing about how models are fetched; beginnings of keys."""
CREDENTIALS = ("AWS_", "AZURE_", "CLOUDSDK_CONFIG", "FSSPEC_", "GOOGLE_")
"""Beginnings of variables that the SDKs of the origins read themselves."""
OF_SCHEME = {
    "s3.": "s3",
    "AWS_": "s3",
    "gs.": "gs",
    "CLOUDSDK_CONFIG": "gs",
    "GOOGLE_": "gs",
    "hf.": "hf",
    "fsspec.": "",
    "AZURE_": "",
    "FSSPEC_": "",
}
"""Whose business a setting or a variable is, by its beginning: a scheme's, or (empty) that of those which fsspec serves. Cloud machines
have AWS_REGION and its like in every environment, and it says nothing about `hf://`."""
OWN_SCHEMES = frozenset({"s3", "gs", "hf", "http", "https", "file", "pvc"})
"""Schemes whose origins no SDK reaches that reads others' variables; any other one may."""


def reached(settings: Settings, output: Output, fetches_with: Mapping[str, str], schemes: Collection[str]) -> RemoteCache | None:
    """The agent that these settings name; None where the store is to be asked directly. The caller closes it.

    The usual socket, which nobody named, is for those who may open it and mean the agent's store; all others go to the store.

    Args:
        fetches_with: the process's variables.
        schemes: of the URIs that this very command has fetched; none: it asks no origin.

    Raises:
        AgentUnreachable: nobody answers at a socket that was named.
        BadConfig: the agent that was named keeps another store than the settings name, or what it takes isn't installed.
    """
    place = setting(settings, SOCKET)
    if place.value is None:
        return None
    try:
        found = of_this_root(at_socket(settings), settings)
    except (AgentUnreachable, BadConfig, NotInstalled) as error:
        if is_named(place):
            raise
        if os.path.exists(place.value):
            _say(output, str(error), aloud=False)
        return None
    own = own_settings(settings, fetches_with, schemes) if schemes else []
    if not own:
        return found
    found.client.close()
    _say(output, f"the agent doesn't know what this command was given ({', '.join(own)})", aloud=is_named(place))
    return None


def at_socket(settings: Settings) -> RemoteCache:
    """The agent at the socket of these settings, whatever it keeps. The caller closes it. Raises AgentUnreachable, BadConfig,
    NotInstalled."""
    place = setting(settings, SOCKET)
    if place.value is None:
        raise BadConfig("these settings name no agent", got="none", hint="name its socket with --agent or MODELCACHE_AGENT")
    _expect_listener(place.value)
    return lazy.remote_cache(place.value)


def is_named(place: Resolved) -> bool:
    """Whether somebody wrote down which agent is meant. A file that repeats the default, as docs/config.example.toml does, did not."""
    return place.place in (Place.FLAG, Place.ENVIRONMENT) or (place.place is Place.FILE and place.value != place.default)


def own_settings(settings: Settings, environ: Mapping[str, str], schemes: Collection[str]) -> list[str]:
    """What says how this very command reaches origins of these schemes or fills its store, by name: an agent has settings of its own.

    The machine's file is the agent's, too.
    """
    variables = (name for name in environ if name.startswith(CREDENTIALS) and environ[name] and _concerns(name, schemes))
    return list(dict.fromkeys([*_given(settings, schemes), *variables]))


def _concerns(name: str, schemes: Collection[str]) -> bool:
    """Whether a key or a variable may say something about origins of one of these schemes."""
    if not OWN_SCHEMES.issuperset(schemes):
        return True
    return next((scheme in schemes for beginning, scheme in OF_SCHEME.items() if name.startswith(beginning)), True)


def _given(settings: Settings, schemes: Collection[str]) -> Iterator[str]:
    for one in settings.values:
        if one.place is Place.DEFAULT or one.value == one.default or one.setting.key.startswith(NOT_OF_FETCHES):
            continue
        if one.place is not Place.FLAG and not _concerns(one.setting.key, schemes):
            continue
        if one.place is not Place.FILE:
            yield one.name
        elif one.file is not None and one.file.path != MACHINE_FILE:
            yield f"{one.setting.key} in {one.name}"


def setting(settings: Settings, key: str) -> Resolved:
    """One setting, and where its value comes from."""
    return next(one for one in settings.values if one.setting.key == key)


def _expect_listener(path: Path) -> None:
    """Raises AgentUnreachable. Before grpc is imported, which takes longer than all of a command that needs no agent."""
    try:
        with socket.socket(socket.AF_UNIX) as probe:
            probe.settimeout(CONNECT_S)
            probe.connect(str(path))
    except OSError as error:
        said = f"nobody answers at the agent's socket ({error.strerror or error})"
        hint = f"{AgentUnreachable.default_hint}; most commands do without it, by `--agent none`"
        raise AgentUnreachable(said, address=str(path), hint=hint) from None


def of_this_root(found: RemoteCache, settings: Settings) -> RemoteCache:
    """The agent, if it keeps the root of these settings; else it is closed.

    Raises:
        AgentUnreachable: it is ending, and nobody named it.
        BadConfig: it keeps another store.
    """
    root, place = setting(settings, ROOT), setting(settings, SOCKET)
    try:
        if os.path.realpath(root.value) != os.path.realpath(found.root):
            raise BadConfig(
                f"the agent at `{found.socket}` keeps another store than `{root.value}`",
                address=str(found.socket),
                expected=str(root.value),
                got=str(found.root),
                hint=f"name its root, too: `--root {found.root}`",
            )
        if found.greeting.draining and not is_named(place):
            raise AgentUnreachable("the agent is ending", address=str(found.socket))
    except ModelCacheError:
        found.client.close()
        raise
    return found


def _say(output: Output, why: str, *, aloud: bool) -> None:
    """Why the store is asked. `aloud`: even without --verbose, for the agent was named."""
    if aloud or output.style.verbose:
        output.note(f"straight to the store: {why}")
        output.event("store", {"why": why})
