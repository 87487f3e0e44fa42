"""Real servers for tests, the demo and the benches: loopback only, ephemeral ports, gone when their owner is.

Stdlib and botocore only. `SeaweedFS` speaks S3 with signatures; `FakeGcs` the JSON API of Google Cloud Storage, without credentials;
`FtpServer` FTP; `WebHdfs` is a double of Hadoop's REST API; `Nginx` serves a directory, or stands before another server.
"""

from modelcache.testing.servers.certificates import Certificate
from modelcache.testing.servers.fake_gcs import FakeGcs
from modelcache.testing.servers.ftp import FtpServer
from modelcache.testing.servers.nginx import Nginx, NginxOptions, Request
from modelcache.testing.servers.process import ServerFailed
from modelcache.testing.servers.seaweedfs import PUBLIC_BUCKET, Identity, Put, SeaweedFS
from modelcache.testing.servers.webhdfs import WebHdfs

__all__ = [
    "PUBLIC_BUCKET",
    "Certificate",
    "FakeGcs",
    "FtpServer",
    "Identity",
    "Nginx",
    "NginxOptions",
    "Put",
    "Request",
    "SeaweedFS",
    "ServerFailed",
    "WebHdfs",
]
