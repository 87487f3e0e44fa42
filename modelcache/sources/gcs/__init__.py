"""`gs://bucket/prefix`: Google Cloud Storage and what speaks its JSON API.

Credentials are google-auth's, everything else is ours: requests of both planes go through `modelcache.transport`. google-auth is
imported when a credential is first needed. Why not gcsfs: `docs/design/004-gcs-control-plane.md`.

Not served: objects stored with a Content-Encoding, objects under their customer's own keys, requester-pays buckets of projects that
the credential does not name.
"""

from modelcache.sources.gcs.options import GcsOptions
from modelcache.sources.gcs.source import GcsSource

__all__ = ["GcsOptions", "GcsSource"]
