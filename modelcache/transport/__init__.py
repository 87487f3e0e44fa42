"""Our own HTTP/1.1 client for moving bytes: ranges from a socket straight into the caller's buffer. Standard library only."""

from modelcache.transport.client import RangeClient, Response
from modelcache.transport.proxies import Proxies
from modelcache.transport.redirects import MAX_REDIRECTS, redirected
from modelcache.transport.signer import Precondition, SignedRequest, Signer, Unsigned
from modelcache.transport.status import error_of_status, retry_after_s
from modelcache.transport.target import Target, safe_address
from modelcache.transport.timeouts import Timeouts
from modelcache.transport.tls import ca_sha256

__all__ = [
    "MAX_REDIRECTS",
    "Precondition",
    "Proxies",
    "RangeClient",
    "Response",
    "SignedRequest",
    "Signer",
    "Target",
    "Timeouts",
    "Unsigned",
    "ca_sha256",
    "error_of_status",
    "redirected",
    "retry_after_s",
    "safe_address",
]
