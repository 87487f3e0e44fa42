"""The configuration file: what it may say, what it may not, and what counts before it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import given

import modelcache.config.file
from modelcache.abc.ingest import Route
from modelcache.config import Config, Flag, Settings
from modelcache.config.file import ConfigFile, find_file
from modelcache.config.kinds import HIDDEN, Entry, Free, Kind, ListOf, MapOf, TableOf
from modelcache.config.resolving import Place, Resolved, expect_private, resolve
from modelcache.config.scalars import FLAG, SECRET, SIZE, TEXT, count
from modelcache.config.setting import setting
from modelcache.errors import BadConfig
from modelcache.units import GIB

HOME = {"HOME": "/home/you"}

Write = Callable[[str], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(text: str) -> Path:
        path = tmp_path / "config.toml"
        path.write_text(text, encoding="utf-8")
        path.chmod(0o600)
        return path

    return write


def refused(file: Path) -> BadConfig:
    with pytest.raises(BadConfig) as caught:
        Config.load(HOME, file=file)
    return caught.value


def test_what_a_file_says_is_taken_with_its_units(write: Write) -> None:
    file = write(
        '[store]\nmax_bytes = "10GiB"\nhigh_watermark = "70%"\n[fetch]\nrefresh_s = "1h30m"\nwrite_route = "direct"\nrequests = 3\n'
    )
    config = Config.load(HOME, file=file)

    assert (config.limits.max_bytes, config.limits.high_watermark, config.limits.low_watermark) == (10 * GIB, 0.7, 0.7)
    assert (config.refresh_s, config.write_route, config.engine.concurrency.most) == (5400, Route.DIRECT, 3)


def test_arguments_before_options_before_variables_before_the_file_before_defaults(write: Write) -> None:
    file = write("[fetch]\nrequests = 1\nrefresh_s = 1\nstall_timeout_s = 1\nconnect_timeout_s = 1\n")
    environ = HOME | dict.fromkeys(("MODELCACHE_REQUESTS", "MODELCACHE_REFRESH_S", "MODELCACHE_STALL_TIMEOUT_S"), "2")
    flags = {"fetch.requests": Flag("--requests", 3), "fetch.refresh_s": Flag("--refresh", "3s")}

    config = Config.load(environ, file=file, flags=flags, refresh_s=4.0)
    seen = {one.setting.key: (one.place, one.origin) for one in Settings.read(environ, file=file, flags=flags).values}

    assert (config.refresh_s, config.engine.concurrency.most, config.timeouts.stall_s, config.timeouts.connect_s) == (4, 3, 2, 1)
    assert config.retry.deadline_s == 300
    assert seen["fetch.requests"] == (Place.FLAG, "--requests")
    assert seen["fetch.stall_timeout_s"] == (Place.ENVIRONMENT, "MODELCACHE_STALL_TIMEOUT_S")
    assert seen["fetch.connect_timeout_s"] == (Place.FILE, f"{file}:5")
    assert seen["fetch.retry_deadline_s"] == (Place.DEFAULT, "default")


@pytest.mark.parametrize(
    ("text", "said", "hint"),
    [
        ("[store]\n\nmax_byte = 1\n", ":3: store.max_byte: there is no setting `store.max_byte`", "`store.max_bytes`"),
        ("requests = 1\n", ":1: requests: there is no setting", "`fetch.requests`"),
        ("[stoer]\nroot = '/x'\n", ": stoer: there is no setting `stoer`", "`store`"),
        ("store = 1\n", ":1: store: a whole number in place of the table `[store]`", "max_bytes"),
        ("[store]\nmax_bytes = true\n", ":2: store.max_bytes: true or false in place of a size such as `200GiB`", None),
        ("[store]\nhigh_watermark = '2GiB'\n", ":2: store.high_watermark: `2GiB` is not a share", None),
        ("[fetch]\nstall_timeout_s = 2024-01-01\n", ":2: fetch.stall_timeout_s: a date or time in place of a duration", None),
        ("[fetch]\nrefresh_s = 'ten'\n", ":2: fetch.refresh_s: `ten` is not a duration", "`10m`"),
        ("[fetch]\nrequests = '3'\n", ":2: fetch.requests: a text in place of a whole number", None),
        ("[fetch.requests]\nmost = 3\n", ": fetch.requests: a table in place of a whole number", None),
        ("[s3]\nanonymous = 1\n", ":2: s3.anonymous: a whole number in place of true or false", None),
        ("[s3]\nendpoint = 'host'\n", ":2: s3.endpoint: ", None),
        ("s3 = {\n", "not TOML", None),
        (f"s3 = {'[' * 100_000}\n", "not TOML", None),
    ],
)
def test_what_makes_no_sense_is_told_with_file_line_key_and_the_next_step(write: Write, text: str, said: str, hint: str | None) -> None:
    file = write(text)
    error = refused(file)

    assert error.message.startswith(str(file))
    assert said in error.message
    assert error.address == str(file)
    assert hint is None or hint in (error.hint or "")


def test_a_credential_in_a_url_is_never_shown_and_needs_a_private_file(write: Write) -> None:
    file = write('[proxy]\nhttp = "http://me:hunter2@proxy:3128"\n[s3]\nendpoint = "https://me:hunter2@host"\n')
    error = refused(file)
    assert "hunter2" not in f"{error} {error.as_dict()} {error.__cause__} {error.__context__}"

    file = write('[proxy]\nhttp = "http://me:hunter2@proxy:3128"\n')
    settings = Settings.read(HOME, file=file)
    assert settings.config().proxies.http == "http://me:hunter2@proxy:3128"
    assert "hunter2" not in str([one.setting.kind.plain(one.value) for one in settings.values])
    file.chmod(0o644)
    assert "`proxy.http` holds a secret" in refused(file).message
    file = write('[proxy]\nhttp = "http://proxy:3128"\n')
    file.chmod(0o644)
    assert Config.load(HOME, file=file).proxies.http == "http://proxy:3128"


def test_a_file_that_cannot_be_one(tmp_path: Path) -> None:
    assert "No such file" in refused(tmp_path / "absent").message
    assert "directory" in refused(tmp_path).message
    for name, data in {"latin": b"# \xe4", "large": b"#" * ((1 << 20) + 1)}.items():
        (tmp_path / name).write_bytes(data)
        assert str(tmp_path / name) == refused(tmp_path / name).address


def test_one_file_counts_the_named_one_then_the_users_then_the_machines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine, named = tmp_path / "machine.toml", tmp_path / "named.toml"
    users = tmp_path / "home/.config/modelcache/config.toml"
    elsewhere = tmp_path / "xdg/modelcache/config.toml"
    monkeypatch.setattr(modelcache.config.file, "MACHINE_FILE", machine)
    home = {"HOME": str(tmp_path / "home")}

    assert find_file(home, None) is None
    machine.touch()
    assert find_file(home, None) == machine
    assert find_file({}, None) == machine
    users.parent.mkdir(parents=True)
    users.touch()
    assert find_file(home, None) == users
    assert find_file(home | {"XDG_CONFIG_HOME": "relative"}, None) == users
    elsewhere.parent.mkdir(parents=True)
    elsewhere.touch()
    assert find_file(home | {"XDG_CONFIG_HOME": str(tmp_path / "xdg")}, None) == elsewhere
    assert find_file(home | {"MODELCACHE_CONFIG": str(named)}, None) == named
    assert find_file(home | {"MODELCACHE_CONFIG": "/low"}, named) == named
    assert Config.load(home | {"MODELCACHE_CONFIG": os.devnull}) == Config.load(home)
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may read everything, so the answer is given here
    assert find_file(home, None) == users  # and opening it says what is wrong
    assert find_file({}, None) is None


# -- tables and lists ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Door:
    of: str
    token: str | None = None
    width: int = 1

    def __post_init__(self) -> None:
        if self.width == 7:
            raise BadConfig("no door is 7 wide")


DOOR = TableOf(
    (
        Entry("from", TEXT, "what it is of", required=True, argument="of"),
        Entry("token", SECRET, "the key"),
        Entry("width", count(1, 9), "how wide"),
    ),
    Door,
)


@dataclass(frozen=True)
class House:
    doors: tuple[Door, ...] = ()
    headers: dict[str, dict[str, str]] | None = None
    options: dict[str, dict[str, object]] | None = None


HOUSE = (
    setting("door", "doors", ListOf(DOOR), "DOORS", "the doors"),
    setting("http.headers", "headers", MapOf(MapOf(SECRET)), "HEADERS", "by host"),
    setting("options", "options", MapOf(Free()), "OPTIONS", "by scheme"),
)


def built(file: Path | None, **environ: str) -> list[Resolved]:
    opened = None if file is None else ConfigFile.read(file, [one.key for one in HOUSE])
    found = resolve(HOUSE, House(), environ, opened, {})
    if opened is not None:
        expect_private(opened, found)
    return found


def test_tables_and_lists_come_from_the_file_or_as_json_from_a_variable(write: Write) -> None:
    file = write(
        '[[door]]\nfrom = "oak"\ntoken = "hunter2"\n[[door]]\nfrom = "glass"\nwidth = 3\n'
        '[http.headers."host:1"]\nAuthorization = "hunter2"\n[options.abfs]\nkey = "hunter2"\nretries = { most = 3 }\n'
    )
    doors, headers, options = built(file)

    assert doors.value == (Door("oak", "hunter2"), Door("glass", None, 3))
    assert headers.value == {"host:1": {"Authorization": "hunter2"}}
    assert options.value == {"abfs": {"key": "hunter2", "retries": {"most": 3}}}
    assert doors.setting.kind.plain(doors.value) == [{"from": "oak", "token": HIDDEN, "width": 1}, {"from": "glass", "width": 3}]
    assert headers.setting.kind.plain(headers.value) == {"host:1": {"Authorization": HIDDEN}}
    assert options.setting.kind.plain(options.value) == {"abfs": {"key": HIDDEN, "retries": HIDDEN}}

    assert built(file, DOORS='[{"from": "iron"}]')[0].value == (Door("iron"),)
    for text in ("[hunter2", "[" * 100_000):
        with pytest.raises(BadConfig, match="DOORS: not the JSON of a list"):
            built(file, DOORS=text)
    file.chmod(0o604)
    with pytest.raises(BadConfig, match="`door` holds a secret"):
        built(file)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('[[door]]\nfrom = "a"\n[[door]]\nform = "b"\n', "door: `2.`: no key `form` here"),
        ("[[door]]\nwidth = 1\n", "door: `1.`: the key `from` is missing"),
        ('[[door]]\nfrom = "a"\nwidth = 7\n', "door: `1.`: no door is 7 wide"),
        ('[[door]]\nfrom = "a"\nwidth = "7"\n', "door: `1.`: `width`: a text in place of"),
        ("[door]\n", "door: a table in place of a list"),
        ("[http.headers]\nhost = 1\n", "http.headers: `host`: a whole number in place of a table"),
    ],
)
def test_a_mistake_inside_a_table_is_told_with_its_place(write: Write, text: str, said: str) -> None:
    with pytest.raises(BadConfig) as caught:
        built(write(text))
    assert said in caught.value.message


def test_a_secret_of_the_wrong_type_is_not_shown(write: Write) -> None:
    with pytest.raises(BadConfig) as caught:
        built(write('[[door]]\nfrom = "a"\ntoken = 4711\n'))
    assert "4711" not in f"{caught.value} {caught.value.as_dict()}"


KINDS: list[Kind] = [SIZE, FLAG, TEXT, DOOR, ListOf(DOOR), MapOf(FLAG), Free()]
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.dates(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["from", "token", "width", "x"]), inner, max_size=3),
)


@given(st.sampled_from(KINDS), VALUES)
def test_whatever_toml_says_is_a_value_or_a_bad_config(kind: Kind, value: object) -> None:
    try:
        read = kind.of_toml(value)
    except BadConfig:
        return
    json.dumps(kind.plain(read))
    assert kind.of_toml(value) == read
