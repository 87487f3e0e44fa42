"""Every kind of credential through the whole cache and the command line, in success and in each failure: shown nowhere."""

from __future__ import annotations

import base64
import errno
import io
import json
import logging
import os
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

import pytest

from modelcache import Config, ModelCache, Refresh
from modelcache.chunks import CHUNK_BYTES
from modelcache.errors import ModelCacheError
from modelcache.patience import Deadline
from modelcache.sources.http import HttpOptions
from modelcache.sources.retrying import RetryLimits
from modelcache.testing import faults
from modelcache.testing.crash import ROOM_TAKERS, FullDisk, interposed
from modelcache.testing.fault_server import Call, Fault, FaultServer
from modelcache.testing.servers import SeaweedFS
from modelcache.testing.servers.ports import free_ports
from modelcache.testing.store_filling import content, digest_of
from modelcache.testing.store_fixtures import NO_LIMITS
from modelcache.transport import Proxies, Timeouts

DATA = content(CHUNK_BYTES + 1000, seed=7)  # an S3 object of one chunk is not asked for by ranges
OBJECT = "/models/tiny/weights.safetensors"
USER, PASSWORD = "alice", "p4ssw0rd-of-userinfo/+"
SECRET_KEY = "s3cret/key+of+the+object+store"
SESSION_TOKEN = "s3ssion-t0ken//of+the/object+store=="
SIGNATURE = "51gnature0c0ffee"
BEARER = "b3arer-t0ken-of-a-header"
PROXY_PASSWORD = "p4ssw0rd-of-the-proxy"
DEADLINE_S = 60
LIMITS = RetryLimits(deadline_s=5.0, attempts=2, first_contact_attempts=2, base_s=0.001, cap_s=0.002)


def forms_of(secret: str) -> set[str]:
    """A secret as it may be written: as it is, percent-encoded, in base64, in JSON, as a repr."""
    raw = secret.encode()
    encoded = {base64.b64encode(raw).decode(), base64.urlsafe_b64encode(raw).decode(), quote(secret, safe=""), quote(secret)}
    return {secret, json.dumps(secret)[1:-1], repr(secret)[1:-1], *encoded}


SECRETS = (PASSWORD, SECRET_KEY, SESSION_TOKEN, SIGNATURE, BEARER, PROXY_PASSWORD, f"{USER}:{PASSWORD}", f"proxy:{PROXY_PASSWORD}")


def shown_secrets(text: str, secrets: tuple[str, ...] = SECRETS) -> list[str]:
    return [form for secret in secrets for form in forms_of(secret) if form in text]


class Witness(logging.Handler):
    """Everything that was logged, at any level, by anybody; and whatever else is put into `seen`."""

    def __init__(self) -> None:
        super().__init__(logging.NOTSET)
        self.seen = io.StringIO()

    def emit(self, record: logging.LogRecord) -> None:
        self.saw(record.name, record.getMessage(), repr(record.args), repr(record.__dict__))
        if record.exc_info is not None and record.exc_info[1] is not None:
            self.saw(*traceback.format_exception(record.exc_info[1]))

    def saw(self, *things: object) -> None:
        print(*things, sep="\n", file=self.seen)

    def saw_error(self, error: BaseException) -> None:
        """With all that leads to it, whether or not a traceback would show it."""
        todo: list[BaseException | None] = [error]
        known: set[int] = set()
        while todo:
            each = todo.pop()
            if each is None or id(each) in known:
                continue
            known.add(id(each))
            self.saw(str(each), repr(each), repr(each.args), repr(getattr(each, "__dict__", None)), *traceback.format_exception(each))
            if isinstance(each, ModelCacheError):
                self.saw(json.dumps(each.as_dict()))
            todo += [each.__cause__, each.__context__]

    def saw_files(self, directory: Path) -> None:
        for path in sorted(directory.rglob("*")):
            self.saw(str(path), os.listxattr(path))
            if path.is_file():
                self.saw(path.read_bytes().decode("latin-1"))

    def check(self, secrets: tuple[str, ...] = SECRETS) -> None:
        text = self.seen.getvalue()
        assert len(text) > 500, "hardly anything was seen"
        assert shown_secrets(text, secrets) == []


@pytest.fixture
def witness(monkeypatch: pytest.MonkeyPatch) -> Iterator[Witness]:
    """Listens at the root of all loggers, at the level of debugging."""
    monkeypatch.setattr(logging.getLogger("botocore"), "level", logging.NOTSET)
    root = logging.getLogger()
    handler = Witness()
    monkeypatch.setattr(root, "level", logging.DEBUG)
    root.addHandler(handler)
    try:
        yield handler
    finally:
        root.removeHandler(handler)


# -- ways to an origin, each with every credential that it takes --------------------------------------------------------


@dataclass(frozen=True)
class Way:
    """How a model at a `FaultServer` is asked for.

    Attributes:
        uri: with what is secret in it.
        place: what the server calls it.
        environ: of the configuration.
    """

    uri: str
    place: str
    environ: Mapping[str, str] = field(default_factory=dict)

    def config(self, root: Path) -> Config:
        http = HttpOptions(headers={"127.0.0.1": {"Authorization": f"Bearer {BEARER}"}})
        if "@" in self.uri:
            http = HttpOptions()
        timeouts = Timeouts(connect_s=5.0, stall_s=0.2)
        return Config.load({"HOME": str(root), **self.environ}, root=root, http=http, retry=LIMITS, timeouts=timeouts, limits=NO_LIMITS)


def by_userinfo(port: int, digest: str) -> Way:
    return Way(f"http://{USER}:{quote(PASSWORD, safe='')}@127.0.0.1:{port}{OBJECT}?part=1&X-Amz-Signature={SIGNATURE}{digest}", OBJECT)


def by_header(port: int, digest: str) -> Way:
    return Way(f"http://127.0.0.1:{port}{OBJECT}?token={quote(SESSION_TOKEN, safe='')}&sig={SIGNATURE}{digest}", OBJECT)


def by_proxy(port: int, digest: str) -> Way:
    proxy = {"http_proxy": f"http://proxy:{PROXY_PASSWORD}@127.0.0.1:{port}"}
    return Way(f"http://models.invalid{OBJECT}?sig={SIGNATURE}{digest}", f"http://models.invalid{OBJECT}", proxy)


def s3_environ(port: int) -> dict[str, str]:
    return {"MODELCACHE_S3_ENDPOINT": f"http://127.0.0.1:{port}", "AWS_REGION": "us-east-1"}


def by_s3_environment(port: int, digest: str) -> Way:
    return Way(f"s3:/{OBJECT}{digest}", OBJECT, s3_environ(port))


def by_s3_uri(port: int, digest: str) -> Way:
    return Way(f"s3://AKIDEXAMPLE:{quote(SECRET_KEY, safe='')}@{OBJECT[1:]}{digest}", OBJECT, s3_environ(port))


WAYS = (by_userinfo, by_header, by_proxy, by_s3_environment, by_s3_uri)
MakeWay = Callable[[int, str], Way]


@pytest.fixture(autouse=True)
def s3_credential(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the SDK's chain finds."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIDEXAMPLE")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET_KEY)
    monkeypatch.setenv("AWS_SESSION_TOKEN", SESSION_TOKEN)


# -- failures -----------------------------------------------------------------------------------------------------------


def on_ranges(fault: Fault) -> Fault:
    """A fault of the bytes: the listing is answered properly."""

    def only(call: Call) -> None:
        asked = call.received.headers.get("range", "bytes=0-0")
        (call.reply(call.proper) if asked == "bytes=0-0" or call.received.method == "HEAD" else fault(call))

    return only


ELSEWHERE = "http://localhost:9/elsewhere?X-Amz-Signature=of-the-redirect"
ANSWERS: dict[str, Fault] = {
    "401": faults.status(401, {"WWW-Authenticate": "Basic"}),
    "403": faults.status(403, body=b"<Error><Code>AccessDenied</Code><Message>no</Message></Error>"),
    "403 later": on_ranges(faults.status(403)),
    "404": faults.status(404),
    "404 later": on_ranges(faults.status(404)),
    "412": on_ranges(faults.status(412)),
    "416": on_ranges(faults.status(416)),
    "429": faults.status(429, {"Retry-After": "0"}),
    "500": faults.status(500, body=b"<Error><Code>InternalError</Code></Error>"),
    "503 later": on_ranges(faults.status(503)),
    "redirect": faults.redirect(ELSEWHERE),
    "redirect later": on_ranges(faults.redirect(ELSEWHERE)),
    "cut": on_ranges(faults.cut_short(0)),
    "reset": on_ranges(faults.reset(0)),
    "stall": on_ranges(faults.stalled(0)),
    "no head": on_ranges(faults.stalled_head),
    "wrong bytes": on_ranges(faults.wrong_bytes),
    "other range": on_ranges(faults.other_range(5)),
    "whole": on_ranges(faults.ignored_range),
    "gzip": on_ranges(faults.gzipped),
    "nonsense": faults.raw(b"SSH-2.0-OpenSSH_9.6\r\n"),
}


def ask(way: Way, root: Path, witness: Witness, *, keeps: bool = True) -> ModelCacheError | None:
    """Ensure it through a new cache, show everything that can be shown, and look at what is left; the error, if any."""
    error = None
    with ModelCache(config=way.config(root)) as cache:
        witness.saw(repr(cache), repr(cache.config), str(cache.config), repr(cache._registry), repr(cache._store))
        try:
            snapshot = cache.ensure(way.uri, refresh=Refresh.ALWAYS, progress=lambda progress: witness.saw(progress))
            witness.saw(snapshot, cache.find(way.uri), cache.list(), cache.pin(way.uri), cache.usage(), cache.manifest(way.uri))
            if keeps:
                cache.unpin(way.uri)
                witness.saw(cache.verify(way.uri), cache.collect(dry_run=True))
        except ModelCacheError as raised:
            error = raised
            witness.saw_error(raised)
        witness.saw_files(root)
    return error


@pytest.mark.parametrize("make", WAYS)
@pytest.mark.parametrize("answer", ANSWERS)
def test_a_failure_shows_no_secret(tmp_path: Path, witness: Witness, make: MakeWay, answer: str) -> None:
    with FaultServer() as server:
        way = make(server.port, f"#sha256={digest_of(DATA).hex}")
        server.put(way.place, DATA)
        server.fail(way.place, ANSWERS[answer])
        error = ask(way, tmp_path / "root", witness)
        assert any(shown_secrets(repr(received)) for received in server.received) or "s3" in make.__name__, "no credential was sent"
    assert error is not None, "it was to fail"
    witness.check()


@pytest.mark.parametrize("make", WAYS)
def test_success_shows_no_secret(tmp_path: Path, witness: Witness, make: MakeWay) -> None:
    with FaultServer() as server:
        way = make(server.port, "")
        server.put(way.place, DATA)
        assert ask(way, tmp_path / "root", witness, keeps=False) is None
        assert ask(way, tmp_path / "root", witness) is None
    witness.check()


@pytest.mark.parametrize("make", WAYS)
def test_an_origin_that_is_not_there_shows_no_secret(tmp_path: Path, witness: Witness, make: MakeWay) -> None:
    [port] = free_ports(1)
    assert ask(make(port, ""), tmp_path / "root", witness) is not None
    witness.check()


@pytest.mark.parametrize("make", WAYS)
def test_a_store_that_fails_shows_no_secret(tmp_path: Path, witness: Witness, make: MakeWay) -> None:
    """At every change to the disk, in turn; what is left on it included."""
    with FaultServer() as server:
        way = make(server.port, "")
        server.put(way.place, DATA)
        with ModelCache(config=way.config(tmp_path / "root")):
            pass
        for at in range(1, 60, 4):
            with interposed(FullDisk(at, errno.ENOSPC, ROOM_TAKERS)):
                ask(way, tmp_path / "root", witness)
    witness.check()


@pytest.mark.parametrize(
    "uri",
    [
        f"http://{USER}:{PASSWORD}@[::1{OBJECT}",
        f"s3://{USER}:{PASSWORD}@",
        f"http://{USER}:{PASSWORD}@host:99999/x?X-Amz-Signature={SIGNATURE}",
        f"file://{USER}:{PASSWORD}@/tmp/x",
        f"nosuch://{USER}:{PASSWORD}@host/x?sig={SIGNATURE}",
        f"s3://{USER}@bucket/x",
        f"s3://bucket/x?X-Amz-Signature={SIGNATURE}",
        f"http://{USER}:{PASSWORD}@host/x#include=[&sig={SIGNATURE}",
        f"hf://{USER}:{PASSWORD}@org/model?X-Amz-Signature={SIGNATURE}",
    ],
)
def test_a_uri_that_can_t_be_read_shows_no_secret(tmp_path: Path, witness: Witness, uri: str) -> None:
    assert ask(Way(uri, ""), tmp_path / "root", witness) is not None
    witness.check()


def test_proxies_show_no_secret(tmp_path: Path, witness: Witness) -> None:
    for url in (f"https://proxy:{PROXY_PASSWORD}@host:1", f"proxy:{PROXY_PASSWORD}@host", f"http://proxy:{PROXY_PASSWORD}@host:x"):
        witness.saw(Proxies(http=url, https=url))
        error = ask(Way(f"http://127.0.0.1{OBJECT}", "", {"HTTP_PROXY": url}), tmp_path / "root", witness)
        assert error is not None
    witness.check()


# -- a process of the command line, on a real server ---------------------------------------------------------------------


@contextmanager
def command(arguments: list[str], environ: Mapping[str, str]) -> Iterator[subprocess.Popen[str]]:
    program = [sys.executable, "-X", "dev", "-c", "import sys; from modelcache.cli.main import main; sys.exit(main())", *arguments]
    pipe = subprocess.PIPE
    with subprocess.Popen(program, env={**os.environ, **environ}, stdin=pipe, stdout=pipe, stderr=pipe, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def saw_processes(witness: Witness, of: int) -> None:
    """The arguments of a process and of its children, as every user of the machine can read them."""
    with suppress(FileNotFoundError, ProcessLookupError):
        witness.saw(Path(f"/proc/{of}/cmdline").read_bytes())
        for children in Path(f"/proc/{of}/task").glob("*/children"):
            for child in children.read_text().split():
                saw_processes(witness, int(child))


def test_a_pull_of_the_command_line_shows_no_secret(tmp_path: Path, witness: Witness) -> None:
    """Its arguments are read while it waits for a server that stalls; then the server gives the bytes."""
    with FaultServer() as server:
        way = by_userinfo(server.port, "")
        server.put(OBJECT, DATA)
        server.fail(OBJECT, on_ranges(faults.stalled(10)), times=2)
        with command(["--root", str(tmp_path / "root"), "-v", "pull", "-"], {}) as process:
            assert process.stdin is not None
            process.stdin.write(f"{way.uri}\n")
            process.stdin.close()
            process.stdin = None
            deadline = Deadline.after(DEADLINE_S)
            while len(server.received) < 2 and not deadline.passed and process.poll() is None:
                with suppress(subprocess.TimeoutExpired):
                    process.wait(0.01)
            assert len(server.received) >= 2, "the pull did not come to its bytes"
            saw_processes(witness, process.pid)
    witness.saw_files(tmp_path / "root")
    witness.check()


@pytest.fixture
def model_on_s3(seaweedfs: SeaweedFS, bucket: str) -> str:
    for name in ("config.json", "weights.safetensors"):
        seaweedfs.put(bucket, f"m/{name}", DATA)
    return f"{bucket}/m"


@pytest.mark.parametrize("right", [True, False])
def test_pulls_from_a_real_object_store_show_no_secret(
    tmp_path: Path, witness: Witness, seaweedfs: SeaweedFS, model_on_s3: str, right: bool
) -> None:
    secret = seaweedfs.reader.secret_key if right else f"wrong-{seaweedfs.reader.secret_key}"
    environ = {
        "MODELCACHE_ROOT": str(tmp_path / "root"),
        "MODELCACHE_S3_ENDPOINT": seaweedfs.endpoint,
        "AWS_REGION": "us-east-1",
        "AWS_ACCESS_KEY_ID": seaweedfs.reader.access_key,
        "AWS_SECRET_ACCESS_KEY": secret,
        "AWS_SESSION_TOKEN": "",
    }
    in_uri = f"s3://{seaweedfs.reader.access_key}:{quote(secret, safe='')}@{model_on_s3}"
    for arguments, given in (
        (["-v", "pull", f"s3://{model_on_s3}"], ""),
        (["-v", "--json", "pull", "-"], in_uri),
        (["--json", "ls"], ""),
        (["--json", "show", f"s3://{model_on_s3}"], ""),
        (["doctor"], ""),
    ):
        with command(arguments, environ) as process:
            output, errors = process.communicate(given, timeout=DEADLINE_S)
        witness.saw(output, errors)
        assert (process.returncode == 0) == right or arguments[-1] in ("doctor", "ls"), errors
    witness.saw_files(tmp_path / "root")
    witness.check((secret, seaweedfs.reader.secret_key))
