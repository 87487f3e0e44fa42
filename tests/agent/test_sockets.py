"""Where the agent answers: its sockets are its owner's alone from their first moment, whatever the process's mask."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from daemonset import sockets
from daemonset.reviews import everybody
from daemonset.server import Agent, Sockets, Watching
from daemonset.web import Pages, Web
from modelcache.agent.client import AgentClient
from modelcache.config import Config
from modelcache.errors import BadConfig, StoreBusy
from modelcache.testing.store_fixtures import NO_LIMITS


@contextmanager
def mask(bits: int) -> Iterator[None]:
    before = os.umask(bits)
    try:
        yield
    finally:
        assert os.umask(before) == bits  # nobody changed it, for a moment or for good


def bound(path: Path) -> socket.socket:
    made = socket.socket(socket.AF_UNIX)
    try:
        with sockets.private(path) as place:
            made.bind(str(place))
            made.listen()
    except BaseException:
        made.close()
        raise
    return made


def test_a_socket_appears_with_its_mode(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    link, path = os.link, tmp_path / "a.sock"

    def look_and_link(source: Path, target: Path) -> None:
        seen.append(source.stat().st_mode & 0o777)
        link(source, target)

    monkeypatch.setattr(os, "link", look_and_link)
    monkeypatch.delattr(os, "umask")
    with sockets.private(path) as place, socket.socket(socket.AF_UNIX) as made:
        made.bind(str(place))
        made.listen()
        assert place.parent.stat().st_mode & 0o777 == 0o700
        assert not path.exists()
    assert seen == [0o600]
    assert [each.name for each in tmp_path.iterdir()] == ["a.sock"]


def test_an_agent_s_sockets_are_its_owner_s_whatever_the_mask(tmp_path: Path) -> None:
    config = Config.load({"HOME": "/nonexistent"}, root=tmp_path / "store", limits=NO_LIMITS)
    paths = [tmp_path / name for name in ("a.sock", "d.sock", "h.sock")]
    with mask(0), Agent(config, Sockets(*paths[:2]), grace_s=1.0, watching=Watching(http_socket=paths[2])):
        assert [path.stat().st_mode & 0o777 for path in paths] == [0o600] * 3
        with AgentClient(paths[0]) as client:
            assert not client.status(brief=True).draining
        with socket.socket(socket.AF_UNIX) as browser:
            browser.connect(str(paths[2]))
    assert [each.name for each in tmp_path.iterdir()] == ["store"]


def test_what_a_killed_agent_left_goes_and_what_another_one_binds_stays(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "a.sock"
    no_agents = tmp_path / ".a.sock.notes"
    no_agents.touch()
    with ExitStack() as stack:
        left = tmp_path / ".a.sock.leftover"
        left.mkdir()
        with socket.socket(socket.AF_UNIX) as killed:
            killed.bind(str(left / sockets.NAME))
        stack.enter_context(bound(path)).close()
        with sockets.private(tmp_path / "a.sock.other") as theirs, sockets.private(tmp_path / "b.sock") as of_another_name:
            sockets.prepare(path)
            assert theirs.parent.is_dir()
            assert of_another_name.parent.is_dir()
            assert not left.exists()
            assert not path.exists()
            assert no_agents.exists()
            [said] = {each.getMessage() for each in caplog.records}
            assert said == f"what a killed agent left can't be removed: {no_agents} (Not a directory)"
            for place in (theirs, of_another_name):
                place.touch()


def test_of_two_that_begin_at_once_one_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.sock"
    with bound(path):
        with pytest.raises(StoreBusy):
            sockets.prepare(path)
        with pytest.raises(StoreBusy):
            bound(path)
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(sockets, "prepare", lambda path: None)
            with pytest.raises(StoreBusy):
                Web(path, Pages({}, {}), everybody)
    assert [each.name for each in tmp_path.iterdir()] == ["a.sock"]


def test_a_name_that_can_t_be_bound_is_refused(tmp_path: Path) -> None:
    longest = tmp_path / ("x" * (sockets.MAX_PATH_BYTES - len(os.fsencode(tmp_path)) - 1))
    sockets.prepare(longest)
    with bound(longest):
        pass
    with pytest.raises(BadConfig, match=f"at most {sockets.MAX_PATH_BYTES} bytes"):
        sockets.prepare(longest.with_name(f"{longest.name}x"))
    (tmp_path / "file").touch()
    with pytest.raises(BadConfig, match="no socket can be made"):
        bound(tmp_path / "file" / "a.sock")
    for nowhere in (tmp_path / "file" / "a.sock", Path("/proc/none/a.sock")):
        with pytest.raises(BadConfig, match="no socket can be made"):
            sockets.prepare(nowhere)
