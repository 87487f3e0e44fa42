"""Our own HTTP/1.1 client for moving bytes: ranges from a socket straight into the caller's buffer. Standard library only."""

from modelcache.transport.client import RangeClient, Response
from modelcache.transport.proxies import Proxies
from modelcache.transport.signer import Precondition, SignedRequest, Signer, Unsigned
from modelcache.transport.timeouts import Timeouts

__all__ = ["Precondition", "Proxies", "RangeClient", "Response", "SignedRequest", "Signer", "Timeouts", "Unsigned"]
