"""`s3://bucket/prefix`: Amazon S3 and what speaks its protocol.

The control plane (credentials, endpoints, regions, listing) is botocore's where there is something for it to find, and ours where
endpoint, region and key are written down (`docs/design/006-s3-without-sdk.md`). The bulk plane is `modelcache.transport` with requests
signed one by one. botocore is imported when it is first needed. Why botocore and not s3fs: `docs/design/001-s3-control-plane.md`.

Not served: directory buckets (`…--x-s3`), multi-region access points, SSE-C.
"""

from modelcache.sources.s3.options import S3Options
from modelcache.sources.s3.sigv4 import Key
from modelcache.sources.s3.source import S3Source

__all__ = ["Key", "S3Options", "S3Source"]
