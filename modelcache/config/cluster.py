"""Where this pod's API server is, as kubelet tells every pod."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
"""What kubelet mounts: `token` (renewed), `ca.crt`, `namespace` (Kubernetes documentation, Accessing the API from a Pod)."""


def api_server_url(environ: Mapping[str, str] = os.environ) -> str | None:
    """From the variables of the service `kubernetes`; None: this is no pod."""
    host, port = environ.get("KUBERNETES_SERVICE_HOST"), environ.get("KUBERNETES_SERVICE_PORT", "443")
    if not host:
        return None
    return f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}"
