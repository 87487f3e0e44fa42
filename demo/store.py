"""First half: a model on an authenticated S3 server, pulled, verified, pulled again, and stored once under two names.

    python -m demo.store [MIB]

The model has the form of a Llama in three safetensors files, and random bits for weights; MIB is its size (96).
"""

from __future__ import annotations

import secrets
import sys

from demo.origin import BUCKET, described, expect, pull, put, s3_server, size_of, stored_bytes
from demo.stage import Row, Stage, stage
from modelcache.chunks import CHUNK_BYTES
from modelcache.cli.exit_codes import ExitCode
from modelcache.testing.models import write_stand_in
from modelcache.testing.servers import SeaweedFS
from modelcache.units import MIB

SIZE_MIB = 96
SHARDS = 3
NAME, OTHER_NAME = "llama", "team-b/llama-copy"
URI, OTHER_URI = f"s3://{BUCKET}/{NAME}", f"s3://{BUCKET}/{OTHER_NAME}"


def main(size_mib: int = SIZE_MIB) -> None:
    with stage("From an S3 server to verified weights") as shown, s3_server(shown) as server:
        perform(shown, server, size_mib)


def perform(shown: Stage, server: SeaweedFS, size_mib: int) -> None:
    """Every step, and the table.

    Raises:
        DemoFailed: a step did not do what it says.
    """
    model = write_stand_in(shown.directory / "model", size_bytes=size_mib * MIB, shards=SHARDS, seed=secrets.randbits(32))
    size_bytes = size_of(model)
    shown.step(f"A model on it: {described(model)}, in the form of a Llama, with random bits for weights")
    shown.row(Row("put the model on it", put(server, model, NAME)))

    shown.step("Without a key the server says no, and so does modelcache")
    shown.run("modelcache", "pull", URI, expect=ExitCode.ACCESS_DENIED, MODELCACHE_S3_ANONYMOUS="true")

    shown.step("Pull it: fetched, hashed as it arrives, compared with what the server states, published whole")
    fetched = pull(shown, URI, "pull")
    stored = stored_bytes(shown)
    expect(fetched >= size_bytes * 0.99, f"{fetched:,} bytes were fetched of {size_bytes:,}")

    shown.step("Verify it: read every byte back from the disk and compare")
    verified = shown.run("modelcache", "verify", URI)
    shown.row(Row("verify", verified.seconds, 0, stored))

    shown.step("Pull it again: the server is asked whether it changed, and nothing is fetched")
    expect(pull(shown, URI, "pull again") == 0, "the second pull fetched something")

    shown.step("The same bytes under another name: no weights are fetched, since the server states their sha256, and all is stored once")
    put(server, model, OTHER_NAME)
    small_bytes = sum(path.stat().st_size for path in model.iterdir() if path.stat().st_size <= CHUNK_BYTES)  # cheaper than to ask first
    expect(pull(shown, OTHER_URI, "pull under another name") <= small_bytes, "weights that were here were fetched once more")
    expect(stored_bytes(shown) == stored, "bytes that were here were stored once more")

    shown.step("What is here, and where the room went")
    shown.run("modelcache", "ls")
    shown.run("modelcache", "df")
    shown.table()
    shown.good("One copy, two names, every byte verified; the server and the store of this demonstration are gone now.")


if __name__ == "__main__":
    main(*(int(argument) for argument in sys.argv[1:]))
