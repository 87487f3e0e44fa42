"""The S3 servers that the contenders fetch from: SeaweedFS, which checks signatures, and nginx, as cheap as a server gets."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote
from xml.sax.saxutils import escape

import psutil

from modelcache.testing.servers import Certificate, Nginx, NginxOptions, SeaweedFS
from modelcache.testing.servers.seaweedfs import REGION
from modelcache.units import MIB

PREFIX = "model"
PRESIGNED_S = 6 * 3600
READ_BYTES = 8 * MIB


@dataclass(frozen=True, slots=True)
class RemoteObject:
    """One file of the model at a server; `url` can be read as it is (presigned where the server asks for a signature)."""

    name: str
    size_bytes: int
    url: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Served:
    """A model at a running server.

    Attributes:
        uri: ours; its scheme says which contenders can read from it.
        bucket: or repository.
        environ: what an SDK needs to read it: endpoint, region, keys, CA.
        backing: the files that hold the model on the server's side.
        pids: the server's processes now.
    """

    server: str
    uri: str
    bucket: str
    objects: tuple[RemoteObject, ...]
    environ: Mapping[str, str] = field(repr=False)
    backing: tuple[Path, ...]
    pids: Callable[[], list[int]]

    @property
    def scheme(self) -> str:
        return self.uri.partition(":")[0]

    @property
    def size_bytes(self) -> int:
        return sum(each.size_bytes for each in self.objects)

    def warm(self) -> None:
        """Have the server's files in the page cache."""
        buffer = bytearray(READ_BYTES)
        for path in self.backing:
            with path.open("rb", buffering=0) as file:
                while file.readinto(buffer):
                    pass

    def cpu_s(self) -> float:
        """CPU seconds that the server has used so far."""
        times = [psutil.Process(pid).cpu_times() for pid in self.pids()]
        return sum(each.user + each.system for each in times)

    def pin(self, cores: set[int]) -> None:
        """Keep every thread of the server on these cores; those that it starts later inherit them."""
        for pid in self.pids():
            for task in os.listdir(f"/proc/{pid}/task"):
                os.sched_setaffinity(int(task), cores)


@contextmanager
def nginx_with(root: Path, bucket: str, certificate: Certificate | None = None) -> Iterator[Served]:
    """`root/bucket/model/` behind nginx, as a bucket: path-style GET, HEAD and ranges, a listing made once, signatures unread."""
    paths = sorted((root / bucket / PREFIX).iterdir())
    listing = root / f"{bucket}.xml"
    listing.write_text(_listing(bucket, paths))
    exactly = f'location = /{bucket} {{ default_type application/xml; alias "{listing.resolve()}"; }}'
    with Nginx(root, NginxOptions(certificate=certificate, log_requests=False, more=exactly)) as server:
        objects = tuple(RemoteObject(path.name, path.stat().st_size, f"{server.endpoint}/{bucket}/{PREFIX}/{path.name}") for path in paths)
        environ = _environ(server.endpoint, "unread", "unread") | trusting(certificate)
        name = "nginx" if certificate is None else "nginx-tls"
        yield Served(name, f"s3://{bucket}/{PREFIX}", bucket, objects, environ, tuple(paths), server.pids)


@contextmanager
def seaweedfs_with(directory: Path, bucket: str, model: Path, certificate: Certificate | None = None) -> Iterator[Served]:
    """The files of `model` in SeaweedFS; put there once, and kept in `directory` for the next time.

    With a certificate nginx speaks TLS before it, as an ingress does.
    """
    with ExitStack() as running:
        server = running.enter_context(SeaweedFS(directory))
        pids, endpoint = server.pids, server.endpoint
        if certificate is not None:
            options = NginxOptions(upstream=server.endpoint, certificate=certificate, log_requests=False)
            front = running.enter_context(Nginx(directory, options))
            endpoint, pids = front.endpoint, lambda: [*server.pids(), *front.pids()]
        paths = sorted(model.iterdir())
        sizes = {f"{PREFIX}/{path.name}": path.stat().st_size for path in paths}
        names = [each["Name"] for each in server.client().list_buckets()["Buckets"]]
        if bucket not in names:
            server.make_bucket(bucket)
        listed = server.client().list_objects_v2(Bucket=bucket).get("Contents", [])
        if {each["Key"]: each["Size"] for each in listed} != sizes:
            server.put_tree(bucket, PREFIX, model)
        objects = tuple(
            RemoteObject(
                path.name,
                path.stat().st_size,
                server.presign(bucket, f"{PREFIX}/{path.name}", expires_s=PRESIGNED_S, identity=server.reader),
            )
            for path in paths
        )
        backing = tuple((directory / "data").rglob(f"{bucket}_*.dat"))
        environ = _environ(endpoint, server.reader.access_key, server.reader.secret_key) | trusting(certificate)
        name = "seaweedfs" if certificate is None else "seaweedfs-tls"
        yield Served(name, f"s3://{bucket}/{PREFIX}", bucket, objects, environ, backing, pids)


def trusting(certificate: Certificate | None) -> dict[str, str]:
    """What makes every contender trust the CA: botocore's name for it, OpenSSL's and Go's, requests', ours."""
    names = ("AWS_CA_BUNDLE", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "MODELCACHE_HTTP_CA_FILE")
    return {} if certificate is None else dict.fromkeys(names, str(certificate.ca))


def _environ(endpoint: str, access_key: str, secret_key: str) -> dict[str, str]:
    return {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": access_key,
        "AWS_SECRET_ACCESS_KEY": secret_key,
        "AWS_REGION": REGION,
        "AWS_DEFAULT_REGION": REGION,
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    }


def _listing(bucket: str, paths: list[Path]) -> str:
    """The answer to ListObjectsV2, with the ETags that nginx gives: hex of mtime and of size."""
    contents = []
    for path in paths:
        stat = path.stat()
        etag = f'"{int(stat.st_mtime):x}-{stat.st_size:x}"'
        contents.append(
            f"<Contents><Key>{escape(f'{PREFIX}/{quote(path.name)}')}</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified>"
            f"<ETag>{escape(etag)}</ETag><Size>{stat.st_size}</Size><StorageClass>STANDARD</StorageClass></Contents>"
        )
    return (
        '<?xml version="1.0" encoding="UTF-8"?>\n<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
        f"<Name>{bucket}</Name><Prefix></Prefix><KeyCount>{len(paths)}</KeyCount><MaxKeys>{max(1000, len(paths))}</MaxKeys>"
        f"<IsTruncated>false</IsTruncated>{''.join(contents)}</ListBucketResult>"
    )
