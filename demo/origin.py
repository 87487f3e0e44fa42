"""The S3 server of the demonstration, and what a pull from it says about itself."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from demo.stage import DemoFailed, Row, Stage
from modelcache.testing.servers import SeaweedFS
from modelcache.units import MIB, format_bytes, parse_bytes

BUCKET = "models"
PUT_ONCE_BYTES = 64 * MIB
"""A larger file is put in parts; then no checksum covers all of it, and only the fetch itself tells its sha256."""


@contextmanager
def s3_server(shown: Stage) -> Iterator[SeaweedFS]:
    """SeaweedFS with signatures on, and its address and keys in the environment of the commands."""
    shown.step("An S3 server: SeaweedFS, on this machine alone, that answers only signed requests")
    started_s = time.monotonic()
    with SeaweedFS(shown.directory / "s3") as server:
        server.make_bucket(BUCKET)
        shown.set_environ(
            {
                "AWS_ENDPOINT_URL": server.endpoint,
                "AWS_REGION": "us-east-1",
                "AWS_ACCESS_KEY_ID": server.reader.access_key,
                "AWS_SECRET_ACCESS_KEY": server.reader.secret_key,
                "MODELCACHE_ROOT": str(shown.directory / "store"),
                # over 90 % full, a disk has room enough for what goes again at the end
                "MODELCACHE_HIGH_WATERMARK": "1",
                "MODELCACHE_LOW_WATERMARK": "1",
            }
        )
        shown.row(Row("start an S3 server", time.monotonic() - started_s))
        shown.say(f"AWS_ENDPOINT_URL is {server.endpoint}, and the environment has the keys of somebody who may only read")
        yield server


def put(server: SeaweedFS, directory: Path, prefix: str) -> float:
    """Put a model under s3://models/prefix, with the sha256 of every file that goes in one piece; the seconds it took."""
    started_s = time.monotonic()
    for path in sorted(directory.iterdir()):
        if path.stat().st_size <= PUT_ONCE_BYTES:
            server.put(BUCKET, f"{prefix}/{path.name}", path.read_bytes(), checksum="SHA256")
        else:
            server.put_file(BUCKET, f"{prefix}/{path.name}", path)
    return time.monotonic() - started_s


def pull(shown: Stage, uri: str, what: str) -> int:
    """`modelcache pull`, as a line of the table; how many bytes it fetched, by its own words."""
    ran = shown.run("modelcache", "pull", uri)
    fetched = fetched_bytes(ran.output)
    shown.row(Row(what, ran.seconds, fetched, stored_bytes(shown)))
    return fetched


def fetched_bytes(words: str) -> int:
    """What the last line of a pull says it fetched.

    Raises:
        DemoFailed: it says nothing about that.
    """
    if ": hit: nothing fetched" in words:
        return 0
    found = re.findall(r"fetched ([\d.]+ [KMGT]?i?B), reused", words)
    if not found:
        raise DemoFailed(f"a pull said nothing of what it fetched:\n{words}")
    return parse_bytes(found[-1])


def stored_bytes(shown: Stage) -> int:
    """What the store holds in blobs, by `df`."""
    return int(shown.ask("modelcache", "df", "--json")["blobs_bytes"])


def expect(true: bool, what: str) -> None:
    """Raises DemoFailed unless `true`."""
    if not true:
        raise DemoFailed(what)


def size_of(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.iterdir())


def described(directory: Path) -> str:
    """`5 files, 96.0 MiB`."""
    return f"{len(list(directory.iterdir()))} files, {format_bytes(size_of(directory))}"
