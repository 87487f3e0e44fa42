"""Google Cloud Storage's JSON API, spoken by fake-gcs-server with its objects in memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from urllib.parse import quote

from bench.origins import PREFIX, RemoteObject, Served, trusting
from modelcache.testing.servers import Certificate, FakeGcs, Nginx, NginxOptions


@contextmanager
def gcs_with(directory: Path, bucket: str, model: Path, certificate: Certificate | None = None) -> Iterator[Served]:
    """The files of `model` in a bucket; with a certificate nginx speaks TLS before the server."""
    with ExitStack() as running:
        server = running.enter_context(FakeGcs(directory))
        server.make_bucket(bucket)
        paths = sorted(model.iterdir())
        for path in paths:
            server.put(bucket, f"{PREFIX}/{path.name}", path.read_bytes())
        endpoint, pids = server.endpoint, server.pids
        if certificate is not None:
            options = NginxOptions(upstream=server.endpoint, certificate=certificate, log_requests=False)
            front = running.enter_context(Nginx(directory, options))
            endpoint, pids = front.endpoint, lambda: [*server.pids(), *front.pids()]
        objects = tuple(
            RemoteObject(
                path.name,
                path.stat().st_size,
                f"{endpoint}/storage/v1/b/{bucket}/o/{quote(f'{PREFIX}/{path.name}', safe='')}?alt=media",
            )
            for path in paths
        )
        environ = {"STORAGE_EMULATOR_HOST": endpoint, "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false"} | trusting(certificate)
        name = "gcs" if certificate is None else "gcs-tls"
        yield Served(name, f"gs://{bucket}/{PREFIX}", bucket, objects, environ, (), pids)
